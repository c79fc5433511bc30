"""The bus as a folder of segments: which streams are there, their whole frames behind a position, their end.

A stream is read in order and never past a frame that is not whole. What stops it decides what it means: the end of a
growing file is work in progress; a torn tail of an ended epoch holds nothing that was acknowledged; a bad frame with
good ones behind it is damage, and the stream stops there until a person has looked.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from pipelines.contracts import segments
from pipelines.contracts.streams import ENDED, Position, Present, Range, Scan, StreamKey, finished, key_of, take

CLOSED = "closed"
"""Ends an epoch in order; holds the number of its events."""
REMOVED = "removed"
"""Holds the first counter that stays, where segments have been removed (`segment_retention.py`)."""
_RESYNC_WINDOW = 1 << 20
QUIET_S = 30.0


def streams(bus: Path) -> list[StreamKey]:
    """Every stream on the bus, in a fixed order; folders with other names are not streams."""
    found = []
    for folder in bus.glob("*/*-*"):
        worker, _, epoch = folder.name.partition("-")
        if (key := key_of(folder.parent.name, worker, epoch)) is not None and folder.is_dir():
            found.append(key)
    return sorted(found)


def folder_of(bus: Path, key: StreamKey) -> Path:
    """The folder of a stream."""
    return segments.segment_path(bus, key.gateway, key.worker, key.epoch, 0).parent


def segment_starts(bus: Path, key: StreamKey) -> list[int]:
    """First counters of a stream's segments, ascending."""
    return sorted(int(path.stem) for path in folder_of(bus, key).glob("*.seg"))


def ended(bus: Path, keys: Iterable[StreamKey], *, quiet_s: float = 0.0) -> set[StreamKey]:
    """Streams whose writer is gone: closed in order, or followed by a later epoch of the same worker.

    A stream that was not closed in order must also have been quiet for `quiet_s`: its writer may outlive the start of
    the next one for a moment.
    """
    known = list(keys)
    newest: dict[tuple[str, int], int] = {}
    for key in known:
        newest[key[:2]] = max(newest.get(key[:2], 0), key.epoch)
    return {
        key
        for key in known
        if (folder_of(bus, key) / CLOSED).exists() or (key.epoch < newest[key[:2]] and _age_s(bus, key) >= quiet_s)
    }


def written(bus: Path, key: StreamKey) -> int | None:
    """How many events the stream's writer said it wrote, when it ended in order; None: it has not said."""
    return _number(folder_of(bus, key) / CLOSED)


def _number(path: Path) -> int | None:
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    return int(text) if text.isdigit() else None


def _age_s(bus: Path, key: StreamKey) -> float:
    newest = 0.0
    for path in folder_of(bus, key).glob("*.seg"):
        with suppress(FileNotFoundError):  # removed meanwhile, being old
            newest = max(newest, path.stat().st_mtime)
    return time.time() - newest


