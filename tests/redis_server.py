"""A real Redis server for tests: own port, own password, nothing on disk; ended with the block.

Usable from both environments.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from tests.free_ports import free_port


class RedisServer:
    """One server. `kill` ends it like a crash; `start` brings it back empty on the same port."""

    def __init__(self, program: str, folder: Path, port: int) -> None:
        self.port = port
        self.password = secrets.token_hex(16)
        self._program = program
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        """A client of redis-py, for what a test does by hand."""
        return redis.Redis.from_url(self.url)

    def cpu_seconds(self) -> float:
        """Processor time the server has used."""
        used = self.client().info("cpu")
        return float(used["used_cpu_sys"]) + float(used["used_cpu_user"])

    def start(self) -> None:
        """Start, and return when it answers."""
        options = {
            "port": self.port,
            "bind": "127.0.0.1",
            "requirepass": self.password,
            "save": "",
            "dir": self._folder,
        }
        command = [self._program, *(part for name, value in options.items() for part in (f"--{name}", str(value)))]
        log = self._folder / "log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        deadline = time.monotonic() + 30
        while True:
            try:
                self.client().ping()
            except redis.ConnectionError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"Redis does not start:\n{log.read_text()}") from None
                time.sleep(0.02)  # it starts in another process
            else:
                return

    def kill(self) -> None:
        """`kill -9`, also of a server that was stopped."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)
            self._process = None

    def freeze(self) -> None:
        """It keeps its connections and answers nothing, until `thaw`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It answers what has waited."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


def require_redis() -> str:
    """The server's program; the test is skipped where Redis is not installed, and fails there under CI=true."""
    program = shutil.which("redis-server")
    if program is None:
        line = "Redis is not installed: apt-get install -y redis-server (or: python3 scripts/setup.py --servers)"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(line)
    return program


@contextmanager
def running_redis(*, start: bool = True) -> Iterator[RedisServer]:
    """A server; the test is skipped where Redis is not installed, and fails there under CI=true."""
    program = require_redis()
    folder = Path(tempfile.mkdtemp(prefix="slipway-redis-"))
    server = RedisServer(program, folder, free_port())
    try:
        if start:
            server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)
