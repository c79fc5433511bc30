"""The short way of an infer request: from uvicorn's parser to the transport, with no scope and no task between.

An ASGI server starts a task for every request, which costs more than the model. Here a request whose body has arrived
whole is handed over where the parser reports its end, when nothing has to be waited for (`serving/short_way.py`).
Everything else goes uvicorn's general way to the application: other paths, bodies that come in parts, requests behind
one that is still being answered there, clients that do not read. Answers leave in the order of the requests.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    from serving.replies import Reply
    from serving.short_way import Asked, ShortWay

_BEFORE, _BEHIND = b"/v2/models/", b"/infer"
_AHEAD = 16
"""Requests of one connection that may wait for their answers on the short way; those behind them take the other."""
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


class Turn:
    """When the loop's present turn met its first request: those read in one turn wait for each other.

    uvloop's own time moves on within a turn, so the turn is marked: what is called soon is called after it.
    """

    def __init__(self) -> None:
        self._began = 0.0

    def began(self, loop: asyncio.AbstractEventLoop) -> float:
        """The moment, by `time.monotonic`."""
        if not self._began:
            self._began = monotonic()
            loop.call_soon(self._end)
        return self._began

    def _end(self) -> None:
        self._began = 0.0


class DirectProtocol(HttpToolsProtocol):
    """One client's connection. The bounds on it are put around this class (`serving/connections.py`).

    `_model` is set while a request is arriving that may take the short way.
    """

    short_way: ClassVar[ShortWay | None] = None
    """Without one, every request takes the general way."""
    turn: ClassVar[Turn] = Turn()
    timeout_keep_alive_task: asyncio.TimerHandle | None
    cycle: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.only_general = False
        self._model: str | None = None
        self._body = b""
        self._asked: deque[Asked] = deque()  # whose replies have not been sent
        self._then: Callable[[], None] | None = None  # what is done once they have been
        self._offers = False  # the head that has come offers another protocol
        self._at_rest = False  # the last request took the short way, and no other has begun
        self._idle_since = 0.0

    def data_received(self, data: bytes) -> None:
        # The keep-alive timer stays armed over requests that take the short way; it looks at `_idle_since`.
        timer, self.timeout_keep_alive_task = self.timeout_keep_alive_task, None
        self._parse(data)
        if self._model is not None:
            self._take_general_way()
        unarmed = self.timeout_keep_alive_task is None  # uvicorn may have armed it meanwhile
        if self._at_rest and unarmed and not self.transport.is_closing():
            self._idle_since = self.loop.time()
            self.timeout_keep_alive_task = timer or self._arm(self.timeout_keep_alive)
        elif timer is not None:
            timer.cancel()

    def _parse(self, data: bytes) -> None:
        """As uvicorn's own, but for a request that offers another protocol, such as HTTP/2: the offer is passed over.

        The parser takes what follows such a head for the other protocol's, and the request's body would be lost.
        """
        left = memoryview(data)
        try:
            while True:
                try:
                    self.parser.feed_data(left)
                    return
                except httptools.HttpParserUpgrade as offer:
                    left = left[offer.args[0] :]
                    self._begin_without_offer()
        except httptools.HttpParserError:
            self._model, self._body = None, b""
            self.send_400_response("Invalid HTTP request received.")

    def _begin_without_offer(self) -> None:
        """Have another parser read the head that has come, but for its offer. Raises HttpParserError."""
        if not self._offers:
            raise httptools.HttpParserError("CONNECT")
        self._offers = False
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [b"%b: %b" % (name, value) for name, value in self.headers if name != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        self.parser.feed_data(b"\r\n".join(lines) + b"\r\n\r\n")

    def _arm(self, seconds: float) -> asyncio.TimerHandle:
        return self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        idle_since = self.loop.time() if self._asked else self._idle_since
        left = idle_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self.timeout_keep_alive_task = self._arm(left)
        else:
            super().timeout_keep_alive_handler()

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.expect_100_continue = False
        self._at_rest = False

    def on_headers_complete(self) -> None:
        url, cycle, parser = self.url, self.cycle, self.parser
        if parser.should_upgrade() and parser.get_method() != b"CONNECT":
            self._offers = True  # the head will come again without it
        elif (
            self.short_way is not None
            and not self.only_general
            and url.startswith(_BEFORE)
            and url.endswith(_BEHIND)
            and (cycle is None or cycle.response_complete)
            and len(self._asked) < _AHEAD
            and not self.expect_100_continue
            and not self.flow.write_paused
            and self.limit_concurrency is None
            and parser.get_method() == b"POST"
            and parser.get_http_version() == "1.1"
            and parser.should_keep_alive()
        ):
            self._model = url[len(_BEFORE) : -len(_BEHIND)].decode("latin-1")
        else:
            self._begin_general_way()

    def on_body(self, body: bytes) -> None:
        if self._model is None:
            super().on_body(body)
        else:
            self._body = self._body + body if self._body else body

    def on_message_complete(self) -> None:
        if self._offers:
            return
        if self._model is None:
            super().on_message_complete()
            return
        assert self.short_way is not None
        asked = self.short_way.take(self, self._model, self.headers, self._body, self.turn.began(self.loop))
        if asked is None:
            self._take_general_way()
            super().on_message_complete()
            return
        self._model, self._body, self._at_rest = None, b"", True
        self._asked.append(asked)
        if asked.reply is not None:
            self.send_replies()

    def send_replies(self) -> None:
        """Send what is ready, as far as it is next."""
        asked = self._asked
        while asked and (reply := asked[0].reply) is not None:
            asked.popleft()
            if not self.transport.is_closing():
                self.server_state.total_requests += 1
                self._write(reply)
        if asked or self.transport.is_closing():
            return
        self._idle_since = self.loop.time()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._then is not None:
            self._then()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._then is not None and self.cycle.response_complete and not self.transport.is_closing():
            self._unset_keepalive_if_required()
            self._then()

    def after_replies(self, then: Callable[[], None]) -> None:
        """Do something now, or once the replies that are owed have been sent; the last such word holds."""
        if self._asked:
            self._then = then
        else:
            then()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if self._asked:
            # Its answer comes behind theirs.
            self.flow.pause_reading()
            self.pipeline.append((cycle, app))
        else:
            super()._start_asgi_task(cycle, app)

    def _take_general_way(self) -> None:
        body, self._model, self._body = self._body, None, b""
        self._begin_general_way()
        if body:
            super().on_body(body)

    def _begin_general_way(self) -> None:
        """Let uvicorn begin the request with what the parser has reported of it so far."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers += headers  # uvicorn's own list, which the scope holds
        super().on_headers_complete()

    def _write(self, reply: Reply) -> None:
        status, body, content_type, headers = reply
        head = [_STATUS_LINES[status]]
        for name, value in (*self.server_state.default_headers, *headers):
            head += (name, b": ", value, b"\r\n")
        head += (b"content-type: %b\r\ncontent-length: %d\r\n\r\n" % (content_type, len(body)), body)
        self.transport.write(b"".join(head))
