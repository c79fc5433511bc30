"""`slipway audit verify`: does the decision record hold?"""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="The decision record.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `verify` a verb of its own."""


@app.command()
def verify(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Recompute every model's hash chain and compare it with its anchors; exit 1 when one does not hold."""
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
            print(f"{model}: {'holds' if not found else 'BROKEN'}")
            for fault in found:
                print(f"  {fault}")
        if not faults:
            print("no decisions yet")
    if any(faults.values()):
        raise typer.Exit(1)
