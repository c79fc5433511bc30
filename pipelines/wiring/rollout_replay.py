"""A rollout computed again from the inference log: its evidence batch by batch, and what its record says was judged.

The log is folded by the collector's own code and judged by the gate's own code, so a difference means that the stored
evidence, the record, the log, or the code has changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from pipelines.adapters.control_db import control_db
from pipelines.adapters.delta_lake import open_lake
from pipelines.adapters.erasure_record import ERASURES, ErasureRecord, erasures_in
from pipelines.adapters.record_tables import decision_of, rollout_of
from pipelines.adapters.rollout_store import EvidenceRow, RolloutView
from pipelines.collect.case import Case
from pipelines.collect.fold import Fold
from pipelines.contracts.canonical import canonical_json
from pipelines.contracts.errors import ContractError, SlipwayError
from pipelines.datasets.erasure import Erasure
from pipelines.rollout import conditions
from pipelines.rollout.frozen_policy import frozen_policy
from pipelines.rollout.record import Entry, verify
from pipelines.rollout.state import Decision, Rollout
from pipelines.settings import Settings
from pipelines.stats.evidence import Evidence, digest_of
from pipelines.wiring import fed_models, parity
from pipelines.wiring.backtest import backtest
from pipelines.wiring.erased_evidence import erased_rows, taken_from_backtest
from pipelines.wiring.live_evidence import read_log
from pipelines.wiring.record_copy import copied
from pipelines.wiring.rollout_gate import code_version, fold_backtest, rollout_store, standing_of


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """One rollout computed again: how many batches of the log were folded, how many decisions judged again, and every
    difference in words (none: all bytes are equal). `other_code`: decisions taken by other code than today's. `erased`:
    what erasures of subjects took from the log, and what can therefore not be computed again; that is no difference.
    """

    model: str
    rollout_id: str
    batches: int
    decisions: int
    other_code: int
    differences: list[str]
    erased: list[str] = []


class State(NamedTuple):
    """The rollout's live evidence and counts behind one batch (or another cut) of the log."""

    batch: int
    evidence: Evidence
    counts: dict[str, Any]


class Recorded(NamedTuple):
    """What is kept of a rollout: its state, the entries of its record, and its evidence by part.

    From the control database, or from the lake alone: then there is no evidence (`stored` is None).
    """

    rollout: Rollout
    lines: Sequence[Entry]
    stored: dict[str, EvidenceRow] | None


def replay(settings: Settings, model: str | None = None, *, lake_only: bool = False) -> list[Replayed]:
    """Every rollout (of `model`, else of all models) that has begun, computed again; oldest first.

    `lake_only`: from the inference log and the record's copy in the lake, without the control database.
    """
    if lake_only:
        erasures = erasures_in(copied(settings).get(ERASURES, []))
        return [replayed(settings, each, erasures) for each in from_lake(settings, model)]
    store, unreadable = rollout_store(settings), dict[str, str]()
    found = store.rollouts(model, unreadable=unreadable)
    played = [replay_rollout(settings, one.id) for one in found if one.status != "waiting"]
    return [*played, *(_unread(name.rpartition("-r")[0], name, 0, why) for name, why in unreadable.items())]


def _unread(model: str, rollout_id: str, decisions: int, why: str) -> Replayed:
    return Replayed(model=model, rollout_id=rollout_id, batches=0, decisions=decisions, other_code=0, differences=[why])


def replay_rollout(settings: Settings, rollout_id: str) -> Replayed:
    """One rollout computed again. Raises NotFoundError."""
    store = rollout_store(settings)
    view = store.view(rollout_id)
    lines = store.entries(view.rollout.model, rollout_id)
    erasures = ErasureRecord(control_db(settings)).all()
    return replayed(settings, Recorded(view.rollout, lines, {row.part: row for row in view.evidence}), erasures)


def from_lake(settings: Settings, model: str | None = None) -> list[Recorded]:
    """The rollouts that the record's copy in the lake tells of. Raises ContractError for a broken copy."""
    found: list[Recorded] = []
    for name, lines in copied(settings).items():
        if model in (None, name):
            if faults := verify(lines):
                raise ContractError("the record's copy in the lake", got="; ".join(faults), expected="a whole chain")
            told: dict[str, list[Entry]] = {}
            for line in lines:
                if (decision := decision_of(line)) is not None:
                    told.setdefault(decision.rollout_id, []).append(line)
            begun = [(rollout_of(each), each) for each in told.values()]
            found += [Recorded(rollout, each, None) for rollout, each in begun if rollout is not None]
    return found


