"""Whether the specs of a project fit together: every name that is referred to exists, transforms are where they say."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipelines.spec import dataset, model, personal, view
from pipelines.spec.dataset import DatasetSpec
from pipelines.spec.documents import render
from pipelines.spec.loading import FOLDERS, Specs, file_names, names, parse_spec, path_of, shown_path
from pipelines.spec.model import ModelSpec
from pipelines.spec.problems import Location, Problem
from pipelines.spec.view import ViewSpec

PolicyCheck = Callable[[ModelSpec], Iterable[Problem]]
_CHECKS: dict[str, Callable[[Any], Iterator[Problem]]] = {
    "datasets": dataset.problems,
    "features": view.problems,
    "models": model.problems,
}


def check_project(include: Path, policy: PolicyCheck | None = None) -> tuple[Specs, list[str]]:
    """Every spec that can be read, and every mistake as `file:line: message`.

    `policy(spec)` tells the problems of a model's rollout.
    """
    loaded: dict[str, dict[str, Any]] = {folder: {} for folder in FOLDERS}
    mistakes: list[str] = []
    for folder, spec_type in FOLDERS.items():
        for name in file_names(include, folder):
            path = path_of(include, folder, name)
            spec, found = parse_spec(path, spec_type, _CHECKS[folder], shown_path(include, path))
            mistakes += found
            if spec is not None:
                loaded[folder][name] = spec
    brought = _brought_along(loaded["models"], loaded)
    specs = Specs(include=include, datasets=loaded["datasets"], views=loaded["features"], models=loaded["models"])
    known = {folder: names(include, folder) for folder in FOLDERS}
    groups: list[tuple[str, Mapping[str, BaseModel], Callable[..., Iterator[Problem]]]] = [
        ("datasets", specs.datasets, dataset_references),
        ("features", specs.views, view_references),
        ("models", specs.models, model_references),
    ]
    for folder, group, references in groups:
        for name, spec in group.items():
            found_here = list(references(spec, specs, known))
            path = path_of(include, folder, name)
            if (place := brought.get((folder, name))) is not None:
                path = path_of(include, "models", place[0])
                found_here = list(model.within(place[1], found_here))
            wrong_already = any(line.startswith(f"{shown_path(include, path)}:") for line in mistakes)
            if policy is not None and isinstance(spec, ModelSpec) and not wrong_already:
                found_here += policy(spec)
            mistakes += render(path.read_text(), shown_path(include, path), found_here)
    return specs, sorted(mistakes, key=_place)


def _brought_along(
    models: Mapping[str, ModelSpec], loaded: Mapping[str, dict[str, Any]]
) -> dict[tuple[str, str], tuple[str, Location]]:
    """Add what models define to `loaded`; returns each one's model and its location there, by folder and name."""
    places: dict[tuple[str, str], tuple[str, Location]] = {}
    for owner, spec in models.items():
        for folder in ("datasets", "features"):
            for index, part in enumerate(getattr(spec.define, folder)):
                if part.name not in loaded[folder]:
                    loaded[folder][part.name] = part
                    places[folder, part.name] = (owner, ("define", folder, index))
    return places


def _place(mistake: str) -> tuple[str, int]:
    file, line, _ = mistake.split(":", 2)
    return file, int(line)


def dataset_references(spec: DatasetSpec, specs: Specs, _: Mapping[str, list[str]]) -> Iterator[Problem]:
    """A file source whose file is not there."""
    if spec.source.kind == "file":
        path = Path(spec.source.path)
        base = path if path.is_absolute() else specs.include / path
        if not base.exists() and not any(base.parent.glob(base.name)):
            yield Problem(("source", "path"), f"no file '{spec.source.path}' under {specs.include.name}")


def view_references(spec: ViewSpec, specs: Specs, known: Mapping[str, list[str]]) -> Iterator[Problem]:
    """Datasets that do not exist, a transform that is not there, and PII as a feature."""
    yield from _datasets(spec.datasets, ("datasets",), known)
    yield from _transform(specs.include, spec.transform, ("transform",))
    yield from personal.view_problems(spec, specs.datasets)
    yield from _stream(spec, specs)


