"""The bus as the collector sees it, wherever it lies: a folder of segments, or a topic (`adapters/kafka_bus.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from pipelines.contracts import segment_folder
from pipelines.contracts.segments import Frame
from pipelines.contracts.streams import Position, Present, Range, Scan, StreamKey


class Bus(Protocol):
    """Where streams are read from. Reading changes nothing: how far it has come is for the reader to keep."""

    def scan(self, positions: Mapping[StreamKey, Position], offsets: Mapping[str, int]) -> Scan:
        """What is new behind `positions` and `offsets`, in one portion. Raises TransientError when it is out of reach.

        A stream that cannot be read on does not hold up the others; its position says why.
        """

    def reread(self, ranges: Sequence[Range], next_ns: Mapping[StreamKey, int]) -> list[list[Frame]]:
        """The frames of planned ranges, the same as when they were scanned with these counters expected next."""

    def survey(self) -> dict[StreamKey, Present]:
        """Everything the bus still holds, by stream."""

    def close(self) -> None:
        """Let go of connections."""


class SegmentBus:
    """The folder in which the gateways of this machine write their segments."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def scan(self, positions: Mapping[StreamKey, Position], offsets: Mapping[str, int]) -> Scan:  # noqa: ARG002 - a folder has none
        """What is new behind `positions`."""
        return segment_folder.scan(self._folder, positions)

    def reread(self, ranges: Sequence[Range], next_ns: Mapping[StreamKey, int]) -> list[list[Frame]]:
        """The frames of planned ranges."""
        return segment_folder.reread(self._folder, ranges, next_ns)

    def survey(self) -> dict[StreamKey, Present]:
        """Everything in the folder."""
        return segment_folder.survey(self._folder)

    def close(self) -> None:
        """Nothing is held open."""
