"""A whole rollout on simulated traffic: backtest, live stages, and the bake once the judge lets them end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from pipelines.rollout.offline import judge
from pipelines.rollout.policy import Policy
from pipelines.rollout.simulator import Arms, Logged
from pipelines.rollout.traffic import World
from pipelines.stats.nats import Ints

TablesOf = Callable[[Logged, Arms, Ints], dict[str, pa.Table]]
"""The four tables of some requests; the last argument are their rows in the whole traffic."""


class Course(NamedTuple):
    """A policy with a number of requests in every stage, and `sizes`, the traffic there is for each: the last live
    stage has more than it asks for.
    """

    policy: Policy
    sizes: list[int]

    def requests(self, kind: str) -> int:
        """The traffic of the stages of one kind."""
        return sum(size for size, stage in zip(self.sizes, self.policy.stages, strict=True) if stage.kind == kind)


def apart(world: World, backtest: int, maturity_s: float) -> World:
    """The traffic with the backtest's requests so long before the others that their labels are mature by then."""
    if not backtest:
        return world
    wait = np.zeros(len(world.ts), dtype=np.int64)
    wait[backtest:] = round(maturity_s * 1e6) + 1
    return world._replace(ts=world.ts + wait, label_at=world.label_at + wait, kpi_at=world.kpi_at + wait)


def staged(course: Course, logged: Logged, arms: Arms) -> tuple[Logged, Arms]:
    """Who answers: of a backtest both arms without fail and without a KPI, in a split or a bake the drawn arm alone."""
    answers, world, arm = logged.answers.copy(), logged.world, arms.arm.copy()
    tested = np.zeros(len(arm), dtype=np.bool_)
    for k, stage in enumerate(course.policy.stages):
        mine = arms.stage == k
        if stage.kind == "backtest":
            tested |= mine
            answers[mine] = 1
        elif stage.kind == "bake":
            arm[mine] = 1
        if not stage.pairs:
            answers[mine, 0] *= arm[mine] == 0
            answers[mine, 1] *= arm[mine] == 1
    changed = world._replace(
        failed=world.failed & ~tested[:, None],
        invalid=world.invalid & ~tested[:, None],
        kpi=np.where(tested, np.nan, world.kpi),
    )
    return Logged(changed, answers), arms._replace(arm=arm)


def play(
    course: Course, logged: Logged, arms: Arms, tables_of: TablesOf
) -> tuple[list[dict[str, Any]], dict[str, pa.Table]]:
    """The judge's lines from the first request to the last that decides, and the tables they rest on.

    The live stages are judged first, as long as proofs are missing. Where they end well, the bake's requests follow.
    """
    bake, n = course.requests("bake"), len(arms.stage)
    live = np.arange(n - bake)
    tables = tables_of(*_rows(logged, arms, live, 0), live)
    if not bake:
        return judge(course.policy.to_mapping(), tables), tables
    before = tuple(stage for stage in course.policy.stages if stage.kind != "bake")
    found = judge(msgspec.structs.replace(course.policy, stages=before).to_mapping(), tables)
    if found[-1]["verdict"] == "promote":
        ends = int(found[-1]["seq"])
        rows = np.r_[live[: ends + 1], np.arange(n - bake, n)]
        world = logged.world
        tables = tables_of(*_rows(logged, arms, rows, int(world.ts[n - bake] - world.ts[ends]) - 1), rows)
    lines = judge(course.policy.to_mapping(), tables)
    if lines[-1]["verdict"] == "inconclusive" and lines[-1]["stage"] == course.policy.stages[-1].name:
        # It baked, and nothing stood against it: the proofs were in before.
        lines[-1] |= {"verdict": "promote", "missing": []}
    return lines, tables


def _rows(logged: Logged, arms: Arms, keep: Ints, earlier: int) -> tuple[Logged, Arms]:
    """Some of the requests; those after a gap in `keep` come earlier by so many microseconds."""
    world = logged.world
    taken = {name: getattr(world, name)[keep] for name in World._fields if name != "slices"}
    moved = np.where(np.arange(len(keep)) < keep, earlier, 0)
    for name in ("ts", "label_at", "kpi_at"):
        taken[name] = taken[name] - moved
    chosen = Arms(arms.stage[keep], arms.share[keep], arms.arm[keep])
    return Logged(World(**taken, slices=world.slices), logged.answers[keep]), chosen
