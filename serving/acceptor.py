"""Connections that wait to be taken while a worker is busy.

libuv takes one connection a turn of the event loop. A busy worker's turns are long, so those who connect would wait
for seconds in the kernel, unseen by every limit. After a long turn a worker therefore takes all that nobody has taken;
after a short one it leaves them to the others, which share the listening socket.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from time import monotonic
from typing import Any

import uvicorn

LONG_TURN_S = 0.005
_AT_ONCE = 256
"""Connections taken in one turn: they make it longer, too."""


class Acceptor:
    """Takes connections of a listening socket, beside the event loop's own server, until `close`."""

    def __init__(self, listening: socket.socket, make: Callable[[], asyncio.Protocol]) -> None:
        self._loop = asyncio.get_running_loop()
        self._make = make
        self._opening: set[asyncio.Task[Any]] = set()
        self._waiting_since = 0.0
        # The loop watches a descriptor once only.
        self._socket = listening.dup()
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket, self._on_waiting)

    def close(self) -> None:
        """Take no more."""
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _on_waiting(self) -> None:
        """Called once in every turn in which somebody waits."""
        since, self._waiting_since = self._waiting_since, monotonic()
        self._loop.call_soon(self._loop.call_soon, self._forget, self._waiting_since)
        if since and self._waiting_since - since > LONG_TURN_S:
            self._take_all()

    def _forget(self, since: float) -> None:
        """The turn after that of `since` is over; had anybody still waited in it, there would be a later mark."""
        if self._waiting_since == since:
            self._waiting_since = 0.0

    def _take_all(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, _address = self._socket.accept()
            except OSError:  # nobody is left, or no descriptor: the loop's own server says so
                return
            connection.setblocking(False)
            task = self._loop.create_task(self._loop.connect_accepted_socket(self._make, connection))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)


def accompany_servers() -> None:
    """Have every uvicorn server that starts in this process accompanied by an acceptor for each of its sockets.

    With TLS it is not: a handshake is for the loop's own server to do.
    """
    server_class: Any = uvicorn.Server
    started, stopped = server_class.startup, server_class.shutdown
    acceptors: list[Acceptor] = []

    async def startup(self: Any, sockets: list[socket.socket] | None = None) -> None:
        await started(self, sockets)
        config = self.config

        def make() -> asyncio.Protocol:
            protocol: asyncio.Protocol = config.http_protocol_class(
                config=config, server_state=self.server_state, app_state=self.lifespan.state
            )
            return protocol

        if config.ssl is None:
            listening = sockets or [one for server in self.servers for one in server.sockets]
            acceptors.extend(Acceptor(one, make) for one in listening)

    async def shutdown(self: Any, sockets: list[socket.socket] | None = None) -> None:
        while acceptors:
            acceptors.pop().close()
        await stopped(self, sockets)

    server_class.startup, server_class.shutdown = startup, shutdown
