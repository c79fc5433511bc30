"""`slipway release list|show|verify`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.contracts.errors import SlipwayError

if TYPE_CHECKING:
    from pipelines.adapters.control_db import ReleaseRow
    from pipelines.settings import Settings

app = typer.Typer(help="Releases: what was made, what is in it, whether it is whole.", no_args_is_help=True)

Name = Annotated[
    str, typer.Argument(metavar="RELEASE", help="Digest (6 digits or more), semantic version, or `latest`.")
]
Model = Annotated[str | None, typer.Option("--model", help="Only releases of this model.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_(model: Model = None, as_json: Json = False) -> None:
    """List releases, oldest first.

    Example: slipway release list --model late_arrival
    """
    from pipelines.adapters.control_db import control_db
    from pipelines.settings import Settings
    from pipelines.wiring.erasure import of_releases

    settings = Settings()
    rows, erased = control_db(settings).releases(model), of_releases(settings)
    if as_json:
        print(json.dumps([{**_row(row), "erasures": erased.get(row.digest, [])} for row in rows]))
        return
    if not rows:
        print(f"no releases{f' of {model}' if model else ''} yet: run the DAG model.{model or 'MODEL'}.train")
        return
    for row in rows:
        by = f"  touched by {', '.join(erased[row.digest])}" if row.digest in erased else ""
        print(f"{row.model:20} {row.semver:9} {row.digest[:12]}  {row.status:10} {_metrics(row.metrics)}{by}")


@app.command()
def show(name: Name, model: Model = None, as_json: Json = False) -> None:
    """Show one release: its manifest and its model card.

    Example: slipway release show 1.1.0 --model late_arrival
    """
    from pipelines.registry import releases
    from pipelines.settings import Settings
    from pipelines.wiring.erasure import of_releases

    settings = Settings()
    row = _named(settings, name, model)
    erased = of_releases(settings).get(row.digest, [])
    if as_json:
        manifest = releases.description(settings.releases, row.digest)
        print(json.dumps({**_row(row), "manifest": manifest, "erasures": erased}))
        return
    print(releases.card(settings.releases, row.digest))
    print(f"Release {row.digest}\nStatus  {row.status}\nMLflow  run {row.mlflow_run or 'none'}")
    if erased:
        print(f"Erased  rows it was fitted on are gone since: {', '.join(erased)} (`slipway lake erasures`)")


@app.command()
def verify(name: Name, model: Model = None, as_json: Json = False) -> None:
    """Check every file of a bundle against its digest and answer its sample request; exit 1 when it is not whole.

    Example: slipway release verify 1.1.0 --model late_arrival
    """
    from pipelines.settings import Settings
    from pipelines.wiring.releases import answer_sample

    settings = Settings()
    row = _named(settings, name, model)
    try:
        outputs = answer_sample(settings, row.digest)
    except SlipwayError as error:
        if not as_json:
            raise
        print(json.dumps({"digest": row.digest, "whole": False, "problem": str(error)}))
        raise typer.Exit(1) from error
    if as_json:
        print(json.dumps({"digest": row.digest, "whole": True, "sample": outputs}))
    else:
        print(f"{row.model} {row.semver} {row.digest}: whole; the sample request answers {outputs}")


def _named(settings: Settings, name: str, model: str | None) -> ReleaseRow:
    from pipelines.adapters.control_db import control_db
    from pipelines.contracts.errors import NotFoundError

    db = control_db(settings)
    if name != "latest":
        return db.release(name, model)
    rows = db.releases(model)
    if not rows:
        raise NotFoundError("release", got=name, expected="at least one", hint="Run the model's train DAG.")
    return rows[-1]


def _row(row: ReleaseRow) -> dict[str, Any]:
    import msgspec

    found: dict[str, Any] = msgspec.to_builtins(row)
    return found


def _metrics(metrics: dict[str, Any]) -> str:
    shown = [name for name in ("log_loss", "auc", "rmse", "mae") if name in metrics]
    return "  ".join(f"{name} {metrics[name]:.4f}" for name in shown)
