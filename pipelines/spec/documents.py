"""A YAML (or JSON) document of keys and values, and the lines on which its mistakes stand."""

from __future__ import annotations

from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from pipelines.contracts.errors import SpecError
from pipelines.spec.problems import Location, Problem


def mapping_of(text: str, shown: str) -> dict[str, Any]:
    """The mapping in a document. Raises SpecError (`file:line:`); `shown` is the file's name in it."""
    try:
        document = YAML(typ="safe").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        raise SpecError(f"{shown}:{line}: {_yaml_problem(error)}.") from error
    except YAMLError as error:
        raise SpecError(f"{shown}:1: {' '.join(str(error).split())}.") from error
    if not isinstance(document, dict):
        raise SpecError(f"{shown}:1: the file holds {type(document).__name__}; expected a mapping of keys to values.")
    return document


def render(text: str, shown: str, found: list[Problem]) -> list[str]:
    """Each problem as `file:line: message`, in the order of lines."""
    if not found:
        return []
    document = YAML(typ="rt").load(text)
    located = sorted({(_line(document, problem.location), problem.message) for problem in found})
    return [f"{shown}:{line}: {message}{'' if message.endswith(('?', '.')) else '.'}" for line, message in located]


def _yaml_problem(error: MarkedYAMLError) -> str:
    if isinstance(error, DuplicateKeyError):
        return str(error.problem).split(" with value")[0].replace("found duplicate key", "duplicate key")
    return " ".join(str(error.problem or error.context).split())


def _line(document: Any, location: Location) -> int:
    """The line of the deepest part of `location` that is in the document."""
    line, node = 1, document
    for step in location:
        try:
            if isinstance(node, dict) and step in node:
                line = node.lc.key(step)[0] + 1  # type: ignore[attr-defined]  # ruamel's CommentedMap
            elif isinstance(node, list) and isinstance(step, int) and step < len(node):
                line = node.lc.item(step)[0] + 1  # type: ignore[attr-defined]  # ruamel's CommentedSeq
            else:
                continue  # a tag of a union, or a missing key: its parent's line stands
            node = node[step]
        except (AttributeError, KeyError):
            break
    return line
