"""`slipway log verify`: is every event in the lake, once?"""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="The inference log.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `verify` a verb of its own."""


@app.command()
def verify(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Compare counters, bus and lake per worker epoch; exit 1 when anything is lost, damaged or stored twice.

    Events that could not be read are in quarantine: they are counted, with the reasons, and are not lost.

    Example: slipway log verify
    """
    from pipelines.settings import Settings
    from pipelines.wiring.collect import verify_log

    reports = verify_log(Settings())
    if json:
        import msgspec

        rows = [msgspec.to_builtins(report) | {"whole": report.whole} for report in reports]
        print(msgspec.json.encode(rows).decode())
    elif not reports:
        print("no events yet")
    else:
        from pipelines.cli.tables import open_console, table_of

        names = ("on the bus", "in the lake", "quarantined", "lost", "missing", "twice", "waiting", "torn bytes")
        table = table_of("stream", *names, "")
        for report in reports:
            lost = ", ".join(f"{a}..{b}" if a != b else str(a) for a, b in report.lost) or "0"
            so_far = "" if report.ended else " so far"
            verdict = f"[green]whole{so_far}[/]" if report.whole else f"[red]not whole[/] {'; '.join(report.damaged)}"
            written = "gone" if report.written is None else str(report.written)
            aside = sum(report.quarantined.values())
            counts = (report.missing, report.twice, report.waiting, report.torn)
            cells = (written, report.stored, aside, lost, *counts, verdict)
            table.add_row(report.stream, *(str(cell) for cell in cells))
        open_console().print(table)
        for report in reports:
            for reason, count in report.quarantined.items():
                print(f"{report.stream}: {count} in quarantine: {reason}")
    if not all(report.whole for report in reports):
        raise typer.Exit(1)
