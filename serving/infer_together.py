"""The way of infer requests that were read in one turn of the loop, where at most features have to be waited for.

The steps are those of `serving/infer.py`, each done for all requests before the next: events of a kind are handed to
the kernel by one write, and a release scores its requests by one call. What goes wrong with one request stays with it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine, Iterable, Sequence
from typing import Any

from pipelines.contracts.events import Arm, Assignment, Response
from serving import pairs
from serving.answers import result, stand_in
from serving.assigning import assign, check, go_unlogged
from serving.exchange import Exchange
from serving.gateway import Gateway
from serving.handing_over import hand_over
from serving.infer import Answer, count_baking, go_on, step_back
from serving.inference_log import LogWriteError
from serving.oip.request import InferRequest
from serving.online_features.plan import ReadPlan, Reads
from serving.route_table import Plan
from serving.scoring import Outcome
from serving.scoring_together import score_together

_UNDER_ALARM = 8
"""Requests of a challenger that are scored together: should one of them hang, the others have waited for the alarm."""

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
    for exchange, trouble in zip(exchanges, hand_over(gateway.log, assignments), strict=True):
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
    by_arm = _by_arm(exchanges)
    outcomes = _score(gateway, exchanges, by_arm)
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
    written = iter(hand_over(gateway.log, responses))
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
            paired.add(id(exchange))
    pairs.put(exchange for alike in by_arm for exchange in alike if id(exchange) in paired)
    _count_those_that_bake(by_arm, exchanges, outcomes)
    return finished


def _count_those_that_bake(
    by_arm: Iterable[Sequence[Exchange]], exchanges: Sequence[Exchange], outcomes: Sequence[Outcome | None]
) -> None:
    for first, *_ in by_arm:
        if (plan := first.plan).on_trial == "champion":
            made = [one for exchange, one in zip(exchanges, outcomes, strict=True) if exchange.plan is plan]
            count_baking(first.gateway, plan, [one for one in made if one is not None])


def _is_replaced(exchange: Exchange, outcome: Outcome) -> bool:
    """Whether the champion has to answer for the challenger that was drawn."""
    return exchange.arm == "challenger" and outcome.status != "ok"


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


def _by_arm(exchanges: Sequence[Exchange]) -> list[list[Exchange]]:
    """The requests of one plan and arm together."""
    found: dict[tuple[int, Arm], list[Exchange]] = {}
    for exchange in exchanges:
        found.setdefault((id(exchange.plan), exchange.arm), []).append(exchange)
    return list(found.values())


def _score(
    gateway: Gateway, exchanges: Sequence[Exchange], by_arm: Iterable[Sequence[Exchange]]
) -> list[Outcome | None]:
    """The outcomes of the arms drawn, in the order of the requests; None where one is to be scored in a thread.

    While arms are drawn, the smaller share would have the smaller company and look quicker: each is scored alone.
    """
    scored: dict[int, Outcome | None] = {}
    for alike in by_arm:
        first = alike[0]
        plan, arm, model = first.plan, first.arm, first.model_of(first.arm)
        scorers = [exchange.scorer for exchange in alike]
        if arm == "champion" and not first.is_compared:
            scored.update(zip(map(id, alike), score_together(model, scorers), strict=True))
            continue
        most = 1 if first.is_compared else _UNDER_ALARM
        for at in range(0, len(alike), most):
            few = alike[at : at + most]
            outcomes = gateway.arms.score_in_loop(plan.pace, arm, scorers[at : at + most], model)
            in_threads: list[Outcome | None] = [None] * len(few)
            scored.update(zip(map(id, few), outcomes or in_threads, strict=True))
    return [scored[id(exchange)] for exchange in exchanges]
