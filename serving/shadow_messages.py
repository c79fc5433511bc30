"""What a worker and its shadow process say to each other: MessagePack over a socket, each message behind its length.

The worker sends `Begin` once and then companies: requests that came together, with all that a release needs to score
them (their columns, and what was read online). The process answers them in order.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec
import numpy as np

from pipelines.contracts.events import Arm, FeatureRead
from pipelines.contracts.release import Columns
from serving.inputs import Bound
from serving.oip.datatypes import Scalar
from serving.online_features.plan import ReadPlan, Reads, ViewRead
from serving.scoring import Scorer

_LENGTH = struct.Struct("<I")
_OBJECTS = "O"


class SentColumn(msgspec.Struct, array_like=True):
    """A numpy array [rows]: its dtype and bytes, or its values where they are objects."""

    dtype: str
    data: bytes | list[Any]


class SentView(msgspec.Struct, array_like=True):
    """What was read of one view: the columns, and what was wrong."""

    view: str
    columns: dict[str, SentColumn]
    degraded: str
    unavailable: bool


class SentRequest(msgspec.Struct, array_like=True):
    """One request's inputs (`Bound`) and reads; `read_us` is what reading took."""

    rows: int
    names: tuple[str, ...]
    block: bytes
    others: dict[str, SentColumn]
    uncertain: list[str]
    views: list[SentView]
    read_us: int


class Begin(msgspec.Struct, array_like=True, tag="begin"):
    """Where the releases lie, and the key that hides personal inputs (empty: none)."""

    releases: str
    pii_key: str


class Company(msgspec.Struct, array_like=True, tag="company"):
    """Requests whose arm `wanted` is to be scored, all of one plan.

    `releases` are the digests by arm; `places` says where among a request's views each digest finds its own.
    `beside`: the other arm is to be scored, too, to compare the times; `alone`: not for these, and they are compared
    with none. A challenger's scoring that takes longer than `timeout_us` has failed.
    """

    number: int
    wanted: Arm
    releases: dict[Arm, str]
    places: dict[str, list[int]]
    beside: bool
    alone: bool
    timeout_us: int
    requests: list[SentRequest]


class Scored(msgspec.Struct, array_like=True):
    """What the wanted arm made of one request (`Outcome`), and what the other one took for it, if it was scored."""

    status: Literal["ok", "error", "invalid"]
    latency_us: int
    raw: list[float]
    score: list[float]
    outputs: dict[str, list[Scalar]]
    model_us: int
    error: str
    unavailable: bool
    beside_us: int | None


class Up(msgspec.Struct, array_like=True, tag="up"):
    """The process is ready."""


class Loading(msgspec.Struct, array_like=True, tag="loading"):
    """It loads a release, which may take a while."""


class Done(msgspec.Struct, array_like=True, tag="done"):
    """A company is scored: one for each of its requests."""

    number: int
    scored: list[Scored]


ToProcess = Begin | Company
ToWorker = Up | Loading | Done
_encoder = msgspec.msgpack.Encoder()
_to_process = msgspec.msgpack.Decoder(ToProcess)
_to_worker = msgspec.msgpack.Decoder(ToWorker)


def packed(message: ToProcess | ToWorker) -> bytes:
    """The message as it travels. Raises OverflowError for an integer past 64 bits."""
    data = _encoder.encode(message)
    return _LENGTH.pack(len(data)) + data


class Incoming:
    """The bytes that came and are no whole message yet."""

    def __init__(self) -> None:
        self._held = bytearray()

    def of_process(self, data: bytes) -> Iterator[ToWorker]:
        """The messages that are whole with these bytes, sent by the process."""
        return map(_to_worker.decode, self._whole(data))

    def of_worker(self, data: bytes) -> Iterator[ToProcess]:
        """The same, sent by the worker."""
        return map(_to_process.decode, self._whole(data))

    def _whole(self, data: bytes) -> Iterator[bytes]:
        self._held += data
        at = 0
        while len(self._held) - at >= _LENGTH.size:
            begin = at + _LENGTH.size
            end = begin + _LENGTH.unpack_from(self._held, at)[0]
            if len(self._held) < end:
                break
            yield bytes(self._held[begin:end])
            at = end
        del self._held[:at]


def sent_request(scorer: Scorer) -> SentRequest:
    """What scoring the request needs, to be sent."""
    bound, reads = scorer.bound, scorer.reads
    names = bound.names
    others = bound.columns
    if names:
        own = set(names)
        others = {name: column for name, column in others.items() if name not in own}
    views = [
        SentView(read.logged.view, _sent_columns(read.columns), read.degraded, read.unavailable) for read in reads.views
    ]
    block = bound.block.tobytes()
    return SentRequest(bound.rows, names, block, _sent_columns(others), bound.uncertain, views, reads.took_us)


def scorer_of(sent: SentRequest, places: dict[str, list[int]]) -> Scorer:
    """The request as it was sent; of its inputs and reads only what scoring needs."""
    # Copied: a release may write into its inputs, as it may in the worker.
    block = np.frombuffer(sent.block, dtype=np.float64).copy().reshape(len(sent.names), sent.rows)
    columns: Columns = dict(zip(sent.names, block, strict=True))
    columns |= _columns(sent.others)
    bound = Bound(sent.rows, columns, {}, sent.names, block, sent.uncertain)
    views = [
        ViewRead(FeatureRead(one.view, [], [], []), _columns(one.columns), one.degraded, one.unavailable)
        for one in sent.views
    ]
    plan = ReadPlan({})
    plan.by_release = places
    return Scorer(bound, Reads(plan, views, sent.read_us))


def _sent_columns(columns: Mapping[str, np.ndarray]) -> dict[str, SentColumn]:
    return {name: _sent_column(column) for name, column in columns.items()}


def _sent_column(column: np.ndarray) -> SentColumn:
    if column.dtype == object:
        return SentColumn(_OBJECTS, column.tolist())
    return SentColumn(column.dtype.str, column.tobytes())


def _columns(sent: Mapping[str, SentColumn]) -> Columns:
    return {name: _column(one) for name, one in sent.items()}


def _column(sent: SentColumn) -> np.ndarray:
    if isinstance(sent.data, bytes):
        return np.frombuffer(sent.data, dtype=np.dtype(sent.dtype)).copy()
    made = np.empty(len(sent.data), dtype=object)
    made[:] = sent.data
    return made
