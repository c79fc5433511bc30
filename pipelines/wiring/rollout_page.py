"""The page of a rollout from what is stored: its record, and the inference log folded again."""

from __future__ import annotations

import msgspec

from pipelines.adapters.delta_lake import open_lake
from pipelines.adapters.inference_log import answers
from pipelines.adapters.record_tables import actions_of, decision_of
from pipelines.adapters.rollout_store import RolloutView
from pipelines.contracts.errors import ContractError, DataError
from pipelines.features import parity_page
from pipelines.rollout.base_rates import measured
from pipelines.rollout.explainer import explain
from pipelines.rollout.frozen_policy import frozen_policy
from pipelines.rollout.judge import judge
from pipelines.rollout.page import Point, render
from pipelines.rollout.planner import Need, plan
from pipelines.settings import Settings
from pipelines.stats.evidence import Evidence
from pipelines.wiring.parity import kept
from pipelines.wiring.rollout_gate import rollout_store, verdict_rows
from pipelines.wiring.rollout_replay import states
from pipelines.wiring.rollout_report import show

POINTS = 80
"""Looks along a chart."""


def page(settings: Settings, rollout_id: str) -> str:
    """The page as HTML. Raises NotFoundError."""
    store = rollout_store(settings)
    view = store.view(rollout_id)
    backtest = next((Evidence.from_json(row.document) for row in view.evidence if row.part == "backtest"), None)
    needs, no_plan = _promised(settings, view, backtest)
    decided: list[str] = []
    for line in store.entries(view.rollout.model, rollout_id):
        decision = decision_of(line)
        if decision is not None:
            decided = explain(decision, actions_of(line))
    compared = [
        (parity_page.summary(report), parity_page.HEAD, parity_page.table(report))
        for report in kept(settings, view.rollout.model, rollout_id)[-1:]
    ]
    return render(show(settings, rollout_id), _history(settings, view, backtest), needs, no_plan, decided, compared)


def _history(settings: Settings, view: RolloutView, backtest: Evidence | None) -> list[Point]:
    """What the judge would have said along the way: behind the backtest, then at `POINTS` places of the log."""
    rollout = view.rollout
    if rollout.champion is None or not rollout.stage:
        return []
    policy = frozen_policy(rollout)
    names = [stage.name for stage in rollout.stages]
    before, points = 0, []
    if backtest is not None and backtest.counters:
        stage = next(each.name for each in rollout.stages if each.kind == "backtest")
        before = backtest.counted("requests")
        points.append(Point(before, stage, verdict_rows(judge(policy, backtest, stage))))
    for state in states(settings, rollout, cuts=POINTS):
        asked = state.counts["assignments"]
        evidence = state.evidence if backtest is None else backtest + state.evidence
        stage = max(asked, key=names.index)
        points.append(Point(before + sum(asked.values()), stage, verdict_rows(judge(policy, evidence, stage))))
    return points


def _promised(settings: Settings, view: RolloutView, backtest: Evidence | None) -> tuple[tuple[Need, ...], str]:
    """The plan of the frozen policy at the champion's traffic before the rollout; or why there is none."""
    rollout = view.rollout
    if rollout.champion is None:
        return (), "There was no champion, and so no traffic to plan with: a named person decided."
    policy = frozen_policy(rollout)
    # While it bakes the challenger answers alone: nothing is compared there that a plan could count on.
    compared = tuple(stage for stage in policy.stages if stage.kind != "bake")
    policy = msgspec.structs.replace(policy, stages=compared)
    lake, until = open_lake(settings), rollout.created_event_us
    served = answers(lake, rollout.model, rollout.champion, until, policy.kpis)
    try:
        return plan(policy, measured(policy, served, backtest)).needs, ""
    except (ContractError, DataError) as error:
        return (), f"Too little was known of the champion's traffic before the rollout to plan with: {error}."
