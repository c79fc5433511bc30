"""Payloads at a declared rate: every event is written, inputs and features of the sampled requests alone."""

from __future__ import annotations

from collections import Counter

import pytest

from pipelines.contracts.assignment import payload_is_logged
from pipelines.contracts.events import Assignment, Response
from tests.serving.conftest import Installation, Start
from tests.serving.test_online_features import two_releases, view

pytestmark = pytest.mark.anyio

PPM = 300_000


async def test_both_arms_and_a_retry_log_the_payloads_of_the_same_requests(home: Installation, start: Start) -> None:
    pin = view(entity={"origin": "origin"}, features=["temp"])
    champion, challenger = two_releases(home, pin)
    home.publish(
        "shadow", champion=champion, challenger=challenger, stage="shadow", payload_ppm=PPM, slice_inputs=["x"]
    )
    ids = [f"q{k}" for k in range(40)]
    async with start() as running:
        for one in [*ids, "q0", "q1"]:
            assert (await running.infer(one, x=2.5)).status_code == 200
        await running.shadows_done()
        assignments, responses = home.events(Assignment), home.events(Response)
    assert {one.request_id for one in assignments} == set(ids)
    assert set(Counter(one.request_id for one in responses).values()) == {2, 3}  # a retry has no pair
    for asked in assignments:
        assert asked.sampled is payload_is_logged(asked.request_id, PPM)
        assert set(asked.inputs) == ({"x"} if asked.sampled else set())
        assert asked.slices == {"x": "2.5"}
    for answered in responses:
        assert answered.sampled is payload_is_logged(answered.request_id, PPM)
        assert bool(answered.features) is answered.sampled
        assert answered.score
    assert 0 < sum(one.sampled for one in assignments) < len(assignments)
