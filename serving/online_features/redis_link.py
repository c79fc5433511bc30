"""One connection to Redis: calls that arrive in one turn of the loop leave in one write, answers come back in order.

A client library awaits a connection, packs and parses command by command; here a call is ready bytes and a number of
replies, and hiredis parses (benchmarks/online_features.py prints what that saves).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections import deque
from typing import Any, cast

import hiredis
from redis.asyncio.connection import SSLConnection, parse_url

_log = logging.getLogger("slipway.redis")

_CONNECT_S = 1.0
_FIRST_RETRY_S, _LAST_RETRY_S = 0.05, 1.0
# A server that owes an answer for so long has forgotten us, or will never come back: a new connection may fare better.
_STALLED_S = 1.0


class RedisDown(Exception):
    """The store gave no answer in time; the message says why, in words fit for a log and an answer."""


class _Call:
    __slots__ = ("deadline", "future", "left", "replies")

    def __init__(self, future: asyncio.Future[list[Any]], replies: int, deadline: float) -> None:
        self.future: asyncio.Future[list[Any]] | None = future
        self.left = replies
        self.replies: list[Any] = []
        self.deadline = deadline


class RedisLink:
    """Keeps itself connected from `start` to `stop`. While it is not, a call fails at once."""

    def __init__(self, url: str) -> None:
        self._options: dict[str, Any] = dict(parse_url(url))
        self._wire: _Wire | None = None
        self._reason = "not connected yet"
        self._keeper: asyncio.Task[None] | None = None
        self._tried = asyncio.Event()

    async def start(self) -> None:
        """Begin to connect; return after the first attempt, whatever came of it."""
        self._keeper = asyncio.get_running_loop().create_task(self._keep_connected(), name="redis-link")
        await self._tried.wait()

    async def stop(self) -> None:
        """Close the connection; calls that wait fail."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper

    def call(self, commands: bytes, replies: int, timeout_s: float) -> asyncio.Future[list[Any]]:
        """The replies to `commands`, in order. Raises RedisDown, at once or from the future."""
        if self._wire is None:
            raise RedisDown(self._reason)
        return self._wire.call(commands, replies, timeout_s)

    async def _keep_connected(self) -> None:
        pause_s = _FIRST_RETRY_S
        while True:
            wire = None
            try:
                async with asyncio.timeout(_CONNECT_S):
                    wire = await self._connect()
                self._wire, pause_s = wire, _FIRST_RETRY_S
                self._tried.set()
                _log.info("online store: connected")
                self._reason = await wire.lost
            except Exception as error:  # noqa: BLE001 - without this task no feature would ever be read again
                self._reason = _words(error)
            finally:
                self._wire = None
                if wire is not None:
                    wire.abort("closed")
            self._tried.set()
            _log.warning("online store: %s", self._reason)
            await asyncio.sleep(pause_s)  # between attempts, longer each time
            pause_s = min(2 * pause_s, _LAST_RETRY_S)

    async def _connect(self) -> _Wire:
        loop, options = asyncio.get_running_loop(), self._options
        if path := options.get("path"):
            _, wire = await loop.create_unix_connection(_Wire, path)
        else:
            secure = options.get("connection_class") is SSLConnection
            context = ssl.create_default_context(cafile=options.get("ssl_ca_certs")) if secure else None
            host, port = options.get("host", "localhost"), options.get("port", 6379)
            _, wire = await loop.create_connection(_Wire, host, port, ssl=context)
        try:
            for command in self._greeting():
                (reply,) = await wire.call(pack(*command), 1, _CONNECT_S)
                if isinstance(reply, hiredis.ReplyError):
                    raise RedisDown(str(reply))
        except BaseException:
            wire.abort("greeting failed")
            raise
        return wire

    def _greeting(self) -> list[list[str]]:
        """A server that is still loading its data answers the last command with an error."""
        options = self._options
        commands = []
        if password := options.get("password"):
            commands.append(["AUTH", options["username"], password] if options.get("username") else ["AUTH", password])
        if database := options.get("db"):
            commands.append(["SELECT", str(database)])
        return [*commands, ["PING"]]


class _Wire(asyncio.Protocol):
    """One TCP connection's life. `lost` resolves with the reason of its end."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(notEnoughData=_MORE)
        self._waiting: deque[_Call] = deque()
        self._unsent: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self.lost: asyncio.Future[str] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance

    def connection_lost(self, exc: Exception | None) -> None:
        self.abort(_words(exc) if exc else "connection lost")

    def call(self, commands: bytes, replies: int, timeout_s: float) -> asyncio.Future[list[Any]]:
        if self.lost.done():
            raise RedisDown(self.lost.result())
        waiting = self._waiting
        if waiting and waiting[0].future is None:
            # It is late with an answer nobody waits for any more; whatever is asked now would come later still.
            raise RedisDown("behind")
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(commands)
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        waiting.append(_Call(future, replies, self._loop.time() + timeout_s))
        if self._timer is None:
            self._timer = self._loop.call_later(timeout_s, self._overdue)
        return future

    def data_received(self, data: bytes) -> None:
        reader, waiting = self._reader, self._waiting
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not _MORE:
                call = waiting[0]
                call.replies.append(reply)
                call.left -= 1
                if call.left == 0:
                    waiting.popleft()
                    if call.future is not None and not call.future.done():
                        call.future.set_result(call.replies)
        except (hiredis.HiredisError, IndexError) as error:
            self.abort(f"no Redis protocol ({error})")

    def abort(self, reason: str) -> None:
        """End the connection; everything that waits fails with `reason`."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self.lost.done():
            self.lost.set_result(reason)
        if self._transport is not None:
            self._transport.abort()
        for call in self._waiting:
            _fail(call, reason)
        self._waiting.clear()

    def _flush(self) -> None:
        commands, self._unsent = self._unsent, []
        if self._transport is not None and not self.lost.done():
            self._transport.write(b"".join(commands))

    def _overdue(self) -> None:
        """A deadline has passed. What has arrived while this process was busy is read first: two turns of the loop."""
        self._timer = None
        self._loop.call_soon(self._loop.call_soon, self._expire)

    def _expire(self) -> None:
        if self.lost.done() or self._timer is not None:
            return
        now, next_at = self._loop.time(), None
        for call in self._waiting:
            if call.future is not None and call.deadline <= now:
                _fail(call, "over its time budget")
            if call.future is not None:
                next_at = call.deadline if next_at is None else min(next_at, call.deadline)
        if not self._waiting:
            return
        if now - self._waiting[0].deadline > _STALLED_S:
            self.abort("it does not answer")
            return
        if next_at is None:
            next_at = self._waiting[0].deadline + _STALLED_S + 0.001
        self._timer = self._loop.call_later(max(0.0, next_at - now), self._overdue)


def pack(*parts: str) -> bytes:
    """One command in Redis' protocol."""
    packed: bytes = hiredis.pack_command(parts)  # type: ignore[arg-type]  # its stub says a tuple of one
    return packed


_MORE = object()


def _fail(call: _Call, reason: str) -> None:
    if call.future is not None and not call.future.done():
        call.future.set_exception(RedisDown(reason))
    call.future = None


def _words(error: BaseException) -> str:
    """Why a connection is not there, without addresses or secrets."""
    if isinstance(error, RedisDown):
        return str(error)
    if isinstance(error, TimeoutError):
        return "it does not answer"
    if isinstance(error, OSError) and error.strerror:
        return "connection refused" if isinstance(error, ConnectionRefusedError) else error.strerror
    return type(error).__name__
