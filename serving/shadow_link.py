"""One shadow process, as its worker holds it: started, told, heard, and ended when it is stuck."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import cast

import serving
from serving.shadow_mark import Mark
from serving.shadow_messages import Begin, Incoming, ToWorker, packed

_log = logging.getLogger("slipway.shadow")

_ROOT = Path(serving.__file__).resolve().parent.parent
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_END_S = 1.0
"""How long a process may take to end once its socket is closed (wall); then it is killed: it holds nothing."""


class Link(asyncio.Protocol):
    """`take` is called with each message of the process; that is done `within` what it is given."""

    def __init__(self, begin: Begin, take: Callable[[ToWorker], None], within: AbstractContextManager[None]) -> None:
        self._begin = begin
        self._take = take
        self._within = within
        self._incoming = Incoming()
        self._lost = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._used_s = 0.0
        self._mark: Mark | None = None
        self._begun = 0
        self.stuck_s = 0.0
        """How long the process has computed or slept since it was last heard of, or began with another arm. Waiting for
        a processor is neither.
        """
        self.gave_up = False

    async def open(self) -> None:
        """Start the process. Raises OSError when that cannot be."""
        memory = Mark.descriptor()
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._mark = Mark(memory)
                self._process = _started(theirs, memory)
        except OSError:
            ours.close()
            raise
        finally:
            os.close(memory)
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=ours)
        self.send(packed(self._begin))

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_beside(self) -> bool:
        """Whether the arm that the process began with last is the one beside."""
        return self._mark is not None and self._mark.is_beside

    def send(self, data: bytes) -> None:
        """Send a whole message."""
        if self._transport is not None:
            self._transport.write(data)

    async def lost(self, timeout_s: float) -> bool:
        """Whether the process has ended, or ends, within `timeout_s` (wall). Until then time is taken."""
        try:
            await asyncio.wait_for(self._lost.wait(), timeout_s)
        except TimeoutError:
            if self._process is None or self._process.poll() is not None:
                return True  # a child that its release has left behind holds the socket
            state, used_s = self.account()
            self.stuck_s += used_s - self._used_s if state == "R" else timeout_s
            self._used_s = used_s
            if self._mark is not None and self._mark.begun != self._begun:
                self.stuck_s, self._begun = 0.0, self._mark.begun
            return False
        return True

    def kill(self) -> None:
        """End a process that is stuck."""
        self.gave_up = True
        if self._process is not None:
            self._process.kill()

    async def end(self) -> int:
        """Close the socket and see the process end; its exit code (-N: of signal N; 0 also where none was started)."""
        if self._transport is not None:
            self._transport.close()
        process = self._process
        if process is None:
            return 0
        try:
            return await asyncio.to_thread(process.wait, _END_S)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            return await asyncio.to_thread(process.wait)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it

    def data_received(self, data: bytes) -> None:
        self.stuck_s = 0.0
        try:
            with self._within:
                for message in self._incoming.of_process(data):
                    self._take(message)
        except Exception:  # noqa: BLE001 - of whatever kind: what else it says cannot be trusted
            _log.exception("a shadow process says what it should not")
            if self._transport is not None:
                self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's
        self._transport = None
        self._lost.set()

    def account(self) -> tuple[str, float]:
        """The process's state, a letter, and the processor time it has used so far."""
        try:
            text = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:  # it is gone, as will be heard soon
            return "R", self._used_s
        fields = text.rpartition(")")[2].split()
        return fields[0], (int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND


def name_of(code: int) -> str:
    """A process's exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    # Most real-time signals have no name.
    return signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"


def _started(end: socket.socket, memory: int) -> subprocess.Popen[bytes]:
    """The process at the other end; in this thread, with which the kernel would end it."""
    descriptors = (end.fileno(), memory)
    command = [sys.executable, "-m", "serving.shadow_process", *map(str, descriptors), str(os.getpid())]
    return subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.DEVNULL, pass_fds=descriptors)
