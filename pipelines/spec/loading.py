"""YAML files to typed specs. Every mistake is told as `file:line: message`, with a suggestion where a name is near.

A file is parsed fast first; only a file with mistakes is parsed again with positions.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin

import msgspec
from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML

from pipelines.contracts.canonical import digest
from pipelines.contracts.errors import NotFoundError, SpecError
from pipelines.spec import dataset, model, view
from pipelines.spec.dataset import DatasetSpec
from pipelines.spec.documents import mapping_of, render
from pipelines.spec.model import ModelSpec
from pipelines.spec.problems import Location, Problem, suggestion
from pipelines.spec.view import ViewSpec

AnySpec = TypeVar("AnySpec", bound=BaseModel)

FOLDERS: dict[str, type[BaseModel]] = {"datasets": DatasetSpec, "features": ViewSpec, "models": ModelSpec}


class Specs(msgspec.Struct, frozen=True):
    """Every spec of a project, by name."""

    include: Path
    datasets: dict[str, DatasetSpec]
    views: dict[str, ViewSpec]
    models: dict[str, ModelSpec]

    def digest(self) -> str:
        """SHA-256 over all specs as they are understood (comments and layout do not count)."""
        return digest(
            {
                kind: {name: spec.model_dump(mode="json") for name, spec in group.items()}
                for kind, group in (("datasets", self.datasets), ("views", self.views), ("models", self.models))
            }
        )


def load_dataset(include: Path, name: str) -> DatasetSpec:
    """`include/datasets/<name>.yaml`. Raises SpecError (`file:line:`) or NotFoundError naming near datasets."""
    return _load_one(include, "datasets", name, DatasetSpec, dataset.problems)


def load_view(include: Path, name: str) -> ViewSpec:
    """`include/features/<name>.yaml`. Raises as `load_dataset`."""
    return _load_one(include, "features", name, ViewSpec, view.problems)


def load_model(include: Path, name: str) -> ModelSpec:
    """`include/models/<name>.yaml`. Raises as `load_dataset`."""
    return _load_one(include, "models", name, ModelSpec, model.problems)


def names(include: Path, folder: str) -> list[str]:
    """Names of the specs of a kind (`datasets`, `features`, `models`), in their own files or in a model's; sorted."""
    return sorted({*file_names(include, folder), *defined(include, folder)})


def file_names(include: Path, folder: str) -> list[str]:
    """Names of the spec files in a folder, sorted."""
    return sorted(path.stem for path in (include / folder).glob("*.yaml"))


def defined(include: Path, folder: str) -> dict[str, tuple[str, int]]:
    """Datasets or views that models bring along under `define`: the model, and the place in its list, by name."""
    found: dict[str, tuple[str, int]] = {}
    if folder == "models":
        return found
    for model_name in file_names(include, "models"):
        text = path_of(include, "models", model_name).read_text()
        if "\ndefine:" not in text:  # most models bring nothing along: their YAML is not parsed for it
            continue
        listed = (YAML(typ="safe").load(text).get("define") or {}).get(folder) or []
        found.update({entry["name"]: (model_name, index) for index, entry in enumerate(listed) if "name" in entry})
    return found


def load_all(include: Path) -> Specs:
    """Every spec of a project, each valid in itself; `pipelines.spec.checking` says whether they fit together."""
    return Specs(
        include=include,
        datasets={name: load_dataset(include, name) for name in names(include, "datasets")},
        views={name: load_view(include, name) for name in names(include, "features")},
        models={name: load_model(include, name) for name in names(include, "models")},
    )


def path_of(include: Path, folder: str, name: str) -> Path:
    """The file of a spec."""
    return include / folder / f"{name}.yaml"


def parse_spec(
    path: Path, spec_type: type[AnySpec], check: Callable[[AnySpec], Iterator[Problem]], shown: str
) -> tuple[AnySpec | None, list[str]]:
    """The spec in a file, or None, and its mistakes as lines of text. `shown` is the file's name in them."""
    spec, mistakes = _parsed(path.read_text(), path.stem, spec_type, check, shown)
    return cast("AnySpec | None", spec), list(mistakes)


