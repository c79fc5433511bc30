"""What is wrong in a spec, and where: one value that the loader turns into `file:line: message`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import msgspec

Location = tuple[str | int, ...]


class Problem(msgspec.Struct, frozen=True):
    """One mistake. `location` is the path of keys and indexes into the YAML document."""

    location: Location
    message: str

    @classmethod
    def unknown(cls, location: Location, what: str, got: str, known: Iterable[str]) -> Problem:
        """The problem of a name that is not among the `known` ones, with the nearest as a suggestion."""
        return cls(location, f"unknown {what} '{got}'" + suggestion(got, known))


def suggestion(got: str, known: Iterable[str]) -> str:
    """`. Did you mean 'x'?` for the nearest known name, or the list of them when none is near."""
    names = sorted(set(known))
    near = difflib.get_close_matches(got, names, n=1, cutoff=0.6)
    if near:
        return f". Did you mean '{near[0]}'?"
    return f"; expected one of {', '.join(names)}" if names else "; there are none"
