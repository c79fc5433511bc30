"""A real Prometheus for tests: own port and data folder, scraping one address; ended with the block."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.free_ports import free_port
from tests.waiting import wait_until


class Prometheus:
    """One server. `query` and `rules` speak its HTTP API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The result of an instant query. AssertionError with Prometheus' own words for one that is wrong."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=10).json()
        assert answer["status"] == "success", f"{expression}: {answer.get('error')}"
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def value(self, expression: str) -> float:
        """The one value of a query."""
        (one,) = self.query(expression)
        return float(one["value"][1])

    def rules(self) -> list[dict[str, Any]]:
        """All rules, with their health."""
        groups = httpx.get(f"{self.url}/api/v1/rules", timeout=10).json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]


def program(name: str) -> str:
    """Where `prometheus` or `promtool` is. Skips without it; under CI=true that is a failure."""
    found = shutil.which(name)
    if found is None:
        line = "Prometheus is not installed: apt-get install -y prometheus (or: python3 scripts/setup.py --servers)"
        if os.environ.get("CI") == "true":
            pytest.fail(line)
        pytest.skip(line)
    return found


@contextmanager
def prometheus(target: str, rules: Path) -> Iterator[Prometheus]:
    """A ready server that scrapes `target` (host:port) five times a second and evaluates `rules`."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="slipway-prometheus-") as name:
        folder = Path(name)
        scrape = [{"job_name": "slipway-gateway", "static_configs": [{"targets": [target]}]}]
        often = {"scrape_interval": "200ms", "evaluation_interval": "500ms"}
        config = {"global": often, "rule_files": [str(rules)], "scrape_configs": scrape}
        (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        options = {"config.file": folder / "prometheus.yml", "storage.tsdb.path": folder / "data"}
        options["web.listen-address"] = f"127.0.0.1:{port}"
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [program("prometheus"), *(f"--{key}={value}" for key, value in options.items())], stdout=log, stderr=log
            )
        server = Prometheus(f"http://127.0.0.1:{port}")
        try:
            wait_until(lambda: _ready(server.url, process, folder / "log"), "Prometheus is ready")
            yield server
        finally:
            process.terminate()
            process.wait(20)


def _ready(url: str, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        return httpx.get(f"{url}/-/ready", timeout=2).status_code == 200
    except httpx.TransportError:
        return False
