"""Offline gates: conditions on test metrics that a release must meet before it may start a rollout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from pipelines.spec.model import OfflineGate
from pipelines.training.metrics import HIGHER_IS_BETTER

Verdict = Literal["pass", "fail", "no_data"]


class GateVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """One gate's verdict, the numbers compared, and a sentence."""

    metric: str
    verdict: Verdict
    value: float | None
    bar: float | None
    champion: float | None = None
    sentence: str


class Comparison(msgspec.Struct, frozen=True):
    """Both sides' metrics on the same rows, None where there is nothing to compare; `note` says who, or why not."""

    ours: dict[str, float] | None
    champion: dict[str, float] | None
    note: str


def judge(gates: Sequence[OfflineGate], metrics: Mapping[str, float], comparison: Comparison) -> list[GateVerdict]:
    """The verdict of each gate: bars against the test part's `metrics`, margins against the champion."""
    return [
        _against_bars(gate, metrics) if gate.against is None else _against_champion(gate, comparison) for gate in gates
    ]


def refused(verdicts: Sequence[GateVerdict]) -> bool:
    """Whether a release with these verdicts may not start a rollout."""
    return any(verdict.verdict == "fail" for verdict in verdicts)


def _against_champion(gate: OfflineGate, comparison: Comparison) -> GateVerdict:
    name = gate.metric
    value = (comparison.ours or {}).get(name)
    theirs = (comparison.champion or {}).get(name)
    if value is None or theirs is None:
        sentence = f"{name} against the champion: {comparison.note}"
        return GateVerdict(metric=name, verdict="no_data", value=value, bar=None, sentence=sentence)
    room = (gate.max_worse_abs or 0.0) + (gate.max_worse_rel or 0.0) * abs(theirs)
    higher = name in HIGHER_IS_BETTER
    bar = theirs - room if higher else theirs + room
    good = value >= bar if higher else value <= bar
    sign = (">=" if higher else "<=") if good else ("<" if higher else ">")
    return GateVerdict(
        metric=name,
        verdict="pass" if good else "fail",
        value=value,
        bar=bar,
        champion=theirs,
        sentence=f"{name} {value:.4f} {sign} {bar:.4f} ({comparison.note}: {theirs:.4f}, margin {room:.4f})",
    )


def _against_bars(gate: OfflineGate, metrics: Mapping[str, float]) -> GateVerdict:
    value = metrics.get(gate.metric)
    if value is None:
        sentence = f"{gate.metric} was not measured"
        return GateVerdict(metric=gate.metric, verdict="no_data", value=None, bar=None, sentence=sentence)
    parts, good, bar = [], True, None
    for limit, over in ((gate.min, False), (gate.max, True)):
        if limit is None:
            continue
        met = value <= limit if over else value >= limit
        sign = ("<=" if met else ">") if over else (">=" if met else "<")
        parts.append(f"{gate.metric} {value:.4f} {sign} {'max' if over else 'min'} {limit:g}")
        good, bar = good and met, limit
    return GateVerdict(
        metric=gate.metric, verdict="pass" if good else "fail", value=value, bar=bar, sentence="; ".join(parts)
    )
