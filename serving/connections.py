"""What one connection may take of a worker: uvicorn's HTTP protocol with bounds on head, time and number.

uvicorn bounds none of these for httptools: a head of any size is kept in memory, and a client that sends its head or
body byte by byte, or never reads its answer, is waited for without end. Nothing here costs a request more than a
comparison: times are watched by one sweep over all connections.
"""

from __future__ import annotations

import asyncio
import resource
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from uvicorn import config as uvicorn_config
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from serving import acceptor
from serving.direct import DirectProtocol
from serving.limits import Limits
from serving.metrics import Metrics

if TYPE_CHECKING:
    from serving.app import GatewayApp

ARRIVED = "slipway.arrived"
"""Key of the ASGI scope: `monotonic()` when the head was complete, later the body: a wait for a turn counts from it."""

Reason = Literal["connections", "malformed", "head_size", "slow_head", "slow_body", "slow_reader"]
REASONS: tuple[Reason, ...] = ("connections", "malformed", "head_size", "slow_head", "slow_body", "slow_reader")
_SWEEP_S = 0.25
# A client that is still sending reads its refusal only when the connection is not reset under it.
_LINGER_S = 1.0
# How long a worker that is to end waits for the request that a client is just sending. Closed at once, as uvicorn does,
# the connection would be reset under it.
_LAST_REQUEST_S = 0.5
_Waiting = Literal["slow_head", "slow_body", "slow_reader"]


class Guard:
    """The bounds of one worker's connections, and how many were ended for which reason."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.ended: dict[Reason, int] = dict.fromkeys(REASONS, 0)
        self.connections: set[Connection] = set()
        self._allowed_s: dict[_Waiting, float] = {
            "slow_head": limits.head_timeout_s,
            "slow_body": limits.body_timeout_s,
            "slow_reader": limits.write_timeout_s,
        }
        self.refusals = _refusals(limits)
        self._sweeping = False

    def tell_to(self, metrics: Metrics) -> None:
        """Have the counts shown with the worker's other metrics."""
        told: dict[Reason, int] = dict.fromkeys(REASONS, 0)

        def tell() -> None:
            metrics.connections.set(len(self.connections))
            for reason, count in self.ended.items():
                metrics.ended.labels(reason).inc(count - told[reason])
                told[reason] = count

        metrics.watch(tell)

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to sweep; stops by itself when there is no connection left."""
        if not self._sweeping:
            self._sweeping = True
            loop.call_later(_SWEEP_S, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for connection in list(self.connections):
            waiting = connection.waits_for()
            if waiting is None or (waiting, connection.heads) != connection.standing:
                connection.standing, connection.since = (waiting, connection.heads), now
            elif now - connection.since > self._allowed_s[waiting]:
                connection.end(waiting)
        self._sweeping = bool(self.connections)
        if self._sweeping:
            loop.call_later(_SWEEP_S, self._sweep, loop)


class Connection(DirectProtocol):
    """One client's connection, under the bounds of its class's guard."""

    guard: ClassVar[Guard]
    max_head: ClassVar[int]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.heads = 0
        self.standing: tuple[_Waiting | None, int] = (None, 0)
        self.since = 0.0
        self._unparsed = 0
        self._ended = False
        self._last_request = False
        # uvicorn's `cycle` is the newest request's; with pipelining an older one is being answered.
        self._answered: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's own
        super().connection_made(transport)
        self.guard.connections.add(self)
        self.guard.watch(self.loop)
        if len(self.guard.connections) > self.guard.limits.max_connections:
            self.end("connections")

    def connection_lost(self, exc: Exception | None) -> None:
        self.guard.connections.discard(self)
        self._tell_handler()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        self._unparsed += len(data)
        super().data_received(data)
        if self._unparsed > self.max_head and not self._ended:
            self.end("head_size")

    def eof_received(self) -> bool:  # type: ignore[override] # asyncio's own signature; uvicorn's gives None
        """A client that has sent its whole request and will send no more still gets its answer."""
        if self._ended:
            return False
        if not (self._awaits_head() or self.cycle.more_body):
            self.cycle.keep_alive = False
            return True
        if self._asked:
            self.after_replies(self.transport.close)
            return True
        return False

    def send_400_response(self, _msg: str) -> None:
        """Bytes that are no HTTP: what was asked before them is answered first."""
        if not self._ended:
            self.end("malformed")

    def shutdown(self) -> None:
        """The worker is to end: one more request may be on its way, and is answered before the connection closes."""
        if not self._awaits_head():
            super().shutdown()
            return
        self._unset_keepalive_if_required()
        self._last_request = self.only_general = True
        self.loop.call_later(_LAST_REQUEST_S, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if self._awaits_head():
            self.after_replies(self.transport.close)

    def on_headers_complete(self) -> None:
        received, self._unparsed = self._unparsed, 0
        self.heads += 1
        # The bytes received may hold a body, too; only then is the head itself measured.
        if received > self.max_head and not self._ended:
            head = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if head > self.max_head:
                self.end("head_size")
        if not self._ended:
            super().on_headers_complete()
            if self._last_request and not self._offers:
                self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        # What is left to count are bytes of no body: heads, trailers, extensions of chunks.
        self._unparsed = 0
        if not self._ended:
            super().on_body(body)

    def on_message_complete(self) -> None:
        # What follows in the same bytes is another request's head.
        self._unparsed = 0
        if self._ended or self._offers:
            return
        if not self._awaits_head():
            self._note_arrival(self.cycle)
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._note_arrival(cycle)
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def _note_arrival(self, cycle: RequestResponseCycle) -> None:
        cycle.scope[ARRIVED] = self.turn.began(self.loop)  # type: ignore[literal-required] # open to extensions

    def _tell_handler(self) -> None:
        """A handler that waits for more, or is about to send, is told that the client is gone."""
        if self._answered is not None and not self._answered.response_complete:
            self._answered.disconnected = True
            self._answered.message_event.set()

    def _should_upgrade_to_ws(self) -> bool:
        return False

    def _awaits_head(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete

    def waits_for(self) -> _Waiting | None:
        """Which of the client's doings the worker waits for, if any."""
        if self._ended or self.transport.is_closing():
            return None
        if self.flow.write_paused:
            return "slow_reader"
        if self._awaits_head():
            # An idle kept-alive connection has uvicorn's own timer.
            return "slow_head" if self.timeout_keep_alive_task is None else None
        return "slow_body" if self.cycle.more_body else None

    def end(self, reason: Reason) -> None:
        """Refuse and close; nothing that still comes is looked at."""
        self.guard.ended[reason] += 1
        self._ended = True
        self._unset_keepalive_if_required()
        if reason == "slow_reader":
            self._tell_handler()
            self.transport.abort()
        else:
            self.after_replies(partial(self._refuse, reason))

    def _refuse(self, reason: Reason) -> None:
        cycle = self.cycle
        sending = not self._awaits_head() and cycle.more_body and not cycle.response_started and not self.pipeline
        if not (sending or self._awaits_head()):
            # An earlier request of this connection is being answered: a refusal here would pass for its answer.
            if not cycle.more_body:
                self._then = partial(self._refuse, reason)
                return
            self._tell_handler()
            self.transport.abort()
            return
        self.transport.write(self.guard.refusals[reason])
        if reason == "connections":
            self.transport.close()
            return
        if sending:
            self._tell_handler()
        self.flow.resume_reading()
        self.transport.write_eof()
        self.loop.call_later(_LINGER_S, self.transport.close)


