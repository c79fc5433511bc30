"""(policy, evidence, stage) -> Judgement. Pure: no clock, no randomness, no I/O."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from pipelines.rollout.policy import Metric, Policy, Stage
from pipelines.stats.bounds import interval
from pipelines.stats.evidence import BETTER, HARM, PROOF, WIDTH, Evidence
from pipelines.stats.families import Family, harm, loudest_stage, proof
from pipelines.stats.latency_blocks import MARGIN, SUFFIX
from pipelines.stats.losses import loss_range
from pipelines.stats.mixture import e_value
from pipelines.stats.nats import MOMENT, Ints

VerdictKind = Literal["pass", "fail", "inconclusive", "no_data", "error"]
Better = Literal["yes", "no", "unproven"]


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the evidence says of one metric, over all traffic (`slice` None) or in one slice.

    `e_value` is against "no harm", `threshold` its bar (rollback or hold). `proof` and `proof_threshold` are against
    "worse than the promotion margin" (0 and 0 without a margin). `estimate` is challenger minus champion in the
    metric's unit, with the anytime-valid interval `lower`..`upper` (None before there is data); `n` settled
    observations. e-values are capped at 1e300 so that JSON can hold them.
    """

    metric: str
    slice: str | None
    kind: VerdictKind
    e_value: float
    threshold: float
    proof: float
    proof_threshold: float
    better: Better
    estimate: float | None
    lower: float | None
    upper: float | None
    champion: float | None
    challenger: float | None
    n: int
    sentence: str


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    """The evidence demands an end: `rollback` (the challenger harms) or `hold` (the data cannot be trusted)."""

    action: Literal["rollback", "hold"]
    metric: str
    slice: str | None
    e_value: float
    threshold: float
    sentence: str


class Pause(msgspec.Struct, frozen=True, kw_only=True):
    """The ramp should wait, nothing is withdrawn (request-level latency)."""

    metric: str
    slice: str | None
    e_value: float
    threshold: float
    sentence: str


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a decision needs from the evidence.

    `stage_complete`: the stage's number of requests is reached. `proven` / `missing`: required metrics whose margin is
    ruled out or not yet. `exposed`: requests assigned to the challenger in stages that draw the arm. `requests`: of
    this stage.
    """

    stage: str
    verdicts: tuple[Verdict, ...]
    stop: Stop | None
    pause: Pause | None
    stage_complete: bool
    proven: tuple[str, ...]
    missing: tuple[str, ...]
    exposed: int
    requests: int
    evidence_digest: str
    policy_digest: str


_ALPHA_INTERVAL = 0.05
_LOST_MARGIN = 0.001
"""A difference in lost or doubled responses below this share holds no rollout, however certain it is."""
_GAP_LIMIT = 0.01
_GAP_LEAST = 20


class _Book(NamedTuple):
    """Evidence with its cells by metric: (stage, slice, vector)."""

    evidence: Evidence
    cells: dict[str, list[tuple[str, str, Ints]]]

    @staticmethod
    def of(evidence: Evidence) -> _Book:
        cells: dict[str, list[tuple[str, str, Ints]]] = {}
        for (stage, metric, part), vector in evidence.cells.items():
            cells.setdefault(metric, []).append((stage, part, vector))
        return _Book(evidence, cells)


class _Cells:
    """The cells of one metric as arrays: `whole` (K, WIDTH), `parts` (S, K, WIDTH) for the sorted slice `names`."""

    def __init__(self, book: _Book, metric: str, stages: tuple[str, ...]) -> None:
        place = {name: k for k, name in enumerate(stages)}
        held = [row for row in book.cells.get(metric, ()) if row[0] in place]
        self.names = sorted({part for _, part, _ in held if part})
        self.whole = np.zeros((len(stages), WIDTH), dtype=np.int64)
        self.parts = np.zeros((len(self.names), len(stages), WIDTH), dtype=np.int64)
        row_of = {part: s for s, part in enumerate(self.names)}
        for stage, part, vector in held:
            (self.parts[row_of[part]] if part else self.whole)[place[stage]] = vector


class _Levels(NamedTuple):
    """Outcome levels of both arms in one scope of stages, compared within each stage and then pooled."""

    n: int
    champion: float
    challenger: float
    difference: float
    ratio: float


def live_stages(policy: Policy, metric: Metric | str) -> tuple[str, ...]:
    """The stages in which a metric (or an integrity check) gathers evidence."""
    drawn = tuple(stage.name for stage in policy.stages if stage.randomised)
    everything = tuple(stage.name for stage in policy.stages)
    if isinstance(metric, str):
        return drawn if metric == "sample_ratio" else everything
    return drawn if metric.kind == "mean" else everything


def proof_stages(policy: Policy, metric: Metric) -> tuple[str, ...]:
    """The stages whose evidence may prove a metric: answers that were served, where there are any; pairs everywhere."""
    drawn = tuple(stage.name for stage in policy.stages if stage.randomised)
    if metric.kind in ("mean", "quantile") or (metric.kind == "event" and drawn):
        return drawn
    return tuple(stage.name for stage in policy.stages)


def rollback_bar(policy: Policy, metric: Metric) -> float:
    """The e-value a family needs for rollback: 1 / (weight * budget). Infinite for a metric without weight."""
    return 1.0 / (metric.weight * policy.budget.rollback) if metric.weight > 0.0 else math.inf


def hold_bar(policy: Policy) -> float:
    """The e-value an integrity check needs for hold."""
    return max(len(policy.integrity), 1) / policy.budget.hold


def proof_bar(policy: Policy) -> float:
    """The e-value a proof needs. Every required proof must be in, so each may use the whole level."""
    return 1.0 / policy.budget.promote


def _levels(rows: Ints) -> _Levels:
    """Levels from the moments of some stages: `rows` (k, WIDTH). Weights are those of Mantel and Haenszel."""
    n1, n0 = rows[:, 1].astype(float), rows[:, 2].astype(float)
    y1, y0 = rows[:, 3] / MOMENT, rows[:, 4] / MOMENT
    total = n1 + n0
    weight = np.where(total > 0, n1 * n0 / np.maximum(total, 1.0), 0.0)
    m1 = np.where(n1 > 0, y1 / np.maximum(n1, 1.0), 0.0)
    m0 = np.where(n0 > 0, y0 / np.maximum(n0, 1.0), 0.0)
    mass = weight.sum()
    champion = float((weight * m0).sum() / mass) if mass > 0 else float(y0.sum() / max(n0.sum(), 1.0))
    challenger = float((weight * m1).sum() / mass) if mass > 0 else float(y1.sum() / max(n1.sum(), 1.0))
    # Half an event on either side keeps the ratio of rare events finite.
    over, under = float((weight * m1).sum()), float((weight * m0).sum())
    return _Levels(int(rows[:, 0].sum()), champion, challenger, challenger - champion, (over + 0.25) / (under + 0.25))


def _harm_size(metric: Metric, levels: _Levels) -> float:
    """How much worse the challenger is, in the metric's unit; above zero is worse."""
    return -levels.difference if metric.kind == "mean" and metric.better == "higher" else levels.difference


