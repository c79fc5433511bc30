"""What `slipway gate plan --model` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.wiring.gate_plan import ModelPlan


def show(planned: ModelPlan) -> None:
    """The traffic, the stages, a row a question, and what does not fit."""
    from pipelines.cli.tables import open_console, table_of
    from pipelines.rollout.bars import levels

    console, rates = open_console(), planned.traffic.rates
    console.print(
        f"[bold]{planned.model}[/]: {rates.requests_per_hour * 24:,.0f} requests/day, {rates.labelled:.0%} labelled "
        f"(from {planned.traffic.source})",
        highlight=False,
    )
    spent = levels(planned.policy)
    budget, start = planned.policy.budget.rollback, spent["from the start"]
    console.print(f"error budget: {budget:.2%}; {start:.3%} for harm from the start", highlight=False)
    stages = table_of("stage", "requests", "days", "budget for harm that begins here", plain=True)
    for stage in planned.policy.stages:
        auto = " (auto)" if stage.name in planned.settled else ""
        size = "as logged" if stage.requests is None else f"{stage.requests:,}{auto}"
        live = stage.kind != "backtest" and stage.requests is not None
        days = f"{(stage.requests or 0) / rates.requests_per_hour / 24:.1f}" if live else ""
        stages.add_row(stage.name, size, days, f"{spent[stage.name]:.3%}" if stage.name in spent else "")
    console.print(stages)
    heads = ("metric", "question", "requests", "exposed", "hours", "fits", "answered in", "rates from")
    needs = table_of(*heads, plain=True)
    for need in planned.needs:
        question = {"proof": "promotion", "pause": "pause"}.get(need.question, f"harm of {need.effect:.3g}")
        numbers = [
            "never" if value is None else f"{value:,.{digits}f}"
            for value, digits in ((need.requests, 0), (need.challenger_requests, 0), (need.hours, 1))
        ]
        fits = "yes" if need.feasible else f"from {need.found_from:.3g} on" if need.found_from else "no"
        source = planned.traffic.by_metric.get(need.metric, "")
        needs.add_row(need.metric, question, *numbers, fits, need.stage or "", source)
    console.print(needs)
    for metric, missing in planned.unknown.items():
        console.print(f"{metric}: not planned, nothing is known of {missing}", highlight=False)
    for sentence in planned.short:
        console.print(f"[red]does not fit[/] {sentence}.", highlight=False)
