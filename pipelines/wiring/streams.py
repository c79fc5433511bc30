"""Messages to views: rows into the lake, the views they touch computed again, what is new readable online.

A batch of messages is taken in steps, each of which says in the same commit how far it has come (the offset behind
the last message, by source): dead letters, the dataset's rows, and for each view the online store, then its rows. A
process that is killed anywhere is given the same messages again, and does what was not done; the online store is
written again, which changes nothing. So a message counts once, whoever dies, and however often it is given.

A view's table is only appended to. A message that came late makes rows of times that have rows: of those the one
created last counts, which is Feast's rule, too.
"""

from __future__ import annotations

import fcntl
import json
import threading
from collections.abc import Callable, Sequence
from typing import IO

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.adapters.delta_lake import open_lake
from pipelines.contracts.errors import NotFoundError, TransientError
from pipelines.datasets import plain_checks
from pipelines.datasets.messages import NUMBER, Message, read
from pipelines.datasets.suite import Expectation, dataset_suite, view_suite
from pipelines.features import engine
from pipelines.features.engine import Span
from pipelines.settings import Settings
from pipelines.spec.loading import load_dataset, load_view, names
from pipelines.spec.view import Stream, ViewSpec
from pipelines.wiring import datasets, features, personal_rows, tombstones
from pipelines.wiring.stream_online import StreamOnline
from pipelines.wiring.stream_state import StreamState, distinct_keys, frontier_us
from pipelines.wiring.stream_tables import StreamTables

HOW_TO = "See docs/how-to/stream-a-view.md."
PUSH = "push"
"""The source of rows that are pushed. It gives nothing twice: what a push that died has left is found at the start."""
COMPACT_EVERY = 300
"""Batches after which the small files of the tables are merged."""


class Letter(msgspec.Struct, frozen=True):
    """A message that cannot be used, and why. `value`: what may be kept of it; None where the dataset has PII,
    and of a subject that was erased."""

    message: Message
    reason: str
    value: bytes | None


class Applied(msgspec.Struct, frozen=True):
    """What a batch did. `through_us`: up to which time of knowledge the views now are."""

    rows: int
    refused: int
    values: int
    through_us: int | None


def streamed(settings: Settings) -> dict[str, list[ViewSpec]]:
    """The project's views that have a stream, by the dataset that it fills."""
    found: dict[str, list[ViewSpec]] = {}
    for name in names(settings.include_dir, "features"):
        if (view := load_view(settings.include_dir, name)).stream is not None:
            found.setdefault(view.stream.dataset, []).append(view)
    return found


def stream_of(views: Sequence[ViewSpec]) -> Stream:
    """The one stream that views of a dataset share (`slipway check` holds them to it)."""
    assert views[0].stream is not None
    return views[0].stream


