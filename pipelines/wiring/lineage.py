"""What is made of what: the project's datasets, views, models and live releases as one graph."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from pipelines.contracts.errors import NotFoundError
from pipelines.settings import Settings
from pipelines.spec.problems import suggestion
from pipelines.wiring import view_versions
from pipelines.wiring.projects import check


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One thing by id (`dataset:weather`, `view:plane__1a2b`, `model:air_time`, `release:<digest>`)."""

    id: str
    kind: str
    name: str
    owner: str = ""
    note: str = ""


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """Things and what is made of what: edges go from source to product, both by id."""

    of: str
    nodes: list[Node]
    edges: list[tuple[str, str]]


def graph(settings: Settings) -> Lineage:
    """The whole project, with every version that a live release reads."""
    specs = check(settings).specs
    nodes: dict[str, Node] = {}
    edges: set[tuple[str, str]] = set()

    def enter(kind: str, name: str, key: str = "", **facts: str) -> str:
        node = Node(id=f"{kind}:{key or name}", kind=kind, name=name, **facts)
        nodes.setdefault(node.id, node)
        return node.id

    for name, dataset in specs.datasets.items():
        enter("dataset", name, owner=dataset.owner, note=dataset.source.kind)
    current = {}
    for name, view in specs.views.items():
        version = view.feast_name(settings.include_dir)
        current[name] = enter("view", version, owner=view.owner, note=", ".join(view.features))
        edges |= {(f"dataset:{source}", current[name]) for source in view.datasets}
    for name, model in specs.models.items():
        made = enter("model", name, owner=model.owner, note=model.task)
        edges |= {(current[use.view], made) for use in model.views if use.view in current}
        edges |= {(f"dataset:{source}", made) for source in model.datasets()}
    for version, pins in view_versions.pinned(settings).items():
        read = enter("view", version, note="not a version of any spec now")
        if read not in current.values() and (then := view_versions.definition(settings, version)) is not None:
            edges |= {(enter("dataset", source), read) for source in then.datasets}
        for pin in pins:
            release = enter("release", f"{pin.model} {pin.semver}", pin.release, note=f"{pin.role}, {pin.release[:12]}")
            edges |= {(read, release)}
            if f"model:{pin.model}" in nodes:
                edges |= {(f"model:{pin.model}", release)}
    return Lineage(of="", nodes=sorted(nodes.values(), key=lambda one: one.id), edges=sorted(edges))


def lineage(settings: Settings, name: str) -> Lineage:
    """What a dataset, view (with or without its version), model or release is made of, and what is made of it.

    Raises NotFoundError naming the nearest one.
    """
    whole = graph(settings)
    chosen = [
        node.id
        for node in whole.nodes
        if name in (node.name, node.id, node.id.partition(":")[2])
        or (node.kind == "view" and node.name.rpartition("__")[0] == name)
    ]
    if not chosen:
        known = sorted({node.name.partition("__")[0] for node in whole.nodes})
        raise NotFoundError(f"dataset, view, model or release '{name}'{suggestion(name, known)}")
    up = _reached(chosen, [(product, source) for source, product in whole.edges])
    down = _reached(chosen, whole.edges)
    kept = up | down
    return Lineage(
        of=name,
        nodes=[node for node in whole.nodes if node.id in kept],
        edges=[edge for edge in whole.edges if set(edge) <= up or set(edge) <= down],
    )


def _reached(start: Iterable[str], edges: Iterable[tuple[str, str]]) -> set[str]:
    """Everything to be reached along the edges."""
    listed, found, open_ = list(edges), set(start), list(start)
    while open_:
        at = open_.pop()
        fresh = {end for begin, end in listed if begin == at} - found
        found |= fresh
        open_ += fresh
    return found
