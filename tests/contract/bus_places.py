"""The two places a bus may lie in: the folder of segments, and a topic that the shipper fills; and who reads it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest

from pipelines.adapters.kafka_bus import KafkaBus
from pipelines.collect.bus import Bus, SegmentBus
from pipelines.contracts import segment_folder
from pipelines.contracts.errors import TransientError
from pipelines.contracts.events import Label
from pipelines.contracts.kafka import Connection, connection
from pipelines.contracts.streams import Gap, Position, Scan, StreamKey
from serving.shipper import Shipper
from tests.unit.collect.traffic import Worker

KEY = StreamKey("gw0", 0, 1)
_topics = itertools.count()


class Place(Protocol):
    folder: Path
    bus: Bus

    def carry(self) -> None:
        """Bring what was written to where the collector reads."""


class Folder:
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.bus: Bus = SegmentBus(folder)
        monkeypatch.setattr(segment_folder, "QUIET_S", 0.0)

    def carry(self) -> None:
        """It lies there already."""


class Topic:
    """A topic of its own, and the shipper that fills it."""

    def __init__(self, folder: Path, servers: str) -> None:
        self.folder = folder
        self.kafka = connection(servers, f"topic-{next(_topics)}")
        self.state = folder.parent / "positions.json"
        self.bus: Bus = KafkaBus(self.kafka)

    def carry(self) -> None:
        shipper = Shipper(self.folder, self.state, self.kafka, quiet_s=0.0)
        while shipper.once():
            pass
        shipper.close()

    def another(self) -> Connection:
        return self.kafka._replace(topic=f"topic-{next(_topics)}")


class Reader:
    """Reads on and on, as the collector does, and keeps what it has read."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.positions: dict[StreamKey, Position] = {}
        self.offsets: dict[str, int] = {}
        self.read: dict[StreamKey, list[int]] = {}
        self.gaps: list[Gap] = []

    def all(self) -> dict[StreamKey, list[int]]:
        """Read to the end; the counters of each stream in the order they came."""
        while True:
            before = (dict(self.positions), dict(self.offsets))
            found = patiently(lambda: self.bus.scan(self.positions, self.offsets))
            for part, frames in zip(found.ranges, found.frames, strict=True):
                self.read.setdefault(part.key, []).extend(frame.n for frame in frames)
            self.positions |= found.positions
            self.offsets |= found.offsets
            self.gaps += found.gaps
            if before == (self.positions, self.offsets):
                return self.read


def patiently(scan: Callable[[], Scan]) -> Scan:
    """As the collector does: a topic just made has no leaders for a moment."""
    for _ in range(50):
        try:
            return scan()
        except TransientError:
            time.sleep(0.1)  # until the broker answers again
    return scan()


def labels(worker: Worker, count: int, **more: Any) -> None:
    for _ in range(count):
        worker.append(Label, model="m", request_id=f"q{worker.n}", value=1.0, **more)
