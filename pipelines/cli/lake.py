"""`slipway lake`: what keeps the lake's tables in order."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.cli import erasure

app = typer.Typer(help="The lake's tables.", no_args_is_help=True)
app.command()(erasure.erase)
app.command()(erasure.erasures)


@app.command()
def maintain(
    table: Annotated[list[str] | None, typer.Argument(help="Tables by name; none: all of them.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Merge small files, and remove those that no version of the last SLIPWAY_LAKE_RETENTION_HOURS needs.

    Example: slipway lake maintain datasets/flights_landed
    """
    from pipelines.settings import Settings
    from pipelines.wiring import lake_care

    settings = Settings()
    names = table or [one.table for one in lake_care.tables(settings)]
    done = [lake_care.maintain(settings, name) for name in names]
    if json:
        import msgspec

        print(msgspec.json.encode(done).decode())
        return
    if not done:
        print("no tables yet")
    for one in done:
        print(f"{one.table}: {one.merged} files into {one.into}, {one.removed} removed")
