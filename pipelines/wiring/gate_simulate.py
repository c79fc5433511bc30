"""How a model's own policy would behave: rollouts of its logged traffic (or of made-up traffic at its base rates), each
healthy, in a healthy trap or with one fault, from the backtest to the end of the bake, judged as live ones are.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from pipelines.adapters.control_db import control_db
from pipelines.adapters.delta_lake import open_lake
from pipelines.adapters.inference_log import answers
from pipelines.contracts.clocks import parse_event_time
from pipelines.contracts.errors import NotFoundError
from pipelines.rollout.base_rates import LEAST
from pipelines.rollout.catalogue import FAULTS, TRAPS, outcome, rates
from pipelines.rollout.course import Course, apart, play, staged
from pipelines.rollout.made_traffic import made
from pipelines.rollout.policy import Policy
from pipelines.rollout.resampling import Log, prepared, resample
from pipelines.rollout.simulator import (
    HEALTHY,
    Arms,
    Fault,
    Logged,
    afflict,
    draw_arms,
    severity,
    stage_sizes,
    tables_of,
)
from pipelines.rollout.traffic import Traffic
from pipelines.rollout.traps import beset
from pipelines.rollout.walk import BACKTEST_LEAST
from pipelines.settings import Settings
from pipelines.stats.nats import Ints
from pipelines.wiring.backtest import MOST as BACKTEST_MOST
from pipelines.wiring.gate_plan import ModelPlan, plan_model
from pipelines.wiring.rollout_traffic import LAST_US

HEALTHY_NAME = "healthy"
CATALOGUE_STAGE = 20_000
"""Requests of a stage in the catalogue's rollouts."""
LONGEST = 3
"""How many times its length the last stage is prolonged at most, while proofs are missing and its time is not over."""


class Simulated(NamedTuple):
    """Where the traffic came from, what was wrong with the challenger, and what became of the rollouts."""

    traffic: str
    fault: str
    seed: int
    shares: dict[str, Any]

    def to_mapping(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"traffic": self.traffic, "fault": self.fault, "seed": self.seed} | self.shares


def faults() -> list[str]:
    """What can be simulated."""
    return [HEALTHY_NAME, *FAULTS, *TRAPS]


def fault_named(name: str) -> Fault:
    """The fault of the catalogue. Raises NotFoundError with the nearest name."""
    if name == HEALTHY_NAME:
        return HEALTHY
    if name not in FAULTS:
        near = difflib.get_close_matches(name, faults(), n=1)
        hint = f"Did you mean {near[0]!r}?" if near else "`--fault list` lists them."
        raise NotFoundError("fault", got=repr(name), expected="one of the catalogue", hint=hint)
    return FAULTS[name]


def simulate_model(
    settings: Settings,
    model: str,
    fault: str = HEALTHY_NAME,
    *,
    runs: int = 50,
    seed: int = 1,
    on_run: Callable[[int], None] = lambda _: None,
) -> Simulated:
    """Play `runs` rollouts of the model's policy; `on_run` is told the number done. Raises as `plan_model` and
    `fault_named`.

    The last stage before the bake goes on until every proof is in, its `max_wait` is over, or it is LONGEST times as
    long.
    """
    trap = TRAPS.get(fault)
    wrong = HEALTHY if trap is not None else fault_named(fault)
    planned = plan_model(settings, model)
    policy = planned.policy
    if any(metric.kind == "mean" and metric.better == "lower" for metric in policy.metrics):
        # A KPI that is better low is harmed by rising as far as the catalogue's falls.
        wrong = msgspec.structs.replace(wrong, kpi_factor=2.0 - wrong.kpi_factor)
    log = _log(settings, planned, policy)
    course = _course(planned, log)
    wrong = _scaled(wrong, course)
    if wrong.slice is not None:
        wrong = msgspec.structs.replace(wrong, slice=_some_slice(log, planned))
    found = []
    for number in range(runs):
        rng = np.random.default_rng([seed, number])
        lines, tables = _rollout(planned, course, log, wrong, trap, rng)
        first = min(course.requests("backtest"), tables["assignments"].num_rows - 1)
        found.append(outcome(lines) | {"hours": _hours(lines[-1]["ts"], tables, first)})
        on_run(number + 1)
    source = (
        f"the inference log, {len(log.answers.event_us):,} requests" if log is not None else "made up at base rates"
    )
    return Simulated(
        source, fault, seed, rates(found) | _times(found) | {"inconclusive": _share(found, "inconclusive")}
    )


