"""What a client gets for an outcome: a prediction with what is said of its making, or a refusal."""

from __future__ import annotations

from typing import Any

import msgspec

from pipelines.contracts.events import Arm
from serving.batch_answers import replace_by_batch_score
from serving.exchange import Exchange
from serving.oip.errors import ModelFailed, Refusal, Unavailable
from serving.oip.response import Prediction
from serving.scoring import Outcome


def stand_in(exchange: Exchange, outcome: Outcome) -> None:
    """Where the champion failed, look up its declared batch score: the log has both, failure and what was answered."""
    if failure(exchange.plan.route.model, outcome) is not None:
        manifest = exchange.plan.champion.manifest
        replace_by_batch_score(exchange.gateway, manifest, exchange.bound.rows, exchange.request_id, outcome)


def result(exchange: Exchange, outcome: Outcome, arm: Arm, logged: bool) -> Prediction | Refusal:
    """What the client gets, whichever door it came by."""
    if not logged:
        exchange.gateway.metrics.unlogged.labels(exchange.plan.route.model).inc()
    model, batch = exchange.model_of(arm), outcome.batch
    manifest, release = model.manifest, model.digest
    if batch is not None:
        manifest, release = msgspec.structs.replace(manifest, semver=batch.semver), batch.release
    elif refused := failure(exchange.plan.route.model, outcome):
        return refused
    degraded = list(outcome.degraded)
    if outcome.status == "invalid" and batch is None:
        degraded.append("score outside its contract")
    said = parameters(release, arm, exchange.plan.route.version, logged=logged, degraded=degraded)
    return Prediction(exchange.request_id, manifest, outcome.outputs, said)


def parameters(release: str, arm: str, route_version: int, *, logged: bool, degraded: list[str]) -> dict[str, Any]:
    """What an answer says of its making."""
    return {
        "release": release,
        "arm": arm,
        "route_version": route_version,
        "logged": logged,
        "degraded": "; ".join(degraded),
    }


def failure(model: str, outcome: Outcome) -> Refusal | None:
    """What there is instead of an answer: an error, a score that is no number, or no features to score with."""
    if outcome.status == "ok":
        return None
    if outcome.unavailable:
        return Unavailable(f"model {model}: online features", got=outcome.error, expected="to be readable in time")
    if outcome.status == "error":
        return ModelFailed(f"model {model}", got=outcome.error, expected="an answer")
    if any(value - value != 0 for value in outcome.score):
        return ModelFailed(f"model {model}", got="a score that is not finite", expected="a number")
    return None
