"""Versions of local Delta tables as this process has read them: one is loaded again only when its log has gone on.

Loading a table takes as long as its log is (6 ms with a year of daily partitions), and one job asks for the same
version many times. A version never changes, so what is kept is right as long as the entry that made it is the same
file, and for the newest version as long as no entry follows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from deltalake import DeltaTable

KEPT = 32
"""How many versions a process keeps; the one asked for longest ago goes first."""


class _Held(NamedTuple):
    table: DeltaTable
    entry: tuple[int, int]


_held: OrderedDict[tuple[str, int], _Held] = OrderedDict()
_newest: dict[str, int] = {}
_lock = Lock()


def snapshot(uri: str, version: int | None, load: Callable[[], DeltaTable]) -> DeltaTable:
    """The table in the folder `uri` at a version (None: the newest), kept or loaded. To be read only, never written by.

    load: loads it. What it raises is raised.
    """
    with _lock:
        number = _newest.get(uri, -1) if version is None else version
        held = _held.get((uri, number))
        current = version is not None or _entry(uri, number + 1) is None
        if held is not None and current and _entry(uri, number) == held.entry:
            _held.move_to_end((uri, number))
            return held.table
    opened = load()
    keep(uri, opened, newest=version is None)
    return opened


def keep(uri: str, opened: DeltaTable, *, newest: bool = True) -> None:
    """Keep a table that nobody is going to write by; `newest`: it was the newest version just now."""
    number = opened.version()
    entry = _entry(uri, number)
    if entry is None:  # the log begins behind it: nothing says whether it is still the same table
        return
    with _lock:
        _held[uri, number] = _Held(opened, entry)
        _held.move_to_end((uri, number))
        if newest:
            _newest[uri] = number
        while len(_held) > KEPT:
            (gone, old), _ = _held.popitem(last=False)
            if _newest.get(gone) == old:
                del _newest[gone]


def _entry(uri: str, version: int) -> tuple[int, int] | None:
    """Which file made a version; None where there is none."""
    try:
        found = Path(uri, "_delta_log", f"{version:020}.json").stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns
