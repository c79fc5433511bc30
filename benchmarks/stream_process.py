"""`slipway stream` as a process of its own, of which the whole or a part can be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.stream_project import VIEW
from pipelines.settings import Settings


class Stream:
    """The driver and its JVM, as a process group; killed at the end of the block, however it ends."""

    def __init__(self, settings: Settings, log: Path) -> None:
        names = ("home", "include_dir", "kafka", "kafka_topic", "spark_config")
        self._environment = {**os.environ, **{f"SLIPWAY_{n.upper()}": str(getattr(settings, n)) for n in names}}
        self._log, self._beat = log, settings.run_dir / "stream.beat"
        self.start()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        self._started = time.time()
        command = [sys.executable, "-m", "pipelines.cli.main", "stream", VIEW]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def takes_messages(self) -> bool:
        return self._beat.exists() and self._beat.stat().st_mtime >= self._started

    def wait(self, seconds: float = 600.0) -> None:
        """Return when it takes messages."""
        deadline = time.time() + seconds
        while not self.takes_messages:
            assert self._process.poll() is None, self._log.read_text()[-3000:]
            assert time.time() < deadline, f"not within {seconds:.0f} s: the stream takes messages"
            time.sleep(0.2)  # nothing tells when Spark is up

    def kill(self) -> None:
        """All of it at once."""
        with suppress(ProcessLookupError):  # it has ended already
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def kill_driver(self) -> None:
        """The driver's Python process alone: its JVM finds out by itself."""
        self._process.kill()
        self._process.wait()

    def kill_jvm(self, seconds: float = 120.0) -> int:
        """The JVM alone; the driver finds out by itself, and ends: its exit code."""
        for one in psutil.Process(self._process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # a helper that has ended meanwhile
                if one.name() == "java":
                    one.kill()
        return self._process.wait(seconds)
