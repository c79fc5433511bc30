"""`slipway check` and `slipway apply`: are the specs right, and enter them into the installation."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def check(
    json_: Json = False,
    schemas: Annotated[
        bool, typer.Option("--write-schemas", help="Also write the JSON Schemas of specs to docs/schema.")
    ] = False,
) -> None:
    """Check every spec; mistakes as `file:line: message`.

    Example: slipway check
    """
    from pipelines.settings import PROJECT, Settings
    from pipelines.spec.schemas import write_schemas
    from pipelines.wiring import projects

    checked = projects.check(Settings())
    if schemas:
        for path in write_schemas(PROJECT / "docs" / "schema"):
            print(path.relative_to(PROJECT), file=sys.stderr)
    specs = checked.specs
    counts = {"datasets": len(specs.datasets), "features": len(specs.views), "models": len(specs.models)}
    if json_:
        print(json.dumps({"ok": not checked.mistakes, **counts, "mistakes": checked.mistakes}, indent=2))
    elif checked.mistakes:
        print("\n".join(checked.mistakes))
    else:
        print(", ".join(f"{count} {kind}" for kind, count in counts.items()) + ": no mistakes")
    if checked.mistakes:
        raise typer.Exit(1)


def apply(json_: Json = False) -> None:
    """Enter the specs into the installation: Feast registry, online tables, the sample's place in time.

    Example: slipway apply
    """
    import msgspec

    from pipelines.settings import Settings
    from pipelines.wiring import projects

    settings = Settings()
    applied = projects.apply(settings)
    if json_:
        print(json.dumps(msgspec.to_builtins(applied), indent=2))
        return
    for name in applied.views:
        print(name)
    if applied.sample_moved_days:
        print(f"The sample of 2013 lies {applied.sample_moved_days} days later here.")
    print(f"Applied to {_shown(settings.root)}")


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
