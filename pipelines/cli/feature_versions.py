"""`slipway feature lineage|diff|gc`: what is made of what, how two versions differ, which versions nobody needs."""

from __future__ import annotations

import json
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def lineage(
    name: Annotated[str, typer.Argument(help="A dataset, feature view, model or release.")], json_: Json = False
) -> None:
    """Show what something is made of, and what is made of it: datasets, view versions, models, live releases.

    Example: slipway feature lineage carrier_punctuality
    """
    import msgspec

    from pipelines.settings import Settings
    from pipelines.wiring.lineage import lineage as of

    found = of(Settings(), name)
    if json_:
        print(json.dumps(msgspec.to_builtins(found), indent=2))
        return
    from pipelines.cli.tables import open_console, table_of

    sources: dict[str, list[str]] = {}
    names = {node.id: f"{node.kind} {node.name}" for node in found.nodes}
    for source, product in found.edges:
        sources.setdefault(product, []).append(names[source])
    table = table_of("what", "name", "owner", "made of", "note")
    order = ["dataset", "view", "model", "release"]
    for node in sorted(found.nodes, key=lambda one: (order.index(one.kind), one.name)):
        table.add_row(node.kind, node.name, node.owner, "\n".join(sources.get(node.id, [])) or "-", node.note)
    open_console().print(table)


def diff(
    view: Annotated[str, typer.Argument(help="The view's name, or a version of it.")],
    other: Annotated[str, typer.Argument(help="A version to compare with; empty: the version of now.")] = "",
    json_: Json = False,
) -> None:
    """Show how two versions of a view differ, spec and transform. Exit 1: they do.

    Example: slipway feature diff carrier_punctuality
    """
    from pipelines.settings import Settings
    from pipelines.spec.loading import load_view
    from pipelines.wiring import view_versions

    settings = Settings()
    name = view.rpartition("__")[0] or view
    now = load_view(settings.include_dir, name).feast_name(settings.include_dir)
    view_versions.keep_definition(settings, name)
    older = sorted(one for one in view_versions.versions(settings) if one.rpartition("__")[0] == name and one != now)
    old = view if "__" in view else (older[-1] if older else now)
    new = other or now
    lines = view_versions.difference(settings, old, new)
    if json_:
        print(json.dumps({"old": old, "new": new, "diff": lines}, indent=2))
    else:
        print("\n".join(lines) or f"{old} and {new} are the same.")
    if lines:
        raise typer.Exit(1)


def gc(
    remove: Annotated[bool, typer.Option("--remove", help="Remove them; else they are only listed.")] = False,
    json_: Json = False,
) -> None:
    """List view versions that no spec has and no live release reads, or remove them: lake, online store, registry.

    Example: slipway feature gc --remove
    """
    import msgspec

    from pipelines.settings import Settings
    from pipelines.wiring.view_versions import collect_garbage

    found = collect_garbage(Settings(), remove=remove)
    if json_:
        print(json.dumps(msgspec.to_builtins(found), indent=2))
        return
    for one in found:
        where = ", ".join(name for name, there in (("lake", one.lake), ("online", one.online)) if there) or "definition"
        print(f"{'removed' if one.removed else 'removable'}: {one.version} ({where})")
    if not found:
        print("Every version is a spec's, or read by a live release.")
    elif not remove:
        print("Nothing was removed; `slipway feature gc --remove` does.")