class Feed:
    """Takes messages for one dataset and its views. One process at a time; use as a context manager.

    dead_letters: where refused messages go beside the quarantine table; called before they count as dealt with, so it
    may be given one twice. now: the wall clock by which rows become readable, in microseconds; the settings' when None.
    Raises NotFoundError for a dataset that no view's stream names, TransientError when another process feeds it.
    """

    def __init__(
        self,
        settings: Settings,
        dataset: str,
        dead_letters: Callable[[list[Letter]], None] = lambda _: None,
        *,
        now: Callable[[], int] | None = None,
    ) -> None:
        views = streamed(settings).get(dataset)
        if not views:
            expected = f"one of {sorted(streamed(settings))}"
            raise NotFoundError("dataset that a view's `stream` names", got=dataset, expected=expected)
        self.settings = settings
        self.views = views
        self.stream = stream_of(views)
        self.spec = load_dataset(settings.include_dir, dataset)
        self._lake = open_lake(settings)
        self._send = dead_letters
        self._lock = take_turn(settings, dataset)
        self._state = StreamState(settings, self.spec, views, self.stream.watermark.us)
        self._online = StreamOnline(settings, views, now or settings.event_clock().event_now_us)
        self._versions = {view.name: view.feast_name(settings.include_dir) for view in views}
        self._tables = StreamTables(self._lake, dataset, self._versions)
        self._suites: dict[str, list[Expectation]] = {view.name: view_suite(view) for view in views}
        self._now_us = 0
        """When the newest message came; later than any row of a view was created."""
        self._batches = 0
        self._busy = threading.Lock()
        for view in views:
            self._open(view)

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of stores and of the turn."""
        self._online.close()
        self._state.close()
        self._lock.close()

    def applied(self, source: str) -> int:
        """The offset behind the last message of a source that every table has; 0 for none."""
        return self._tables.applied(source)

    def next_offset(self, source: str) -> int:
        """The offset behind the last message of a source that any table has."""
        return self._tables.next_offset(source)

    def caught_up(self, until_us: int) -> None:
        """Say that all that came until then has been taken: the views are as fresh, though nothing has happened.

        Any thread may say so; while a batch is being taken it is not heard. A view without rows stays without.
        """
        if not self._busy.acquire(blocking=False):
            return
        try:
            self._online.caught_up(until_us)
        finally:
            self._busy.release()

    def write_due(self) -> None:
        """Make readable what has become due since. Any thread may ask for it, while a batch is being taken, too."""
        self._online.write_due()

    @property
    def held_until_us(self) -> int | None:
        """When the last row that is not readable yet will be due; None when all are readable."""
        return self._online.held_until_us

    def apply(self, messages: Sequence[Message]) -> Applied:
        """Take messages: the whole batch, whatever of it was taken before."""
        with self._busy:
            return self._apply(messages) if messages else Applied(0, 0, 0, None)

    def _apply(self, messages: Sequence[Message]) -> Applied:
        self._now_us = max(self._now_us + 1, *(message.time_us for message in messages))
        table = self._tables.dataset
        ends: dict[str, int] = {}
        for message in messages:
            ends[message.source] = max(ends.get(message.source, 0), message.offset + 1)
        seen = {n for n, one in enumerate(messages) if one.offset < self._tables.mark(table, one.source)}
        rows, reasons = read(self._state.connection, self.spec, self.stream.watermark, messages)
        rows = personal_rows.hashed(self.settings, self.spec, rows)
        numbers = rows.column(NUMBER).to_pylist()
        erased = {numbers[row]: by for row, by in tombstones.load(self.settings).of_table(rows).items()}
        reasons |= {number: [f"its subject was erased ({by})"] for number, by in erased.items()}
        self._judge(rows, reasons)
        readable = _without(rows, set(reasons))
        new = _without(readable, seen)
        for number in self._state.repeated(new):
            reasons[number] = ["its key is already published"]
        new = _without(new, set(reasons))
        letters = [
            Letter(messages[n], "; ".join(why), None if n in erased else messages[n].value)
            for n, why in sorted(reasons.items())
            if n not in seen
        ]
        letters = self._set_aside(letters, ends)
        marks = self._tables.news(table, ends)
        if new.num_rows and marks:
            published = new.drop_columns([NUMBER])
            newest = pc.max(published.column("known_at")).cast(pa.int64()).as_py()
            known = max(newest, self._lake.applied(table, datasets.INGEST) or 0)
            self._tables.append(table, published, marks, {datasets.INGEST: known})
            self._state.add(published)
        values = sum(self._refresh(view, readable, ends) for view in self.views) if readable.num_rows else 0
        self._tables.pass_by(ends)
        self._batches += 1
        if self._batches % COMPACT_EVERY == 0:
            self._state.prune()
            self._tables.compact()
        return Applied(new.num_rows, len(letters), values, self._state.newest_us)

    # --- one view ---------------------------------------------------------------------------------------------------

    def _open(self, view: ViewSpec) -> None:
        """Make sure of the view's tables: what the dataset holds and the view has not come to is computed first.

        That is everything for a new version, and for one that builds have made until now the stamps behind their last.
        """
        version = self._versions[view.name]
        self._online.open(view)
        table = features.table_of(version)
        known = self._state.newest_us
        pushed = self._tables.mark(self._tables.dataset, PUSH)
        there = self._lake.exists(table)
        if there:
            held = self._lake.read(table, ["created_timestamp"]).column("created_timestamp")
            self._now_us = max(self._now_us, pc.max(held).cast(pa.int64()).as_py() or 0)
        if known is None:
            return
        # A push has died: it may have left rows of any stamp.
        behind = there and self._tables.mark(table, PUSH) < pushed
        span = Span(None if behind else self._lake.applied(table, features.BUILD), frontier_us(view, known))
        if span.empty and not behind:
            return
        self._now_us = max(self._now_us, known)
        rows = features.compute(self.settings, view, span, created_us=self._now_us)
        self._online.write(view, rows, span.until_us)
        self._tables.append(table, rows, {PUSH: pushed} if pushed else {}, self._reached(view, span))

    def _refresh(self, view: ViewSpec, touching: pa.Table, ends: dict[str, int]) -> int:
        """Compute what the rows touch, publish it, make it readable. Returns the number of values written online."""
        known = touching.column("known_at").cast(pa.int64())
        newest = self._state.newest_us
        assert newest is not None
        span = Span(frontier_us(view, pc.min(known).as_py()) - 1, frontier_us(view, newest))
        keys = None
        table = features.table_of(self._versions[view.name])
        if view.stream is not None and view.stream.independent_keys:
            keys = distinct_keys(touching, view.entity.keys)
        elif (before := self._lake.applied(table, features.BUILD)) is None or before < (span.after_us or 0):
            span = Span(before, span.until_us)  # rows of other datasets have come due since then
        self._state.expose(view, span, keys)
        rows = self._without_unfit(view, self._compute(view, span), ends)
        # Online first: what the table says is readable can be read.
        values = self._online.write(view, rows, span.until_us)
        if marks := self._tables.news(table, ends):
            self._tables.append(table, rows, marks, self._reached(view, span))
        return values

    def _compute(self, view: ViewSpec, span: Span) -> pa.Table:
        include = self.settings.include_dir
        if (view.engine or self.settings.engine) == "duckdb":
            return engine.rows(self._state.connection, include, view, span, self._now_us)
        from pipelines.adapters import spark_engine, spark_session

        sources = {name: spark_engine.arrow_source(rows) for name, rows in self._state.rows_of(view).items()}
        session = spark_session.session(self.settings)
        return spark_engine.rows(session, include, view, sources, span, self._now_us)

    def _reached(self, view: ViewSpec, span: Span) -> dict[str, int]:
        return {features.BUILD: span.until_us, features.STREAM: self._online.written_us(view, span.until_us)}

    # --- what is refused --------------------------------------------------------------------------------------------

    def _judge(self, rows: pa.Table, reasons: dict[int, list[str]]) -> None:
        """Add what the dataset's own checks say of the rows that are good so far."""
        checks = plain_checks.others(dataset_suite(self.spec))
        good = _without(rows, set(reasons))
        if not checks or not good.num_rows:
            return
        from pipelines.adapters import gx_checks

        numbers = good.column(NUMBER).to_pylist()
        for place, found in gx_checks.check(good.drop_columns([NUMBER, "known_at", "day"]), checks).rows.items():
            reasons[numbers[place]] = found

    def _without_unfit(self, view: ViewSpec, rows: pa.Table, ends: dict[str, int]) -> pa.Table:
        """The rows without those that fail the view's expectations: these go into quarantine, and the old ones stay."""
        found = plain_checks.failures(rows, self._suites[view.name])
        if not found:
            return rows
        texts = [json.dumps(row, default=str) for row in rows.take(sorted(found)).to_pylist()]
        reasons = ["; ".join(why) for _, why in sorted(found.items())]
        self._tables.set_aside(view.name, texts, reasons, ends, self._now_us)
        return rows.filter(pa.array([number not in found for number in range(rows.num_rows)]))

    def _set_aside(self, refused: list[Letter], ends: dict[str, int]) -> list[Letter]:
        """Send and keep what is not in quarantine yet; returns that."""
        personal = any(column.pii for column in self.spec.columns.values())
        letters = [
            msgspec.structs.replace(one, value=None) if personal else one
            for one in refused
            if one.message.offset >= self._tables.mark(self._tables.quarantine, one.message.source)
        ]
        if letters:
            self._send(letters)
            texts = [None if one.value is None else one.value.decode(errors="replace") for one in letters]
            self._tables.set_aside(self.spec.name, texts, [one.reason for one in letters], ends, self._now_us)
        return letters


def take_turn(settings: Settings, dataset: str) -> IO[str]:
    """The lock of whoever feeds a dataset; released when it is closed. Raises TransientError when another has it."""
    folder = settings.root / "stream" / dataset
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "turn.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise TransientError(
            f"stream into dataset {dataset}",
            got="another process feeds it",
            hint="Send messages to its topic, or stop `slipway up stream` first.",
        ) from None
    return lock


def _without(rows: pa.Table, numbers: set[int]) -> pa.Table:
    return rows.filter(pa.array([n not in numbers for n in rows.column(NUMBER).to_pylist()], pa.bool_()))
