"""The inference log of one worker: append-only segment files, framed and checksummed, fsynced in groups.

An append hands whole frames to the kernel by one write before it returns, so their events survive the death of the
process; `durable` waits until it survives the death of the machine. A worker's start makes a new epoch and never
touches an old one. A segment is closed when a later one lies beside it, or when its folder holds `closed` (written when
the worker ended in order, with the number of its events) or a later epoch of the worker exists; a growing one may be
read up to its last whole frame.

A disk that is full refuses an append; one that is slow does, too: while an fsync takes longer than `slow_ms`, nothing
more is handed to the kernel, which would otherwise stop the process once its buffers are full.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, count
from pathlib import Path

from pipelines.contracts import segments
from pipelines.contracts.clocks import wall_us
from pipelines.contracts.durable_files import sync_folder
from pipelines.contracts.errors import TransientError
from pipelines.contracts.events import Event, EventId, encode
from pipelines.contracts.segment_folder import CLOSED
from serving.metrics import LogTimes

# One write in 16 is measured: the clock is read twice for it.
_UNMEASURED = 15

_log = logging.getLogger("slipway.log")


class LogWriteError(TransientError):
    """An event was not written: disk full, slow, read-only, or failing. Nothing of it is in the log."""

    written = 0
    """Of several events: how many, from the first on, are in the log all the same."""


class InferenceLog:
    """Writer of one worker epoch. `append` belongs to one thread; `durable` to the event loop of that thread."""

    def __init__(
        self,
        bus: Path,
        gateway: str,
        worker: int,
        *,
        fsync_ms: int = 100,
        segment_bytes: int = 8 * 1024 * 1024,
        segment_age_s: float = 300.0,
        slow_ms: int = 1000,
        times: LogTimes | None = None,
    ) -> None:
        self.bus = bus
        self.gateway = gateway
        self.worker = worker
        self.epoch = _new_epoch(bus / gateway, worker)
        self.n = 0
        self._fsync_s = fsync_ms / 1000
        self._segment_bytes = segment_bytes
        self._segment_age_s = segment_age_s
        self._slow_s = slow_ms / 1000
        self._times = times
        self._sync_began = 0.0  # when the fsync that runs now began; 0: none runs
        self._descriptor = -1
        self._size = 0
        self._writes = 0
        self._opened = 0.0
        self._condition = threading.Condition()
        self._retired: list[int] = []
        self._synced_n = 0
        self._waiters: list[tuple[int, asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._stopping = False
        self._flusher = threading.Thread(target=self._flush_forever, name="inference-log-fsync", daemon=True)
        self._flusher.start()

    @property
    def folder(self) -> Path:
        """The epoch's folder."""
        return self.bus / self.gateway / f"{self.worker}-{self.epoch}"

    @property
    def is_slow(self) -> bool:
        """Whether an fsync has been running for longer than a disk that keeps up needs."""
        began = self._sync_began  # once: the other thread may end the fsync meanwhile
        return bool(began) and time.monotonic() - began > self._slow_s

    def append(self, make: Callable[[EventId], Event]) -> EventId:
        """Write the event that `make` builds from its id, and return the id. Raises as `write`."""
        event_id = self.next_id()
        self.write(make(event_id))
        return event_id

    def next_id(self) -> EventId:
        """The id of the next event that `write` takes."""
        return EventId(self.gateway, self.worker, self.epoch, self.n)

    def ids(self) -> Iterator[EventId]:
        """The ids of the next events that `write` and `write_all` take, in order."""
        return (EventId(self.gateway, self.worker, self.epoch, n) for n in count(self.n))

    def write(self, event: Event) -> None:
        """Hand an event that has `next_id` to the kernel.

        Raises LogWriteError; then the counter has not moved and the log holds nothing of the event.
        """
        self.write_all((event,))

    def write_all(self, events: Sequence[Event]) -> None:
        """Hand events that have the first of `ids`, in order, to the kernel, by one write.

        Raises LogWriteError; then the log holds the first `written` of them, to which the counter has moved, and
        nothing of the others.
        """
        if self._sync_began and self.is_slow:
            raise LogWriteError("inference log", got="a slow disk", expected=f"an fsync within {self._slow_s} s")
        frame = segments.frame
        frames = [frame(n, encode(event)) for n, event in enumerate(events, self.n)]
        data = b"".join(frames)
        if self._descriptor < 0 or self._size >= self._segment_bytes or self._too_old():
            self._rotate()
        self._writes += 1
        try:
            written = os.write(self._descriptor, data) if self._writes & _UNMEASURED else self._measured_write(data)
        except OSError as error:
            raise LogWriteError("inference log", got=str(error), expected="room to write") from error
        if written != len(data):
            raise self._written_in_part(frames, written)
        self._size += written
        self.n += len(frames)

    def _written_in_part(self, frames: list[bytes], written: int) -> LogWriteError:
        """Keep the whole frames, which a reader may have seen already, and take the rest back."""
        ends = list(accumulate(map(len, frames)))
        whole = bisect_right(ends, written)
        if whole:
            self._size += ends[whole - 1]
            self.n += whole
        self._take_back()
        refusal = LogWriteError("inference log", got=f"{written} of {ends[-1]} bytes written", expected="room to write")
        refusal.written = whole
        return refusal

    def _measured_write(self, data: bytes) -> int:
        began = time.perf_counter_ns()
        written = os.write(self._descriptor, data)
        if self._times is not None:
            self._times.write.observe((time.perf_counter_ns() - began) // 1000)
        return written

    async def durable(self) -> None:
        """Return when everything appended so far is on the disk.

        Callers that wait together share one fsync. Raises LogWriteError when the disk refused, or is slow.
        """
        target = self.n
        if self._synced_n >= target:
            return
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with self._condition:
            self._waiters.append((target, loop, future))
            self._condition.notify()
        try:
            # Two turns: an fsync that runs already does not cover what was appended since.
            await asyncio.wait_for(future, 2 * self._slow_s + self._fsync_s)
        except TimeoutError as error:
            raise LogWriteError("inference log", got="a slow disk", expected="an fsync in time") from error

    def close(self) -> None:
        """Sync, write the mark of an orderly end, and stop."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        self._flusher.join()
        if self._descriptor >= 0:
            os.fsync(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1
        try:
            (self.folder / CLOSED).write_text(str(self.n))
            sync_folder(self.folder)
        except OSError as error:  # a later epoch ends this one, too
            _log.error("%s is not marked as closed: %s", self.folder, error)

    def _too_old(self) -> bool:
        return self._size > len(segments.MAGIC) and time.monotonic() - self._opened > self._segment_age_s

    def _rotate(self) -> None:
        path = segments.segment_path(self.bus, self.gateway, self.worker, self.epoch, self.n)
        descriptor = -1
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
            if os.write(descriptor, segments.MAGIC) != len(segments.MAGIC):
                raise OSError("no room for a new segment")
            sync_folder(self.folder)
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
            raise LogWriteError("inference log segment", got=str(error), expected=f"to create {path}") from error
        with self._condition:
            if self._descriptor >= 0:
                self._retired.append(self._descriptor)
            self._descriptor = descriptor
        self._size = len(segments.MAGIC)
        self._opened = time.monotonic()

    def _take_back(self) -> None:
        """Remove a half-written frame, so that the next one is readable; failing that, leave the segment behind."""
        try:
            os.ftruncate(self._descriptor, self._size)
        except OSError:
            with self._condition:
                self._retired.append(self._descriptor)
                self._descriptor = -1

    def _flush_forever(self) -> None:
        while True:
            with self._condition:
                if not self._waiters and not self._stopping:
                    self._condition.wait(self._fsync_s)
                retired, self._retired = self._retired, []
                descriptor, target = self._descriptor, self.n
                waiters, self._waiters = self._waiters, []
                stopping = self._stopping
            failure: OSError | None = None
            if target > self._synced_n or retired:
                failure = self._sync(retired, descriptor)
                if failure is None:
                    self._synced_n = target
                else:
                    _log.error("fsync of the inference log failed: %s", failure)
            # Whoever waited for an event appended after this group was taken is in the next one.
            for wanted, loop, future in waiters:
                if wanted > target:
                    with self._condition:
                        self._waiters.append((wanted, loop, future))
                    continue
                loop.call_soon_threadsafe(_settle, future, failure)
            if stopping:
                return

    def _sync(self, retired: list[int], descriptor: int) -> OSError | None:
        failure: OSError | None = None
        self._sync_began = time.monotonic()
        for one in [*retired, descriptor]:
            if one < 0:
                continue
            try:
                os.fdatasync(one)
            except OSError as error:
                failure = error
        if self._times is not None:
            self._times.fsync.observe(time.monotonic() - self._sync_began)
        self._sync_began = 0.0
        for one in retired:
            os.close(one)
        return failure


def _settle(future: asyncio.Future[None], failure: OSError | None) -> None:
    if future.done():
        return
    if failure is None:
        future.set_result(None)
    else:
        future.set_exception(LogWriteError("inference log", got=str(failure), expected="an fsync that succeeds"))


def _new_epoch(folder: Path, worker: int) -> int:
    """Make the folder of a new epoch: the wall clock's microseconds, and later than every epoch of this worker."""
    folder.mkdir(parents=True, exist_ok=True)
    prefix = f"{worker}-"
    earlier = [int(p.name[len(prefix) :]) for p in folder.glob(f"{prefix}*") if p.name[len(prefix) :].isdigit()]
    epoch = max([wall_us(), *(one + 1 for one in earlier)])
    while True:
        try:
            (folder / f"{worker}-{epoch}").mkdir()
        except FileExistsError:
            epoch += 1
        else:
            sync_folder(folder)
            return epoch
