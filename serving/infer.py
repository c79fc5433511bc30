"""The way of one infer request: assignment written, arm scored, response written, answer sent, the other arm scored.

The order is the contract (docs/architecture.md): the assignment is handed to the kernel before a model is called, the
response event before the answer leaves, and only then does the other arm score.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import msgspec

from pipelines.contracts.assignment import payload_is_logged
from pipelines.contracts.clocks import parse_event_time, wall_us
from pipelines.contracts.errors import ContractError
from pipelines.contracts.events import Arm, Assignment, Response
from pipelines.contracts.pii import KeyedHash
from serving import trace_context
from serving.batch_answers import replace_by_batch_score
from serving.gateway import Gateway
from serving.inference_log import LogWriteError
from serving.inputs import Bound
from serving.metrics import ViewMetrics
from serving.models import LoadedModel
from serving.oip.errors import Malformed, ModelFailed, Refusal, Unavailable
from serving.oip.request import InferRequest
from serving.oip.response import Prediction, check_outputs
from serving.online_features.plan import NOTHING, Reads
from serving.route_table import Plan
from serving.routing import arm_of
from serving.scoring import Outcome, Scorer
from serving.shadow import Job

_OTHER: dict[Arm, Arm] = {"champion": "challenger", "challenger": "champion"}


class Answer(msgspec.Struct):
    """What the client gets, whichever door it came by, and what is still to be done once it has left."""

    result: Prediction | Refusal
    after: Job | None = None


class _Exchange(msgspec.Struct):
    """One request on its way: what its events have in common."""

    gateway: Gateway
    plan: Plan
    request: InferRequest
    bound: Bound
    scorer: Scorer
    request_id: str
    event_us: int
    arm: Arm = "champion"
    paired: bool = False
    rollout_id: str | None = None
    sampled: bool = True
    logged: bool = True
    fallback: bool = False

    def read(self) -> Reads | Awaitable[Reads] | None:
        """What is read online, for both arms if both will score, at one moment; None when nothing is."""
        both = self.paired or self.arm == "challenger"
        plan = self.plan.reads if both else self.plan.champion.reads
        if not plan.pinned:
            return None
        return self.gateway.store.read(plan, self.bound.columns, self.bound.rows, self.event_us)

    def model_of(self, arm: Arm) -> LoadedModel:
        challenger = self.plan.challenger
        return challenger if arm == "challenger" and challenger is not None else self.plan.champion

    def respond(
        self, arm: Arm, outcome: Outcome, *, served: bool, shadow: bool = False, fallback: bool = False
    ) -> bool:
        """Write the arm's Response event. False when it could not be written."""
        release = self.model_of(arm).digest
        self._count(arm, release, outcome, served=served)
        if not self.logged:
            return False
        log = self.gateway.log
        event = Response(
            id=log.next_id(),
            model=self.plan.route.model,
            request_id=self.request_id,
            arm=arm,
            release=release,
            rollout_id=self.rollout_id,
            event_us=self.event_us,
            wall_us=wall_us(),
            status=outcome.status,
            served=served,
            shadow=shadow,
            fallback=fallback,
            raw=outcome.raw,
            score=outcome.score,
            outputs=outcome.outputs,
            latency_us=outcome.latency_us,
            features_us=outcome.features_us,
            model_us=outcome.model_us,
            features=outcome.features if self.sampled else [],
            sampled=self.sampled,
            degraded=outcome.degraded,
            error=outcome.error,
        )
        try:
            log.write(event)
        except LogWriteError:
            return False
        return True

    def _count(self, arm: Arm, release: str, outcome: Outcome, *, served: bool) -> None:
        metrics = self.gateway.metrics
        series = metrics.arm(self.plan.route.model, arm, release)
        series.outcomes[outcome.status].n += 1
        series.latency.observe(outcome.latency_us)
        series.model_time.observe(outcome.model_us)
        if served:
            series.predictions.n += self.bound.rows
        if outcome.features:
            series.features_time.observe(outcome.features_us)
            if outcome.degraded:
                series.degraded.n += 1
            if served:
                for read in outcome.features:
                    _count_view(metrics.view(read.view), read.event_us, self.event_us)


