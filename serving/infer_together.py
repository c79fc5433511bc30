"""The way of infer requests that were read in one turn of the loop, where at most features have to be waited for.

The steps are those of `serving/infer.py`, each done for all requests before the next: events of a kind are handed to
the kernel by one write, and a release scores its requests by one call. What goes wrong with one request stays with it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Sequence

import msgspec

from pipelines.contracts.events import Assignment, Response
from serving.answers import stand_in
from serving.assigning import assign, check, go_unlogged
from serving.exchange import Exchange
from serving.gateway import Gateway
from serving.infer import Answer, answer
from serving.inference_log import InferenceLog, LogWriteError
from serving.oip.request import InferRequest
from serving.online_features.plan import ReadPlan, Reads
from serving.route_table import Plan
from serving.scoring import Outcome
from serving.scoring_together import score_together

Coming = tuple[Plan, InferRequest, str | None]
"""A request, the plan it is answered by (`Gateway.answers_at_once`), and its `traceparent`."""
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


def finish_together(gateway: Gateway, begun: Begun) -> list[Answer | Exception]:
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


def _finish(gateway: Gateway, exchanges: Sequence[Exchange]) -> list[Answer | Exception]:
    outcomes = _score(exchanges)
    responses: list[Response] = []
    ids = gateway.log.ids()
    for exchange, outcome in zip(exchanges, outcomes, strict=True):
        stand_in(exchange, outcome)
        exchange.count("champion", outcome, served=True)
        if exchange.logged:
            event_id = next(ids)
            responses.append(exchange.response(event_id, "champion", outcome, served=True))
    written = iter(_hand_over(gateway.log, responses))
    answers: list[Answer | Exception] = []
    for exchange, outcome in zip(exchanges, outcomes, strict=True):
        error = next(written) if exchange.logged else None
        if error is None or isinstance(error, LogWriteError):
            answers.append(answer(exchange, outcome, exchange.logged and error is None))
        else:
            exchange.unpair()
            answers.append(error)
    return answers


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


def _score(exchanges: Sequence[Exchange]) -> list[Outcome]:
    """The champions' outcomes, in the order of the requests."""
    of_plans: dict[int, list[Exchange]] = {}
    for exchange in exchanges:
        of_plans.setdefault(id(exchange.plan), []).append(exchange)
    scored = {key: iter(_score_plan(group)) for key, group in of_plans.items()}
    return [next(scored[id(exchange.plan)]) for exchange in exchanges]


def _score_plan(exchanges: Sequence[Exchange]) -> list[Outcome]:
    """The outcomes of requests of one plan."""
    plan = exchanges[0].plan
    if plan.challenger is None:
        return score_together(plan.champion, [exchange.scorer for exchange in exchanges])
    # While two releases are compared each request is scored by itself, as it is by the other arm.
    outcomes = []
    for exchange in exchanges:
        outcome = exchange.scorer.score(plan.champion)
        plan.pace.note("champion", outcome)
        outcomes.append(outcome)
    return outcomes


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
