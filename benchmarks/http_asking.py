"""The client's side of HTTP as the benchmarks need it: ready bytes out, whole answers in, one request a connection."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import cast


def request_bytes(path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """A POST as it goes over the wire."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {path} HTTP/1.1\r\nhost: bench\r\n{lines}content-length: {len(body)}\r\n\r\n".encode() + body


def whole_answer(buffer: bytes) -> bytes | None:
    """The head of the answer in `buffer`, in small letters, once its body is there, too."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = buffer[:end].lower()
    at = head.find(b"content-length: ") + 16
    return head if len(buffer) >= end + 4 + int(head[at:].split(b"\r\n", 1)[0]) else None


class Asking(asyncio.Protocol, ABC):
    """One connection: `ask`, then `answered` when its answer is complete."""

    def __init__(self) -> None:
        self._buffer = b""
        self.due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def ask(self, due: float, message: bytes) -> None:
        """Send a request whose latency counts from `due` (`time.perf_counter`)."""
        self.due = due
        self.transport.write(message)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head = whole_answer(self._buffer)
        if head is not None:
            answer, self._buffer = self._buffer, b""
            self.answered(time.perf_counter() - self.due, head, answer)

    @abstractmethod
    def answered(self, seconds: float, head: bytes, answer: bytes) -> None:
        """An answer is here: its latency, its head in small letters, and all of it."""
