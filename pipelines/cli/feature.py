"""`slipway feature`: what feature views there are, how fresh they are, who uses them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli import feature_versions

if TYPE_CHECKING:
    from pipelines.wiring.view_versions import Pin

app = typer.Typer(help="Feature views: what there is, how fresh it is, who uses it.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_(json_: Json = False) -> None:
    """List the feature views: version, freshness, models that use them, live releases; `show` and --json have more.

    Example: slipway feature list
    """
    import msgspec

    from pipelines.settings import Settings
    from pipelines.wiring import feature_catalogue

    found = feature_catalogue.entries(Settings())
    if json_:
        print(json.dumps([msgspec.to_builtins(entry) for entry in found], indent=2))
        return
    from rich.console import Console
    from rich.table import Column, Table

    if not found:
        print("no feature views yet: slipway new feature NAME --dataset DATASET")
        return
    table = Table(Column("view", no_wrap=True), "state", "age", "allowed", "used by", "live", box=None, pad_edge=False)
    for entry in found:
        fresh = entry.freshness
        colour = "green" if fresh.fresh else "red"
        table.add_row(
            entry.version,
            f"[{colour}]{fresh.state}[/{colour}]",
            "-" if fresh.lag_s is None else _hours(fresh.lag_s),
            _hours(fresh.allowed_s),
            ", ".join(entry.used_by) or "-",
            str(len(entry.live_releases)),
        )
    Console().print(table)


@app.command()
def show(view: Annotated[str, typer.Argument(help="The view's name.")], json_: Json = False) -> None:
    """Show one feature view: features with types and units, windows, freshness, versions.

    Example: slipway feature show carrier_punctuality
    """
    import msgspec

    from pipelines.settings import Settings
    from pipelines.wiring import feature_catalogue

    entry = feature_catalogue.entry(Settings(), view)
    if json_:
        print(json.dumps(msgspec.to_builtins(entry), indent=2))
        return
    from pipelines.cli.tables import open_console, table_of

    console = open_console()
    console.print(f"[bold]{entry.version}[/bold]  {entry.description}")
    facts = {
        "owner": entry.owner,
        "keys": ", ".join(f"{key} ({kind})" for key, kind in entry.entity.items()),
        "datasets": ", ".join(entry.datasets),
        "published every": entry.publish_every,
        "looks back": entry.look_back,
        "time to live": entry.ttl or "no limit",
        "built through": entry.freshness.built_through or "never",
        "readable through": entry.freshness.online_through or "never",
        "age": f"{entry.freshness.state}, {_hours(entry.freshness.allowed_s)} allowed, alert {entry.freshness.alert}",
        "personal keys": ", ".join(entry.personal) or "none",
        "used by": ", ".join(entry.used_by) or "no model",
        "live releases": _pins(entry.live_releases) or "none",
        "older versions": "; ".join(
            f"{version} ({_pins(pins) or 'read by no live release'})" for version, pins in entry.older_versions.items()
        )
        or "none",
    }
    for name, value in facts.items():
        console.print(f"  {name:17} {value}")
    table = table_of("feature", "type", "unit", "range", "description")
    for name, feature in entry.features.items():
        low, high = feature.get("min"), feature.get("max")
        bounds = (
            "" if low is None and high is None else f"{'' if low is None else low} .. {'' if high is None else high}"
        )
        table.add_row(name, feature["type"], feature.get("unit", ""), bounds, feature.get("description", ""))
    console.print(table)
    for finding in entry.findings:
        what = "refused" if finding.refused else "reported"
        console.print(f"{what} at {finding.as_of[:16]}: {' | '.join(finding.reasons[:3])} {finding.path}")


@app.command()
def parity(
    name: Annotated[str, typer.Argument(help="A model, or a feature view (over every model that uses it).")],
    rollout: Annotated[str, typer.Option(help="Compare the shadow stage of this rollout of the model.")] = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    json_: Json = False,
) -> None:
    """Compare logged feature values with the lake's point-in-time rows. Exit 1: more differs than is allowed.

    Example: slipway feature parity late_arrival --markdown
    """
    from pipelines.features import parity_page
    from pipelines.settings import Settings
    from pipelines.spec.loading import names
    from pipelines.wiring import parity as jobs
    from pipelines.wiring.feature_terms import frozen_terms

    settings = Settings()
    if name in names(settings.include_dir, "features"):
        reports = jobs.of_view(settings, name)
    elif rollout:
        reports = [jobs.of_stage(settings, name, rollout, "shadow", frozen_terms(settings, rollout))]
    else:
        reports = [jobs.of_model(settings, name)]
    if json_:
        print(json.dumps([json.loads(report.to_json()) | {"verdict": report.verdict} for report in reports], indent=2))
    elif markdown:
        print("\n".join(parity_page.markdown(report) for report in reports))
    else:
        from pipelines.cli.tables import open_console, table_of

        console = open_console()
        for report in reports:
            console.print(parity_page.summary(report), highlight=False)
            table = table_of(*parity_page.HEAD)
            for row in parity_page.table(report):
                table.add_row(*row)
            if table.rows:
                console.print(table)
    if any(report.verdict == "fail" for report in reports):
        raise typer.Exit(1)


@app.command()
def alerts() -> None:
    """Print Prometheus rules: for each view an alert by its spec's name when it is older than its `freshness`.

    Example: slipway feature alerts > freshness.yaml
    """
    import yaml

    from pipelines.features.alerts import rules
    from pipelines.settings import Settings
    from pipelines.spec.loading import load_view, names

    include = Settings().include_dir
    specs = [load_view(include, name) for name in names(include, "features")]
    print(yaml.safe_dump(rules(specs), sort_keys=False, width=120), end="")


app.command()(feature_versions.lineage)
app.command()(feature_versions.diff)
app.command()(feature_versions.gc)


def _pins(pins: list[Pin]) -> str:
    return ", ".join(f"{pin.model} {pin.semver} ({pin.role})" for pin in pins)


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h"