@lru_cache(maxsize=256)  # every step of a job loads the specs it needs, and to parse YAML is what costs
def _parsed(
    text: str, stem: str, spec_type: type[BaseModel], check: Callable[[Any], Iterator[Problem]], shown: str
) -> tuple[BaseModel | None, list[str]]:
    try:
        document = mapping_of(text, shown)
    except SpecError as error:
        return None, [str(error)]
    try:
        spec = spec_type.model_validate(document)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        found = [_explain(spec_type, document, one) for one in errors]
        # A misspelt key is also a missing one: told once, where it stands.
        meant = [problem.message for problem in found]
        told = [
            problem
            for problem, one in zip(found, errors, strict=True)
            if one["type"] != "missing" or not any(text.endswith(f"Did you mean '{one['loc'][-1]}'?") for text in meant)
        ]
        return None, render(text, shown, told)
    found = list(check(spec))
    name = getattr(spec, "name", None)
    if name != stem:
        found.append(Problem(("name",), f"name '{name}' differs from the file's; expected '{stem}'"))
    return spec, render(text, shown, found)


def shown_path(include: Path, path: Path) -> str:
    """How a spec file is named in messages: from the folder that holds `include`."""
    return path.relative_to(include.parent).as_posix()


def _load_one(
    include: Path, folder: str, name: str, spec_type: type[AnySpec], check: Callable[[AnySpec], Iterator[Problem]]
) -> AnySpec:
    path = path_of(include, folder, name)
    if not path.is_file() and (place := defined(include, folder).get(name)) is not None:
        brought: list[AnySpec] = getattr(load_model(include, place[0]).define, folder)
        return brought[place[1]]
    if not path.is_file():
        near = suggestion(name, names(include, folder)).removeprefix(".").removeprefix(";").strip()
        what = f"{folder.removesuffix('s')} spec '{name}'"
        raise NotFoundError(what, got=f"no {shown_path(include, path)}", hint=near)
    spec, mistakes = parse_spec(path, spec_type, check, shown_path(include, path))
    if mistakes or spec is None:
        raise SpecError("\n".join(mistakes))
    return spec


def _explain(spec_type: type[BaseModel], document: object, error: Any) -> Problem:
    """pydantic's error in our words: the key's path, what was got, what is expected, the nearest valid name."""
    location: Location = tuple(error["loc"])
    kind, at = error["type"], ".".join(str(step) for step in location)
    match kind:
        case "extra_forbidden":
            key = str(location[-1])
            return Problem(
                location, f"unknown key '{key}'" + suggestion(key, _fields_at(spec_type, location[:-1], document))
            )
        case "missing":
            return Problem(location, f"'{at}' is missing")
        case "literal_error":
            words = [part.strip().strip("'") for part in str(error["ctx"]["expected"]).replace(" or ", ", ").split(",")]
            return Problem(location, f"{at} is '{error['input']}'" + suggestion(str(error["input"]), words))
        case "union_tag_invalid":
            words = [part.strip().strip("'") for part in str(error["ctx"]["expected_tags"]).split(",")]
            got = str(error["ctx"]["tag"])
            return Problem((*location, "kind"), f"{at}.kind is '{got}'" + suggestion(got, words))
        case "value_error":
            return Problem(location, f"{at}: {error['ctx']['error']}")
        case _:
            return Problem(location, f"{at}: {error['msg']}; got {error['input']!r}")


def _fields_at(spec_type: type[BaseModel], location: Location, document: object) -> list[str]:
    """Names of the keys that are valid at a location of the document."""
    current: Any = spec_type
    node: Any = document
    for step in location:
        if isinstance(node, (list, dict)) and step in _steps(node):
            node = node[step]  # type: ignore[index]  # a list is only stepped into by a number
        chosen = _model_in(current, str(step))
        if chosen is not None and step not in chosen.model_fields:
            current = chosen  # the step is a union's tag
            continue
        current = _step(current, step)
    found = _model_in(current, str(location[-1]) if location else "")
    return list(found.model_fields) if found else []


def _steps(node: list[Any] | dict[Any, Any]) -> Iterable[Any]:
    return node if isinstance(node, dict) else range(len(node))


def _step(annotation: Any, step: str | int) -> Any:
    model_type = _model_in(annotation, "")
    if model_type is not None and isinstance(step, str) and step in model_type.model_fields:
        field = model_type.model_fields[step]
        return field.annotation
    return annotation


def _model_in(annotation: Any, tag: str) -> type[BaseModel] | None:
    """The spec class inside an annotation (optional, list, mapping, union); of several the one of kind `tag`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    origin = get_origin(annotation)
    arguments = get_args(annotation)
    if origin is Annotated:
        arguments = arguments[:1]
    elif origin not in (list, dict, Union, types.UnionType):
        return None
    found = [chosen for argument in arguments if (chosen := _model_in(argument, tag)) is not None]
    for chosen in found:
        kind = chosen.model_fields.get("kind")
        if kind is not None and tag in get_args(kind.annotation):
            return chosen
    return found[0] if found else None
