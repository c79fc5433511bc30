"""Feast's Redis online store, written in bulk: Feast's own hashes and bytes, and never an older row over a newer.

Feast's writer reads a key's time in one round trip and writes in another, so two writers can put an older row over a
newer one; here Redis itself compares and writes. As with Feast, a row of the time that is there already changes
nothing. Readers are Feast's SDK and the gateway. How far a view is lies beside the rows: a server that has lost them
has lost that, too, and everything is written again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import mmh3
import redis

from pipelines.contracts.errors import TransientError
from pipelines.features.online_layout import timestamp_message
from pipelines.features.publishing import OnlineRows

_VALUES_PER_CALL = 400
"""Values that Redis takes in one step, in which it answers nobody: about 0.25 ms."""
_CALLS_PER_TRIP = 50
_TIMEOUT_S = 30

# KEYS: a hash a row. ARGV: 1 if a row may replace one of its own time, the number of fields, their names (the view's
# `_ts` first); then for each row its seconds, its nanoseconds and a value a field.
_WRITE_NEWER = """
local function part_of(held)
  local part, at = {[8] = 0, [16] = 0}, 1
  while at <= #held do
    local tag, scale, number = held:byte(at), 1, 0
    repeat
      at = at + 1
      local byte = held:byte(at)
      number = number + (byte % 128) * scale
      scale = scale * 128
    until byte < 128
    part[tag] = number
    at = at + 1
  end
  -- Before 1970: two's complement, which a double holds to some 2000 s only.
  if part[8] >= 2^63 then part[8] = part[8] - 2^64 end
  return part[8], part[16]
end
local correct, count = ARGV[1] == '1', tonumber(ARGV[2])
local command, at = {'HSET'}, 2 + count
for field = 1, count do command[1 + 2 * field] = ARGV[2 + field] end
for row = 1, #KEYS do
  local key, newer = KEYS[row], true
  local held = redis.call('HGET', key, ARGV[3])
  if held then
    local seconds, nanos = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
    local held_seconds, held_nanos = part_of(held)
    newer = seconds > held_seconds or (seconds == held_seconds and nanos > held_nanos)
      or (correct and seconds == held_seconds and nanos == held_nanos)
  end
  if newer then
    command[2] = key
    for field = 1, count do command[2 + 2 * field] = ARGV[at + 2 + field] end
    redis.call(unpack(command))
  end
  at = at + 2 + count