def evidence_again(
    settings: Settings,
    recorded: Recorded,
    wanted: set[str],
    differences: list[str],
    *,
    tested: list[EvidenceRow] | None = None,
) -> tuple[dict[str, list[EvidenceRow]], int]:
    """The evidence of each wanted digest, folded from the log again, and the number of batches folded.

    What differs from the stored evidence is added to `differences`. tested: the backtest's; run again when not given.
    """
    rollout, stored = recorded.rollout, recorded.stored or {}
    if tested is None:
        tested = _backtest_again(settings, recorded, differences)
    known: dict[str, list[EvidenceRow]] = {}
    _keep(known, wanted, [], Evidence().digest)
    _keep(known, wanted, tested, tested[0].digest if tested else "")
    base = Evidence.from_json(tested[0].document) if tested else None
    batches, live = 0, stored.get("live")
    reached = counted = live is None
    for state in states(settings, rollout):
        batches += 1
        row = EvidenceRow.of(rollout.id, "live", state.batch, state.evidence)
        _keep(known, wanted, [row], row.digest)  # no backtest had been run
        if base is not None:
            _keep(known, wanted, [*tested, row], (base + state.evidence).digest)
        if live is not None:
            reached = reached or row.document == live.document
            counted = counted or (state.batch == live.batch and state.counts == live.counts)
    if not reached:
        differences.append("the stored evidence is not what the inference log folds to behind any of its batches")
    elif live is not None and live.digest != digest_of(live.document.encode()):
        differences.append("the stored evidence does not have the digest it is stored with")
    if not counted:
        differences.append("the stored counts are not those of the inference log")
    return known, batches


def replayed(settings: Settings, recorded: Recorded, erasures: Sequence[Erasure] = ()) -> Replayed:
    """A recorded rollout computed again: the evidence of each decision, and what the judge says of it.

    The log keeps what live evidence is folded from when a subject is erased. The backtest reads payloads: one that
    comes out otherwise where rows of its log were erased stands as it is stored, and that is said.
    """
    rollout = recorded.rollout
    decisions = [(line, found) for line in recorded.lines if (found := decision_of(line)) is not None]
    try:
        frozen_policy(rollout)
    except ContractError as error:
        return _unread(rollout.model, rollout.id, len(decisions), str(error))
    differences = [] if rollout.plan.digest() == rollout.policy_digest else ["the plan is not what its digest names"]
    wanted = {found.evidence_digest for _, found in decisions}
    erased, taken = erased_rows(rollout, erasures), taken_from_backtest(settings, rollout, erasures)
    faults: list[str] = []
    tested = _backtest_again(settings, recorded, faults)
    kept = (recorded.stored or {}).get("backtest")
    if faults and taken and kept is not None and kept.digest == digest_of(kept.document.encode()):
        tested, faults = [kept], []
        erased.append(f"the backtest stands as it is stored: {taken}")
    differences += faults
    known, batches = evidence_again(settings, recorded, wanted, differences, tested=tested)
    for line, found in decisions:
        if recorded.stored is None and taken and found.evidence_digest and found.evidence_digest not in known:
            erased.append(f"{line.id}: not judged again, for its backtest cannot be run from the lake: {taken}")
            continue
        again = [
            *_judge_again(rollout, found, known.get(found.evidence_digest)),
            *_conditions_again(settings, rollout, found),
        ]
        differences += [f"{line.id}: {what}" for what in again]
    code = code_version()
    return Replayed(
        model=rollout.model,
        rollout_id=rollout.id,
        batches=batches,
        decisions=len(decisions),
        other_code=sum(msgspec.json.decode(line.body)["code"] != code for line, _ in decisions),
        differences=differences,
        erased=erased,
    )


def states(settings: Settings, rollout: Rollout, cuts: int | None = None) -> Iterator[State]:
    """The rollout's evidence behind each batch of the log; with `cuts`, behind that many equal parts of its requests.

    Rows that the policy cannot take end the evidence, as they do in the collector.
    """
    log = read_log(open_lake(settings), rollout)
    if not log:
        return
    policy = frozen_policy(rollout)
    case, fold = Case(rollout.id, rollout.model, policy.slices, policy.kpis), Fold(policy)
    column = "batch" if cuts is None else "seq"
    marks = {kind: table.column(column).to_numpy() for kind, table in log.items()}
    done = dict.fromkeys(log, 0)
    broken = False
    for end in _ends(marks, cuts):
        part: dict[str, pa.Table] = {}
        for kind, table in log.items():
            upto = int(np.searchsorted(marks[kind], end, side="right"))
            if upto > done[kind]:
                part[kind] = table.slice(done[kind], upto - done[kind])
            done[kind] = upto
        made = case.take(part)
        try:
            if made and not broken:
                fold.add(**made)
        except ContractError:
            broken = True
        yield State(int(end), fold.evidence(), msgspec.to_builtins(case.counts))


def _ends(marks: dict[str, np.ndarray[Any, Any]], cuts: int | None) -> Sequence[int]:
    """Where the log is cut: behind every batch, or behind equal parts of the assignments and at the end."""
    if cuts is None:
        return [int(n) for n in np.unique(np.concatenate(list(marks.values())))]
    asked = marks["assignment"]
    places = np.unique(np.linspace(0, len(asked) - 1, min(cuts, len(asked))).astype(int))
    last = max(int(values[-1]) for values in marks.values())
    return [*(int(n) for n in asked[places[:-1]]), last]


