"""The arm that was not drawn: what is sent for it to be scored, and what is logged of it. Nobody waits for it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from pipelines.contracts.events import OTHER, Arm, Response
from serving.exchange import Exchange
from serving.handing_over import hand_over
from serving.inference_log import LogWriteError
from serving.row_by_row import MOST_ROWS
from serving.scoring import Outcome
from serving.shadow import Company
from serving.shadow_messages import Company as Sent
from serving.shadow_messages import Scored, packed, sent_request

_log = logging.getLogger("slipway.pairs")


def put(exchanges: Iterable[Exchange]) -> None:
    """Have the other arms scored, of exchanges whose places are reserved."""
    for exchange in exchanges:
        exchange.will_wait()
        plan, arm = exchange.plan, exchange.arm
        # One of many rows goes alone: to send it, and to log it, holds up whoever comes meanwhile.
        kind = (id(plan), arm) if exchange.bound.rows <= MOST_ROWS else id(exchange)
        # A challenger that takes longer than its route's timeout has failed. It is waited for all the same, twice as
        # long, since to end it is to end its process.
        patience_s = 2 * plan.route.breaker.timeout_ms / 1000 if arm == "champion" else None
        exchange.gateway.shadow.put(Company(kind, (exchange,), _message, _settle, _fail, patience_s))


def _message(exchanges: Sequence[Exchange], number: int, alone: bool) -> bytes | None:
    """What is sent; None where the challenger has been switched off while they waited: they are shed."""
    gateway, plan, wanted = exchanges[0].gateway, exchanges[0].plan, OTHER[exchanges[0].arm]
    if wanted == "challenger" and gateway.standing_override(plan.route.model) is not None:
        gateway.metrics.shed(plan.route.model).n += len(exchanges)
        return None
    releases: dict[Arm, str] = {"champion": plan.champion.digest}
    if plan.challenger is not None:
        releases["challenger"] = plan.challenger.digest
    return packed(
        Sent(
            number,
            wanted,
            releases,
            exchanges[0].scorer.reads.plan.by_release,
            # Drawn arms are compared by what clients have waited for.
            beside=plan.effective.mode == "shadow",
            alone=alone,
            timeout_us=plan.route.breaker.timeout_ms * 1000,
            requests=[sent_request(exchange.scorer) for exchange in exchanges],
        )
    )


def _settle(exchanges: Sequence[Exchange], scored: Sequence[Scored]) -> None:
    """Log and count the outcomes."""
    gateway, plan, arm = exchanges[0].gateway, exchanges[0].plan, OTHER[exchanges[0].arm]
    model = exchanges[0].model_of(arm)
    outcomes: list[Outcome] = []
    responses: list[Response] = []
    ids = gateway.log.ids()
    for exchange, one in zip(exchanges, scored, strict=True):
        reads = exchange.scorer.reads
        views = reads.of(model.digest) if model.manifest.views else []
        outcome = Outcome(
            one.status,
            one.latency_us,
            one.raw,
            one.score,
            one.outputs,
            reads.took_us,
            one.model_us,
            [read.logged for read in views],
            [read.degraded for read in views if read.degraded],
            one.error,
            one.unavailable,
        )
        outcomes.append(outcome)
        exchange.count(arm, outcome, served=False)
        if exchange.logged:
            responses.append(
                exchange.response(next(ids), arm, outcome, served=False, shadow=True, beside_us=one.beside_us)
            )
    alone_us = max(one.own_us for one in outcomes) / len(outcomes)
    plan.pace.note_together(arm, outcomes, alone_us)
    for trouble in hand_over(gateway.log, responses):
        if trouble is not None and not isinstance(trouble, LogWriteError):
            _log.error("a second arm's response is not in the log", exc_info=trouble)
    if arm == "challenger":
        for exchange, outcome in zip(exchanges, outcomes, strict=True):
            if not outcome.unavailable:
                gateway.count_challenger_call(exchange.plan, failed=outcome.status != "ok")


def _fail(exchanges: Sequence[Exchange], why: str) -> None:
    failed = Scored("error", 0, [], [], {}, 0, why, unavailable=False, beside_us=None)
    _settle(exchanges, [failed] * len(exchanges))
