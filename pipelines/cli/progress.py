"""The progress of the stack's parts: one moving line a part on a terminal, one line an event elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

_ENDS = {"running", "stopped"}


class PartProgress:
    """Called with (part, happening), from any thread."""

    def __init__(self, title: str, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._started = time.monotonic()
        self.told = False
        self._title = title
        self._tasks: dict[str, TaskID] = {}
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.fields[part]:<22}"),
            TextColumn("{task.description:<10}"),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )

    def __enter__(self) -> PartProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        if kind is None and self.told:
            self._console.print(f"{self._title} took {time.monotonic() - self._started:.0f} s")

    def __call__(self, part: str, happening: str) -> None:
        self.told = True
        if not self._console.is_terminal:
            self._console.print(f"{time.monotonic() - self._started:5.1f} s  {part:<22} {happening}", highlight=False)
            return
        if part not in self._tasks:
            self._tasks[part] = self._progress.add_task(happening, part=part, total=1)
        done = 1 if happening in _ENDS else 0
        self._progress.update(self._tasks[part], description=happening, completed=done)
