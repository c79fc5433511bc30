"""Frames and segment files of the inference log: the wire between the gateway and the collector.

A segment file is `<bus>/<gateway>/<worker>-<epoch>/<first_n:012d>.seg`: an 8-byte magic, then frames. A frame is
`length u32 | n u64 | crc32c u32 | payload`, little endian; the CRC-32C covers the length, `n` and the payload.
`n` is the event id's counter, so a hole in `n` is a lost event. A file ends in a torn frame only where its writer was
killed: the reader stops there, and the next start of the worker opens a new epoch and never appends to an old file.

A segment grows by whole frames, one or several a write, and may be read while it grows. Nothing more will come when a
later segment lies beside it, when a later epoch of the worker exists, or when its folder holds a file `closed`, which
the worker writes after its last event when it ends in order; it holds the number of the epoch's events.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import google_crc32c

MAGIC = b"SLIPLOG1"
HEADER = struct.Struct("<IQI")
_COVERED = struct.Struct("<IQ")
MAX_PAYLOAD = 64 * 1024 * 1024
MAX_COUNTER = 2**62
"""No writer comes so far: a frame with a greater counter is not intact, whatever its CRC says."""


class Frame(NamedTuple):
    """One whole frame: its counter, its payload, and the file offset just behind it."""

    n: int
    payload: bytes
    end: int


def frame(n: int, payload: bytes) -> bytes:
    """The bytes of one frame."""
    covered = _COVERED.pack(len(payload), n)
    crc = google_crc32c.extend(google_crc32c.value(covered), payload)
    return covered + struct.pack("<I", crc) + payload


def read_frames(data: bytes | memoryview, offset: int = 0) -> Iterator[Frame]:
    """The whole, intact frames of `data` from `offset` on, which is a file position behind the magic or a frame.

    Stops silently at the first frame that is not whole or whose CRC is wrong: whether that is a torn tail or damage
    is for the caller to say, who knows whether the writer still lives.
    """
    view = memoryview(data)
    if not offset and bytes(view[: len(MAGIC)]) != MAGIC:
        return
    yield from parse(view, offset or len(MAGIC))


def parse(data: bytes | memoryview, at: int = 0) -> Iterator[Frame]:
    """The whole, intact frames that follow each other in `data` from `at` on, where one begins."""
    view = memoryview(data)
    while at + HEADER.size <= len(view):
        length, n, crc = HEADER.unpack_from(view, at)
        start = at + HEADER.size
        if length > MAX_PAYLOAD or n > MAX_COUNTER or start + length > len(view):
            return
        payload = bytes(view[start : start + length])
        if google_crc32c.extend(google_crc32c.value(_COVERED.pack(length, n)), payload) != crc:
            return
        at = start + length
        yield Frame(n, payload, at)


def segment_path(bus: Path, gateway: str, worker: int, epoch: int, first_n: int) -> Path:
    """Where the segment that starts with counter `first_n` lies."""
    return bus / gateway / f"{worker}-{epoch}" / f"{first_n:012d}.seg"
