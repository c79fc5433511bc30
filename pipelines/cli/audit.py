"""`slipway audit`: does the decision record hold, and does computing it again give the same bytes?"""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="The decision record.", no_args_is_help=True)


@app.command()
def verify(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Recompute every hash chain; compare it with its anchors, MLflow and its copy in the lake. Exit 1 on any fault.

    Example: slipway audit verify
    """
    from pipelines.adapters.erasure_record import ERASURES
    from pipelines.rollout.record import ANCHORS
    from pipelines.settings import Settings
    from pipelines.wiring.rollouts import audit

    faults = audit(Settings())
    if json:
        import msgspec

        print(
            msgspec.json.encode(
                {model: {"holds": not found, "faults": found} for model, found in faults.items()}
            ).decode()
        )
    else:
        for model, found in faults.items():
            name = {ANCHORS: "the global record", ERASURES: "the record of erasures"}.get(model, model)
            print(f"{name}: {'holds' if not found else 'BROKEN'}")
            for fault in found:
                print(f"  {fault}")
        if not faults:
            print("no decisions yet")
    if any(faults.values()):
        raise typer.Exit(1)


@app.command()
def replay(
    model: Annotated[str | None, typer.Argument(help="Only this model's rollouts.")] = None,
    lake_only: Annotated[
        bool, typer.Option("--lake-only", help="From the lake alone: without the control database.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fold every rollout's evidence from the inference log again and judge every decision again, byte for byte.

    Exit 1 when anything differs; every difference is printed.

    Example: slipway audit replay late_arrival
    """
    from pipelines.settings import Settings
    from pipelines.wiring.rollout_replay import replay as replay_rollouts

    found = replay_rollouts(Settings(), model, lake_only=lake_only)
    if json:
        import msgspec

        print(msgspec.json.encode(found).decode())
    else:
        for one in found:
            print(
                f"{one.rollout_id}: {'DIFFERS' if one.differences else 'the same bytes'} "
                f"({one.decisions} decisions, {one.batches} batches of the log)"
            )
            for line in [*one.differences, *one.erased]:
                print(f"  {line}")
            if one.differences and one.other_code:
                print(f"  {one.other_code} of its decisions were taken by other code than is installed now")
        if not found:
            print("no rollouts yet")
    if any(one.differences for one in found):
        raise typer.Exit(1)
