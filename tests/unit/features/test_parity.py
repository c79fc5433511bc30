"""What was read online against the lake: healthy serving passes, and each kind of fault is told for what it is."""

from __future__ import annotations

import json
import sqlite3
import struct
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from pipelines.adapters.delta_lake import DeltaLake
from pipelines.cli import feature as cli
from pipelines.contracts.errors import ContractError, NotFoundError
from pipelines.features.parity import Bars, ParityReport, Read, ViewParity, compare, from_json
from pipelines.features.parity_page import markdown
from pipelines.settings import PROJECT, Settings
from pipelines.spec.loading import names
from pipelines.wiring import features, parity
from tests.unit.features.logged_requests import HOUR_US, MODEL, LoggedRequests

START = "2013-01-18T10:00:00Z"
BARS = Bars(tolerance={"x": 0.5}, lag_us=HOUR_US, wrong_share=0.0, late_share=0.0)


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory, sample_views: Settings) -> LoggedRequests:
    return LoggedRequests(tmp_path_factory.mktemp("parity"), sample_views)


@pytest.fixture(scope="module")
def healthy(logged: LoggedRequests) -> ParityReport:
    """Ten hours of requests, with every view published each hour."""
    with features.Publisher(logged.settings) as publisher:
        assert logged.answer("healthy", START, 10, publish=publisher.tick) > 80
    return parity.of_stage(logged.settings, MODEL, "healthy", "shadow")


def _view(report: ParityReport, name: str) -> ViewParity:
    return next(view for view in report.views if view.view.startswith(name))


def _overwrite(logged: LoggedRequests, view: str, feature: str, value: float) -> int:
    """Overwrite a feature of every row that is online; how many rows it was."""
    version = next(pin.view for pin in logged.pins if pin.view.startswith(view))
    with sqlite3.connect(logged.settings.feast_dir / "online_store.db") as connection:
        return connection.execute(
            f'UPDATE "slipway_{version}" SET value = ? WHERE feature_name = ?',
            (struct.pack("<Bd", 0x29, value), feature),
        ).rowcount


def test_healthy_serving_of_every_view_of_the_sample_passes(healthy: ParityReport) -> None:
    assert healthy.verdict == "pass", healthy.sentence
    assert {view.view.rpartition("__")[0] or view.view for view in healthy.views} == {
        *names(PROJECT / "include", "features"),
        "inputs",
    }
    for view in healthy.views:
        assert (view.wrong, view.late, view.unread) == (0, 0, 0)
        assert sum(one.compared for one in view.features) > 80, view.view  # a test of nothing but nulls would be none


def test_a_unit_mistake_online_is_found_with_its_feature_and_is_no_lag(
    logged: LoggedRequests, healthy: ParityReport
) -> None:
    assert _overwrite(logged, "weather_at_origin", "temp", 4.0) == 3  # Celsius where Fahrenheit was meant
    logged.answer("celsius", "2013-01-18T19:00:00Z", 1)
    report = parity.of_stage(logged.settings, MODEL, "celsius", "shadow")
    assert report.verdict == "fail"
    weather = _view(report, "weather")
    assert (weather.mismatched, weather.missing, weather.extra, weather.lagging) == (weather.rows, 0, 0, 0)
    assert [one.feature for one in weather.features if one.mismatched] == ["temp"]
    assert "temp: request" in report.sentence
    assert "got 4.0" in report.sentence
    assert _view(report, "carrier").wrong == 0


def test_a_view_that_is_not_published_any_more_lags_and_is_not_wrong(
    logged: LoggedRequests, healthy: ParityReport
) -> None:
    logged.answer("still", "2013-01-19T01:00:00Z", 12)
    report = parity.of_stage(logged.settings, MODEL, "still", "shadow")
    carrier = _view(report, "carrier")
    assert carrier.late > 0.9 * carrier.rows
    assert (carrier.mismatched, carrier.extra) == (0, 0)
    assert carrier.largest_lag_us > 10 * HOUR_US
    assert "lag by more than 1.0 h" in report.sentence


def test_rows_that_are_lost_or_invented_online_are_told_apart(logged: LoggedRequests, healthy: ParityReport) -> None:
    version = {pin.view.rpartition("__")[0]: pin.view for pin in logged.pins}
    with sqlite3.connect(logged.settings.feast_dir / "online_store.db") as connection:
        connection.execute(f'DELETE FROM "slipway_{version["route_punctuality"]}"')
        connection.execute(f'UPDATE "slipway_{version["congestion_at_origin"]}" SET event_ts = event_ts - 7')
    logged.answer("damaged", "2013-01-18T19:00:00Z", 1)
    report = parity.of_stage(logged.settings, MODEL, "damaged", "shadow")
    routes, airports = _view(report, "route"), _view(report, "congestion")
    assert routes.missing > 0.5 * routes.rows
    assert airports.extra == airports.rows
    assert (routes.extra, airports.missing) == (0, 0)


