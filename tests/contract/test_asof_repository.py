"""AsofOfflineStore in a plain Feast repository, asked through Feast's SDK, against brute force; local files and S3."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contract.asof_repository import BASE, CARRIERS, MINUTES, PLACES, Known, make, moment
from tests.s3_server import S3Server
from tests.s3_tables import lake_on_s3

FEATURES = {"carriers": "rate", "routes": "share", "season": "cold"}


class Repository(NamedTuple):
    store: Any
    known: dict[str, Known]
    place: str
    server: S3Server | None

    def __repr__(self) -> str:
        return self.place


@pytest.fixture(scope="module", params=["local", "s3"])
def repository(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "local":
        yield Repository(*make(folder, str(folder)), str(folder), None)
        return
    server = request.getfixturevalue("s3")
    with lake_on_s3(server):
        yield Repository(*make(folder, "s3://lake/files", server.endpoint), "s3://lake/files", server)


minutes = st.one_of(st.none(), st.integers(-30, MINUTES + 30), st.sampled_from(range(0, MINUTES, 45)))
asked_rows = st.lists(
    st.tuples(st.sampled_from([*CARRIERS, "ZZ"]), st.sampled_from(PLACES), st.sampled_from(PLACES), minutes),
    max_size=10,
)


@given(asked_rows, st.sampled_from(["naive", "utc", "york", "sql"]), st.booleans(), st.booleans())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_every_answer_is_that_of_brute_force(
    repository: Repository, rows: list[tuple[Any, ...]], kind: str, full: bool, cutoff: bool
) -> None:
    asked: Any = _asked(rows, kind)
    refs = [f"{view}:{feature}" for view, feature in FEATURES.items()]
    job = repository.store.get_historical_features(
        asked, refs, full_feature_names=full, filter_by_created_timestamp=cutoff
    )
    answer = job.to_arrow()
    assert answer.column("number").to_pylist() == list(range(len(rows)))
    for view, feature in FEATURES.items():
        keys = {"carriers": (0,), "routes": (1, 2), "season": ()}[view]
        expected = [
            repository.known[view].answer(tuple(row[key] for key in keys), row[3], cutoff=cutoff) for row in rows
        ]
        got = answer.column(f"{view}__{feature}" if full else feature)
        assert got.to_pylist() == expected, view
        assert got.type == pa.float64()


def _asked(rows: list[tuple[Any, ...]], kind: str) -> pd.DataFrame | str:
    """Entity rows as a frame with naive, UTC or New York times, or as SQL."""
    if kind == "sql":
        if not rows:
            return f"SELECT * FROM ({_asked([('AA', 'EWR', 'JFK', 0)], kind)}) WHERE false"

        def text(value: Any) -> str:
            return "NULL" if value is None else f"'{value}'"

        values = ", ".join(
            f"({index}, {text(a)}, {text(b)}, {text(c)}, {text(moment(t))}::TIMESTAMPTZ)"
            for index, (a, b, c, t) in enumerate(rows)
        )
        return f"SELECT * FROM (VALUES {values}) v(number, carrier, origin, dest, event_timestamp)"
    times = pd.Series([moment(row[3]) for row in rows], dtype="datetime64[ns, UTC]")
    times = {"naive": times.dt.tz_localize(None), "utc": times, "york": times.dt.tz_convert("America/New_York")}[kind]
    columns = {name: [row[at] for row in rows] for at, name in enumerate(("carrier", "origin", "dest"))}
    return pd.DataFrame({"number": range(len(rows)), **columns, "event_timestamp": times}).astype(
        dict.fromkeys(columns, object)
    )


@given(st.lists(st.tuples(st.sampled_from(CARRIERS), st.sampled_from(CARRIERS), minutes), min_size=1, max_size=6))
@settings(max_examples=10, deadline=None, derandomize=True)
def test_a_service_joins_a_view_twice_under_other_keys(repository: Repository, rows: list[tuple[Any, ...]]) -> None:
    from feast import FeatureService

    view = repository.store.get_feature_view("carriers")
    service = FeatureService(
        name="both",
        features=[
            view.with_name("mine").with_join_key_map({"carrier": "my_carrier"}),
            view.with_name("theirs").with_join_key_map({"carrier": "their_carrier"}),
        ],
    )
    repository.store.apply([service])
    times = pd.Series([moment(row[2]) for row in rows], dtype="datetime64[ns, UTC]")
    asked = pd.DataFrame({"my_carrier": [r[0] for r in rows], "their_carrier": [r[1] for r in rows], "when": times})
    answer = repository.store.get_historical_features(asked, service, full_feature_names=True).to_arrow()
    known = repository.known["carriers"]
    for at, name in enumerate(("mine", "theirs")):
        expected = [known.answer((row[at],), row[2], cutoff=False) for row in rows]
        assert answer.column(f"{name}__rate").to_pylist() == expected


@pytest.mark.parametrize("full", [False, True])
def test_an_on_demand_view_is_computed_from_what_was_joined(repository: Repository, full: bool) -> None:
    asked = _asked([("AA", "EWR", "JFK", at) for at in (-1, 500, 5000)], "utc")
    assert isinstance(asked, pd.DataFrame)
    job = repository.store.get_historical_features(
        asked.assign(extra=[1.0, 2.0, 3.0]), ["summed:rate_and_extra"], full_feature_names=full
    )
    known = [repository.known["carriers"].answer(("AA",), at, cutoff=False) for at in (-1, 500, 5000)]
    got = job.to_df()["summed__rate_and_extra" if full else "rate_and_extra"]
    expected = [None if rate is None else rate + extra for rate, extra in zip(known, (1.0, 2.0, 3.0), strict=True)]
    assert [None if math.isnan(value) else value for value in got] == expected
    assert job.on_demand_feature_views[0].name == "summed"
    assert job.full_feature_names is full


def test_without_an_entity_frame_every_row_of_the_span_is_asked_for(repository: Repository) -> None:
    start, end = BASE + timedelta(minutes=450), BASE + timedelta(minutes=1800)
    job = repository.store.get_historical_features(None, ["carriers:rate"], start_date=start, end_date=end)
    answer = job.to_arrow()
    known = repository.known["carriers"]
    asked = {(row[0][0], row[1]) for row in known.rows if row[1] is not None and 450 <= row[1] <= 1800}
    expected = {(key, moment(at), known.answer((key,), at, cutoff=False)) for key, at in asked}
    assert set(zip(*answer.to_pydict().values(), strict=True)) == expected
    assert answer.num_rows == len(expected)
    assert job.metadata.min_event_timestamp == start


def test_newest_and_all_rows_of_a_span_are_pulled(repository: Repository) -> None:
    from pipelines.adapters.feast_asof import AsofOfflineStore

    view = repository.store.get_feature_view("routes")
    span = (BASE + timedelta(minutes=900), BASE + timedelta(minutes=2700))
    arguments = (
        repository.store.config,
        view.batch_source,
        ["origin", "dest"],
        ["share"],
        "event_timestamp",
        "created",
    )
    inside = [row for row in repository.known["routes"].rows if row[1] is not None and 900 <= row[1] <= 2700]
    everything = AsofOfflineStore.pull_all_from_table_or_query(*arguments, *span).to_arrow()
    assert sorted(everything.column("share").to_pylist()) == sorted(row[3] for row in inside)
    newest: dict[Any, Any] = {}
    for row in inside:
        order = (row[1], -1 if row[2] is None else row[2], row[3])
        newest[row[0]] = max(newest.get(row[0], order), order)
    latest = AsofOfflineStore.pull_latest_from_table_or_query(*arguments, *span).to_arrow()
    got = {(row["origin"], row["dest"]): row["share"] for row in latest.to_pylist()}
    assert got == {keys: order[2] for keys, order in newest.items()}
    one = AsofOfflineStore.pull_latest_from_table_or_query(*arguments[:2], [], *arguments[3:], *span).to_arrow()
    assert one.num_rows == 1


@pytest.mark.filterwarnings("ignore:.*dataset.* is an experimental feature:RuntimeWarning")
@pytest.mark.parametrize("form", ["file.parquet", "folder", "delta"])
def test_an_answer_is_kept_and_not_overwritten_unasked(repository: Repository, form: str) -> None:
    from feast.data_format import DeltaFormat
    from feast.errors import SavedDatasetLocationAlreadyExists
    from feast.infra.offline_stores.file_source import SavedDatasetFileStorage

    rows = [("AA", "EWR", "JFK", at) for at in (0, 500, 2000)]
    job = repository.store.get_historical_features(_asked(rows, "utc"), ["carriers:rate"])
    storage = SavedDatasetFileStorage(
        f"{repository.place}/kept/{form}",
        file_format=DeltaFormat() if form == "delta" else None,
        s3_endpoint_override=repository.server.endpoint if repository.server else "",
    )
    kept = repository.store.create_saved_dataset(from_=job, name=f"kept_{form}", storage=storage)
    assert kept.min_event_timestamp == moment(0)
    assert kept.max_event_timestamp == moment(2000)
    again = repository.store.get_saved_dataset(f"kept_{form}").to_df().sort_values("event_timestamp")
    assert again["rate"].isna().tolist() == [True, False, False]
    assert again["rate"].dropna().tolist() == job.to_df()["rate"].dropna().tolist()
    with pytest.raises(SavedDatasetLocationAlreadyExists):
        job.persist(storage)
    job.persist(storage, allow_overwrite=True)
    assert len(repository.store.get_saved_dataset(f"kept_{form}").to_df()) == 3


def test_metadata_names_features_keys_and_edges(repository: Repository) -> None:
    job = repository.store.get_historical_features(
        _asked([("AA", "EWR", "JFK", 7), ("UA", None, None, 9)], "sql"), ["carriers:rate"]
    )
    metadata = job.metadata
    assert (metadata.features, metadata.keys) == (["carriers:rate"], ["number", "carrier", "origin", "dest"])
    assert (metadata.min_event_timestamp, metadata.max_event_timestamp) == (moment(7), moment(9))


def test_rows_pushed_to_the_offline_store_are_read_next_time(repository: Repository) -> None:
    """`store.write_to_offline_store` writes a view's source: a Parquet file here, a Delta table there."""
    late = MINUTES + 10_000
    for view, keys in {"carriers": {"carrier": ["NEW"]}, "routes": {"origin": ["NEW"], "dest": ["JFK"]}}.items():
        source = repository.store.get_feature_view(view).batch_source
        frame = pd.DataFrame(
            {
                **keys,
                source.timestamp_field: [moment(late)],
                source.created_timestamp_column: [moment(late)],
                {"carriers": "rate_raw", "routes": "share"}[view]: [77.0],
                "unused": [0],
            }
        )
        if repository.server is None or view == "carriers":
            repository.store.write_to_offline_store(view, frame)
        else:  # Feast's own look at a Delta table's columns cannot reach an endpoint without TLS
            from pipelines.adapters.feast_asof import AsofOfflineStore

            AsofOfflineStore.offline_write_batch(
                repository.store.config, repository.store.get_feature_view(view), pa.Table.from_pandas(frame), None
            )
        asked = pd.DataFrame({**keys, "event_timestamp": [moment(late)]})
        feature = FEATURES[view]
        assert repository.store.get_historical_features(asked, [f"{view}:{feature}"]).to_df()[feature].tolist() == [
            77.0
        ]


