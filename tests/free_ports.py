"""Ports for servers under test."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

BELOW_EPHEMERAL = range(20_000, 32_000)
"""The kernel gives a port of its own range (32768 and up) to every outgoing connection: one picked there may be taken
again by any client before its server has started."""


def free_ports(count: int) -> list[int]:
    """Different ports nobody listens on now, drawn anew in each process whatever the tests' seed."""
    drawn: list[int] = []
    for port in random.SystemRandom().sample(BELOW_EPHEMERAL, len(BELOW_EPHEMERAL)):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            drawn.append(port)
        if len(drawn) == count:
            return drawn
    raise AssertionError(f"no {count} free ports between {BELOW_EPHEMERAL.start} and {BELOW_EPHEMERAL.stop}")


def free_port() -> int:
    """One of them."""
    return free_ports(1)[0]