def harmful(metric: Metric, levels: _Levels) -> bool:
    """The second key: is the estimated harm above the practical margin?"""
    size = _harm_size(metric, levels)
    if metric.kind == "event":
        return size > 0.0 and levels.ratio >= (metric.harm_ratio or 1.0)
    if metric.kind in ("paired_mean", "paired_abs"):
        allowed = (metric.tolerance_abs or 0.0) + (metric.tolerance_rel or 0.0) * abs(levels.champion)
        return metric.kind == "paired_abs" or abs(size) >= allowed
    return size > 0.0 and size >= (metric.harm_abs or 0.0) + (metric.harm_rel or 0.0) * abs(levels.champion)


def _bounds(policy: Policy, metric: Metric | None, stage: Stage) -> tuple[float, float] | None:
    """(low, high) such that one effect lies in [-low, high]; None when nothing bounds it."""
    drawn = stage.randomised and (metric is None or not metric.paired)
    share = stage.share or 0.5
    if metric is None or metric.kind in ("event", "quantile"):
        return (1.0 / (1.0 - share), 1.0 / share) if drawn else (1.0, 1.0)
    if metric.kind == "mean":
        low, high = metric.range or (0.0, 1.0)
        reach = (high - low) / min(share, 1.0 - share)
        return (reach, reach)
    if metric.kind == "paired_loss":
        least, most = loss_range(metric.loss, clip=metric.clip, cap=metric.cap)
        return (most - least, most - least)
    if policy.score_range is None:
        return None
    width = policy.score_range[1] - policy.score_range[0]
    return (width, width)


class _Estimate(NamedTuple):
    estimate: float | None
    lower: float | None
    upper: float | None
    levels: _Levels