def _course(planned: ModelPlan, log: Log | None) -> Course:
    """The stages with their traffic: a backtest takes what the log has, the last live stage what may be needed."""
    rates, stages = planned.traffic.rates, []
    for stage in planned.policy.stages:
        requests = stage.requests
        if stage.kind == "backtest" and requests is None:
            labelled = int(np.isfinite(log.answers.label).sum()) if log is not None else 0
            requests = min(max(labelled, BACKTEST_LEAST), BACKTEST_MOST)
        stages.append(msgspec.structs.replace(stage, requests=requests))
    live = [place for place, stage in enumerate(stages) if stage.kind not in ("backtest", "bake")]
    if not live:
        raise NotFoundError(f"stages of {planned.model}", got="none of live traffic", expected="shadow, canary or ab")
    policy = msgspec.structs.replace(planned.policy, stages=tuple(stages))
    sizes, last = stage_sizes(policy), live[-1]
    waits = rates.requests_per_hour * (stages[last].max_wait_s or 0.0) / 3600.0
    sizes[last] = max(sizes[last], round(min(waits, LONGEST * sizes[last])))
    return Course(policy, sizes)


def _scaled(fault: Fault, course: Course) -> Fault:
    """A fault that begins in the catalogue's k-th stage begins as far into this policy's live ones, or the last."""
    tested = course.requests("backtest")
    sizes = [stage.requests or 0 for stage in course.policy.stages if stage.kind not in ("backtest", "bake")]
    stage, within = divmod(fault.begins, CATALOGUE_STAGE)
    stage = min(stage, len(sizes) - 1)
    begins = sum(sizes[:stage]) + within * sizes[stage] // CATALOGUE_STAGE
    begins += tested if fault.begins or fault.grows else 0
    bursts = max(fault.bursts * max(sizes) // CATALOGUE_STAGE, 40) if fault.bursts else 0
    return msgspec.structs.replace(fault, begins=begins, bursts=bursts)


def _log(settings: Settings, planned: ModelPlan, policy: Policy) -> Log | None:
    """The champion's logged traffic; None where there is too little."""
    if not open_lake(settings).exists("inference/response"):
        return None
    champion = control_db(settings).champion(planned.model)
    if champion is None:
        return None
    found = answers(open_lake(settings), planned.model, champion, LAST_US, policy.kpis)
    if len(found.event_us) < LEAST:
        return None
    paired = next((m.name for m in policy.metrics if m.kind == "paired_loss"), "")
    return prepared(found, policy, planned.traffic.rates.of(paired).paired_sd)


def _some_slice(log: Log | None, planned: ModelPlan) -> str:
    """The slice that a fault of one slice is put into: the second of the model's."""
    named = (
        next(iter(log.slicings.values()))[1] if log is not None and log.slicings else [*planned.traffic.rates.slices]
    )
    if len(named) < 2:
        raise NotFoundError(
            "slices", got=f"{len(named)} of {planned.model}", expected="two, for a fault in one of them"
        )
    return str(named[1])


def _rollout(
    planned: ModelPlan, course: Course, log: Log | None, fault: Fault, trap: Traffic | None, rng: np.random.Generator
) -> tuple[list[dict[str, Any]], dict[str, pa.Table]]:
    """The judge's lines of one rollout, and its tables."""
    policy, sizes, tested = course.policy, course.sizes, course.requests("backtest")
    if log is None:
        world, drawn = made(policy, planned.traffic.rates, sizes, rng), None
    else:
        world, drawn = resample(log, sum(sizes), rng)
    if trap is not None:
        world = beset(world, trap, sizes, rng, first=tested, maturity_s=policy.label_maturity_s)
    world = apart(world, tested, policy.label_maturity_s)
    arms = draw_arms(policy, sizes, world.unit, fault, rng, sticky=policy.unit == "unit")
    probabilities = policy.score_range == (0.0, 1.0)
    scores = {"logit_shift": 0.0, "logit_noise": 0.0} if not probabilities else {}
    # The gateway shadows every canary, so that pairs go on.
    logged = afflict(world, arms, msgspec.structs.replace(fault, **scores), rng, shadowing=True)
    if not probabilities and (fault.logit_shift or fault.logit_noise):
        # A regression has no logits: the fault is as large in standard deviations of the model's own error.
        spread = float(np.nanstd(world.label - world.score[:, 0]))
        moved = fault.logit_shift + rng.normal(0.0, 1.0, len(world.ts)) * fault.logit_noise
        score = logged.world.score.copy()
        score[:, 1] += severity(world, arms, fault) * moved * spread
        logged = logged._replace(world=logged.world._replace(score=score))

    def tables(part: Logged, part_arms: Arms, rows: Ints) -> dict[str, pa.Table]:
        made_up = tables_of(part, part_arms, [stage.name for stage in policy.stages])
        assignments = _sliced(made_up["assignments"], policy, log, None if drawn is None else drawn[rows])
        return {**made_up, **_untimed(assignments, made_up["responses"], tested)}

    return play(course, *staged(course, logged, arms), tables)


def _untimed(assignments: pa.Table, responses: pa.Table, tested: int) -> dict[str, pa.Table]:
    """Assignments and responses of which the first `tested` requests were never timed, and came before the warm-up."""
    if tested:
        before = pa.array(np.where(np.arange(assignments.num_rows) < tested, "backtest", "gateway"))
        assignments = assignments.append_column("process", before)
        latency = responses["latency_ms"].to_numpy().copy()
        latency[responses["request_id"].to_numpy() < tested] = np.nan
        place = responses.column_names.index("latency_ms")
        responses = responses.set_column(place, "latency_ms", pa.array(latency, from_pandas=False))
    return {"assignments": assignments, "responses": responses}


def _sliced(assignments: pa.Table, policy: Policy, log: Log | None, rows: Any) -> pa.Table:
    """The assignments with a column for each of the policy's slicings."""
    made_up = assignments["slice"]
    table = assignments.drop_columns(["slice"])
    for index, name in enumerate(policy.slices):
        column = made_up
        if log is not None:
            codes, labels = log.slicings[name]
            column = pa.DictionaryArray.from_arrays(pa.array(codes[rows].astype(np.int32)), pa.array(list(labels)))
        if log is not None or index == 0:
            table = table.append_column(name, column)
        else:
            table = table.append_column(name, pa.array(["all"] * table.num_rows))
    return table


def _hours(at: str, tables: dict[str, pa.Table], first: int) -> float:
    """Hours of event time from the first live request to a line's; none for a line of the backtest."""
    begins = int(tables["assignments"]["ts"][first].value)
    return max(float(parse_event_time(at) - begins), 0.0) / 3.6e9


def _share(found: list[dict[str, Any]], verdict: str) -> float:
    return float(np.mean([row["verdict"] == verdict for row in found]))


def _times(found: list[dict[str, Any]]) -> dict[str, float | None]:
    """Median and 90 % of the hours until a stop, and until promotion."""
    told: dict[str, float | None] = {}
    for word, verdicts in (("stop", ("rollback", "hold")), ("promotion", ("promote",))):
        hours = [row["hours"] for row in found if row["verdict"] in verdicts]
        told[f"hours_to_{word}_median"] = round(float(np.median(hours)), 3) if hours else None
        told[f"hours_to_{word}_90"] = round(float(np.quantile(hours, 0.9)), 3) if hours else None
    return told
