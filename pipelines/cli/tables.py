"""Tables on the terminal, in a pipe or in a file: no name and no number is cut off."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDE = 140
"""Columns of a file or a pipe."""


def open_console() -> Console:
    """Standard output, as wide as the terminal; where there is none, wide enough for what is told."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, WIDE)
    return console


def table_of(*heads: str, plain: bool = False) -> Table:
    """A table whose cells go on in the next line where the column is too narrow; `plain`: without lines."""
    from rich.box import HEAVY_HEAD
    from rich.table import Column, Table

    columns = [Column(head, overflow="fold") for head in heads]
    return Table(*columns, box=None if plain else HEAVY_HEAD, pad_edge=not plain)
