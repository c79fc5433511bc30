"""`serving.batching`: requests for a heavy release are gathered, and each is answered as if it had been alone."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from pipelines.contracts.events import Response
from pipelines.contracts.release import Batching
from pipelines.contracts.routes import Breaker
from serving.models import LoadedModel
from tests.serving.conftest import Installation, Running, Start
from tests.serving.test_arms import HARMFUL, HARMLESS

pytestmark = pytest.mark.anyio

LONG_MS = 60_000


def batched(home: Installation, score: float, max_size: int, max_wait_ms: int, **options: Any) -> str:
    return home.release(
        score, manifest_fields={"batching": Batching(max_size=max_size, max_wait_ms=max_wait_ms)}, **options
    )


def batches(running: Running) -> dict[float, int]:
    """How many batches had how many rows at most, by the bounds of the metric's buckets."""
    counts: dict[float, int] = {}
    for family in running.gateway.metrics.registry.collect():
        for sample in family.samples:
            if sample.name == "slipway_batch_rows_bucket" and sample.labels["le"] != "+Inf":
                counts[float(sample.labels["le"])] = int(sample.value)
    bounds = sorted(counts)
    own = {bound: counts[bound] - counts.get(below, 0) for below, bound in zip([0.0, *bounds], bounds, strict=False)}
    return {bound: count for bound, count in own.items() if count}


async def test_requests_are_scored_in_batches_and_each_gets_its_own_score(home: Installation, start: Start) -> None:
    home.publish(champion=home.release(0.1, slope=0.01))
    values = [0.5 + k / 7 for k in range(8)]
    async with start() as running:
        alone = [(await running.infer(f"alone{k}", x)).json() for k, x in enumerate(values)]
        home.publish(champion=batched(home, 0.1, 4, LONG_MS, slope=0.01))
        await running.in_force(2)
        answers = await asyncio.gather(*(running.infer(f"q{k}", x) for k, x in enumerate(values)))
        assert batches(running) == {4.0: 2}
    for k, (answer, single) in enumerate(zip(answers, alone, strict=True)):
        assert answer.json()["id"] == f"q{k}"
        assert answer.json()["outputs"] == single["outputs"]
    responses = {event.request_id: event for event in home.events(Response)}
    assert all(responses[f"q{k}"].raw == responses[f"alone{k}"].raw for k in range(8))


async def test_a_request_without_company_goes_when_it_has_waited_and_its_latency_says_so(
    home: Installation, start: Start
) -> None:
    home.publish(champion=batched(home, 0.3, 64, 60))
    async with start() as running:
        assert (await running.infer("q", [1.0, 2.0])).status_code == 200
        assert batches(running) == {2.0: 1}
    (response,) = home.events(Response)
    assert response.latency_us >= 60_000 > response.model_us


async def test_one_that_fails_does_not_harm_its_batch(home: Installation, start: Start) -> None:
    home.publish(champion=batched(home, 0.3, 4, LONG_MS, error_share=0.5))
    async with start() as running:
        xs = [HARMLESS, HARMFUL, HARMLESS, HARMLESS]
        answers = await asyncio.gather(*(running.infer(f"q{k}", float(x)) for k, x in enumerate(xs)))
        assert [answer.status_code for answer in answers] == [200, 500, 200, 200]
        assert [answers[k].json()["id"] for k in (0, 2, 3)] == ["q0", "q2", "q3"]


async def test_a_versions_own_endpoint_is_batched_too(home: Installation, start: Start) -> None:
    digest = batched(home, 0.3, 3, LONG_MS)
    home.publish(champion=digest)
    body = {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [1.0]}]}
    async with start() as running:
        path = f"/v2/models/m/versions/{digest}/infer"
        answers = await asyncio.gather(*(running.client.post(path, json=body) for _ in range(3)))
        assert [answer.status_code for answer in answers] == [200] * 3
        assert batches(running) == {4.0: 1}


async def test_second_arms_wait_for_no_batch_and_every_pair_comes(home: Installation, start: Start) -> None:
    home.publish("shadow", challenger=batched(home, 0.7, 64, LONG_MS))
    async with start() as running:
        await asyncio.gather(*(running.infer(f"q{k}") for k in range(8)))
        await running.shadows_done()
        assert batches(running) == {}
    assert sorted((event.request_id, event.arm) for event in home.events(Response)) == sorted(
        (f"q{k}", arm) for k in range(8) for arm in ("champion", "challenger")
    )


async def test_a_batched_challenger_is_waited_for_no_longer_than_the_route_allows(
    home: Installation, start: Start
) -> None:
    home.publish(
        "split", share_ppm=1_000_000, challenger=batched(home, 0.7, 64, LONG_MS), breaker=Breaker(timeout_ms=50)
    )
    async with start() as running:
        answer = (await running.infer("q")).json()
        assert answer["parameters"]["arm"] == "champion"
    failed = next(event for event in home.events(Response) if event.arm == "challenger")
    assert (failed.status, failed.error) == ("error", "timeout after 50 ms")


def test_a_release_whose_scores_a_batch_would_change_is_not_batched(
    home: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = batched(home, 0.3, 64, 5)
    assert LoadedModel(home.home / "releases" / digest, digest).batching == Batching(max_size=64, max_wait_ms=5)

    def rounding(self: LoadedModel, matrix: np.ndarray) -> np.ndarray:
        return np.full(len(matrix), 0.0 if len(matrix) < 64 else 5e-324)

    monkeypatch.setattr(LoadedModel, "predict", rounding)
    assert LoadedModel(home.home / "releases" / digest, digest).batching is None