def _count_view(series: ViewMetrics, held: list[int | None], event_us: int) -> None:
    """Count one view's rows of an answered request, and how old the oldest is."""
    absent = held.count(None)
    found = len(held) - absent
    series.absent.n += absent
    if found:
        series.found.n += found
        series.age.observe(event_us - min(one for one in held if one is not None))


async def infer(gateway: Gateway, plan: Plan, request: InferRequest, traceparent: str | None) -> Answer:
    """Answer a request by its model's route. Raises a Refusal (its events are written all the same)."""
    if gateway.answers_at_once(plan):
        return infer_at_once(gateway, plan, request, traceparent)
    exchange = _begin(gateway, plan, request, traceparent)
    try:
        reads = exchange.read()
        if reads is not None:
            exchange.scorer.reads = reads if isinstance(reads, Reads) else await reads
        outcome = await _score(exchange, exchange.arm)
        if exchange.arm == "challenger" and not _challenger_answers(exchange, outcome):
            outcome = await _score(exchange, "champion")
        logged = _log_served(exchange, outcome)
        if logged and gateway.settings.durability == "power":
            logged = await _on_disk(gateway)
        return _answer(exchange, outcome, logged)
    except BaseException:
        # Whatever ended the request early, its place in the shadow queue is free again.
        _unpair(exchange)
        raise


def infer_at_once(gateway: Gateway, plan: Plan, request: InferRequest, traceparent: str | None) -> Answer:
    """The same steps where none of them waits for anything (`Gateway.answers_at_once`)."""
    exchange = _begin(gateway, plan, request, traceparent)
    try:
        reads = exchange.read()
        if reads is not None:
            assert isinstance(reads, Reads), "a local store"
            exchange.scorer.reads = reads
        outcome = exchange.scorer.score(plan.champion)
        if plan.challenger is not None:
            plan.pace.note("champion", outcome)
        return _answer(exchange, outcome, _log_served(exchange, outcome))
    except BaseException:
        _unpair(exchange)
        raise


def _begin(gateway: Gateway, plan: Plan, request: InferRequest, traceparent: str | None) -> _Exchange:
    """Check the request and write its assignment. Raises a Refusal."""
    event_us = event_time(gateway, request)
    check_outputs(request, plan.champion.manifest)
    bound = plan.binder.bind(request, gateway.limits.max_rows)
    request_id, given = _request_id(gateway, request)
    exchange = _Exchange(gateway, plan, request, bound, Scorer(bound, NOTHING), request_id, event_us)
    _assign(exchange, given, traceparent)
    return exchange


def event_time(gateway: Gateway, request: InferRequest) -> int:
    """The request's event time: sent under replay, the clock's under wall. Raises Malformed."""
    given = (request.parameters or {}).get("event_time")
    if gateway.settings.clock == "wall":
        if given is not None:
            raise Malformed(
                "parameters.event_time", got=given, expected="nothing", hint="This gateway runs by the wall clock."
            )
        return wall_us()
    if given is None:
        raise Malformed("parameters.event_time", got="nothing", expected="RFC 3339 text", hint="The clock is a replay.")
    try:
        return parse_event_time(given)
    except ContractError as error:
        raise Malformed("parameters.event_time", got=error.got, expected=error.expected) from None


def _request_id(gateway: Gateway, request: InferRequest) -> tuple[str, bool]:
    """The client's id, or one of our own; whether the client gave it."""
    if not request.id:
        return gateway.new_request_id(), False
    max_chars = gateway.limits.max_id_chars
    if len(request.id) > max_chars:
        raise Malformed("id", got=f"{len(request.id)} characters", expected=f"at most {max_chars}")
    return request.id, True


