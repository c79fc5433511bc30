"""How a task calls its job: which errors are tried again, what travels, and which event time it works at."""

from __future__ import annotations

import sys
import types
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from pipelines.contracts.errors import DataError, TransientError


class Ref(msgspec.Struct, frozen=True):
    """A reference as jobs hand it on."""

    digest: str
    as_of_us: int


def stage(settings: Any, name: str, as_of_us: int) -> Ref:
    return Ref(f"{settings}-{name}", as_of_us)


def check(settings: Any, ref: Ref) -> int:
    assert isinstance(ref, Ref)
    return ref.as_of_us


def fails(settings: Any, error: Exception) -> None:
    raise error


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> str:
    module = types.ModuleType("jobs_of_this_test")
    module.stage, module.check, module.fails = stage, check, fails
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module.__name__


def test_a_result_travels_as_json_and_is_a_struct_again_in_the_next_job(jobs):
    from slipway_operators import call

    made = call(f"{jobs}:stage", "home", {"name": "weather"}, 7)
    assert made == {"digest": "home-weather", "as_of_us": 7}
    assert call(f"{jobs}:check", "home", {"ref": made}, 8) == 7


@pytest.mark.parametrize(
    ("error", "fails_at_once"),
    [
        (TransientError("database", got="locked"), False),
        (ConnectionError("refused"), False),
        (TimeoutError(), False),
        (DataError("rows", got="bad"), True),
        (KeyError("a programming error"), True),
    ],
)
def test_only_what_may_pass_is_tried_again(jobs, error, fails_at_once):
    from slipway_operators import call

    with pytest.raises((AirflowException, ConnectionError, TimeoutError)) as caught:
        call(f"{jobs}:fails", None, {"error": error})
    assert isinstance(caught.value, AirflowFailException) is fails_at_once


def test_a_job_that_cannot_be_imported_fails_at_once():
    from slipway_operators import call

    with pytest.raises(AirflowFailException, match="no_such_module"):
        call("no_such_module:job", None, {})


def events(*moments: int | None) -> dict[str, list[SimpleNamespace]]:
    return {"lake://x": [SimpleNamespace(extra={"as_of_us": m} if m is not None else {}) for m in moments]}


@pytest.mark.parametrize(
    ("param", "told", "expected"),
    [
        ("1970-01-01T00:00:01Z", events(5), 1_000_000),
        ("", events(5, 9, 7), 9),
        ("", events(None), 42),
        ("", {}, 42),
    ],
)
def test_a_run_works_at_its_param_else_at_the_newest_event_else_now(param, told, expected):
    from slipway_operators import run_as_of_us

    context = {"params": {"as_of": param}, "triggering_asset_events": told}
    assert run_as_of_us(context, lambda: 42) == expected


class Instance:
    """Records what a task pushes."""

    def __init__(self) -> None:
        self.pushed: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value


def test_the_first_task_leaves_the_runs_event_time_and_tells_the_asset(jobs):
    from airflow.sdk import Asset
    from slipway_operators import JobOperator

    asset = Asset(name="lake://weather", uri="lake://weather")
    operator = JobOperator(
        task_id="stage", job=f"{jobs}:stage", arguments={"name": "weather"}, as_of="run", asset=asset
    )
    told = {asset: SimpleNamespace(extra={})}
    context = {"params": {"as_of": "1970-01-01T00:00:01Z"}, "ti": Instance(), "outlet_events": told}
    result = operator.run_job(context)
    assert context["ti"].pushed == {"as_of_us": 1_000_000}
    assert told[asset].extra == {"as_of_us": 1_000_000, "digest": result["digest"]}


@pytest.mark.parametrize(
    ("status", "stage", "asks"),
    [
        ("running", "approval", True),
        ("held", "shadow", True),
        ("promoted", "approval", False),
        ("running", "shadow", False),
    ],
)
def test_a_person_is_asked_only_while_the_answer_is_open(status, stage, asks):
    from slipway_approval import already_answered

    shown = {"id": "r1", "status": status, "stage": stage}
    assert (already_answered(shown) is None) is asks


@pytest.mark.parametrize("status", ["rolled_back", "rejected", "replaced"])
def test_a_rollout_that_has_ended_is_not_asked_about(status):
    from slipway_approval import already_answered

    with pytest.raises(AirflowFailException, match=status):
        already_answered({"id": "r1", "status": status, "stage": "approval"})


@pytest.mark.parametrize(("decided_at", "counts"), [("12:00:00", True), ("12:00:10", False)])
def test_an_answer_that_airflow_lost_counts_while_nothing_has_been_decided_since(decided_at, counts):
    from slipway_approval import stands

    decisions = [{"kind": "observed"}, {"at": f"2026-01-01T{decided_at}+00:00"}]
    assert stands({"decisions": decisions}, datetime(2026, 1, 1, 12, 0, 5, tzinfo=UTC)) is counts


def test_the_maintenance_of_the_lake_maps_over_its_tables_and_takes_care_of_each(tmp_path):
    import pyarrow as pa
    from slipway_operators import call

    from pipelines.adapters.delta_lake import DeltaLake
    from pipelines.settings import Settings

    settings = Settings(home=tmp_path)
    assert call("pipelines.wiring.lake_care:tables", settings, {}) == []
    lake = DeltaLake(settings.lake)
    for number in range(3):
        lake.append("datasets/a", pa.table({"n": [number]}))
        lake.append("inference/b", pa.table({"n": [number]}))
    mapped = call("pipelines.wiring.lake_care:tables", settings, {})
    assert mapped == [{"table": "datasets/a"}, {"table": "inference/b"}]
    for arguments in mapped:
        done = call("pipelines.wiring.lake_care:maintain", settings, arguments)
        assert (done["merged"], done["into"]) == (3, 1), done
        assert len(lake.uris(arguments["table"])) == 1
        assert lake.read(arguments["table"]).num_rows == 3
