"""Whether drift asks for a retraining now: a pure function of the verdicts and of the retrainings already asked for."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pipelines.monitoring.verdicts import Verdict

DAY_US = 86_400_000_000


class RetrainRule(msgspec.Struct, frozen=True, kw_only=True):
    """No sooner than `cooldown_us` after the last one, and no more than `limit` in any `per_us`; event time."""

    cooldown_us: int
    limit: int
    per_us: int


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """The decision. `drifted`: verdicts ask for it; `asked`: and nothing speaks against it. `reason` says why."""

    drifted: bool
    asked: bool
    reason: str


def decide(verdicts: Sequence[Verdict], asked_us: Sequence[int], as_of_us: int, rule: RetrainRule | None) -> Ask:
    """`asked_us` are the event times of the model's earlier retrainings (those not refused), in any order.

    One already asked for at `as_of_us` is this one, asked again: it does not stand in its own way.
    """
    failed = [verdict for verdict in verdicts if verdict.asks]
    if not failed:
        return Ask(drifted=False, asked=False, reason="nothing that asks for a retraining has drifted")
    why = "; ".join(f"{verdict.name}: {verdict.sentence}" for verdict in failed)
    against = _against(asked_us, as_of_us, rule)
    if against:
        return Ask(drifted=True, asked=False, reason=f"not asked, {against}. {why}")
    return Ask(drifted=True, asked=True, reason=why)


def _against(asked_us: Sequence[int], as_of_us: int, rule: RetrainRule | None) -> str:
    if rule is None:
        return "the spec has no `monitor.retrain`"
    earlier = [moment for moment in asked_us if moment < as_of_us]
    if earlier and as_of_us - max(earlier) < rule.cooldown_us:
        since, bar = (as_of_us - max(earlier)) / DAY_US, rule.cooldown_us / DAY_US
        return f"cool-down: the last was {since:.1f} days ago (bar {bar:g})"
    recent = [moment for moment in earlier if as_of_us - moment < rule.per_us]
    if len(recent) >= rule.limit:
        return f"retrain limit: {len(recent)} in {rule.per_us / DAY_US:g} days (limit {rule.limit})"
    return ""
