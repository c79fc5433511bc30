"""Overrides that reached the log of a worker that was killed before it could write their files.

A worker writes an override's file right behind its event, so what is missing lies at the end of an epoch that did not
end in order. Only the newest epoch with events can hold one: before a worker writes any, the one before was looked at.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import msgspec

from pipelines.contracts import events, segments
from pipelines.contracts.segment_folder import CLOSED, folder_of, segment_starts, streams
from serving.routing import HeldOverride

_log = logging.getLogger("slipway.overrides")

_LAST_SEGMENTS = 2


def logged_overrides(gateway_bus: Path, own: Path) -> Iterator[HeldOverride]:
    """Overrides at the ends of epochs under `gateway_bus` that were not closed; `own`, the caller's epoch, is left out.

    A running worker's epoch looks like a killed one's. It may be read as well: its overrides are in force anyway.
    """
    bus = gateway_bus.parent
    looked_at: set[int] = set()
    for key in sorted(streams(bus), reverse=True):
        folder = folder_of(bus, key)
        if key.gateway != gateway_bus.name or folder == own or key.worker in looked_at:
            continue
        starts = segment_starts(bus, key)
        paths = [segments.segment_path(bus, *key, start) for start in starts]
        written = [path for path in paths if path.stat().st_size > len(segments.MAGIC)]
        for segment in written[-_LAST_SEGMENTS:]:
            if not (folder / CLOSED).exists():
                yield from _overrides_in(segment)
        if written:
            looked_at.add(key.worker)


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
        except msgspec.MsgspecError as error:
            _log.error("%s, event %d is unreadable: %s", segment, frame.n, error)
            continue
        if isinstance(event, events.Override):
            yield HeldOverride(event=event, withdrawn=event.withdrawn)