def _unit(request: InferRequest, request_id: str, max_chars: int, keyed: KeyedHash | None) -> str:
    """The randomisation unit; by its hash where `keyed` is given. Refusals do not show it: it may be a person."""
    unit = (request.parameters or {}).get("unit")
    if unit is None:
        return request_id
    if isinstance(unit, bool) or not isinstance(unit, (str, int)) or not 0 < len(str(unit)) <= max_chars:
        got = f"{type(unit).__name__} of {len(str(unit))} characters"
        raise Malformed("parameters.unit", got=got, expected=f"a text of 1 to {max_chars} characters, or an integer")
    return str(unit) if keyed is None else keyed.of(str(unit))


def _assign(exchange: _Exchange, given: bool, traceparent: str | None) -> None:
    """Draw the arm and write the assignment; when it cannot be written, the champion answers unlogged and alone."""
    gateway, plan, request = exchange.gateway, exchange.plan, exchange.request
    route, effective, bound = plan.route, plan.effective, exchange.bound
    # Whom a model of personal inputs randomises by is likely a person, too.
    keyed = gateway.keyed if plan.privacy.personal else None
    unit = _unit(request, exchange.request_id, gateway.limits.max_id_chars, keyed)
    first = gateway.memory.first(route.model, exchange.request_id) if given else None
    arm = arm_of(effective, route.salt, unit, first)
    if effective.shadow and plan.challenger is not None and first is None:
        exchange.paired = gateway.shadow.reserve()
        if not exchange.paired:
            gateway.metrics.shed.labels(route.model).inc()
    # In shadow mode a request without its pair tells nothing about the challenger: it is no part of the rollout.
    compared = effective.mode != "shadow" or exchange.paired or first is not None
    exchange.rollout_id = effective.rollout_id if compared else None
    exchange.sampled = payload_is_logged(exchange.request_id, route.payload_ppm)
    slices = {name: str(bound.logged[name][0]) if name in bound.logged else "" for name in route.slice_inputs}

    event = Assignment(
        id=gateway.log.next_id(),
        model=route.model,
        request_id=exchange.request_id,
        event_us=exchange.event_us,
        wall_us=wall_us(),
        arm=arm,
        share_ppm=effective.share_ppm,
        salt=route.salt,
        unit=unit,
        mode=effective.mode if compared else "single",
        stage=route.stage,
        rollout_id=exchange.rollout_id,
        route_version=route.version,
        champion=effective.champion,
        challenger=effective.challenger if compared else None,
        rows=bound.rows,
        slices=slices,
        inputs=bound.logged if exchange.sampled else {},
        sampled=exchange.sampled,
        retry=first is not None,
        paired=exchange.paired,
        traceparent=trace_context.traceparent(traceparent),
    )
    try:
        gateway.log.write(event)
    except LogWriteError:
        exchange.logged = False
        _unpair(exchange)
        arm = "champion"
    exchange.arm = arm
    if first is not None:
        gateway.metrics.retries.labels(route.model).inc()
    elif given and exchange.logged:
        gateway.memory.remember(route.model, exchange.request_id, effective.rollout_id, arm)


def _challenger_answers(exchange: _Exchange, outcome: Outcome) -> bool:
    """Write the drawn challenger's Response; False when the champion has to answer in its place."""
    failed, unavailable = outcome.status != "ok", outcome.unavailable
    # An answer of the challenger that the log cannot take is not given: no exposure without its record.
    answers = not failed and exchange.respond("challenger", outcome, served=True)
    if not answers:
        if failed:
            exchange.respond("challenger", outcome, served=False)
        _unpair(exchange)
        exchange.gateway.metrics.fallbacks.labels(exchange.plan.route.model).inc()
        exchange.arm, exchange.fallback = "champion", True
    if not unavailable:
        exchange.gateway.count_challenger_call(exchange.plan, failed=failed)
    return answers


