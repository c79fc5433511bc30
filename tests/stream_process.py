"""`slipway stream` as a process group of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from pipelines.settings import Settings


class Stream:
    """Runs from its making on; its output goes to `log`. view: the one whose stream is fed; empty for all."""

    def __init__(self, settings: Settings, log: Path, view: str = "") -> None:
        self.log = log
        names = ("home", "include_dir", "clock", "kafka", "spark_master", "spark_config")
        given = {f"SLIPWAY_{name.upper()}": str(getattr(settings, name)) for name in names}
        command = [sys.executable, "-m", "pipelines.cli.main", "stream", *([view] if view else [])]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, env={**os.environ, **given}, stdout=output, stderr=output, start_new_session=True
            )

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def end(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=60)

    def running(self) -> bool:
        return self._process.poll() is None
