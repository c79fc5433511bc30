"""Which times of a pair the judge's tables carry, by what its second arm's event says of them."""

from __future__ import annotations

import pytest

from pipelines.collect.case import Case
from pipelines.collect.numbering import Counters, number
from pipelines.collect.tables import to_tables
from pipelines.contracts.events import NOT_COMPARED, Assignment, Event, EventId, Response


def a_pair(beside_us: int | None) -> list[Event]:
    common = {"model": "m", "request_id": "q", "event_us": 1, "wall_us": 1, "rollout_id": "r"}
    assignment = Assignment(
        id=EventId("gw0", 0, 1, 0), arm="champion", share_ppm=0, salt="s", unit="q", mode="shadow", stage="shadow",
        route_version=1, champion="a", challenger="b", paired=True, **common,
    )  # fmt: skip
    answers = [
        Response(
            id=EventId("gw0", 0, 1, 1 + second), arm=arm, release=release, status="ok", served=not second,
            shadow=bool(second), score=[0.5], latency_us=3000 + 1000 * second, beside_us=beside_us if second else None,
            **common,
        )
        for second, (arm, release) in enumerate((("champion", "a"), ("challenger", "b")))
    ]  # fmt: skip
    return [assignment, *answers]


@pytest.mark.parametrize(
    ("beside_us", "second"),
    [(2500, (4.0, 2.5)), (0, (4.0, 0.0)), (None, (4.0, None)), (NOT_COMPARED, (None, None))],
)
def test_a_second_arm_has_a_time_unless_another_pair_of_its_company_carries_it(
    beside_us: int | None, second: tuple[float | None, float | None]
) -> None:
    numbered, _ = number(a_pair(beside_us), Counters(), {})
    rows = Case("r", "m").take(to_tables(numbered, 1))["responses"].to_pylist()
    found = {row["arm"]: (row["latency_ms"], row["beside_ms"]) for row in rows}
    assert found == {"champion": (3.0, None), "challenger": second}
