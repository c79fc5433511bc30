"""What we write into Feast's online stores, SQLite and Redis, Feast's own SDK reads back."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from pipelines.adapters.feast_online import open_online
from pipelines.adapters.feast_registry import open_store
from pipelines.contracts.clocks import to_us
from pipelines.contracts.errors import TransientError
from pipelines.features.online_layout import Frame, bare, keys_of
from pipelines.features.publishing import OnlineRows, Pending
from pipelines.spec.view import ViewSpec
from tests.contract.feast_repositories import STORES, Repository, installation, redis_settings
from tests.redis_server import running_redis

NOON = to_us(datetime(2013, 7, 1, 12, tzinfo=UTC))
HOUR = 3_600_000_000


def _spec() -> ViewSpec:
    kinds = {"f64": "float64", "f32": "float32", "i64": "int64", "i32": "int32", "flag": "bool", "text": "string"}
    return ViewSpec.model_validate(
        {
            "name": "every_type",
            "owner": "o",
            "description": "d",
            "entity": {"name": "thing", "keys": {"name": "string", "number": "int64"}},
            "datasets": ["weather"],
            "transform": "weather_at_origin.py:build",
            "features": {name: {"type": kind} for name, kind in kinds.items()},
            "look_back": "1h event_time",
            "publish_every": "1h event_time",
            "freshness": "1h event_time",
        }
    )


def _rows(*rows: dict[str, Any]) -> pa.Table:
    stamp = pa.timestamp("us", tz="UTC")
    schema = pa.schema(
        [
            ("name", pa.string()),
            ("number", pa.int64()),
            ("f64", pa.float64()),
            ("f32", pa.float32()),
            ("i64", pa.int64()),
            ("i32", pa.int32()),
            ("flag", pa.bool_()),
            ("text", pa.string()),
            ("event_timestamp", stamp),
            ("created_timestamp", stamp),
        ]
    )
    return pa.Table.from_pylist(list(rows), schema=schema)


def _row(name: str, number: int, at_us: int, **values: Any) -> dict[str, Any]:
    return {"name": name, "number": number, "event_timestamp": at_us, "created_timestamp": at_us, **values}


VIEW = "every_type__0001"


@pytest.fixture(scope="module", params=STORES)
def repository(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    from feast.types import Bool, Float32, Float64, Int32, Int64, String

    types = {"f64": Float64, "f32": Float32, "i64": Int64, "i32": Int32, "flag": Bool, "text": String}
    with installation(request.param, tmp_path_factory.mktemp(request.param)) as settings:
        yield Repository(settings, VIEW, {"name": "string", "number": "int64"}, types)


def write(repository: Repository, rows: pa.Table, as_of_us: int) -> int:
    """Make the rows that are due by a moment readable; how many were taken."""
    pending = Pending(_spec(), rows)
    taken = pending.take(as_of_us)
    with open_online(repository.settings) as online:
        online.create(VIEW)
        online.write(VIEW, pending.features, taken, as_of_us)
    return len(taken)


def through(repository: Repository) -> int:
    """How far the view is; 0 for never."""
    with open_online(repository.settings) as online:
        return online.through_us(VIEW) or 0


def test_every_type_and_null_come_back_through_the_sdk(repository: Repository) -> None:
    rows = _rows(
        _row("EWR", 1, NOON, f64=1.5, f32=0.25, i64=-(2**60), i32=-7, flag=True, text="Zürich"),
        _row("JFK", -2, NOON, f64=-0.0, f32=None, i64=2**62, i32=2**31 - 1, flag=False, text=""),
        _row("LGA", 3, NOON),
    )
    write(repository, rows, NOON)
    asked = [{"name": name, "number": number} for name, number in {"EWR": 1, "JFK": -2, "LGA": 3, "X": 1}.items()]
    got = repository.by_sdk(*asked)
    assert got["f64"] == [1.5, -0.0, None, None]
    assert got["f32"] == [0.25, None, None, None]
    assert got["i64"] == [-(2**60), 2**62, None, None]
    assert got["i32"] == [-7, 2**31 - 1, None, None]
    assert got["flag"] == [True, False, None, None]
    assert got["text"] == ["Zürich", "", None, None]
    assert got["f64__ts"][:2] == [NOON // 1_000_000] * 2
    read = repository.by_gateway(NOON, *asked)
    assert read.logged.values == [got[name] for name in repository.features]
    assert read.logged.event_us == [NOON, NOON, NOON, None]


def test_only_the_newest_row_of_a_key_becomes_readable_and_an_older_one_never_overwrites_it(
    repository: Repository,
) -> None:
    def readable() -> Any:
        return repository.by_sdk({"name": "OLD", "number": 1})["f64"]

    history = _rows(
        _row("OLD", 1, NOON - HOUR, f64=1.0), _row("OLD", 1, NOON, f64=2.0), _row("OLD", 1, NOON + HOUR, f64=3.0)
    )
    before = through(repository)
    assert write(repository, history, NOON) == 1  # though two rows were due
    assert readable() == [2.0]
    write(repository, history.slice(0, 1), NOON - HOUR)
    assert readable() == [2.0]
    assert through(repository) == max(before, NOON)
    write(repository, history, NOON + HOUR)
    assert readable() == [3.0]


@given(st.permutations([NOON + step for step in (-900 * 24 * HOUR, -HOUR, -1_000_000, 0, 1_000_000, HOUR)]))
@examples(max_examples=20, deadline=None)
def test_in_whatever_order_rows_arrive_the_newest_stands(repository: Repository, order: list[int]) -> None:
    name = "-".join(str(at_us) for at_us in order)
    for at_us in order:
        write(repository, _rows(_row(name, 1, at_us, f64=float(at_us))), at_us)
    assert repository.by_sdk({"name": name, "number": 1})["f64"] == [float(max(order))]


def test_a_write_that_fails_can_be_done_again_and_says_nothing_too_early(repository: Repository) -> None:
    pending = Pending(_spec(), _rows(_row("TORN", 1, NOON, f64=1.0)))
    rows = pending.take(NOON)

    class Torn(OnlineRows):
        def messages(self, frame: Frame = bare) -> list[list[bytes]]:
            return [[*of, object()] for of in rows.messages(frame)]

    twice = {name: getattr(rows, name) * 2 for name in ("event_us", "created_us")}
    columns = [pa.chunked_array([column.to_pylist() * 2]) for column in rows.columns]
    torn = Torn(keys=[*rows.keys, b"\xff"], columns=columns, types=rows.types, **twice)
    with open_online(repository.settings) as online:
        online.create(VIEW)
        before = through(repository)
        with pytest.raises(Exception, match=r"bind|bytes-like"):
            online.write(VIEW, pending.features, torn, NOON + 5 * HOUR)
        assert through(repository) == before
        online.write(VIEW, pending.features, rows, NOON + 5 * HOUR)
        assert through(repository) == max(before, NOON + 5 * HOUR)
    assert repository.by_sdk({"name": "TORN", "number": 1})["f64"] == [1.0]


def test_the_sqlite_store_is_in_wal_mode_and_read_while_it_is_written(tmp_path: Path) -> None:
    with installation("sqlite", tmp_path) as settings, open_online(settings) as online:
        online.create(VIEW)
        path = settings.feast_dir / "online_store.db"
        with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as writer:
            assert writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            writer.execute("BEGIN IMMEDIATE")
            with closing(sqlite3.connect(path, timeout=0)) as reader:
                assert reader.execute(f'SELECT count(*) FROM "slipway_{VIEW}"').fetchone() == (0,)


def test_redis_keeps_microseconds_so_rows_of_one_second_have_an_order(tmp_path: Path) -> None:
    from feast.types import Float64

    with installation("redis", tmp_path) as settings:
        repository = Repository(settings, VIEW, {"name": "string", "number": "int64"}, {"f64": Float64})
        for step, value in ((250_001, 1.0), (250_000, 2.0), (250_001, 3.0), (250_002, 4.0)):
            write(repository, _rows(_row("A", 1, NOON + step, f64=value)), NOON + HOUR)
            assert repository.by_sdk({"name": "A", "number": 1})["f64"] == [4.0 if value == 4.0 else 1.0]


def test_redis_that_has_lost_everything_has_lost_its_progress_too(tmp_path: Path) -> None:
    with running_redis() as server, open_online(redis_settings(tmp_path, server)) as online:
        pending = Pending(_spec(), _rows(_row("A", 1, NOON, f64=1.0)))
        online.write(VIEW, pending.features, pending.take(NOON), NOON)
        assert online.through_us(VIEW) == NOON
        server.kill()
        with pytest.raises(TransientError, match="SLIPWAY_REDIS_URL"):
            online.through_us(VIEW)
        server.start()
        assert online.through_us(VIEW) is None


def test_no_secret_of_redis_is_written_and_feasts_own_tools_find_it_in_the_environment(tmp_path: Path) -> None:
    from feast import FeatureStore

    with running_redis() as server:
        settings = redis_settings(tmp_path, server)
        ours = open_store(settings)
        file = settings.feast_dir / "feature_store.yaml"
        assert server.password not in file.read_text()
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("SLIPWAY_REDIS_PASSWORD", server.password)
            theirs = FeatureStore(fs_yaml_file=file)
        assert theirs.config.online_store == ours.config.online_store


def test_an_entity_that_is_forgotten_leaves_nothing_and_the_others_stay(repository: Repository) -> None:
    rows = _rows(*(_row(name, 1, NOON + HOUR, f64=4.5, text=f"of {name}") for name in ("gone", "stays")))
    write(repository, rows, NOON + HOUR)
    with open_online(repository.settings) as online:
        named = {}
        for key in online.entities():
            with suppress(ValueError):  # what else lies in the store
                named[keys_of(key)["name"], keys_of(key)["number"]] = key
        online.forget([named["gone", 1]])
        left = set(online.entities())
    assert named["gone", 1] not in left
    assert named["stays", 1] in left
    got = repository.by_sdk({"name": "gone", "number": 1}, {"name": "stays", "number": 1})
    assert got["f64"] == [None, 4.5]
    stores = repository.settings.feast_dir.glob("online_store.db*")
    assert not [path for path in stores if b"of gone" in path.read_bytes()]
