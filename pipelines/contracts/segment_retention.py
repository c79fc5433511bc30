"""Segments that have been read, and are old, leave the disk.

What was removed is on record: before segments go, the first counter that stays is written into the stream's folder
(`removed`, durable), so that a segment which somebody else took away is still found missing. A kill at any moment
leaves a folder that reads the same, and the next pass goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pipelines.contracts import durable_files, segments
from pipelines.contracts.segment_folder import CLOSED, REMOVED, folder_of, segment_starts, streams, written
from pipelines.contracts.streams import Position, StreamKey, finished


def remove_read(bus: Path, positions: Mapping[StreamKey, Position], before_s: float) -> int:
    """Remove segments that lie wholly behind `positions` and were last written before `before_s` (seconds, Unix).

    `positions` are those of whoever made the events durable elsewhere, as stored. A growing segment is never behind its
    position; the newest epoch of a worker keeps its folder, which the next epoch is numbered by. Returns how many.
    """
    newest = {key[:2]: key for key in streams(bus)}
    count = 0
    for key in streams(bus):
        position = positions.get(key)
        if position is None:
            continue
        starts = segment_starts(bus, key)
        ends = [*starts[1:], max(position.next_n, written(bus, key) or 0)]
        gone = 0
        for start in starts:
            is_read = finished(position) or start < position.segment
            if not is_read or segments.segment_path(bus, *key, start).stat().st_mtime >= before_s:
                break
            gone += 1
        folder = folder_of(bus, key)
        if gone:
            durable_files.write(folder / REMOVED, str(ends[gone - 1]).encode())
            for start in starts[:gone]:
                segments.segment_path(bus, *key, start).unlink(missing_ok=True)
            count += gone
        if finished(position) and gone == len(starts) and key != newest[key[:2]]:
            for name in (CLOSED, REMOVED):
                (folder / name).unlink(missing_ok=True)
            with suppress(OSError):  # something else lies there
                folder.rmdir()
    return count
