"""Which request inputs of a model are personal: entity keys that a dataset marks as PII, known by their hash alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from pipelines.spec.dataset import DatasetSpec
from pipelines.spec.model import ModelSpec
from pipelines.spec.problems import Problem
from pipelines.spec.view import ViewSpec


def personal_columns(names: Iterable[str], datasets: Mapping[str, DatasetSpec]) -> frozenset[str]:
    """The columns that any of the named datasets marks as PII."""
    known = [datasets[name] for name in names if name in datasets]
    return frozenset(name for spec in known for name, column in spec.columns.items() if column.pii)


def personal_inputs(
    spec: ModelSpec, views: Mapping[str, ViewSpec], datasets: Mapping[str, DatasetSpec]
) -> frozenset[str]:
    """Inputs that carry a PII column: of that name, or looked up as a join key that is one."""
    found = personal_columns(spec.datasets(), datasets) & set(spec.inputs)
    for use in spec.views:
        if use.view in views:
            columns = personal_columns(views[use.view].datasets, datasets)
            found |= {name for key, name in use.entity.items() if key in columns}
    return found


def model_problems(
    spec: ModelSpec, views: Mapping[str, ViewSpec], datasets: Mapping[str, DatasetSpec]
) -> Iterator[Problem]:
    """Personal inputs that are no entity keys, or that something else than a look-up would see."""
    keys = {name for use in spec.views for name in use.entity.values()}
    for name in sorted(personal_inputs(spec, views, datasets) & set(spec.inputs)):
        if name not in keys:
            yield Problem(
                ("inputs", name),
                f"input '{name}' is PII; only an entity key may be, by its hash. If clients send it, list it in"
                " dropped_inputs",
            )
        elif spec.inputs[name].datatype != "BYTES":
            yield Problem(("inputs", name), f"input '{name}' is PII and known by its hash: its datatype is BYTES")
        if name in spec.slices:
            yield Problem(("slices", spec.slices.index(name)), f"input '{name}' is PII; it cannot slice metrics")


def view_problems(spec: ViewSpec, datasets: Mapping[str, DatasetSpec]) -> Iterator[Problem]:
    """PII as a feature, and a personal key of another type than its hash."""
    personal = personal_columns(spec.datasets, datasets)
    for name in sorted(personal & set(spec.features)):
        yield Problem(("features", name), f"feature '{name}' is PII; PII may be an entity key, but no feature")
    for name in sorted(personal & set(spec.entity.keys)):
        if spec.entity.keys[name] != "string":
            yield Problem(("entity",), f"join key '{name}' is PII and known by its hash: its type is string")