def _log_served(exchange: _Exchange, outcome: Outcome) -> bool:
    """Write the Response of the champion that answers (a challenger's is written). False when it could not be.

    Where it failed, a declared batch score is looked up: the log then holds both, the failure and what was answered.
    """
    if exchange.arm == "challenger":
        return True
    if _failure(exchange.plan.route.model, outcome) is not None:
        replace_by_batch_score(
            exchange.gateway, exchange.plan.champion.manifest, exchange.bound.rows, exchange.request_id, outcome
        )
    return exchange.respond("champion", outcome, served=True, fallback=exchange.fallback)


def _answer(exchange: _Exchange, outcome: Outcome, logged: bool) -> Answer:
    arm = exchange.arm
    if not logged:
        exchange.gateway.metrics.unlogged.labels(exchange.plan.route.model).inc()
    result = _result(exchange, exchange.model_of(arm), outcome, arm, logged)
    if exchange.paired:
        exchange.paired = False
        return Answer(result, lambda: _score_other(exchange, _OTHER[arm]))
    return Answer(result)


async def _on_disk(gateway: Gateway) -> bool:
    """Wait for the disk; False when it refused or is slow: the answer leaves, and says that it is not logged."""
    try:
        await gateway.log.durable()
    except LogWriteError:
        return False
    return True


async def _score(exchange: _Exchange, arm: Arm) -> Outcome:
    if exchange.plan.challenger is None:
        return exchange.scorer.score(exchange.plan.champion)
    timeout_s = exchange.plan.route.breaker.timeout_ms / 1000 if arm == "challenger" else None
    model = exchange.model_of(arm)
    return await exchange.gateway.arms.score(exchange.plan.pace, arm, exchange.scorer, model, timeout_s)


async def _score_other(exchange: _Exchange, arm: Arm) -> None:
    """The arm not drawn scores; its Response is `shadow`, and nobody waits for it."""
    outcome = await _score(exchange, arm)
    exchange.respond(arm, outcome, served=False, shadow=True)
    if arm == "challenger" and not outcome.unavailable:
        exchange.gateway.count_challenger_call(exchange.plan, failed=outcome.status != "ok")


def _unpair(exchange: _Exchange) -> None:
    if exchange.paired:
        exchange.paired = False
        exchange.gateway.shadow.release()


def _result(exchange: _Exchange, model: LoadedModel, outcome: Outcome, arm: Arm, logged: bool) -> Prediction | Refusal:
    manifest, release, batch = model.manifest, model.digest, outcome.batch
    if batch is not None:
        manifest, release = msgspec.structs.replace(manifest, semver=batch.semver), batch.release
    elif failure := _failure(exchange.plan.route.model, outcome):
        return failure
    degraded = list(outcome.degraded)
    if outcome.status == "invalid" and batch is None:
        degraded.append("score outside its contract")
    parameters = _parameters(release, arm, exchange.plan.route.version, logged=logged, degraded=degraded)
    return Prediction(exchange.request_id, manifest, outcome.outputs, parameters)


def _parameters(release: str, arm: str, route_version: int, *, logged: bool, degraded: list[str]) -> dict[str, Any]:
    """What an answer says of its making."""
    return {
        "release": release,
        "arm": arm,
        "route_version": route_version,
        "logged": logged,
        "degraded": "; ".join(degraded),
    }


def _failure(model: str, outcome: Outcome) -> Refusal | None:
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


async def infer_pinned(gateway: Gateway, model: LoadedModel, request: InferRequest) -> Prediction:
    """Answer by one given release: no assignment, no events, no part in any rollout."""
    event_us = event_time(gateway, request)
    check_outputs(request, model.manifest)
    bound = model.binder.bind(request, gateway.limits.max_rows)
    request_id, _ = _request_id(gateway, request)
    reads = NOTHING
    if model.reads.pinned:
        read = gateway.store.read(model.reads, bound.columns, bound.rows, event_us)
        reads = read if isinstance(read, Reads) else await read
    outcome = Scorer(bound, reads).score(model)
    if failure := _failure(model.manifest.model, outcome):
        raise failure
    parameters = _parameters(model.digest, "pinned", 0, logged=False, degraded=outcome.degraded)
    return Prediction(request_id, model.manifest, outcome.outputs, parameters)
