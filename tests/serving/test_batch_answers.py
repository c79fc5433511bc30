"""A release that fails may be answered for by the last batch score of the same request, when its spec says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.contracts import batch_scores
from pipelines.contracts.batch_scores import BatchScore
from pipelines.contracts.events import Response
from tests.serving.conftest import Installation, Start

pytestmark = pytest.mark.anyio

AS_OF_US = 1_388_534_400_000_000


def scored(home: Installation, request_id: str = "flight-1", score: float = 0.42, **changes: object) -> None:
    outputs = {"score": score, "decision": False} | changes
    made = BatchScore(outputs=outputs, release="f" * 64, semver="0.9.0", as_of_us=AS_OF_US)
    batch_scores.write(batch_scores.file_of(home.home, "m"), [(request_id, made)])


async def test_the_batch_score_of_the_request_is_the_answer_and_the_log_keeps_the_failure(
    home: Installation, start: Start
) -> None:
    home.publish(champion=home.release(0.3, error=True, manifest_fields={"on_failure": "batch_score"}))
    scored(home)
    async with start() as running:
        answer = (await running.infer("flight-1", x=[1.0])).json()
        events = home.events(Response)
        metrics = (await running.client.get("/metrics")).text
    assert {one["name"]: one["data"] for one in answer["outputs"]} == {"score": [0.42], "decision": [False]}
    assert (answer["model_version"], answer["parameters"]["release"]) == ("0.9.0", "f" * 64)
    assert "batch score as of 2014-01-01T00:00:00+00:00" in answer["parameters"]["degraded"]
    assert [(event.status, event.served, event.outputs["score"]) for event in events] == [("error", True, [0.42])]
    assert 'slipway_batch_answers_total{model="m"} 1.0' in metrics


@pytest.mark.parametrize(
    ("request_id", "x", "on_failure"),
    [("flight-2", [1.0], "batch_score"), ("flight-1", [1.0, 2.0], "batch_score"), ("flight-1", [1.0], "error")],
    ids=["a request that was not announced", "a batch", "a release that has not declared it"],
)
async def test_without_a_declared_batch_score_the_failure_is_told(
    home: Installation, start: Start, request_id: str, x: list[float], on_failure: str
) -> None:
    home.publish(champion=home.release(0.3, error=True, manifest_fields={"on_failure": on_failure}))
    scored(home)
    async with start() as running:
        answer = await running.infer(request_id, x=x)
    assert answer.status_code == 500
    assert "model m" in answer.json()["error"]


async def test_a_file_that_is_no_score_file_changes_nothing(home: Installation, start: Start) -> None:
    home.publish(champion=home.release(0.3, error=True, manifest_fields={"on_failure": "batch_score"}))
    file = batch_scores.file_of(home.home, "m")
    file.parent.mkdir(parents=True)
    file.write_bytes(b"not a database")
    async with start() as running:
        assert (await running.infer("flight-1", x=[1.0])).status_code == 500


def test_newer_scores_replace_the_file_in_whole(tmp_path: Path) -> None:
    file = batch_scores.file_of(tmp_path, "m")
    old, new = (BatchScore(outputs={"score": s}, release="r", semver="1.0.0", as_of_us=1) for s in (0.1, 0.2))
    batch_scores.write(file, [("a", old), ("b", old)])
    batch_scores.write(file, [("b", new)])
    assert batch_scores.find(file, "a") is None
    assert batch_scores.find(file, "b") == new
    assert [path.name for path in file.parent.iterdir()] == ["m.db"]
