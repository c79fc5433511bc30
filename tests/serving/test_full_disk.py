"""A real gateway whose disk is really full: a small tmpfs, or a file size limit where no file system may be mounted."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import httpx
import psutil
import pytest

from pipelines.contracts import segments
from pipelines.contracts.events import Assignment, Label, Response
from tests.serving.conftest import Installation
from tests.serving.processes import GatewayProcess, bentoml_serve
from tests.waiting import wait_until


class Disk(Protocol):
    def fill(self, gateway: GatewayProcess) -> None:
        """No room is left."""

    def free(self, gateway: GatewayProcess) -> None:
        """There is room again."""


class SmallDisk:
    """A tmpfs of 1 MB, filled by somebody else's file."""

    def __init__(self, bus: Path) -> None:
        self._other = bus / "other"

    def fill(self, gateway: GatewayProcess) -> None:
        with self._other.open("wb", buffering=0) as handle:
            try:
                while handle.write(b"x" * 4096):
                    pass
            except OSError:
                return

    def free(self, gateway: GatewayProcess) -> None:
        self._other.unlink()


class LimitedFiles:
    """No file of the gateway may grow beyond the size its segment has now: the kernel cuts the write that would."""

    def fill(self, gateway: GatewayProcess) -> None:
        (worker,) = gateway.workers()
        sizes = [Path(file.path).stat().st_size for file in worker.open_files() if file.path.endswith(".seg")]
        self._limit(worker, max(sizes) + 100)

    def free(self, gateway: GatewayProcess) -> None:
        (worker,) = gateway.workers()
        self._limit(worker, resource.RLIM_INFINITY)

    def _limit(self, worker: psutil.Process, size: int) -> None:
        _, hard = resource.prlimit(worker.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (size, hard))


@contextmanager
def mounted(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"no tmpfs may be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(params=["small disk", "limited files"])
def disk(request: pytest.FixtureRequest, home: Installation) -> Iterator[Disk]:
    if request.param == "limited files":
        yield LimitedFiles()
        return
    if os.geteuid() != 0:
        pytest.skip("only root may mount a tmpfs; the limit on files stands in for it")
    bus = home.home / "bus"
    with mounted(bus):
        yield SmallDisk(bus)


def infer(gateway: GatewayProcess, request_id: str) -> dict[str, Any]:
    body = {"id": request_id, "inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [1.0]}]}
    answer = httpx.post(f"{gateway.url}/v2/models/m/infer", json=body)
    assert answer.status_code == 200, answer.text
    parameters: dict[str, Any] = answer.json()["parameters"]
    return parameters


def test_champions_answer_unlogged_while_the_disk_is_full_and_logging_goes_on_when_it_is_not(
    home: Installation, disk: Disk
) -> None:
    home.publish("split", share_ppm=1_000_000)
    logged: list[str] = []
    unlogged: list[str] = []
    labels = {"labels": [{"id": f"q{number}", "value": 1} for number in range(200)]}
    with bentoml_serve(home.home) as gateway:
        before = infer(gateway, "q0")
        assert (before["arm"], before["logged"]) == ("challenger", True)
        disk.fill(gateway)
        for number in range(1, 60):  # what the last block still has room for is logged
            parameters = infer(gateway, f"q{number}")
            (logged if parameters["logged"] else unlogged).append(f"q{number}")
            if not parameters["logged"]:
                assert parameters["arm"] == "champion", "no exposure without its record"
        assert len(unlogged) >= 20
        assert httpx.post(f"{gateway.url}/v1/models/m/labels", json=labels).status_code == 503
        disk.free(gateway)
        after = infer(gateway, "after")
        assert (after["arm"], after["logged"]) == ("challenger", True)
        assert httpx.post(f"{gateway.url}/v1/models/m/labels", json=labels).status_code == 202
        counted = f'slipway_unlogged_total{{model="m"}} {len(unlogged)}.0'
        wait_until(lambda: counted in httpx.get(f"{gateway.url}/metrics").text, "each of them is counted")
        gateway.stop()
        assert "Traceback" not in gateway.output.read_text()
        found = [event.request_id for event in home.events(Response) if event.served]
        assert sorted(found) == sorted(["q0", *logged, "after"])
        assert set(found) <= {event.request_id for event in home.events(Assignment)}
        assert {event.request_id for event in home.events(Label)} == {f"q{number}" for number in range(200)}
        assert [event.id.n for event in home.events()] == list(range(len(home.events()))), "no hole, nothing twice"
        (folder,) = (home.home / "bus" / "gw0").iterdir()
        for path in folder.glob("*.seg"):
            data = path.read_bytes()
            *_, last = segments.read_frames(data)
            assert last.end == len(data), "no half frame is left"
        assert (folder / "closed").read_text() == str(len(home.events()))
