"""What a stream makes readable online: every row when its stamp is due.

A row bears the stamp from which on it may be read, up to two steps of `publish_every` ahead of its message, and the
gateway takes a row from after the request for none. Written before, it would hide the one that counts until then. So
under the wall clock rows ahead of now are held, and come out with the next batch or by `write_due`. Under the replay
clock messages and requests move the time, and every row is due.

Held rows die with the process. The lake has them: each of its commits says up to which stamp the stream had made the
view readable before it (`features.STREAM`), and what lies behind that is taken up at the start.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pyarrow as pa

from pipelines.adapters.delta_lake import open_lake
from pipelines.adapters.feast_online import open_online
from pipelines.contracts.clocks import from_us
from pipelines.features.publishing import Pending
from pipelines.settings import Settings
from pipelines.spec.view import ViewSpec
from pipelines.wiring import features


class StreamOnline:
    """The online rows of a stream's views. `now`: the wall clock in microseconds; not asked under the replay clock."""

    def __init__(self, settings: Settings, views: Sequence[ViewSpec], now: Callable[[], int]) -> None:
        self.settings = settings
        self.views = views
        self._now = now
        self._lake = open_lake(settings)
        self._online = open_online(settings)
        self._versions = {view.name: view.feast_name(settings.include_dir) for view in views}
        self._held: dict[str, Pending] = {}
        self._until: dict[str, int] = {}
        """Up to which time each view is known: its rows are written, or held."""
        self._through: dict[str, int] = {}
        """Up to which time each view was made readable."""
        self._writing = threading.Lock()

    def close(self) -> None:
        """Let go of the store."""
        self._online.close()

    def open(self, view: ViewSpec) -> None:
        """Make what the view needs, and take up what the lake has of it and the store has not."""
        version = self._versions[view.name]
        self._online.create(version)
        table = features.table_of(version)
        if not self._lake.exists(table):
            return
        built_us = self._lake.applied(table, features.BUILD) or 0
        streamed_us = self._lake.applied(table, features.STREAM)
        through_us = built_us if streamed_us is None else streamed_us
        self._until[view.name], self._through[view.name] = built_us, through_us
        self._restore(view)
        behind = f"day >= DATE '{from_us(through_us).date()}' AND event_timestamp > make_timestamptz({through_us})"
        rows = self._lake.read(table, where=behind)
        if rows.num_rows:
            with self._writing:
                self._write(view, Pending(view, rows.slice(0, 0)).joined(rows))

    def write(self, view: ViewSpec, rows: pa.Table, until_us: int) -> int:
        """Take rows, ordered by stamp, with which the view is known until then. Returns how many values are written."""
        with self._writing:
            self._until[view.name] = max(until_us, self._until.get(view.name, 0))
            held = self._held.get(view.name)
            return self._write(view, Pending(view, rows) if held is None else held.joined(rows))

    def caught_up(self, until_us: int) -> None:
        """Nothing else is known until then. A view without rows stays without."""
        for view in self.views:
            if self._through.get(view.name, until_us) < until_us:
                self.write(
                    view, self._lake.schema(features.table_of(self._versions[view.name])).empty_table(), until_us
                )

    def write_due(self) -> None:
        """Write the held rows whose stamps have come. Any thread may ask for it, at any time."""
        with self._writing:
            for view in self.views:
                if (held := self._held.get(view.name)) is None:
                    continue
                through_us = self._due_us(view)
                due = held.next_us is not None and held.next_us <= through_us
                if due or self._through[view.name] < through_us == self._until[view.name]:
                    self._write(view, held)

    def written_us(self, view: ViewSpec, until_us: int) -> int:
        """Up to which stamp the store has every row of those known until then."""
        return min(self._through[view.name], until_us)

    @property
    def held_until_us(self) -> int | None:
        """The newest stamp of the rows that are held; None for none."""
        return max((held.last_us for held in self._held.values() if held.last_us is not None), default=None)

    def _due_us(self, view: ViewSpec) -> int:
        until_us = self._until[view.name]
        return until_us if self.settings.clock == "replay" else min(until_us, self._now())

    def _write(self, view: ViewSpec, pending: Pending) -> int:
        self._restore(view)
        through_us = self._due_us(view)
        due = pending.take(through_us)
        # It knows more now of a stamp that the store may have.
        self._online.write(self._versions[view.name], pending.features, due, through_us, correct=True)
        self._held[view.name] = pending
        self._through[view.name] = max(through_us, self._through.get(view.name, 0))
        return len(due) * len(pending.features)

    def _restore(self, view: ViewSpec) -> None:
        """Make readable again what the lake has, if the store is not as far as it was: it has lost rows, then."""
        version = self._versions[view.name]
        reached = self._through.get(view.name)
        if reached is not None and (self._online.through_us(version) or 0) < reached:
            self._online.create(version)
            self._through[view.name] = features.materialise(self.settings, view.name, reached).through_us
