"""Versions of feature views: their definitions kept, those that live releases read kept going, the others removable.

A changed transform is a new version beside the old one. A release goes on reading the version it pins, so that one has
to be built and materialised for as long as the release may answer; for that, every version's definition is kept in the
installation as a small `include` of its own.
"""

from __future__ import annotations

import difflib
import shutil
from pathlib import Path

import msgspec
import yaml

from pipelines.adapters.control_db import control_db
from pipelines.adapters.delta_lake import open_lake
from pipelines.adapters.feast_online import open_online
from pipelines.contracts.errors import NotFoundError
from pipelines.contracts.release import Manifest
from pipelines.settings import Settings
from pipelines.spec.loading import load_dataset, load_view, names
from pipelines.spec.view import ViewSpec
from pipelines.wiring import corrections, features
from pipelines.wiring.rollout_gate import rollout_store
from pipelines.wiring.scoring import load_release


class Pin(msgspec.Struct, frozen=True, kw_only=True):
    """A release that may answer, or be asked to, and reads a view. `role`: why it counts as live."""

    model: str
    release: str
    semver: str
    role: str


class Removable(msgspec.Struct, frozen=True, kw_only=True):
    """A version that no spec has and no live release reads. `removed`: whether it is gone now."""

    version: str
    lake: bool
    online: bool
    removed: bool


def folder(settings: Settings, version: str) -> Path:
    """Where a version's definition is kept: an `include` with this one view, its transform and its datasets."""
    return settings.root / "views" / version


def keep_definition(settings: Settings, view: str) -> Path:
    """Keep the definition of the view's version of now; once a version."""
    spec = load_view(settings.include_dir, view)
    kept = folder(settings, spec.feast_name(settings.include_dir))
    if kept.exists():
        return kept
    staged = kept.with_name(f".{kept.name}")
    shutil.rmtree(staged, ignore_errors=True)
    transform = spec.transform.partition(":")[0]
    target = staged / "transforms" / transform
    target.parent.mkdir(parents=True)
    shutil.copyfile(settings.include_dir / "transforms" / transform, target)
    (staged / "features").mkdir()
    (staged / "features" / f"{view}.yaml").write_text(_yaml(spec.model_dump(mode="json", exclude_none=True)))
    (staged / "datasets").mkdir()
    for name in spec.datasets:
        dataset = load_dataset(settings.include_dir, name).model_dump(mode="json", exclude_none=True)
        (staged / "datasets" / f"{name}.yaml").write_text(_yaml(dataset))
    try:
        staged.rename(kept)
    except OSError:  # another run has kept it meanwhile
        shutil.rmtree(staged)
    return kept


def _yaml(document: object) -> str:
    return yaml.safe_dump(document, sort_keys=False, width=120)


def pinned(settings: Settings) -> dict[str, list[Pin]]:
    """Which live releases read each version: those on routes, in rollouts that run or wait, those that a rollback may
    bring back, and the newest registered one of each model.
    """
    found: dict[str, list[Pin]] = {}
    for (model, digest), role in _live(settings).items():
        try:
            manifest: Manifest = load_release(settings, digest).manifest
        except NotFoundError:
            continue
        for version in sorted({pin.view for pin in manifest.views}):
            found.setdefault(version, []).append(Pin(model=model, release=digest, semver=manifest.semver, role=role))
    return found


def _live(settings: Settings) -> dict[tuple[str, str], str]:
    """Live releases with their role, by model and digest; the weightiest role of several."""
    database, store = control_db(settings), rollout_store(settings)
    rows, rollouts = database.releases(), store.rollouts()
    models = sorted({row.model for row in rows} | {one.model for one in rollouts})
    roles: dict[tuple[str, str], str] = {}

    def enter(model: str, release: str | None, role: str) -> None:
        if release:
            roles.setdefault((model, release), role)

    for model in models:
        enter(model, database.champion(model), "champion")
        route = database.route(model)
        if route is not None:
            for role in ("champion", "challenger", "fallback"):
                enter(model, getattr(route, role), role)
        own = [one for one in rollouts if one.model == model]
        for one in own:
            if one.slot != "ended":
                enter(model, one.challenger, "challenger" if one.slot == "running" else "waiting")
                enter(model, one.champion, "fallback")
        if own and own[-1].can_go_back:
            enter(model, own[-1].champion, "fallback")
        registered = [row for row in rows if row.model == model and row.status == "registered"]
        enter(model, registered[-1].digest if registered else None, "registered")
    return roles