def _estimate(policy: Policy, metric: Metric | None, whole: Ints) -> _Estimate:
    """Effect and interval: pairs over all stages, drawn arms in the latest stage that has data. `whole` (K, WIDTH)."""
    filled = [k for k in range(len(whole)) if whole[k, 0] > 0]
    if not filled:
        return _Estimate(None, None, None, _levels(whole))
    scope = filled if metric is not None and metric.paired else filled[-1:]
    rows = whole[scope]
    levels = _levels(rows)
    bounds = _bounds(policy, metric, policy.stages[scope[-1]])
    total, squares = float(rows[:, 5].sum()) / MOMENT, float(rows[:, 6].sum()) / MOMENT
    direct = metric is None or metric.paired
    mean = total / levels.n if direct else levels.difference
    if bounds is None:
        return _Estimate(mean, None, None, levels)
    lower, upper = interval(levels.n, total, squares, *bounds, _ALPHA_INTERVAL)
    return _Estimate(mean, lower, upper, levels)


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _versus(metric: Metric | str, levels: _Levels) -> str:
    """What was compared with what, in numbers."""
    if isinstance(metric, str) or metric.kind in ("event", "quantile"):
        what = {"quantile": "above the champion's running quantile "}.get(
            "" if isinstance(metric, str) else metric.kind, ""
        )
        return f"{what}challenger {_share(levels.challenger)} against champion {_share(levels.champion)}"
    return f"challenger {_number(levels.challenger)} against champion {_number(levels.champion)}"


class _Finding(NamedTuple):
    verdict: Verdict
    stop: Stop | None
    pause: Pause | None
    proven: bool
    excess: float


def _integrity(policy: Policy, book: _Book, name: str) -> _Finding:
    stages = tuple(stage.name for stage in policy.stages)
    cells = _Cells(book, name, stages)
    live = [k for k, stage in enumerate(stages) if stage in live_stages(policy, name)]
    log_e = float(_family(policy, cells, live, sticky=policy.unit == "unit").log_e)
    bar = hold_bar(policy)
    estimate = _estimate(policy, None, cells.whole)
    levels = _levels(cells.whole)
    if name == "sample_ratio":
        latest = [k for k in live if cells.whole[k, 0] > 0]
        seen = cells.whole[latest[-1]] if latest else cells.whole[0]
        got = float(seen[1]) / max(float(seen[0]), 1.0)
        declared = (policy.stages[latest[-1]].share or 0.0) if latest else 0.0
        text = f"{_share(got)} of {int(seen[0])} requests went to the challenger, {_share(declared)} declared"
        worth = True
    else:
        text = f"{_versus(name, levels)} in {levels.n} requests"
        worth = levels.difference >= _LOST_MARGIN
    fails = log_e >= math.log(bar) and worth
    sentence = f"{name}: {text}; e-value {_number(e_value(log_e))} against the bar {_number(bar)}"
    kind: VerdictKind = "no_data" if not levels.n else "fail" if fails else "pass"
    verdict = Verdict(
        metric=name, slice=None, kind=kind, e_value=e_value(log_e), threshold=bar, proof=0.0, proof_threshold=0.0,
        better="unproven", estimate=estimate.estimate, lower=estimate.lower, upper=estimate.upper,
        champion=levels.champion, challenger=levels.challenger, n=levels.n, sentence=sentence,
    )  # fmt: skip
    stop = None
    if fails:
        stop = Stop(action="hold", metric=name, slice=None, e_value=e_value(log_e), threshold=bar, sentence=sentence)
    return _Finding(verdict, stop, None, False, log_e - math.log(bar))


def _gaps(policy: Policy, evidence: Evidence) -> Stop | None:
    """Assignments that never arrived: nobody knows whose they were."""
    gaps, requests = evidence.counted("gaps"), evidence.counted("requests")
    share = gaps / max(gaps + requests, 1)
    if "sample_ratio" not in policy.integrity or gaps < _GAP_LEAST or share < _GAP_LIMIT:
        return None
    sentence = f"lost_assignments: {gaps} of {gaps + requests} sequence numbers ({_share(share)}) never arrived"
    return Stop(
        action="hold", metric="lost_assignments", slice=None, e_value=share, threshold=_GAP_LIMIT, sentence=sentence
    )


def acts(policy: Policy, metric: Metric, evidence: Evidence, lower: float | None, champion: float) -> bool:
    """Whether a metric may act now: pairs wait for `min_event_time_s`, except past their hard harm."""
    if not metric.paired or evidence.event_time_s >= policy.min_event_time_s:
        return True
    if metric.hard_harm_rel is None or lower is None:
        return False
    return lower >= metric.hard_harm_rel * abs(champion)


