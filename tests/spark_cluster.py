"""A standalone Spark cluster for tests: a master and two workers as processes of this machine, ended by their pids."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.free_ports import free_ports
from tests.waiting import wait_until

# Three small daemons that live for a minute: compiled cheaply, in little memory.
DAEMONS = {"SPARK_DAEMON_MEMORY": "192m", "SPARK_DAEMON_JAVA_OPTS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"}


class Cluster:
    """Processes of one cluster; `master` is what goes into `Settings.spark_master`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._port, self._pages, *self._workers = free_ports(4)
        self.master = f"spark://127.0.0.1:{self._port}"
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        here = ["--host", "127.0.0.1"]
        master = ["master.Master", *here, "--port", str(self._port), "--webui-port", str(self._pages)]
        self._run("master", master)
        for port in self._workers:
            # Port 0 of the pages: any free one.
            worker = ["worker.Worker", *here, "--port", str(port), "--webui-port", "0", "--cores", "1"]
            self._run(f"worker-{port}", [*worker, "--memory", "600m", "--work-dir", str(self.folder), self.master])
        wait_until(self._complete, f"a worker has not registered:\n{self.logs()}", 120)

    def _complete(self) -> bool:
        assert all(process.poll() is None for process in self._processes), self.logs()
        return sum(worker["state"] == "ALIVE" for worker in self.state().get("workers", [])) == len(self._workers)

    def state(self) -> dict[str, Any]:
        """What the master's page says of workers and applications; empty while it does not answer in JSON yet."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._pages}/json/", timeout=5) as page:
                return dict(json.load(page))
        except (OSError, ValueError):
            return {}

    def logs(self) -> str:
        return "\n".join(file.read_text(errors="replace")[-2000:] for file in self.folder.glob("*.log"))

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _run(self, name: str, arguments: list[str]) -> None:
        import pyspark

        home = Path(pyspark.__file__).parent
        environment = {**os.environ, **DAEMONS, "SPARK_HOME": str(home), "SPARK_LOCAL_IP": "127.0.0.1"}
        command = [str(home / "bin" / "spark-class"), f"org.apache.spark.deploy.{arguments[0]}", *arguments[1:]]
        with (self.folder / f"{name}.log").open("wb") as log:
            self._processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """A running cluster with two workers of one core."""
    made = Cluster(folder)
    try:
        made.start()
        yield made
    finally:
        made.stop()
