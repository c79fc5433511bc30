"""Overrides that reached the log of a worker that was killed before it could write their files.

A worker writes an override's file right behind its event, so what is missing lies at the end of an epoch that did not
end in order. Only the newest epoch with events can hold one: before a worker writes any, the one before was looked at.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from pipelines.contracts import events, segments
from pipelines.contracts.errors import ContractError
from pipelines.contracts.events import EventId
from pipelines.contracts.segment_folder import CLOSED, REMOVED, folder_of, segment_starts, streams
from pipelines.contracts.streams import StreamKey
from serving.routing import HeldOverride

_log = logging.getLogger("slipway.overrides")

_LAST_SEGMENTS = 2


def logged_overrides(gateway_bus: Path, own: Path) -> Iterator[HeldOverride]:
    """Overrides at the ends of epochs under `gateway_bus` that were not closed; `own`, the caller's epoch, is left out.

    A running worker's epoch looks like a killed one's. It may be read as well: its overrides are in force anyway.
    """
    for _, written in _last_epochs(gateway_bus, own):
        for segment in written[-_LAST_SEGMENTS:]:
            yield from _overrides_in(segment)


def may_be_found(gateway_bus: Path, event_id: EventId) -> bool:
    """Whether `logged_overrides` could give this override, now or at a worker's next start."""
    return any(key[1:] == (event_id.worker, event_id.epoch) for key, _ in _last_epochs(gateway_bus))


def _last_epochs(gateway_bus: Path, own: Path | None = None) -> Iterator[tuple[StreamKey, list[Path]]]:
    """Each worker's epochs from the newest back to the one that has events, with their segments; no closed ones."""
    bus = gateway_bus.parent
    done: set[int] = set()
    for key in sorted(streams(bus), reverse=True):
        if key.gateway != gateway_bus.name or key.worker in done:
            continue
        folder = folder_of(bus, key)
        if folder == own:
            continue
        paths = [segments.segment_path(bus, *key, start) for start in segment_starts(bus, key)]
        written = [path for path in paths if _holds_events(path)]
        if not (folder / CLOSED).exists():
            yield key, written
        if written or (folder / REMOVED).exists():
            done.add(key.worker)


def _holds_events(segment: Path) -> bool:
    try:
        return segment.stat().st_size > len(segments.MAGIC)
    except FileNotFoundError:  # it has been collected, and removed meanwhile
        return False


def _overrides_in(segment: Path) -> Iterator[HeldOverride]:
    try:
        data = segment.read_bytes()
    except OSError as error:
        _log.error("%s is not looked through for overrides: %s", segment, error)
        return
    for frame in segments.read_frames(data):
        if b"override" not in frame.payload:
            continue
        try:
            event = events.decode(frame.payload)
        except ContractError as error:
            _log.error("%s, event %d is unreadable: %s", segment, frame.n, error)
            continue
        if isinstance(event, events.Override):
            yield HeldOverride(event=event, withdrawn=event.withdrawn)