def _judge_metric(policy: Policy, book: _Book, metric: Metric) -> _Finding:
    evidence = book.evidence
    stages = tuple(stage.name for stage in policy.stages)
    sticky = policy.unit == "unit"
    cells = _Cells(book, metric.name, stages)
    live = [k for k, stage in enumerate(stages) if stage in live_stages(policy, metric)]
    estimate = _estimate(policy, metric, cells.whole)
    levels, bar = estimate.levels, rollback_bar(policy, metric)
    family = _family(policy, cells, live, sticky=sticky)
    log_e = float(family.log_e)
    reached = math.isfinite(bar) and log_e >= math.log(bar)
    part, scoped, steady = _loudest(policy, cells, live, family) if reached else (None, levels, levels)
    may_act = acts(policy, metric, evidence, estimate.lower, levels.champion)

    proof_units = cells.whole[[k for k, s in enumerate(stages) if s in proof_stages(policy, metric)]]
    log_proof, log_better, log_worse = 0.0, 0.0, 0.0
    if len(proof_units):
        questions = np.stack([proof_units[:, columns] for columns in (PROOF, BETTER, HARM)])
        log_proof, log_better, log_worse = proof(questions, sticky=sticky).tolist()
    need = math.log(proof_bar(policy))
    waited = not metric.paired or evidence.event_time_s >= policy.min_event_time_s
    proven = metric.provable and log_proof >= need and waited

    stop, pause = None, None
    sentence = _sentence(metric, estimate, log_e, bar)
    worth = harmful(metric, scoped)
    if metric.paired and policy.min_event_time_s > 0:
        # Days swing, and a stage may be one: what the loudest stage says must also hold for the whole way.
        worth = worth and harmful(metric, steady)
    if metric.kind == "quantile":
        # Slower for certain, yet within the margin that was ruled out or below the practical one: nothing to wait for.
        worth = worth and not proven and _beyond_margin(book, metric, stages)
    if metric.role != "report" and reached and worth and may_act:
        where = "" if part is None else f" in slice {part}"
        text = f"{metric.name}{where}: {_versus(metric, scoped)} in {scoped.n} observations; {_bar_text(log_e, bar)}"
        value = e_value(log_e)
        if metric.kind == "quantile":
            pause = Pause(metric=metric.name, slice=part, e_value=value, threshold=bar, sentence=text)
        else:
            stop = Stop(action="rollback", metric=metric.name, slice=part, e_value=value, threshold=bar, sentence=text)
    if metric.kind == "quantile" and metric.role != "report":
        stop = _judge_blocks(policy, book, metric, stages, live)

    better: Better = "unproven"
    if metric.kind in ("paired_loss", "mean"):
        better = "yes" if log_better >= need else "no" if log_worse >= need else "unproven"
    verdict = Verdict(
        metric=metric.name, slice=None, kind=_kind(metric, evidence, levels.n, stop, proven=proven),
        e_value=e_value(log_e), threshold=min(bar, 1e300), proof=e_value(log_proof) if metric.provable else 0.0,
        proof_threshold=proof_bar(policy) if metric.provable else 0.0, better=better, estimate=estimate.estimate,
        lower=estimate.lower, upper=estimate.upper, champion=levels.champion if levels.n else None,
        challenger=levels.challenger if levels.n else None, n=levels.n,
        sentence=sentence + _proof_text(policy, metric, log_proof, proven=proven, waited=waited),
    )  # fmt: skip
    return _Finding(verdict, stop, pause, proven, log_e - math.log(min(bar, 1e300)))


def _family(policy: Policy, cells: _Cells, live: list[int], *, sticky: bool) -> Family:
    if not live:
        return Family(np.zeros(()), np.zeros(()), np.zeros(0))
    whole, parts = cells.whole[live][:, HARM], cells.parts[:, live][:, :, HARM]
    return harm(whole, parts, max_slices=policy.max_slices, sticky=sticky)


def _loudest(policy: Policy, cells: _Cells, live: list[int], family: Family) -> tuple[str | None, _Levels, _Levels]:
    """The slice that speaks loudest (None: all traffic); both arms' levels there in the loudest stage, and in all."""
    rows, part = cells.whole, None
    if family.slices.shape[-1] > 1:
        loud = int(np.argmax(family.slices))
        room = max(len(cells.names), policy.max_slices)
        if float(family.slices[loud]) - math.log(room) > float(family.overall):
            rows, part = cells.parts[loud], cells.names[loud]
    stage = loudest_stage(rows[live][:, HARM])
    return part, _levels(rows if stage is None else rows[live[stage]][None, :]), _levels(rows)


def _beyond_margin(book: _Book, metric: Metric, stages: tuple[str, ...]) -> bool:
    """Whether the challenger is still slower once its latencies are divided by the harm ratio."""
    if metric.harm_ratio is None:
        return True
    whole = _Cells(book, metric.name + MARGIN, stages).whole
    latest = np.flatnonzero(whole[:, 0])[-1:]
    return _levels(whole[latest]).difference > 0.0


