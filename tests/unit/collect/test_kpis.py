"""KPI values on their way to the metrics of a rollout: by name, whenever they come."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from pipelines.adapters.delta_lake import DeltaLake
from pipelines.adapters.inference_log import answers
from pipelines.adapters.inference_tables import InferenceTables
from pipelines.collect.case import Case
from pipelines.collect.numbering import Counters, number
from pipelines.collect.tables import to_tables
from pipelines.contracts.events import Assignment, Event, EventId, Kpi, Response


def event(kind: type[Kpi] | type[Assignment] | type[Response], n: int, **fields: object) -> Event:
    made: Event = kind(id=EventId("gw0", 0, 1, n), model="m", event_us=n, wall_us=n, **fields)  # type: ignore[arg-type]
    return made


def assigned(n: int, request: str) -> Event:
    return event(
        Assignment, n, request_id=request, arm="champion", share_ppm=200_000, salt="s", unit=request, mode="split",
        stage="canary_20", rollout_id="r", route_version=1, champion="a",
    )  # fmt: skip


def kpi(n: int, request: str, value: float, **name: str) -> Event:
    return event(Kpi, n, request_id=request, value=value, **name)


EVENTS = [
    assigned(0, "a"),
    kpi(1, "a", 1.0, name="conversion"),
    kpi(2, "a", 80.0, name="basket"),
    kpi(3, "a", 81.0, name="basket"),
    kpi(4, "a", 7.0),
    kpi(5, "a", 9.0, name="weather"),
    kpi(6, "b", 30.0, name="basket"),  # ahead of its request
    assigned(7, "b"),
]


@pytest.mark.parametrize(
    ("kpis", "found"),
    [
        (("conversion", "basket"), [(1, "conversion", 1.0), (1, "basket", 80.0), (2, "basket", 30.0)]),
        (("basket",), [(1, "basket", 80.0), (2, "basket", 30.0)]),
        (("cost",), [(1, "cost", 7.0)]),
        (("kpi",), [(1, "kpi", 7.0)]),
    ],
)
@pytest.mark.parametrize("cut", [len(EVENTS), 1, 4, 7])
def test_a_value_counts_for_the_metric_of_its_name(
    kpis: tuple[str, ...], found: list[tuple[int, str, float]], cut: int
) -> None:
    numbered, _ = number(EVENTS, Counters(), {})
    case = Case("r", "m", (), kpis)
    rows = []
    for part in (numbered[:cut], numbered[cut:]):
        taken = case.take(to_tables(part, 1))
        rows += taken["kpi"].to_pylist() if "kpi" in taken else []
    assert sorted((row["request_id"], row["metric"], row["value"]) for row in rows) == sorted(found)
    assert case.counts.kpis == len(found)


NONE = math.nan


@pytest.mark.parametrize(
    ("kpis", "found"),
    [
        (("basket",), {"basket": 80.0}),
        (("cost",), {"cost": 7.0}),
        (("conversion", "basket"), {"conversion": 1.0, "basket": 80.0}),
        (("none", "basket"), {"none": NONE, "basket": 80.0}),
        (("kpi", "weather"), {"kpi": 7.0, "weather": 9.0}),
    ],
)
def test_logged_traffic_is_planned_by_the_values_of_each_metrics_name(
    kpis: tuple[str, ...], found: dict[str, float], tmp_path: Path
) -> None:
    answered = event(
        Response, 8, request_id="a", arm="champion", release="a", rollout_id="r", status="ok",
        served=True, shadow=False,
        raw=[0.5], score=[0.5], latency_us=900,
    )  # fmt: skip
    tables = InferenceTables(DeltaLake(tmp_path))
    for kind, rows in to_tables(number([*EVENTS, answered], Counters(), {})[0], 1).items():
        tables.append(kind, rows, 1)
    logged = answers(DeltaLake(tmp_path), "m", "a", 1_000, kpis)
    np.testing.assert_equal({name: list(values) for name, values in logged.by_kpi.items()}, {
        name: [value] for name, value in found.items()
    })  # fmt: skip
    np.testing.assert_equal(list(logged.kpi), [found[kpis[0]]])
    assert list(answers(DeltaLake(tmp_path), "m", "a", 1_000).kpi) == [1.0], "without metrics, the first of all"
