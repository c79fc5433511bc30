"""Bodies of HTTP requests as they come over ASGI, within their bounds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from serving.limits import Limits
from serving.oip.errors import Malformed, Overloaded, TooLarge

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Bodies:
    """Those of one worker: what has arrived of all of them together is bounded, too."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._buffered = 0

    async def read(self, scope: Scope, receive: Receive) -> bytes:
        """The request's body. Raises TooLarge, Malformed for one that does not come to its end, and Overloaded."""
        limit = self._limits.max_body_bytes
        length = header(scope, b"content-length")
        if length is not None and length.isdigit() and int(length) > limit:
            raise TooLarge("body", got=f"{int(length)} bytes", expected=f"at most {limit}")
        message = await receive()
        body: bytes = message.get("body", b"")
        if message.get("more_body"):
            body = await self._rest(body, receive)
        if message["type"] == "http.disconnect":
            raise _gone()
        if len(body) > limit:
            raise TooLarge("body", got=f"{len(body)} bytes", expected=f"at most {limit}")
        return body

    async def _rest(self, body: bytes, receive: Receive) -> bytes:
        """A body that comes in parts. How long it may take is watched by the connection (`serving/connections.py`)."""
        limits = self._limits
        chunks = [body]
        size = len(body)
        self._buffered += size
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _gone()
                chunk: bytes = message.get("body", b"")
                chunks.append(chunk)
                size += len(chunk)
                self._buffered += len(chunk)
                if size > limits.max_body_bytes:
                    raise TooLarge("body", got=f"{size} bytes or more", expected=f"at most {limits.max_body_bytes}")
                if self._buffered > limits.max_buffered_bytes:
                    raise Overloaded("gateway", got="too many bodies on their way", hint="Send it again later.")
                if not message.get("more_body"):
                    return b"".join(chunks)
        finally:
            self._buffered -= size


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first header of that name, in lower case."""
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return None


def _gone() -> Malformed:
    return Malformed("body", got="a part of it", expected="all of it: the connection has ended")