end
"""

# KEYS: the hash of progress. ARGV: the view, its event time in microseconds. It never goes back.
_ADVANCE = """
local held = redis.call('HGET', KEYS[1], ARGV[1])
if not held or tonumber(held) < tonumber(ARGV[2]) then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
"""


class FeastRedis:
    """One writer's connection. Use as a context manager, or call `close`. Every method raises TransientError."""

    def __init__(self, url: str, project: str = "slipway") -> None:
        self._client = redis.Redis.from_url(url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S)
        self._project = project.encode()
        self._progress = f"slipway:materialised:{project}"

    def __enter__(self) -> FeastRedis:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def create(self, view: str) -> None:
        """Nothing has to be made for a view: its fields come with its rows."""

    def through_us(self, view: str) -> int | None:
        """The event time up to which the view is materialised; None for never."""
        with _reported():
            found = self._client.hget(self._progress, view)
        return None if found is None else int(found)  # type: ignore[arg-type]  # redis-py types both its clients as one

    def write(
        self, view: str, features: Sequence[str], rows: OnlineRows, through_us: int, *, correct: bool = False
    ) -> None:
        """Write rows, then how far the view now is. Cut short, it is done again from the start and changes nothing.

        correct: a row of the same time replaces what is there.
        """
        with _reported():
            stamp_field = f"_ts:{view}".encode()
            script = str(self._client.script_load(_WRITE_NEWER)).encode()
            fields = [stamp_field, *(_field(view, name) for name in features)]
            remaining = iter(self._commands(script, fields, rows, correct=correct))
            while trip := list(islice(remaining, _CALLS_PER_TRIP)):
                self._send(trip)
            self._client.eval(_ADVANCE, 1, self._progress, view, str(through_us))

    def views(self) -> list[str]:
        """Every view that has been materialised."""
        with _reported():
            return [name.decode() for name in self._client.hkeys(self._progress)]  # type: ignore[union-attr]  # as above

    def drop(self, view: str, features: Sequence[str]) -> None:
        """Remove a view's fields from every entity's hash, then how far it was."""
        fields = [f"_ts:{view}".encode(), *(_field(view, name) for name in features)]
        with _reported():
            for key in self._client.scan_iter(match=b"*" + self._project, count=1000, _type="HASH"):
                self._client.hdel(key, *fields)  # type: ignore[arg-type]  # its stub says text alone
            self._client.hdel(self._progress, view)

    def entities(self) -> Iterator[bytes]:
        """The key of every entity that has rows."""
        with _reported():
            for key in self._client.scan_iter(match=b"*" + self._project, count=1000, _type="HASH"):
                yield key.removesuffix(self._project)

    def forget(self, entities: Sequence[bytes]) -> None:
        """Remove every row of these entities, of all views: a hash holds them all."""
        with _reported():
            for key in entities:
                self._client.delete(key + self._project)

    def _commands(self, script: bytes, fields: Sequence[bytes], rows: OnlineRows, *, correct: bool) -> Iterator[bytes]:
        """Calls of the script, as Redis' protocol has them; what is alike in all rows is made once.

        fields: that of the time, then the features'.
        """
        told = b"".join(map(_bulk, (b"%d" % correct, b"%d" % len(fields), *fields)))
        keys = [_bulk(key + self._project) for key in rows.keys]
        times = map(_times, rows.event_us)
        values = list(map(b"".join, zip(times, *rows.messages(_around), strict=True)))
        step = max(1, _VALUES_PER_CALL // len(fields))
        for start in range(0, len(keys), step):
            part = keys[start : start + step]
            arguments = 5 + len(fields) + len(part) * (3 + len(fields))
            head = (b"*%d\r\n" % arguments, _bulk(b"EVALSHA"), _bulk(script), _bulk(b"%d" % len(part)))
            yield b"".join((*head, *part, told, *values[start : start + step]))

    def _send(self, commands: list[bytes]) -> None:
        """All commands in one write, all replies after it: what a pipeline does, without its work for each command."""
        pool = self._client.connection_pool
        connection = pool.get_connection()
        try:
            connection.send_packed_command(commands)
            for _ in commands:
                connection.read_response()
        except BaseException:
            # Replies are still owed on it.
            connection.disconnect()
            raise
        finally:
            pool.release(connection)


def _field(view: str, feature: str) -> bytes:
    """The field of a feature in its key's hash."""
    return struct.pack("<I", mmh3.hash(f"{view}:{feature}", signed=False))


def _times(event_us: int) -> bytes:
    """A row's time as the script takes it: seconds, nanoseconds, and what Feast keeps."""
    seconds, micros = divmod(event_us, 1_000_000)
    return b"".join(map(_bulk, (b"%d" % seconds, b"%d" % (micros * 1000), timestamp_message(event_us))))


def _around(length: int) -> tuple[bytes, bytes]:
    """What makes an argument of so many bytes."""
    return b"$%d\r\n" % length, b"\r\n"


def _bulk(value: bytes) -> bytes:
    """One argument as Redis' protocol has it."""
    return b"$%d\r\n%b\r\n" % (len(value), value)


@contextmanager
def _reported() -> Iterator[None]:
    try:
        yield
    except redis.RedisError as error:
        hint = "Is the server of SLIPWAY_REDIS_URL up, and has it memory left?"
        raise TransientError("online store (Redis)", got=f"{type(error).__name__}: {error}", hint=hint) from error
