"""Up, down and status, with small real processes in the place of the servers."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.contracts.errors import NotFoundError, TerminalError, TransientError
from pipelines.settings import Settings
from pipelines.stack import PartStatus, control, down, parts, status, up
from pipelines.stack.processes import read_record
from pipelines.stack.readiness import beats
from tests import streamed_project
from tests.free_ports import free_port
from tests.waiting import wait_until

SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"{}")
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    made = Settings(home=tmp_path, gateway_port=free_port())
    yield made
    down(made)


@pytest.fixture(autouse=True)
def small_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway's place is taken by a server of ten lines; everything else is the real thing."""
    use_command(monkeypatch, lambda s: [sys.executable, "-c", SERVER, str(s.gateway_port)])


def use_command(monkeypatch, command):
    changed = tuple(dataclasses.replace(p, command=command) if p.name == "gateway" else p for p in parts.PARTS)
    monkeypatch.setattr(parts, "PARTS", changed)


def crashed_parts(settings: Settings) -> list[PartStatus]:
    """The crashed parts, as soon as there is one."""
    found: list[PartStatus] = []

    def crashed() -> bool:
        found.extend(part for part in status(settings, ["gateway"]) if part.state == "crashed")
        return bool(found)

    wait_until(crashed, "the gateway has crashed", 30)
    return found


def test_up_waits_until_the_part_answers_and_is_idempotent(settings):
    told = []
    (first,) = up(settings, ["gateway"], lambda part, happening: told.append((part, happening)))
    assert first.state == "running"
    assert told == [("gateway", "preparing"), ("gateway", "starting"), ("gateway", "running")]
    (again,) = up(settings, ["gateway"])
    assert again.pid == first.pid


def test_down_stops_it_frees_the_port_and_may_be_repeated(settings):
    up(settings, ["gateway"])
    (stopped,) = down(settings, ["gateway"])
    assert stopped.state == "stopped"
    assert stopped.pid is None
    (again,) = down(settings, ["gateway"])
    assert again == stopped
    up(settings, ["gateway"])


def test_a_killed_part_is_reported_as_crashed_and_comes_up_again(settings):
    (first,) = up(settings, ["gateway"])
    os.kill(first.pid, signal.SIGKILL)
    (crashed,) = crashed_parts(settings)
    assert (crashed.state, crashed.pid) == ("crashed", first.pid)
    (second,) = up(settings, ["gateway"])
    assert second.state == "running"
    assert second.pid != first.pid


def test_a_part_that_ends_while_it_starts_shows_its_last_words(settings, monkeypatch):
    use_command(monkeypatch, lambda s: [sys.executable, "-c", "raise SystemExit('no model at all')"])
    with pytest.raises(TerminalError, match="gateway ended while it started") as failed:
        up(settings, ["gateway"])
    assert "no model at all" in str(failed.value)
    assert "gateway.log" in str(failed.value)


def test_a_part_that_is_never_ready_is_named_when_the_time_is_over(settings, monkeypatch):
    use_command(monkeypatch, lambda s: [sys.executable, "-c", "import time; print('hm', flush=True); time.sleep(60)"])
    monkeypatch.setattr(control, "READY_TIMEOUT_S", 0.8)
    with pytest.raises(TransientError, match="gateway: not ready after 1 s") as failed:
        up(settings, ["gateway"])
    assert "hm" in str(failed.value)
    assert status(settings, ["gateway"])[0].state == "starting"


def test_a_stranger_that_answers_on_the_port_does_not_make_the_part_ready(settings, monkeypatch):
    use_command(monkeypatch, lambda s: [sys.executable, "-c", "import time; time.sleep(60)"])
    monkeypatch.setattr(control, "READY_TIMEOUT_S", 1.0)
    with pytest.raises(TransientError):
        up(settings, ["gateway"])
    record = read_record("gateway", settings.run_dir)
    gateway = next(part for part in parts.PARTS if part.name == "gateway")
    stranger = Settings(home=settings.home / "stranger", gateway_port=settings.gateway_port)
    use_command(monkeypatch, lambda s: [sys.executable, "-c", SERVER, str(s.gateway_port)])
    try:
        up(stranger, ["gateway"])
        assert not gateway.ready(settings, record)
    finally:
        down(stranger)


def test_an_unknown_part_is_refused_with_a_near_name(settings):
    with pytest.raises(NotFoundError, match="Did you mean 'gateway'"):
        up(settings, ["gatway"])


def test_airflow_stands_for_its_four_parts():
    assert [part.name for part in parts.choose(["collector", "airflow"])] == [
        "airflow-api-server",
        "airflow-scheduler",
        "airflow-dag-processor",
        "airflow-triggerer",
        "collector",
    ]


def test_the_shipper_is_a_part_where_kafka_is_configured_and_everywhere_it_may_be_stopped(settings):
    with_kafka = settings.model_copy(update={"kafka": "localhost:9092"})
    nothing_streams = [name for name in parts.PART_NAMES if name != "stream"]
    assert [part.name for part in parts.choose(None, with_kafka)] == nothing_streams
    assert "shipper" not in [part.name for part in parts.choose(None, settings)]
    assert "shipper" in [part.name for part in parts.choose(None)]


def test_streams_are_a_part_where_kafka_is_configured_and_a_view_has_one(settings, tmp_path):
    include = streamed_project.write(tmp_path, {"weather_at_origin": ("weather", True)})
    streaming = settings.model_copy(update={"include_dir": include})
    assert "stream" not in [part.name for part in parts.choose(None, streaming)]
    with_kafka = streaming.model_copy(update={"kafka": "localhost:9092"})
    assert "stream" in [part.name for part in parts.choose(None, with_kafka)]


def test_status_of_a_home_where_nothing_was_started(settings):
    statuses = status(settings)
    assert [part.part for part in statuses] == [name for name in parts.PART_NAMES if name not in {"shipper", "stream"}]
    assert {part.state for part in statuses} == {"stopped"}
    assert all(part.version for part in statuses)


def test_a_beat_of_before_the_start_or_of_long_ago_is_none(tmp_path):
    beat = tmp_path / "collector.beat"
    now = time.time()
    assert not beats(beat, since=now - 60)
    beat.touch()
    assert beats(beat, since=now - 60)
    assert not beats(beat, since=now + 60)
    os.utime(beat, (now - 50, now - 50))
    assert not beats(beat, since=now - 60)