def install(limits: Limits, app: GatewayApp | None = None) -> Guard:
    """Make uvicorn use the bounded protocol in this process, with as many open files as the system allows.

    With `app`, infer requests that wait for nothing are answered by it ahead of ASGI.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    guard = Guard(limits)
    if app is not None:
        guard.tell_to(app.gateway.metrics)
    acceptor.accompany_servers()
    uvicorn_config.HTTP_PROTOCOLS["auto"] = bounded(guard, app)  # type: ignore[assignment] # loaded as it is when no text
    return guard


def bounded(guard: Guard, app: GatewayApp | None) -> type[Connection]:
    """The protocol of one worker."""
    fixed = {
        "guard": guard,
        "max_head": guard.limits.max_head_bytes,
        "short_way": app.short_way if app is not None else None,
    }
    return type("BoundedConnection", (Connection,), fixed)


def _refusals(limits: Limits) -> dict[Reason, bytes]:
    """What a client is told before its connection is closed; one that does not read is told nothing."""
    retry_after = f"retry-after: {limits.retry_after_s}\r\n"
    return {
        "connections": _response(429, "Too Many Requests", "too many connections; send it later", retry_after),
        "malformed": _response(400, "Bad Request", "not an HTTP request"),
        "head_size": _response(431, "Request Header Fields Too Large", f"head over {limits.max_head_bytes} bytes"),
        "slow_head": _response(408, "Request Timeout", f"no whole head within {limits.head_timeout_s:g} s"),
        "slow_body": _response(408, "Request Timeout", f"no whole body within {limits.body_timeout_s:g} s"),
    }


def _response(status: int, phrase: str, message: str, headers: str = "") -> bytes:
    body = f'{{"error":"{message}"}}'
    return (
        f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\n{headers}"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n{body}"
    ).encode()
