"""What `slipway gate simulate` does: rollouts of a model or of a bare policy, with a bar for those done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def names() -> list[str]:
    """What can be simulated."""
    from pipelines.wiring.gate_simulate import faults

    return faults()


def of_model(model: str, fault: str, runs: int, seed: int) -> dict[str, Any]:
    """Rollouts of the model's policy on its own traffic."""
    from pipelines.settings import Settings
    from pipelines.wiring.gate_simulate import simulate_model

    with _bar(runs) as done:
        return simulate_model(Settings(), model, fault, runs=runs, seed=seed, on_run=done).to_mapping()


def of_policy(body: dict[str, Any], fault: str, runs: int, seed: int) -> dict[str, Any]:
    """Rollouts of a policy on made-up traffic, healthy, in a trap or with a fault."""
    from pipelines.rollout.catalogue import TRAPS, outcome, rates, traffic_of
    from pipelines.rollout.offline import judge as replay
    from pipelines.rollout.policy import Policy
    from pipelines.rollout.simulator import HEALTHY, simulate
    from pipelines.wiring.gate_simulate import fault_named

    traffic = TRAPS.get(fault) or traffic_of(fault)
    wrong = HEALTHY if fault in TRAPS else fault_named(fault)
    parsed, found = Policy.parse(body), []
    with _bar(runs) as done:
        for n in range(runs):
            found.append(outcome(replay(body, simulate(parsed, seed=seed + n, traffic=traffic, fault=wrong))))
            done(n + 1)
    return {"simulated": fault, "seed": seed} | rates(found)


@contextmanager
def _bar(runs: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal's standard error; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("rollouts", total=runs)
        yield lambda done: progress.update(task, completed=done)


def show(model: str, told: dict[str, Any]) -> None:
    """The shares in words."""
    from rich.console import Console

    print_ = Console(highlight=False).print
    print_(f"[bold]{model}[/], {told['fault']}: {told['runs']} rollouts, traffic {told['traffic']}")
    healthy = told["fault"] == "healthy"
    for word in ("rollback", "hold"):
        bound = f" (exact 95 % bound {told[f'{word}_upper_95']:.2%})" if healthy else ""
        print_(f"  {word:<13}{told[word]:7.1%}{bound}")
    print_(f"  {'promoted':<13}{told['promote']:7.1%}")
    print_(f"  {'inconclusive':<13}{told['inconclusive']:7.1%}  {_counted(told['missing'], 'not proven')}")
    if told["by"]:
        print_(f"  stopped by {_counted(told['by'])}")
        print_(f"  exposed requests, median / 90 %: {told['exposed_median']:,.0f} / {told['exposed_90']:,.0f}")
    for word in ("stop", "promotion"):
        if told[f"hours_to_{word}_median"] is not None:
            hours = f"{told[f'hours_to_{word}_median']:,.1f} / {told[f'hours_to_{word}_90']:,.1f}"
            print_(f"  hours to {word}, median / 90 %: {hours}")


def _counted(found: dict[str, int], what: str = "") -> str:
    told = ", ".join(f"{name} ({count})" for name, count in sorted(found.items(), key=lambda item: -item[1]))
    return f"{what}: {told}" if what and told else told
