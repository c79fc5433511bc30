"""`slipway up`, `down` and `status`: the local stack."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipelines.stack import PartStatus

Parts = Annotated[
    list[str] | None,
    typer.Argument(metavar="[PART]...", help="Parts, or `airflow` for its four; all when none is named."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def up(parts: Parts = None, json: Json = False) -> None:
    """Start the local stack, and wait until it is ready.

    Example: slipway up gateway collector
    """
    from pipelines.cli.progress import PartProgress
    from pipelines.settings import Settings
    from pipelines.stack import up as stack_up

    with PartProgress("Starting") as progress:
        statuses = stack_up(Settings(), parts, progress)
    _print(statuses, json)


def down(parts: Parts = None, json: Json = False) -> None:
    """Stop the local stack. The data stays.

    Example: slipway down
    """
    from pipelines.cli.progress import PartProgress
    from pipelines.settings import Settings
    from pipelines.stack import down as stack_down

    settings = Settings()
    rehearsal = settings.root / "demo"
    with PartProgress("Stopping") as progress:
        statuses = stack_down(settings, parts, progress)
        if (rehearsal / "run").exists():  # `slipway demo` leaves its stack up, in a home inside this one
            stack_down(Settings(home=rehearsal), parts, progress)
    if json:
        _print(statuses, json)
    elif not progress.told:
        sys.stderr.write(f"nothing of {settings.root} was running\n")


def status(parts: Parts = None, json: Json = False) -> None:
    """Show what each part is doing; exit 1 unless all of them run.

    Example: slipway status --json
    """
    from pipelines.settings import Settings
    from pipelines.stack import status as stack_status

    statuses = stack_status(Settings(), parts)
    _print(statuses, json)
    if any(part.state != "running" for part in statuses):
        raise typer.Exit(1)


_COLOUR = {"running": "green", "starting": "yellow", "stopped": "dim", "crashed": "red"}


def _print(statuses: list[PartStatus], as_json: bool) -> None:
    if as_json:
        import msgspec

        sys.stdout.write(msgspec.json.format(msgspec.json.encode(statuses)).decode() + "\n")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("part", "pid", "url", "state", "version"):
        table.add_column(column, no_wrap=True)
    for part in statuses:
        pid = str(part.pid) if part.pid else "-"
        state = f"[{_COLOUR[part.state]}]{part.state}[/]"
        table.add_row(part.part, pid, part.url or "-", state, part.version or "-")
    Console().print(table)
