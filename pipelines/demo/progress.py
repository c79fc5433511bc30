"""What the rehearsal shows while it runs: a bar for each replay, a line for each thing done."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Show:
    """Prints steps with their times, remembers them for the report, and draws bars where a terminal is."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.parts: list[dict[str, Any]] = []
        self._start = time.monotonic()

    def title(self, text: str) -> None:
        """A heading."""
        self.console.rule(f"[bold]{text}", align="left")

    def line(self, text: str) -> None:
        """One line, with the time since the start."""
        elapsed = f"[dim]{time.monotonic() - self._start:7.1f} s[/dim]"
        self.console.print(f"{elapsed}  {text}", highlight=False, soft_wrap=True)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a part; its seconds go into the report."""
        begun = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - begun
            self.parts.append({"name": name, "seconds": round(seconds, 2)})
            self.line(f"{name} [dim]({seconds:.1f} s)[/dim]")

    @contextmanager
    def bar(self, name: str, total: int) -> Iterator[Bar]:
        """A bar over requests."""
        columns = (
            TextColumn("           {task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        # Where no terminal is, a bar would leave nothing but an empty line.
        disable = not self.console.is_terminal
        with Progress(*columns, console=self.console, transient=True, disable=disable) as progress:
            yield Bar(progress, progress.add_task(name, total=total))


class Bar:
    """One running bar."""

    def __init__(self, progress: Progress, task: Any) -> None:
        self._progress = progress
        self._task = task

    def update(self, done: int, text: str, total: int | None = None) -> None:
        """Where it stands."""
        changes: dict[str, Any] = {"completed": done, "description": text}
        if total is not None:
            changes["total"] = total
        self._progress.update(self._task, **changes)
