"""What every job about a rollout needs: the store, the plan of a spec, the judge's word on stored evidence, now."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec

from pipelines.adapters.control_db import control_db
from pipelines.adapters.rollout_store import EvidenceRow, RolloutStore, RolloutView
from pipelines.contracts.assignment import PPM
from pipelines.contracts.clocks import wall_us
from pipelines.contracts.errors import ContractError
from pipelines.contracts.routes import Breaker
from pipelines.rollout.frozen_policy import frozen_policy
from pipelines.rollout.judge import judge
from pipelines.rollout.judgement import Judgement
from pipelines.rollout.policy import Policy
from pipelines.rollout.stage_lengths import automatic, settle
from pipelines.rollout.stages import from_spec
from pipelines.rollout.standing import Now, Standing
from pipelines.rollout.state import Plan, Recipient, Rollout, Settled
from pipelines.settings import PROJECT, Settings
from pipelines.stats.evidence import Evidence

if TYPE_CHECKING:
    from pipelines.rollout.known_traffic import Known
    from pipelines.spec.model import ModelSpec

ASIDE = 0.1
"""The weight of a backtest and of a bake where a spec declares none."""
_CODE = ("rollout", "stats", "collect")
PLAN = "plan"
"""What stands against a rollout whose policy or evidence only other code can read."""


def rollout_store(settings: Settings) -> RolloutStore:
    """The installation's rollouts."""
    return RolloutStore(control_db(settings), code_version())


@cache
def code_version() -> str:
    """First 16 hex digits of SHA-256 over the sources that decide; written into every decision."""
    total = hashlib.sha256()
    for path in sorted(p for part in _CODE for p in (PROJECT / "pipelines" / part).glob("*.py")):
        total.update(path.name.encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:16]


def policy_mapping(spec: ModelSpec) -> dict[str, Any]:
    """The `slipway-gate/1` document of a model's spec; stages of `requests: auto` still say so."""
    policy: dict[str, Any] = dict(spec.rollout.policy)
    from pipelines.spec.durations import parse_on
    from pipelines.spec.rollout import POLICY_DURATIONS

    for name in POLICY_DURATIONS:
        if name in policy:
            policy[f"{name}_s"] = parse_on(policy.pop(name), "event_time").us / 1e6
    policy.setdefault("label_maturity_s", spec.labels.maturity.us / 1e6)
    policy.setdefault("slices", [*spec.slices])
    if spec.output.low is not None and spec.output.high is not None:
        policy.setdefault("score_range", [spec.output.low, spec.output.high])
    policy["stages"] = []
    for stage in spec.rollout.stages:
        listed = stage.model_dump(exclude_none=True, include={"name", "share", "requests", "weight"})
        if stage.min_event_time is not None:
            listed["min_event_time_s"] = stage.min_event_time.us / 1e6
        listed["max_wait_s"] = (stage.max_wait or spec.rollout.max_wait).us / 1e6
        policy["stages"].append(listed)
    if not any("weight" in listed for listed in policy["stages"]) and len(policy["stages"]) > 1:
        # The first is of old traffic, the second of little: live stages keep most of the budget.
        for listed in policy["stages"]:
            if listed["name"] in ("backtest", "bake"):
                listed["weight"] = ASIDE
    return policy


def unplanned(spec: ModelSpec) -> Policy:
    """The spec's policy; stages of `requests: auto` have no end yet."""
    mapping = policy_mapping(spec)
    for stage in mapping["stages"]:
        if stage["name"] in automatic(mapping):
            stage["requests"] = None
    return Policy.parse(mapping)


