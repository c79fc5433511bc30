"""Single values of a `slipway-gate/1` mapping, each read with its bounds; an error knows the place it speaks of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from pipelines.contracts.errors import ContractError
from pipelines.rollout.policy import unknown

AUTO = "auto"
"""Number of requests of a stage that the planner settles."""
_LONGEST_S = 1e9
"""Longest duration a policy may name (31 years): microseconds of it are added to times."""


class PolicyError(ContractError):
    """A policy is wrong. `location` is the path of keys and indexes into its document."""

    location: tuple[str | int, ...] = ()


@contextmanager
def inside(*steps: str | int) -> Iterator[None]:
    """Errors raised within speak of what lies at `steps`."""
    try:
        yield
    except PolicyError as error:
        error.location = (*steps, *error.location)
        raise


@contextmanager
def inside_key_of(mapping: object) -> Iterator[None]:
    """Errors raised within that begin with a key of `mapping` (`weight of metric x`) speak of that key."""
    try:
        yield
    except PolicyError as error:
        key = error.what.removeprefix("unknown ").split(" of ")[0]
        if not error.location and isinstance(mapping, Mapping) and key in mapping:
            error.location = (key,)
        raise


def check_keys(where: str, mapping: object, known: Iterable[str]) -> None:
    """Raises PolicyError for what is no mapping, and for a key that is not among the `known` ones."""
    if not isinstance(mapping, Mapping):
        raise PolicyError(where, got=type(mapping).__name__, expected="a mapping")
    names = list(known)
    for key in mapping:
        if key not in names:
            with inside(key):
                raise one_of(f"key of {where}", key, names)


def one_of(what: str, got: object, known: Iterable[str]) -> PolicyError:
    """The error of a name that is not among the known ones, with the nearest."""
    error = unknown(what, got, known)
    return PolicyError(error.what, got=error.got, expected=error.expected, hint=error.hint)


def number(
    where: str,
    value: object,
    low: float = 0.0,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """A finite number between the bounds."""
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if fits:
        given = float(cast("float", value))
        fits = (low < given if open_low else low <= given) and (given < high if open_high else given <= high)
    if not fits:
        bounds = (
            f"a number in {'(' if open_low else '['}{low:g}, {high:g}{')' if open_high or high == math.inf else ']'}"
        )
        raise PolicyError(where, got=repr(value), expected=bounds)
    return float(cast("float", value))


def seconds(where: str, value: object) -> float:
    """A duration in seconds."""
    return number(where, value, 0.0, _LONGEST_S)


def count(where: str, value: object, low: int = 0) -> int:
    """A whole number of at least `low`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise PolicyError(where, got=repr(value), expected=f"a whole number of at least {low}")
    return value


def choice(where: str, value: object, known: Iterable[str]) -> str:
    """One of the known words."""
    names = list(known)
    if value not in names:
        raise one_of(where, value, names)
    return str(value)


def interval(where: str, value: object) -> tuple[float, float]:
    """Two numbers, the lower one first."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise PolicyError(where, got=repr(value), expected="[low, high]")
    low, high = (number(where, bound, -math.inf) for bound in value)
    if not low < high:
        raise PolicyError(where, got=repr(value), expected="[low, high] with low < high")
    return low, high


def listed(where: str, value: object) -> list[Any]:
    """A list; YAML's empty value is not one."""
    if not isinstance(value, (list, tuple)):
        raise PolicyError(where, got=repr(value), expected="a list")
    return list(value)


def names_of(where: str, value: object) -> tuple[str, ...]:
    """A list of different texts."""
    names = listed(where, value)
    for name in names:
        if not isinstance(name, str) or names.count(name) > 1:
            raise PolicyError(where, got=repr(value), expected="a list of different names")
    return tuple(names)


def name_of(where: str, mapping: Mapping[str, Any]) -> str:
    """The key `name`, a text."""
    name = mapping.get("name")
    if not isinstance(name, str) or not name:
        raise PolicyError(f"name of {where}", got=repr(name), expected="a text")
    return name