def _stream(spec: ViewSpec, specs: Specs) -> Iterator[Problem]:
    """A stream into a dataset that is filled otherwise, or that another view reads from elsewhere."""
    if spec.stream is None or (dataset := specs.datasets.get(spec.stream.dataset)) is None:
        return
    if dataset.source.kind != "stream":
        what = f"dataset '{dataset.name}' has source {dataset.source.kind}; a stream fills one whose source is stream"
        yield Problem(("stream", "dataset"), what)
    if spec.stream.independent_keys and (missing := sorted(set(spec.entity.keys) - set(dataset.columns))):
        what = f"independent_keys: '{dataset.name}' has no column {', '.join(missing)} to tell keys by"
        yield Problem(("stream", "independent_keys"), what)
    for other in specs.views.values():
        if other.stream is None or other.stream.dataset != dataset.name:
            continue
        for field in ("topic", "watermark", "dead_topic"):
            ours, theirs = getattr(spec.stream, field), getattr(other.stream, field)
            if ours != theirs and spec.name > other.name:
                what = f"{field} {ours} differs from {theirs} of view {other.name}; one stream fills '{dataset.name}'"
                yield Problem(("stream", "dead_letters" if field == "dead_topic" else field), what)


def model_references(spec: ModelSpec, specs: Specs, known: Mapping[str, list[str]]) -> Iterator[Problem]:
    """Datasets, views, features, join keys and transforms that do not exist, and PII that a model may not see."""
    yield from _datasets(spec.requests.datasets, ("requests", "datasets"), known)
    yield from _datasets(spec.labels.datasets, ("labels", "datasets"), known)
    yield from _transform(specs.include, spec.requests.transform, ("requests", "transform"))
    yield from _transform(specs.include, spec.labels.transform, ("labels", "transform"))
    if spec.request_features is not None:
        yield from _transform(specs.include, f"{spec.request_features.file}:build", ("request_features", "file"))
    if spec.postprocess is not None:
        yield from _transform(specs.include, f"{spec.postprocess.file}:apply", ("postprocess", "file"))
    for index, use in enumerate(spec.views):
        at: Location = ("views", index)
        if use.view not in known["features"]:
            yield Problem.unknown((*at, "view"), "view", use.view, known["features"])
        elif (used := specs.views.get(use.view)) is not None:
            for position, name in enumerate(use.features):
                if name not in used.features:
                    yield Problem.unknown((*at, "features", position), f"feature of {use.view}", name, used.features)
            if set(use.entity) != set(used.entity.keys):
                yield Problem((*at, "entity"), f"join keys {sorted(use.entity)}; expected {sorted(used.entity.keys)}")
    yield from personal.model_problems(spec, specs.views, specs.datasets)
    yield from _feedings(spec, specs, known)


def _feedings(spec: ModelSpec, specs: Specs, known: Mapping[str, list[str]]) -> Iterator[Problem]:
    """Models that feed this one: they exist, not in a ring, and their scores are numbers among the inputs."""
    for index, feeding in enumerate(spec.fed_by):
        name = feeding.model
        if name not in known["models"]:
            yield Problem.unknown(("fed_by", index), "model", name, known["models"])
        elif spec.name in _feeding(name, specs.models):
            yield Problem(("fed_by", index), f"'{name}' is fed by '{spec.name}' itself: they would wait for each other")
        if feeding.input is not None:
            yield from _score_input(spec, ("fed_by", index, "input"), feeding.input)


def _feeding(model: str, models: Mapping[str, ModelSpec]) -> set[str]:
    """The model, and every one whose scores reach it."""
    found, ahead = set[str](), [model]
    while ahead:
        if (name := ahead.pop()) not in found:
            found.add(name)
            ahead += [each.model for each in models[name].fed_by] if name in models else []
    return found


def _score_input(spec: ModelSpec, at: Location, name: str) -> Iterator[Problem]:
    """The input that is another model's score is one of this model's, and a number."""
    if name not in spec.inputs:
        yield Problem.unknown(at, "input", name, [*spec.inputs])
    elif spec.inputs[name].datatype not in ("FP64", "FP32"):
        yield Problem(at, f"input '{name}' is {spec.inputs[name].datatype}; a score is FP64 or FP32")


def _datasets(listed: list[str], at: Location, known: Mapping[str, list[str]]) -> Iterator[Problem]:
    for index, name in enumerate(listed):
        if name not in known["datasets"]:
            yield Problem.unknown((*at, index), "dataset", name, known["datasets"])


def _transform(include: Path, reference: str, at: Location) -> Iterator[Problem]:
    """The file must exist and define the function at its top level; it is read, never run."""
    file, _, function = reference.partition(":")
    path = include / "transforms" / file
    if not path.is_file():
        there = [
            other.relative_to(include / "transforms").as_posix() for other in (include / "transforms").rglob("*.py")
        ]
        yield Problem.unknown(at, "transform file", file, there)
        return
    try:
        tree = ast.parse(path.read_text())
    except SyntaxError as error:
        yield Problem(at, f"{file} line {error.lineno}: {error.msg}")
        return
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    if function not in defined:
        yield Problem.unknown(at, f"function in {file}", function, defined)
