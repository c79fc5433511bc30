"""The general way of one infer request: assignment written, arm scored, response written, answer sent, the other arm
scored. Requests for which nothing has to be waited for take the same steps together (`serving/infer_together.py`).

The order is the contract (docs/architecture.md): the assignment is handed to the kernel before a model is called, the
response event before the answer leaves, and only then does the other arm score.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import msgspec

from pipelines.contracts.events import Arm
from serving.answers import failure, parameters, result, stand_in
from serving.assigning import begin, event_time, request_id
from serving.exchange import Exchange
from serving.gateway import Gateway
from serving.inference_log import LogWriteError
from serving.models import LoadedModel
from serving.oip.errors import Refusal
from serving.oip.request import InferRequest
from serving.oip.response import Prediction, check_outputs
from serving.online_features.plan import NOTHING, ReadPlan, Reads, Wanted
from serving.route_table import Plan
from serving.scoring import Outcome, Scorer


class Answer(msgspec.Struct):
    """What the client gets, whichever door it came by, and whose other arm is still to be scored once it has left."""

    result: Prediction | Refusal
    pair: Exchange | None = None


async def infer(gateway: Gateway, plan: Plan, request: InferRequest, traceparent: str | None) -> Answer:
    """Answer a request by its model's route. Raises a Refusal (its events are written all the same)."""
    exchange = begin(gateway, plan, request, traceparent)
    try:
        if exchange.reads.pinned:
            exchange.scorer.reads = await _read(gateway, exchange.reads, exchange.wanted())
    except BaseException:
        exchange.unpair()
        raise
    return await go_on(exchange)


async def go_on(exchange: Exchange, outcome: Outcome | None = None) -> Answer:
    """The way from scoring on; from behind it, with an outcome of the exchange's arm."""
    gateway = exchange.gateway
    try:
        if outcome is None:
            outcome = await _score(exchange, exchange.arm)
        if exchange.arm == "challenger" and not _challenger_answers(exchange, outcome):
            outcome = await _score(exchange, "champion")
        logged = _log_served(exchange, outcome)
        if logged and gateway.settings.durability == "power":
            logged = await _on_disk(gateway)
        return Answer(result(exchange, outcome, exchange.arm, logged), exchange if exchange.paired else None)
    except BaseException:
        # Whatever ended the request early, its place in the shadow queue is free again.
        exchange.unpair()
        raise


async def _read(gateway: Gateway, plan: ReadPlan, wanted: Wanted) -> Reads:
    reading = gateway.store.read(plan, (wanted,))
    (reads,) = reading if isinstance(reading, list) else await reading
    return reads


def _challenger_answers(exchange: Exchange, outcome: Outcome) -> bool:
    """Write the drawn challenger's Response; False when the champion has to answer in its place."""
    failed, unavailable = outcome.status != "ok", outcome.unavailable
    # An answer of the challenger that the log cannot take is not given: no exposure without its record.
    answers = not failed and exchange.respond("challenger", outcome, served=True)
    if not answers:
        if failed:
            exchange.respond("challenger", outcome, served=False)
        step_back(exchange)
    if not unavailable:
        exchange.gateway.count_challenger_call(exchange.plan, failed=failed)
    return answers


def step_back(exchange: Exchange) -> None:
    """The champion answers in the challenger's place, and no second arm is scored."""
    exchange.unpair()
    exchange.gateway.metrics.fallbacks.labels(exchange.plan.route.model).inc()
    exchange.arm, exchange.fallback = "champion", True


def _log_served(exchange: Exchange, outcome: Outcome) -> bool:
    """Write the Response of the champion that answers (a challenger's is written). False when it could not be."""
    if exchange.arm == "challenger":
        return True
    stand_in(exchange, outcome)
    logged = exchange.respond("champion", outcome, served=True, fallback=exchange.fallback)
    if exchange.plan.on_trial == "champion":
        count_baking(exchange.gateway, exchange.plan, (outcome,))
    return logged


def count_baking(gateway: Gateway, plan: Plan, outcomes: Sequence[Outcome]) -> None:
    """Count calls of a challenger that bakes, scored together. Nothing ends one that takes too long: it has failed
    when it is over. However many it held up, it was slow once.
    """
    # The time of a batch is that of its queue, too.
    timeout_us = plan.route.breaker.timeout_ms * 1000 if plan.champion.batching is None else sys.maxsize
    was_late = False
    for outcome in outcomes:
        is_late = outcome.own_us > timeout_us
        if outcome.unavailable or (is_late and was_late and outcome.status == "ok"):
            continue
        was_late = was_late or is_late
        gateway.count_challenger_call(plan, failed=is_late or outcome.status != "ok")


async def _on_disk(gateway: Gateway) -> bool:
    """Wait for the disk; False when it refused or is slow: the answer leaves, and says that it is not logged."""
    try:
        await gateway.log.durable()
    except LogWriteError:
        return False
    return True


async def _score(exchange: Exchange, arm: Arm) -> Outcome:
    model = exchange.model_of(arm)
    timeout_s = exchange.plan.route.breaker.timeout_ms / 1000 if arm == "challenger" else None
    if model.batching is not None:
        return await exchange.gateway.batches.score(model, exchange.scorer, timeout_s)
    if arm == "champion" and not exchange.is_compared:
        return exchange.scorer.score(model)
    return await exchange.gateway.arms.score(exchange.plan.pace, arm, exchange.scorer, model, timeout_s)


async def infer_pinned(gateway: Gateway, model: LoadedModel, request: InferRequest) -> Prediction:
    """Answer by one given release: no assignment, no events, no part in any rollout."""
    event_us = event_time(gateway, request)
    check_outputs(request, model.manifest)
    bound = model.binder.bind(request, gateway.limits.max_rows)
    name, _ = request_id(gateway, request)
    reads = NOTHING
    if model.reads.pinned:
        reads = await _read(gateway, model.reads, Wanted(bound.columns, bound.rows, event_us))
    scorer = Scorer(bound, reads)
    timeout_s = gateway.limits.pinned_timeout_s
    if model.batching is None:
        outcome = await gateway.arms.score_apart(scorer, model, timeout_s)
    else:
        outcome = await gateway.batches.score(model, scorer, timeout_s)
    if refused := failure(model.manifest.model, outcome):
        raise refused
    said = parameters(model.digest, "pinned", 0, logged=False, degraded=outcome.degraded)
    return Prediction(name, model.manifest, outcome.outputs, said)