def refresh_pinned(settings: Settings, view: str, as_of_us: int) -> list[features.Materialised]:
    """Keep going the older versions of a view that live releases read: amend, build, check, publish, materialise.

    Keeps the definition of the version of now, too. A version whose definition was never kept is passed over.
    """
    keep_definition(settings, view)
    current = load_view(settings.include_dir, view).feast_name(settings.include_dir)
    done = []
    for version in sorted(pinned(settings)):
        if version.rpartition("__")[0] != view or version == current or not folder(settings, version).exists():
            continue
        then = settings.model_copy(update={"include_dir": folder(settings, version)})
        corrections.amend(then, view, as_of_us)
        done.append(features.refresh(then, view, as_of_us))
    return done


def versions(settings: Settings) -> set[str]:
    """Every version that has left something: in the lake, online, or a kept definition."""
    tables = open_lake(settings).tables()
    found = {name.removeprefix("features/") for name in tables if name.startswith("features/")}
    kept = settings.root / "views"
    found |= {path.name for path in kept.iterdir() if not path.name.startswith(".")} if kept.is_dir() else set()
    with open_online(settings) as online:
        return found | set(online.views())


def collect_garbage(settings: Settings, *, remove: bool = False) -> list[Removable]:
    """The versions that no spec has and no live release reads; with `remove` they are removed, one after the other.

    The definition goes last: cut short, it is done again.
    """
    live = set(pinned(settings))
    for name in names(settings.include_dir, "features"):
        live.add(load_view(settings.include_dir, name).feast_name(settings.include_dir))
    lake, found = open_lake(settings), []
    with open_online(settings) as online:
        shown = set(online.views())
        for version in sorted(versions(settings) - live):
            table = features.table_of(version)
            one = Removable(version=version, lake=lake.exists(table), online=version in shown, removed=remove)
            if remove:
                _forget(settings, version)
                online.drop(version, _features_of(settings, version))
                if one.lake:
                    lake.drop(table)
                shutil.rmtree(folder(settings, version), ignore_errors=True)
            found.append(one)
    return found


def _forget(settings: Settings, version: str) -> None:
    from pipelines.adapters import feast_registry

    feast_registry.forget(settings, version)


def _features_of(settings: Settings, version: str) -> list[str]:
    """A version's features, by its definition or its table; none when there is neither."""
    spec = definition(settings, version)
    if spec is not None:
        return list(spec.features)
    lake, table = open_lake(settings), features.table_of(version)
    return list(lake.schema(table).names) if lake.exists(table) else []


def definition(settings: Settings, version: str) -> ViewSpec | None:
    """The spec of a version as it was kept; None when it was not."""
    kept = folder(settings, version)
    return load_view(kept, version.rpartition("__")[0]) if kept.exists() else None


def difference(settings: Settings, old: str, new: str) -> list[str]:
    """What differs between the definitions of two versions, as a unified diff: spec, then transform.

    Raises NotFoundError naming the versions whose definitions are kept.
    """
    kept = settings.root / "views"
    known = sorted(path.name for path in kept.iterdir() if not path.name.startswith(".")) if kept.is_dir() else []
    texts: list[dict[str, list[str]]] = []
    for version in (old, new):
        if version not in known:
            raise NotFoundError("definition of a view version", got=version, expected=f"one of {known}")
        root = folder(settings, version)
        files = sorted([*root.glob("features/*.yaml"), *root.rglob("*.py")])
        texts.append({path.relative_to(root).as_posix(): path.read_text().splitlines() for path in files})
    lines: list[str] = []
    for name in sorted({*texts[0], *texts[1]}):
        before, after = (text.get(name, []) for text in texts)
        lines += difflib.unified_diff(before, after, f"{old}/{name}", f"{new}/{name}", lineterm="")
    return lines