def _judge_blocks(policy: Policy, book: _Book, metric: Metric, stages: tuple[str, ...], live: list[int]) -> Stop | None:
    """Rollback for latency rests on blocks of 60 seconds, which noise local to an arm cannot fool."""
    cells = _Cells(book, metric.name + SUFFIX, stages)
    if not cells.whole[:, 0].any() or not live:
        return None
    log_e, bar = (
        float(harm(cells.whole[live][:, HARM], cells.parts[:, live][:, :, HARM], max_slices=1, sticky=False).log_e),
        (rollback_bar(policy, metric)),
    )
    levels = _levels(cells.whole)
    if log_e < math.log(bar) or levels.difference <= 0.0 or not _beyond_margin(book, metric, stages):
        return None
    text = f"{metric.name}: {_versus(metric, levels)} in {levels.n} blocks of 60 seconds; {_bar_text(log_e, bar)}"
    return Stop(action="rollback", metric=metric.name, slice=None, e_value=e_value(log_e), threshold=bar, sentence=text)


def _bar_text(log_e: float, bar: float) -> str:
    return f"e-value {_number(e_value(log_e))} against the bar {_number(bar)}"


def _sentence(metric: Metric, found: _Estimate, log_e: float, bar: float) -> str:
    if not found.levels.n:
        return f"{metric.name}: no data yet"
    text = f"{metric.name}: {_versus(metric, found.levels)} in {found.levels.n} observations"
    if found.estimate is not None:
        text += f", difference {_number(found.estimate)}"
        if found.lower is not None and found.upper is not None:
            text += f" [{_number(found.lower)}, {_number(found.upper)}]"
    if metric.role == "report" or not math.isfinite(bar):
        return text + "; reported, does not act"
    return f"{text}; harm: {_bar_text(log_e, bar)}"


def _proof_text(policy: Policy, metric: Metric, log_proof: float, *, proven: bool, waited: bool) -> str:
    if not metric.provable:
        return ""
    margin = (
        f"{_share(metric.promote_margin_rel)} worse"
        if metric.promote_margin_rel
        else f"{metric.promote_margin_abs} worse"
    )
    if proven:
        return f"; ruled out: {margin} (e-value {_number(e_value(log_proof))})"
    if not waited:
        return f"; not yet ruled out: {margin} (waits for {policy.min_event_time_s:g} s of event time)"
    return f"; not yet ruled out: {margin} (e-value {_number(e_value(log_proof))} of {_number(proof_bar(policy))})"


def _kind(metric: Metric, evidence: Evidence, n: int, stop: Stop | None, *, proven: bool) -> VerdictKind:
    if stop is not None:
        return "fail"
    if not n:
        lost = {"paired_loss": "label_not_finite", "mean": "kpi_not_finite"}.get(metric.kind)
        return "error" if lost is not None and evidence.counted(lost) else "no_data"
    if metric.provable:
        return "pass" if proven else "inconclusive"
    return "pass"


def judge(policy: Policy, evidence: Evidence, stage: str, *, final_look: bool = False) -> Judgement:
    """Judges `evidence` under `policy` while the rollout is in `stage`.

    Integrity comes first: data that cannot be trusted lead to `hold` and to nothing else. With `final_look` a stage
    counts as complete whatever its number of requests: no more will come. Raises ContractError for an unknown stage.
    """
    current = policy.stage(stage)
    book = _Book.of(evidence)
    integrity = [_integrity(policy, book, name) for name in policy.integrity]
    findings = [_judge_metric(policy, book, metric) for metric in policy.metrics]
    stops = [found for found in integrity if found.stop is not None]
    stop = stops[0].stop if stops else _gaps(policy, evidence)
    if stop is None:
        harms = [found for found in findings if found.stop is not None]
        stop = max(harms, key=lambda found: found.excess).stop if harms else None
    pauses = [found for found in findings if found.pause is not None]
    proven = tuple(
        found.verdict.metric for found in findings if found.proven and found.verdict.metric in policy.require
    )
    requests = evidence.counted("requests", [stage])
    return Judgement(
        stage=stage,
        verdicts=tuple(found.verdict for found in (*integrity, *findings)),
        stop=stop,
        pause=max(pauses, key=lambda found: found.excess).pause if pauses else None,
        stage_complete=requests > 0 and (final_look or current.requests is None or requests >= current.requests),
        proven=proven,
        missing=tuple(name for name in policy.require if name not in proven),
        exposed=evidence.counted("exposed"),
        requests=requests,
        evidence_digest=evidence.digest,
        policy_digest=policy.digest,
    )
