"""The way of infer requests that were read in one turn of the loop, where at most features have to be waited for.

The steps are those of `serving/infer.py`, each done for all requests before the next: events of a kind are handed to
the kernel by one write, and a release scores its requests by one call. What goes wrong with one request stays with it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Container, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any

import msgspec

from pipelines.contracts.assignment import PPM
from pipelines.contracts.events import Arm, Assignment, Response
from serving.answers import result, stand_in
from serving.assigning import assign, check, go_unlogged
from serving.exchange import Exchange
from serving.gateway import Gateway
from serving.infer import OTHER, Answer, go_on, score_other, step_back
from serving.inference_log import InferenceLog, LogWriteError
from serving.oip.request import InferRequest
from serving.online_features.plan import ReadPlan, Reads
from serving.route_table import Plan
from serving.scoring import Outcome
from serving.scoring_together import score_together
from serving.shadow import Job

_log = logging.getLogger("slipway.infer")

Coming = tuple[Plan, InferRequest, str | None]
"""A request, the plan it is answered by (`Gateway.answers_at_once`), and its `traceparent`."""
Finished = Answer | Exception | Coroutine[Any, Any, Answer]
"""An answer; or what will give one, for a request that has to be waited for after all."""
Begun = list[Exchange | Exception]
"""What became of the requests, in order: a Refusal or another error in the place of one that ends here."""


def begin_together(gateway: Gateway, coming: Iterable[Coming]) -> Begun:
    """Check the requests and write their assignments."""
    begun: Begun = []
    exchanges: list[Exchange] = []
    assignments: list[Assignment] = []
    ids = gateway.log.ids()
    event_id = next(ids)
    for plan, request, traceparent in coming:
        try:
            exchange = check(gateway, plan, request)
            assignment = assign(exchange, event_id, traceparent)
        except Exception as error:  # noqa: BLE001 - this request's, and told to its client
            begun.append(error)
            continue
        begun.append(exchange)
        exchanges.append(exchange)
        assignments.append(assignment)
        event_id = next(ids)
    for exchange, trouble in zip(exchanges, _hand_over(gateway.log, assignments), strict=True):
        if isinstance(trouble, LogWriteError):
            go_unlogged(exchange)
        elif trouble is not None:
            exchange.unpair()
            begun[next(at for at, one in enumerate(begun) if one is exchange)] = trouble
    return begun


def read_now(gateway: Gateway, begun: Begun) -> None:
    """Read what is read online, where the store is at hand."""
    for exchanges in _by_reads(begun):
        reading = gateway.store.read(exchanges[0].reads, [exchange.wanted() for exchange in exchanges])
        assert isinstance(reading, list), "a local store"
        _hand_out(exchanges, reading)


def ask_for(gateway: Gateway, begun: Begun) -> Awaitable[None]:
    """Ask for what is read online: what is awaited hands it out."""
    asked = [
        (exchanges, gateway.store.read(exchanges[0].reads, [exchange.wanted() for exchange in exchanges]))
        for exchanges in _by_reads(begun)
    ]

    async def hand_out() -> None:
        for exchanges, reading in asked:
            _hand_out(exchanges, reading if isinstance(reading, list) else await reading)

    return hand_out()


def finish_together(gateway: Gateway, begun: Begun) -> list[Finished]:
    """Score, write the responses, and form the answers, in the order of the requests."""
    exchanges = [one for one in begun if isinstance(one, Exchange)]
    try:
        answers = iter(_finish(gateway, exchanges))
    except BaseException:
        give_up(begun)
        raise
    return [next(answers) if isinstance(one, Exchange) else one for one in begun]


def give_up(begun: Begun) -> None:
    """Whatever has ended the requests early, their places in the shadow queue are free again."""
    for one in begun:
        if isinstance(one, Exchange):
            one.unpair()


def _finish(gateway: Gateway, exchanges: Sequence[Exchange]) -> list[Finished]:
    groups = list(_groups(exchanges))
    outcomes = _score(gateway, exchanges, groups)
    responses: list[Response] = []
    ids = gateway.log.ids()
    for exchange, outcome in zip(exchanges, outcomes, strict=True):
        if outcome is None or _is_replaced(exchange, outcome):
            continue
        if exchange.arm == "champion":
            stand_in(exchange, outcome)
        exchange.count(exchange.arm, outcome, served=True)
        if exchange.logged:
            responses.append(exchange.response(next(ids), exchange.arm, outcome, served=True))
    written = iter(_hand_over(gateway.log, responses))
    finished: list[Finished] = []
    paired: set[int] = set()
    for exchange, outcome in zip(exchanges, outcomes, strict=True):
        if outcome is None or _is_replaced(exchange, outcome):
            finished.append(go_on(exchange, outcome))
            continue
        trouble = next(written) if exchange.logged else None
        if trouble is not None and not isinstance(trouble, LogWriteError):
            exchange.unpair()
            finished.append(trouble)
            continue
        if exchange.arm == "challenger":
            gateway.count_challenger_call(exchange.plan, failed=False)
            if trouble is not None:
                # An answer of the challenger that the log cannot take is not given: no exposure without its record.
                step_back(exchange)
                finished.append(go_on(exchange))
                continue
        logged = exchange.logged and trouble is None
        finished.append(Answer(result(exchange, outcome, exchange.arm, logged)))
        if exchange.paired:
            exchange.will_wait()
            paired.add(id(exchange))
    _put_others(gateway, groups, paired)
    return finished


def _is_replaced(exchange: Exchange, outcome: Outcome) -> bool:
    """Whether the champion has to answer for the challenger that was drawn."""
    return exchange.arm == "challenger" and outcome.status != "ok"


def _put_others(gateway: Gateway, groups: Iterable[Sequence[Exchange]], paired: Container[int]) -> None:
    """Put the second arms of the exchanges, by `id`, into the queue: a job for those that were scored together."""
    for group in groups:
        if pairs := [exchange for exchange in group if id(exchange) in paired]:
            gateway.shadow.put(Job(partial(_score_others, gateway, pairs), places=len(pairs)))


def _score_others(gateway: Gateway, group: Sequence[Exchange]) -> Coroutine[Any, Any, None] | None:
    """The arms not drawn score, as those that were: together. Nobody waits for them. In threads, it takes a while."""
    arm = OTHER[group[0].arm]
    model, pace = group[0].model_of(arm), group[0].plan.pace
    outcomes = gateway.arms.score_in_loop(pace, arm, [exchange.scorer for exchange in group], model)
    if outcomes is None:
        return _score_each(group)
    responses: list[Response] = []
    ids = gateway.log.ids()
    for exchange, outcome in zip(group, outcomes, strict=True):
        exchange.count(arm, outcome, served=False)
        if exchange.logged:
            responses.append(exchange.response(next(ids), arm, outcome, served=False, shadow=True))
    for trouble in _hand_over(gateway.log, responses):
        if trouble is not None and not isinstance(trouble, LogWriteError):
            _log.error("a second arm's response is not in the log", exc_info=trouble)
    if arm == "challenger":
        for exchange, outcome in zip(group, outcomes, strict=True):
            if not outcome.unavailable:
                gateway.count_challenger_call(exchange.plan, failed=outcome.status != "ok")
    return None


async def _score_each(group: Sequence[Exchange]) -> None:
    for exchange in group:
        await score_other(exchange)


def _by_reads(begun: Begun) -> Iterable[list[Exchange]]:
    """The requests that read online features, those that read the same together."""
    found: dict[ReadPlan, list[Exchange]] = {}
    for one in begun:
        if isinstance(one, Exchange) and one.reads.pinned:
            found.setdefault(one.reads, []).append(one)
    return found.values()


def _hand_out(exchanges: Sequence[Exchange], reads: Sequence[Reads]) -> None:
    for exchange, of_request in zip(exchanges, reads, strict=True):
        exchange.scorer.reads = of_request


def _groups(exchanges: Sequence[Exchange]) -> Iterable[list[Exchange]]:
    """The requests of one plan and arm together; where two releases are compared, as few of one arm as of the other.

    In shadow a pair's arms are scored in the same company; what was shed is compared with nothing, and held up by
    nothing. While arms are drawn, the smaller share would have the smaller company and look quicker: each request is
    then scored alone.
    """
    found: dict[tuple[int, Arm, bool, bool], list[Exchange]] = {}
    for exchange in exchanges:
        kind = (id(exchange.plan), exchange.arm, exchange.paired, exchange.is_compared)
        found.setdefault(kind, []).append(exchange)
    for group in found.values():
        plan = group[0].plan
        most = plan.pace.most if group[0].is_compared else len(group)
        if 0 < plan.effective.share_ppm < PPM:
            most = 1
        for first in range(0, len(group), most):
            yield group[first : first + most]


def _score(
    gateway: Gateway, exchanges: Sequence[Exchange], groups: Iterable[Sequence[Exchange]]
) -> list[Outcome | None]:
    """The outcomes of the arms drawn, in the order of the requests; None where one is to be scored in a thread."""
    scored: dict[int, Outcome | None] = {}
    for group in groups:
        plan, arm = group[0].plan, group[0].arm
        model, scorers = group[0].model_of(arm), [exchange.scorer for exchange in group]
        outcomes: Sequence[Outcome | None] | None
        if not group[0].is_compared:
            outcomes = score_together(model, scorers)
        else:
            outcomes = gateway.arms.score_in_loop(plan.pace, arm, scorers, model)
        if outcomes is None:
            outcomes = [None] * len(group)
        scored.update(zip(map(id, group), outcomes, strict=True))
    return [scored[id(exchange)] for exchange in exchanges]


def _hand_over(log: InferenceLog, events: Sequence[Assignment | Response]) -> list[Exception | None]:
    """Write the events, which have the log's next ids; for each, the error if it was not written."""
    if not events:
        return []
    try:
        log.write_all(events)
    except LogWriteError as error:
        return [None] * error.written + [error] * (len(events) - error.written)
    except Exception:  # noqa: BLE001 - one of them cannot be encoded, which is no affair of the others
        return [_hand_over_alone(log, event) for event in events]
    return [None] * len(events)


def _hand_over_alone(log: InferenceLog, event: Assignment | Response) -> Exception | None:
    try:
        log.write(msgspec.structs.replace(event, id=log.next_id()))
    except Exception as error:  # noqa: BLE001 - told to whom it concerns
        return error
    return None
