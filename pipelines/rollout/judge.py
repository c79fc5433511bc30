"""(policy, evidence, stage) -> Judgement. Pure: no clock, no randomness, no I/O."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from pipelines.rollout.bars import hold_bar, live_stages, proof_bar, proof_stages, restart_weights, rollback_bar
from pipelines.rollout.effects import Levels, estimate_of, harmful, levels_of
from pipelines.rollout.judgement import Better, Judgement, Pause, Stop, Verdict, VerdictKind
from pipelines.rollout.policy import Metric, Policy
from pipelines.rollout.verdict_text import as_number, as_share, bar_text, proof_text, sentence_of, versus
from pipelines.stats.evidence import BETTER, HARM, PROOF, WIDTH, Evidence, digest_of
from pipelines.stats.families import Family, harm, loudest_stage, proof
from pipelines.stats.latency_blocks import MARGIN, SUFFIX
from pipelines.stats.mixture import e_value
from pipelines.stats.nats import Ints

_LOST_MARGIN = 0.001
"""A difference in lost or doubled responses below this share holds no rollout, however certain it is."""
_GAP_LIMIT = 0.01
_GAP_LEAST = 20


class _Book(NamedTuple):
    """Evidence with its cells by metric: (stage, slice, row of `rows`)."""

    evidence: Evidence
    cells: dict[str, list[tuple[str, str, int]]]
    rows: Ints
    digest: str

    @staticmethod
    def of(evidence: Evidence) -> _Book:
        keys, rows = evidence.rows()
        cells: dict[str, list[tuple[str, str, int]]] = {}
        for row, (stage, metric, part) in enumerate(keys):
            cells.setdefault(metric, []).append((stage, part, row))
        return _Book(evidence, cells, rows, digest_of(evidence.to_json((keys, rows))))


class _Cells:
    """The cells of one metric as arrays: `whole` (K, WIDTH), `parts` (S, K, WIDTH) for the sorted slice `names`; `all`
    has the whole first.
    """

    def __init__(self, book: _Book, metric: str, stages: tuple[str, ...]) -> None:
        place = {name: k for k, name in enumerate(stages)}
        held = [row for row in book.cells.get(metric, ()) if row[0] in place]
        self.names = sorted({part for _, part, _ in held if part})
        row_of = {"": 0} | {part: s for s, part in enumerate(self.names, start=1)}
        self.all = np.zeros((1 + len(self.names), len(stages), WIDTH), dtype=np.int64)
        if held:
            self.all[[row_of[part] for _, part, _ in held], [place[stage] for stage, _, _ in held]] = book.rows[
                [row for _, _, row in held]
            ]
        self.whole, self.parts = self.all[0], self.all[1:]
        self.live: list[int] = []
        self.family = Family(np.zeros(()), np.zeros(()), np.zeros(0))
        self.proofs = [0.0, 0.0, 0.0]


def _bets(policy: Policy, book: _Book) -> dict[str, _Cells]:
    """The cells of every check and metric with their e-values. Those of one shape are mixed together: a live look asks
    for some dozens, and numpy's time goes by calls.
    """
    stages = tuple(stage.name for stage in policy.stages)
    sticky = policy.unit == "unit"
    found: dict[str, _Cells] = {}
    alike: dict[tuple[int, tuple[int, ...]], list[_Cells]] = {}
    asked: dict[tuple[int, ...], list[_Cells]] = {}
    everything: list[str | Metric] = [*policy.integrity, *policy.metrics]
    for each in everything:
        name = each if isinstance(each, str) else each.name
        cells = found[name] = _Cells(book, name, stages)
        cells.live = _places(stages, live_stages(policy, each))
        if cells.live:
            alike.setdefault((len(cells.all), tuple(cells.live)), []).append(cells)
        if not isinstance(each, str) and (proving := _places(stages, proof_stages(policy, each))):
            asked.setdefault(tuple(proving), []).append(cells)
    for (_, live), group in alike.items():
        units = np.stack([cells.all[:, list(live), HARM] for cells in group])
        weights = restart_weights(policy, tuple(stages[k] for k in live))
        families = harm(units, max_slices=policy.max_slices, sticky=sticky, weights=weights)
        for k, cells in enumerate(group):
            cells.family = Family(families.log_e[k], families.overall[k], families.slices[k])
    for places, group in asked.items():
        questions = np.stack([cells.whole[list(places)] for cells in group])
        each_proof = np.stack([questions[..., columns] for columns in (PROOF, BETTER, HARM)], axis=1)
        for cells, proofs in zip(group, proof(each_proof, sticky=sticky).tolist(), strict=True):
            cells.proofs = proofs
    return found


class _Finding(NamedTuple):
    verdict: Verdict
    stop: Stop | None
    pause: Pause | None
    proven: bool
    excess: float


def _integrity(policy: Policy, cells: _Cells, name: str) -> _Finding:
    live = cells.live
    log_e = float(cells.family.log_e)
    bar = hold_bar(policy)
    estimate = estimate_of(policy, None, cells.whole)
    levels = levels_of(cells.whole)
    if name == "sample_ratio":
        latest = [k for k in live if cells.whole[k, 0] > 0]
        seen = cells.whole[latest[-1]] if latest else cells.whole[0]
        got = float(seen[1]) / max(float(seen[0]), 1.0)
        declared = (policy.stages[latest[-1]].share or 0.0) if latest else 0.0
        text = f"{as_share(got)} of {int(seen[0])} requests went to the challenger, {as_share(declared)} declared"
        worth = True
    else:
        text = f"{versus(name, levels)} in {levels.n} requests"
        worth = levels.difference >= _LOST_MARGIN
    fails = log_e >= math.log(bar) and worth
    sentence = f"{name}: {text}; e-value {as_number(e_value(log_e))} against the bar {as_number(bar)}"
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
    sentence = f"lost_assignments: {gaps} of {gaps + requests} sequence numbers ({as_share(share)}) never arrived"
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


def _judge_metric(policy: Policy, book: _Book, cells: _Cells, metric: Metric) -> _Finding:
    evidence = book.evidence
    stages = tuple(stage.name for stage in policy.stages)
    live, family = cells.live, cells.family
    estimate = estimate_of(policy, metric, cells.whole)
    levels, bar = estimate.levels, rollback_bar(policy, metric)
    log_e = float(family.log_e)
    reached = math.isfinite(bar) and log_e >= math.log(bar)
    part, scoped, steady = _loudest(policy, cells, live, family) if reached else (None, levels, levels)
    may_act = acts(policy, metric, evidence, estimate.lower, levels.champion)

    (log_proof, log_better, log_worse), weakest = cells.proofs, None
    places = _places(stages, proof_stages(policy, metric))
    if metric.per_slice and cells.names and places:
        each = proof(cells.parts[:, places, PROOF], sticky=policy.unit == "unit")
        if float(each.min()) < log_proof:
            log_proof, weakest = float(each.min()), cells.names[int(np.argmin(each))]
    need = math.log(proof_bar(policy))
    waited = not metric.paired or evidence.event_time_s >= policy.min_event_time_s
    proven = metric.provable and log_proof >= need and waited

    stop, pause = None, None
    sentence = sentence_of(metric, estimate, log_e, bar)
    worth = harmful(metric, scoped)
    if metric.paired and policy.min_event_time_s > 0:
        # Days swing, and a stage may be one: what the loudest stage says must also hold for the whole way.
        worth = worth and harmful(metric, steady)
    if metric.kind == "quantile":
        # Slower for certain, yet within the margin that was ruled out or below the practical one: nothing to wait for.
        worth = worth and not proven and _beyond_margin(book, metric, stages)
    if metric.role != "report" and reached and worth and may_act:
        where = "" if part is None else f" in slice {part}"
        text = f"{metric.name}{where}: {versus(metric, scoped)} in {scoped.n} observations; {bar_text(log_e, bar)}"
        value = e_value(log_e)
        if metric.kind == "quantile":
            pause = Pause(metric=metric.name, slice=part, e_value=value, threshold=bar, sentence=text)
        else:
            stop = Stop(action="rollback", metric=metric.name, slice=part, e_value=value, threshold=bar, sentence=text)
    if metric.kind == "quantile" and metric.role != "report":
        stop = _judge_blocks(policy, book, metric, stages, live)
        if stop is not None:
            sentence += f"; by blocks of 60 seconds: e-value {as_number(stop.e_value)} against the bar {as_number(bar)}"

    better: Better = "unproven"
    if metric.kind in ("paired_loss", "mean"):
        better = "yes" if log_better >= need else "no" if log_worse >= need else "unproven"
    verdict = Verdict(
        metric=metric.name, slice=None, kind=_kind(metric, evidence, levels.n, stop, proven=proven),
        e_value=e_value(log_e), threshold=min(bar, 1e300), proof=e_value(log_proof) if metric.provable else 0.0,
        proof_threshold=proof_bar(policy) if metric.provable else 0.0, better=better, estimate=estimate.estimate,
        lower=estimate.lower, upper=estimate.upper, champion=levels.champion if levels.n else None,
        challenger=levels.challenger if levels.n else None, n=levels.n,
        sentence=sentence + proof_text(policy, metric, log_proof, proven=proven, waited=waited, weakest=weakest),
    )  # fmt: skip
    return _Finding(verdict, stop, pause, proven, log_e - math.log(min(bar, 1e300)))


def _places(stages: tuple[str, ...], chosen: tuple[str, ...]) -> list[int]:
    return [place for place, stage in enumerate(stages) if stage in chosen]


def _loudest(policy: Policy, cells: _Cells, live: list[int], family: Family) -> tuple[str | None, Levels, Levels]:
    """The slice that speaks loudest (None: all traffic); both arms' levels there in the loudest stage, and in all."""
    rows, part = cells.whole, None
    if family.slices.shape[-1] > 1:
        loud = int(np.argmax(family.slices))
        room = max(len(cells.names), policy.max_slices)
        if float(family.slices[loud]) - math.log(room) > float(family.overall):
            rows, part = cells.parts[loud], cells.names[loud]
    stage = loudest_stage(rows[live][:, HARM])
    return part, levels_of(rows if stage is None else rows[live[stage]][None, :]), levels_of(rows)


