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
    """Merge small files, and remove those that no version of the last SLIPWAY_LAKE_RETENTION_HOURS needs."""
    from pipelines.adapters.delta_lake import open_lake
    from pipelines.adapters.lake_maintenance import maintain as of_table
    from pipelines.settings import Settings

    settings = Settings()
    lake = open_lake(settings)
    done = [of_table(lake, name, settings.lake_retention_hours) for name in table or lake.tables()]
    if json:
        import msgspec

        print(msgspec.json.encode([one._asdict() for one in done]).decode())
        return
    for one in done:
        print(f"{one.table}: {one.merged} files into {one.into}, {one.removed} removed")