def _backtest_again(settings: Settings, recorded: Recorded, differences: list[str]) -> list[EvidenceRow]:
    """The backtest's evidence from the log, when there is one; what is wrong with the stored one is added."""
    rollout, known = recorded.rollout, recorded.stored is not None
    stored = (recorded.stored or {}).get("backtest")
    stage = next((each for each in rollout.stages if each.kind == "backtest"), None)
    if stage is None or (known and stored is None):
        return []
    then = msgspec.structs.replace(rollout, stage=stage.name)
    try:
        evidence, _ = fold_backtest(then, backtest(settings, then))
    except SlipwayError as error:
        differences.append(f"the backtest cannot be run again: {error}")
        return [stored] if stored is not None else []
    row = EvidenceRow.of(rollout.id, "backtest", 0, evidence)
    if stored is not None and row.document != stored.document:
        differences.append("the stored evidence of the backtest is not what the inference log gives")
    return [row]


def _keep(known: dict[str, list[EvidenceRow]], wanted: set[str], rows: list[EvidenceRow], digest: str) -> None:
    """Remember the rows by the digest of their sum, when a decision names it."""
    if digest in wanted:
        known.setdefault(digest, rows)


def _judge_again(rollout: Rollout, decision: Decision, rows: list[EvidenceRow] | None) -> list[str]:
    """What differs between a recorded decision and what the judge says of the same evidence now."""
    wrong = [] if decision.policy_digest == rollout.policy_digest else ["it names another policy"]
    if not decision.evidence_digest:
        return wrong if not decision.verdicts else [*wrong, "it has verdicts and names no evidence"]
    if rows is None:
        return [*wrong, f"its evidence {decision.evidence_digest[:12]} is not what the log folds to behind any batch"]
    then = msgspec.structs.replace(rollout, stage=decision.stage)
    standing = standing_of(RolloutView(rollout=then, evidence=rows, overrides=[]))
    if decision.cause == "verdict" and (standing.word, standing.metrics) != (decision.kind, decision.metrics):
        wrong.append(
            f"recorded {decision.kind} by {', '.join(decision.metrics)}; "
            f"the judge says {standing.word} by {', '.join(standing.metrics) or 'nothing'}"
        )
    if canonical_json(standing.verdicts) == canonical_json(decision.verdicts):
        return wrong
    return wrong + (_differing(decision.verdicts, standing.verdicts) or ["its verdicts are recorded in another order"])


def _conditions_again(settings: Settings, rollout: Rollout, decision: Decision) -> list[str]:
    """What differs between a decision and the conditions it was recorded with; their reports are read again, and fed
    models tried again.
    """
    if decision.conditions is msgspec.UNSET:
        return []
    unmet = tuple(each.name for each in conditions.unmet(decision.conditions))
    wrong = []
    if decision.cause == "stage_done" and unmet:
        wrong.append(f"the stage ended although {conditions.text(decision.conditions)}")
    if decision.cause == "condition" and unmet != decision.metrics:
        wrong.append(f"stopped by {', '.join(decision.metrics)}; the conditions say {', '.join(unmet) or 'nothing'}")
    for each in decision.conditions:
        if isinstance(each, conditions.FedModel):
            wrong += _fed_again(settings, rollout, each)
        if not isinstance(each, conditions.Parity):
            continue
        try:
            report = parity.load(settings, decision.model, each.report)
        except SlipwayError as error:
            wrong.append(f"its parity report cannot be read: {error}")
            continue
        if (report.verdict, report.sentence) != (each.verdict, each.sentence):
            wrong.append(f"recorded parity {each.verdict}, the report says {report.verdict}: {report.sentence}")
    return wrong


def _fed_again(settings: Settings, rollout: Rollout, recorded: conditions.FedModel) -> list[str]:
    """What differs between what was recorded of a fed model and what its log gives now."""
    try:
        now = fed_models.again(settings, rollout, recorded)
    except SlipwayError as error:
        return [f"{recorded.name} cannot be measured again: {error}"]
    return [] if now == recorded else [f"{recorded.name}: recorded {recorded}, measured again {now}"]


def _differing(recorded: list[dict[str, Any]], again: list[dict[str, Any]]) -> list[str]:
    """The values in which two lists of verdicts differ, metric by metric."""
    before, now = ({(row["metric"], row["slice"]): row for row in rows} for rows in (recorded, again))
    pairs = [(key, before.get(key, {}), now.get(key, {})) for key in sorted(before.keys() | now.keys(), key=str)]
    return [
        f"{metric} {name}: recorded {old.get(name)!r}, computed again {new.get(name)!r}"
        for (metric, _), old, new in pairs
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