def test_logged_features_are_appended_to_their_destination(repository: Repository, tmp_path: Path) -> None:
    from feast.feature_logging import LoggingConfig
    from feast.infra.offline_stores.file_source import FileLoggingDestination

    from pipelines.adapters.feast_asof import AsofOfflineStore
    from pipelines.adapters.s3_storage import arrow_filesystem

    endpoint = repository.server.endpoint if repository.server else ""
    place = f"{repository.place}/logged"
    config = LoggingConfig(destination=FileLoggingDestination(path=place, s3_endpoint_override=endpoint))
    pages = tmp_path / "pages"
    pages.mkdir()
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"n": [2, 3]}), pages / "0.parquet")
    for data in (pa.table({"n": [1]}), pages):
        AsofOfflineStore.write_logged_features(repository.store.config, data, None, config, None)
    filesystem, inner = arrow_filesystem(place, endpoint) if endpoint else (None, place)
    read = ds.dataset(inner, filesystem=filesystem, format="parquet").to_table()
    assert sorted(read.column("n").to_pylist()) == [1, 2, 3]


def test_the_answers_sql_runs_anywhere_and_gives_the_same(repository: Repository) -> None:
    import duckdb

    rows = [(carrier, "EWR", "JFK", at) for carrier in ("AA", "UA", None) for at in range(0, MINUTES, 300)]
    refs = [f"{view}:{feature}" for view, feature in FEATURES.items()]
    for kind, cutoff in (("utc", False), ("sql", True)):
        entity_df = _asked(rows, kind)
        job = repository.store.get_historical_features(entity_df, refs, filter_by_created_timestamp=cutoff)
        if repository.server is not None:
            with pytest.raises(NotImplementedError, match="s3://"):
                job.to_sql()
            continue
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone='UTC'")
            assert connection.execute(job.to_sql()).fetch_arrow_table().to_pylist() == job.to_arrow().to_pylist()


def test_rows_of_other_columns_and_sources_of_other_kinds_are_refused(repository: Repository) -> None:
    from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource

    from pipelines.adapters.feast_asof import AsofOfflineStore

    view = repository.store.get_feature_view("routes")
    with pytest.raises(ValueError, match="columns"):
        AsofOfflineStore.offline_write_batch(repository.store.config, view, pa.table({"origin": ["EWR"]}), None)
    other = PostgreSQLSource(name="elsewhere", query="SELECT 1", timestamp_field="at")
    job = AsofOfflineStore.pull_all_from_table_or_query(repository.store.config, other, [], ["x"], "at")
    with pytest.raises(ValueError, match="FileSource; got PostgreSQLSource 'elsewhere'"):
        job.to_arrow()
