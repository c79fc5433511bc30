"""A tracking server counts as the installation's own only where it was started for it: ports are shared by all."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pipelines.adapters import mlflow_registry
from pipelines.settings import Settings


class Healthy(BaseHTTPRequestHandler):
    """Answers as any MLflow does."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing into the tests' output."""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with HTTPServer(("127.0.0.1", 0), Healthy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Settings(home=tmp_path, mlflow_port=server.server_port)
        server.shutdown()
        thread.join()


def test_a_server_that_somebody_else_started_is_left_alone(settings: Settings) -> None:
    assert not mlflow_registry.answers(settings)


def test_the_server_of_this_home_is_used(settings: Settings) -> None:
    settings.run_dir.mkdir()
    (settings.run_dir / "mlflow.json").write_text("{}")
    assert mlflow_registry.answers(settings)


def test_a_part_of_the_stack_uses_the_server_it_was_given(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", settings.mlflow_url)
    assert mlflow_registry.answers(settings)