def plan_of(spec: ModelSpec, known: Known | None = None) -> Plan:
    """What a model's spec freezes into a rollout; stages of `requests: auto` are settled on what is `known` of the
    traffic. Raises SpecError or ContractError for a policy that cannot be.
    """
    policy, settled = policy_mapping(spec), Settled()
    names = automatic(policy)
    if names and known is None:
        raise ContractError(
            f"requests of stage {names[0]}", got="auto", expected="traffic to plan with",
            hint="Declare `traffic` in the model's spec, or train a release: its evaluation says how much there is.",
        )  # fmt: skip
    if names and known is not None:
        policy, lengths = settle(policy, known.rates)
        settled = Settled(requests=lengths, rates=msgspec.to_builtins(known.rates), source=known.source)
    listed = [
        stage.model_dump(exclude_none=True) | {"requests": length.get("requests")}
        for stage, length in zip(spec.rollout.stages, policy["stages"], strict=True)
    ]
    breaker = spec.rollout.breaker
    return Plan(
        stages=from_spec(listed, spec.rollout.max_wait),
        policy=Policy.parse(policy).to_mapping(),
        approvers=tuple(spec.rollout.approvers),
        breaker=Breaker(window=breaker.window, failures=breaker.failures, timeout_ms=breaker.timeout_ms),
        slice_inputs=tuple(spec.slices),
        approvals=spec.rollout.approvals,
        notify=tuple(
            Recipient(by="webhook" if one.webhook else "email", to=one.webhook or one.email or "", level=one.level)
            for one in spec.rollout.notify
        ),
        payload_ppm=round(spec.serving.payload_sampling * PPM),
        settled=settled,
    )


def now(settings: Settings, as_of_us: int | None = None) -> Now:
    """Now on both clocks. A replay that has not ticked yet has no event time: then a caller must give `as_of_us`."""
    return Now(as_of_us if as_of_us is not None else settings.event_clock().event_now_us(), wall_us())


def standing_of(view: RolloutView) -> Standing:
    """What the judge says of the rollout's current stage; a rollout without live or backtest stage stands still.

    One whose policy or evidence this version cannot read is to be held.
    """
    rollout = view.rollout
    if rollout.champion is None or not rollout.stage:
        return Standing()
    try:
        judged = _judged(rollout, view.evidence)
    except ContractError as error:  # frozen by other code: a person is called, and the other rollouts go on
        return Standing(ready=False, word="hold", metrics=(PLAN,), sentence=str(error))
    ready = rollout.current.kind != "backtest" or any(row.part == "backtest" for row in view.evidence)
    nothing = next((row.counts.get("no_data", "") for row in view.evidence if row.part == "backtest"), "")
    word: str = "continue"
    against = judged.stop or judged.pause
    if judged.stop is not None:
        word = judged.stop.action
    elif judged.pause is not None:
        word = "pause"
    return Standing(
        ready=ready,
        no_data=nothing,
        word=word,  # type: ignore[arg-type]  # the judge's words are the gate's
        metrics=(against.metric,) if against is not None else (),
        sentence=against.sentence if against is not None else "",
        requests=judged.requests,
        proven=not judged.missing,
        missing=judged.missing,
        verdicts=verdict_rows(judged),
        evidence_digest=judged.evidence_digest,
    )


def _judged(rollout: Rollout, rows: Sequence[EvidenceRow]) -> Judgement:
    evidence = Evidence()
    for index, row in enumerate(rows):
        part = Evidence.from_json(row.document)
        evidence = part if index == 0 else evidence + part
    return judge(frozen_policy(rollout), evidence, rollout.stage)


def verdict_rows(judged: Judgement) -> list[dict[str, Any]]:
    """Verdicts as the record, the command line and Airflow show them: `verdict` is the word, `reason` the sentence."""
    rows = []
    for verdict in judged.verdicts:
        row = msgspec.to_builtins(verdict)
        rows.append({"metric": row.pop("metric"), "verdict": row.pop("kind"), "reason": row.pop("sentence")} | row)
    return rows


def fold_backtest(rollout: Rollout, tables: Mapping[str, Any]) -> tuple[Evidence, int]:
    """Evidence of the backtest's four tables, by the same fold as live traffic; and the number of requests."""
    from pipelines.collect.fold import Fold

    fold = Fold(frozen_policy(rollout))
    given = {name: table for name, table in tables.items() if table is not None and table.num_rows}
    if "assignments" in given:
        fold.add(**given)
    return fold.evidence(), given["assignments"].num_rows if "assignments" in given else 0