def test_inputs_sent_in_another_unit_than_the_model_was_trained_on_are_found(
    logged: LoggedRequests, healthy: ParityReport
) -> None:
    logged.answer(
        "kilometres", START, 2, sent=lambda inputs: inputs | {"distance": inputs["distance"] * 1.609}, stage="shadow"
    )
    report = parity.of_stage(logged.settings, MODEL, "kilometres", "shadow")
    inputs = _view(report, "inputs")
    assert [one.feature for one in inputs.features if one.mismatched] == ["distance"]
    assert inputs.mismatched == inputs.rows
    assert any("inputs" in fault for fault in report.faults)


def test_the_same_log_gives_the_same_report_and_a_kept_one_is_found_by_its_digest(
    logged: LoggedRequests, healthy: ParityReport
) -> None:
    again = parity.of_stage(logged.settings, MODEL, "healthy", "shadow")
    assert again.digest == healthy.digest
    for _ in range(2):
        parity.keep(logged.settings, healthy, healthy.until_us)
    assert parity.kept(logged.settings, MODEL, "healthy") == [healthy]
    assert parity.load(logged.settings, MODEL, healthy.digest) == from_json(healthy.to_json())
    with pytest.raises(NotFoundError, match="parity report"):
        parity.load(logged.settings, MODEL, "0" * 64)


def test_the_command_prints_the_report_and_fails_with_it(
    logged: LoggedRequests, healthy: ParityReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIPWAY_HOME", str(logged.settings.home))
    monkeypatch.setenv("SLIPWAY_CLOCK", "replay")
    passes = CliRunner().invoke(cli.app, ["parity", MODEL, "--rollout", "healthy", "--json"])
    (told,) = json.loads(passes.output)
    assert (passes.exit_code, told["verdict"], told["requests"]) == (0, "pass", healthy.requests)
    logged.answer("again in kilometres", START, 1, sent=lambda inputs: inputs | {"distance": 1.0})
    fails = CliRunner().invoke(cli.app, ["parity", MODEL, "--rollout", "again in kilometres", "--markdown"])
    assert fails.exit_code == 1
    assert "| inputs |" in fails.output
    of_view = CliRunner().invoke(cli.app, ["parity", "plane", "--json"])
    assert {view["view"].rpartition("__")[0] for told in json.loads(of_view.output) for view in told["views"]} == {
        "plane"
    }


def test_a_changed_report_is_refused(healthy: ParityReport, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    parity.keep(settings, healthy, 1)
    lake, table = DeltaLake(settings.lake), parity.table_of(MODEL)
    rows = lake.read(table).to_pylist()
    nicer = msgspec.structs.replace(healthy, requests=healthy.requests + 1).to_json()
    lake.replace(table, pa.Table.from_pylist([rows[0] | {"document": nicer}], schema=parity.REPORT))
    with pytest.raises(ContractError, match="parity report"):
        parity.load(settings, MODEL, healthy.digest)


@pytest.mark.parametrize(
    ("read", "counted"),
    [
        (Read("a", 90, 10, [1.4], expected_us=10, same=[1.0]), {}),
        (Read("a", 90, 10, [1.6], expected_us=10, same=[1.0]), {"mismatched": 1}),
        (Read("a", 90, 10, [None], expected_us=10, same=[1.0]), {"mismatched": 1}),
        (Read("a", 90, 10, [1.0], expected_us=10, same=[None]), {"mismatched": 1}),
        (Read("a", 90, 10, [1.0], expected_us=20, same=[1.0], due_us=20), {"lagging": 1}),
        (Read("a", 2 * HOUR_US, 10, [1.0], expected_us=20, same=[1.0], due_us=20), {"lagging": 1, "late": 1}),
        (
            Read("a", 2 * HOUR_US, 10, [9.0], expected_us=20, same=[1.0], due_us=20),
            {"mismatched": 1, "lagging": 1, "late": 1},
        ),
        (Read("a", 90, 10, [1.0], expected_us=None, same=None), {"extra": 1}),
        (Read("a", 90, None, [None], expected_us=None), {}),
        (Read("a", 90, None, [None], expected_us=20, due_us=20), {"lagging": 1}),
        (Read("a", 2 * HOUR_US, None, [None], expected_us=20, due_us=20), {"missing": 1}),
        (Read("a", 2 * HOUR_US, None, [None], "expired", expected_us=20, due_us=20), {"lagging": 1, "late": 1}),
        (Read("a", 2 * HOUR_US, None, [None], "unavailable (x)", expected_us=20, due_us=20), {"unread": 1}),
    ],
)
def test_a_read_is_counted_for_what_it_is(read: Read, counted: dict[str, int]) -> None:
    found = compare("v", ["x"], BARS, [read])
    kinds = ("mismatched", "missing", "extra", "lagging", "late", "unread")
    assert {kind: n for kind in kinds if (n := getattr(found, kind))} == counted
    assert bool(found.faults) == bool(found.wrong or found.late)


def test_a_report_without_logged_features_is_no_data_and_says_so(logged: LoggedRequests) -> None:
    report = parity.of_stage(logged.settings, MODEL, "nobody", "shadow")
    assert report.verdict == "no_data"
    assert "no logged feature values" in markdown(report)
