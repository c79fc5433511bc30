"""A gateway as it runs in production: `bentoml serve` with its supervisor and workers, on a free port."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import psutil

from tests.free_ports import free_port

PROJECT = Path(__file__).resolve().parents[2]

_libc = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def end_with_starter() -> None:
    """Have a server end when whoever started it dies without cleaning up (a time limit, a kill)."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


class GatewayProcess:
    """The supervisor's process and its address."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, output: Path) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self.output = output

    def workers(self) -> list[psutil.Process]:
        """The worker processes, without helpers of Python's own, and without what a worker is just starting: its copy,
        until it becomes another program.
        """
        found: dict[int, psutil.Process] = {}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # it may be ending (a zombie is one, too)
                if "_bentoml_impl.worker.service" in " ".join(child.cmdline()) and child.ppid() not in found:
                    found[child.pid] = child
        return list(found.values())

    def wait_ready(self, timeout_s: float = 120.0) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                if httpx.get(f"{self.url}/v2/health/ready", timeout=1.0).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)  # it starts in another process
        raise AssertionError(f"the gateway is not ready:\n{self.output.read_text()}")

    @contextmanager
    def connected(self, count: int, timeout_s: float = 120.0) -> Iterator[list[httpx.Client]]:
        """One kept connection to each of `count` workers: who answers its first request answers them all."""
        deadline = time.monotonic() + timeout_s
        with ExitStack() as stack:
            found: dict[int, httpx.Client] = {}
            while len(found) < count:
                assert time.monotonic() < deadline, f"{len(found)} of {count} workers answer"
                client = stack.enter_context(httpx.Client(base_url=self.url, timeout=30.0))
                answer = client.get("/v2/health/ready")
                _, port = answer.extensions["network_stream"].get_extra_info("client_addr")
                for worker in self.workers():
                    if any(one.raddr and one.raddr.port == port for one in worker.net_connections("tcp")):
                        found.setdefault(worker.pid, client)
            yield list(found.values())

    def stop(self) -> None:
        """SIGTERM, and wait for the end."""
        self.process.terminate()
        self.process.wait(60)


def end_group(process: subprocess.Popen[bytes], grace_s: float = 20.0) -> None:
    """End the leader of a session in order, and whatever is left of its group by force."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def bentoml_serve(
    home: Path, target: str = "serving.service:Gateway", cwd: Path = PROJECT, **environment: str
) -> Iterator[GatewayProcess]:
    """A ready gateway over `home`, of the checkout or of a bento; ended with its whole process group."""
    port = free_port()
    output = home / "gateway.out"
    command = [sys.executable, "-m", "bentoml", "serve", target, "--host", "127.0.0.1", "--port"]
    variables = {"SLIPWAY_HOME": str(home), "SLIPWAY_TOKEN": "sesame", "BENTOML_DO_NOT_TRACK": "True"}
    variables |= {"SLIPWAY_GATEWAY_WORKERS": "1", **environment}
    with output.open("wb") as handle:
        process = subprocess.Popen(
            [*command, str(port)],
            cwd=cwd,
            env=os.environ | variables,
            stdout=handle,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_starter,
        )
    gateway = GatewayProcess(process, port, output)
    try:
        gateway.wait_ready()
        yield gateway
    finally:
        end_group(process)