def _beyond_margin(book: _Book, metric: Metric, stages: tuple[str, ...]) -> bool:
    """Whether the challenger is still slower once its latencies are divided by the harm ratio."""
    if metric.harm_ratio is None:
        return True
    whole = _Cells(book, metric.name + MARGIN, stages).whole
    latest = np.flatnonzero(whole[:, 0])[-1:]
    return levels_of(whole[latest]).difference > 0.0


def _judge_blocks(policy: Policy, book: _Book, metric: Metric, stages: tuple[str, ...], live: list[int]) -> Stop | None:
    """Rollback for latency rests on blocks of 60 seconds, which noise local to an arm cannot fool."""
    cells = _Cells(book, metric.name + SUFFIX, stages)
    if not cells.whole[:, 0].any() or not live:
        return None
    weights = restart_weights(policy, tuple(stages[k] for k in live))
    log_e = float(harm(cells.all[:, live, HARM], max_slices=1, sticky=False, weights=weights).log_e)
    bar = rollback_bar(policy, metric)
    levels = levels_of(cells.whole)
    if log_e < math.log(bar) or levels.difference <= 0.0 or not _beyond_margin(book, metric, stages):
        return None
    text = f"{metric.name}: {versus(metric, levels)} in {levels.n} blocks of 60 seconds; {bar_text(log_e, bar)}"
    return Stop(action="rollback", metric=metric.name, slice=None, e_value=e_value(log_e), threshold=bar, sentence=text)


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
    bets = _bets(policy, book)
    integrity = [_integrity(policy, bets[name], name) for name in policy.integrity]
    findings = [_judge_metric(policy, book, bets[metric.name], metric) for metric in policy.metrics]
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
        evidence_digest=book.digest,
        policy_digest=policy.digest,
    )