def scan(
    bus: Path, positions: Mapping[StreamKey, Position], *, max_bytes: int = 32 << 20, quiet_s: float = QUIET_S
) -> Scan:
    """Whole frames behind `positions`, at most about `max_bytes` of them shared fairly by the streams."""
    everything = streams(bus)
    keys = [key for key in everything if not finished(positions.get(key))]
    done = ended(bus, everything, quiet_s=quiet_s)
    found = Scan()
    share = max(1 << 20, max_bytes // max(1, len(keys)))
    for key in keys:
        _scan_stream(bus, positions.get(key) or Position(key=key), key in done, share, found)
    return found


def _scan_stream(bus: Path, position: Position, is_ended: bool, max_bytes: int, found: Scan) -> None:
    starts = segment_starts(bus, position.key)
    ahead = [start for start in starts if start >= position.segment]
    problem = ""
    taken = 0
    for index, start in enumerate(ahead):
        offset = position.offset if start == position.segment else 0
        data, is_cut = _tail(segments.segment_path(bus, *position.key, start), offset, max_bytes - taken)
        frames = list(frames_of(data, offset))
        if not frames and is_cut:  # one frame is larger than the share
            data, is_cut = _tail(segments.segment_path(bus, *position.key, start), offset, segments.MAX_PAYLOAD * 2)
            frames = list(frames_of(data, offset))
        end = frames[-1].end if frames else offset
        taken += end - offset
        if frames:
            position = _enter(position, start, offset, frames, found)
        elif start != position.segment:
            position = msgspec.structs.replace(position, segment=start, offset=0)
        if is_cut or taken >= max_bytes:
            break
        left = data[max(end - offset + (_LEAD if offset else 0), 0) :]
        if not end:  # nothing read yet: what follows the magic (which may be half written) is what is left
            left = left[_LEAD:] if left[:_LEAD] == segments.MAGIC[: len(left)] else left
        is_last = index == len(ahead) - 1
        problem, go_on = _judge_rest(left, position.next_n, end, None if is_last else ahead[index + 1], is_ended)
        if not go_on:
            break
    if problem.startswith(ENDED) and (count := written(bus, position.key) or 0) > position.next_n:
        problem = f"frames {position.next_n}..{count - 1} are missing at its end"
    found.positions[position.key] = msgspec.structs.replace(position, problem=problem)


_LEAD = len(segments.MAGIC)


def _tail(path: Path, offset: int, max_bytes: int) -> tuple[bytes, bool]:
    """Bytes from `offset` on, and whether there are more than `max_bytes` of them.

    Before them come as many bytes as a magic has, so that frames can be parsed from the middle of a file.
    """
    with path.open("rb") as handle:
        lead = _LEAD if offset else 0
        handle.seek(offset - lead)
        data = handle.read(max_bytes + lead + 1)
    is_cut = len(data) > max_bytes + lead
    return (data[:-1], True) if is_cut else (data, False)


def frames_of(data: bytes, offset: int) -> Iterator[segments.Frame]:
    """Whole frames of a tail read at `offset` (see `_tail`), with their ends as file positions."""
    if not offset:
        yield from segments.read_frames(data)
        return
    shift = offset - _LEAD
    for frame in segments.read_frames(data, _LEAD):
        yield frame._replace(end=frame.end + shift)


def _enter(position: Position, start: int, offset: int, frames: list[segments.Frame], found: Scan) -> Position:
    key, taken = position.key, take(position, frames)
    found.gaps += taken.gaps
    found.ranges.append(
        Range(
            gateway=key.gateway,
            worker=key.worker,
            epoch=key.epoch,
            segment=start,
            start=offset,
            end=frames[-1].end,
            first_n=frames[0].n,
            frames=len(frames),
        )
    )
    found.frames.append(taken.frames)
    return msgspec.structs.replace(taken.position, segment=start, offset=frames[-1].end)


def _judge_rest(left: bytes, next_n: int, at: int, following: int | None, is_ended: bool) -> tuple[str, bool]:
    """What the bytes behind the last whole frame mean: (problem, whether the next segment may be read)."""
    damaged = bool(left) and resync(left, next_n) is not None
    if damaged:
        return f"damaged frame at byte {at} with good frames behind it", False
    if following is not None:
        if left and following > next_n:
            return f"frames {next_n}..{following - 1} at byte {at} are unreadable", False
        return "", True
    if is_ended:
        return f"{ENDED}torn tail of {len(left)} bytes" if left else f"{ENDED}read to its end", False
    if left and _is_whole_but_bad(left):
        return f"bad checksum at byte {at}", False
    return "", False


def _is_whole_but_bad(left: bytes) -> bool:
    """Whether a frame's full length is there, or claims what no frame may have: no unfinished write looks like this."""
    if len(left) < segments.HEADER.size:
        return False
    length, n, crc = segments.HEADER.unpack_from(left)
    if not (length or n or crc):
        return False
    return bool(length > segments.MAX_PAYLOAD or segments.HEADER.size + length <= len(left))


def resync(left: bytes, next_n: int) -> int | None:
    """The offset in `left` of the first whole frame with a plausible counter; None when there is none nearby."""
    stop = min(len(left) - segments.HEADER.size, _RESYNC_WINDOW)
    for at in range(1, stop + 1):
        length, n, _ = segments.HEADER.unpack_from(left, at)
        if length > len(left) - at or not next_n <= n <= next_n + 1_000_000:
            continue
        candidate = left[at : at + segments.HEADER.size + length]
        if next(segments.read_frames(segments.MAGIC + candidate), None) is not None:
            return at
    return None


def survey(bus: Path) -> dict[StreamKey, Present]:
    """Everything that lies on the bus, read from its beginning."""
    keys = streams(bus)
    done = ended(bus, keys)
    return {key: _survey_again(bus, key, key in done) for key in keys}


def _survey_again(bus: Path, key: StreamKey, is_ended: bool) -> Present:
    while True:
        with suppress(FileNotFoundError):  # a segment was removed meanwhile: the next look is without it
            return _survey_stream(bus, key, is_ended)


def _survey_stream(bus: Path, key: StreamKey, is_ended: bool) -> Present:
    present = Present(written=written(bus, key), since=_number(folder_of(bus, key) / REMOVED) or 0)
    counters = present.counters
    starts = segment_starts(bus, key)
    for index, start in enumerate(starts):
        path = segments.segment_path(bus, *key, start)
        data = path.read_bytes()
        at = _LEAD
        for frame in segments.read_frames(data):
            counters.append(frame.n)
            at = frame.end
        left = data[at:]
        following = starts[index + 1] if index + 1 < len(starts) else None
        next_n = counters[-1] + 1 if counters else start
        if left and (resync(left, next_n) is not None or (following is not None and following > next_n)):
            present.damaged.append(f"{path.name} at byte {at}")
        elif left and following is None and is_ended:
            present.torn += len(left)
    return present


def reread(bus: Path, ranges: Sequence[Range], next_ns: Mapping[StreamKey, int]) -> list[list[segments.Frame]]:
    """The frames of planned ranges, read again; `next_ns` are the counters expected before the batch."""
    at = {key: Position(key=key, next_n=n) for key, n in next_ns.items()}
    parts = []
    for part in ranges:
        data, _ = _tail(segments.segment_path(bus, *part.key, part.segment), part.start, part.end - part.start)
        taken = take(at.get(part.key) or Position(key=part.key), frames_of(data, part.start))
        at[part.key] = taken.position
        parts.append(taken.frames)
    return parts
