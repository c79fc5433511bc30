"""Webhooks of decisions, against a real HTTP server on this machine. (E-mails: `tests/dags/test_email.py`.)"""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest

from pipelines.rollout.state import Recipient
from pipelines.settings import Settings
from pipelines.wiring import rollout_messages, rollouts
from tests.builders import constant_release
from tests.unit.rollout.examples import PLAN

SECRET = "a secret that both know"


class Receiver(ThreadingHTTPServer):
    """Answers each POST with the next of `answers` (then 200), and keeps what came."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Post)
        self.answers: list[int] = []
        self.came: list[tuple[dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook"


class _Post(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:  # the name that http.server asks for
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.came.append((dict(self.headers), body))
        self.send_response(self.server.answers.pop(0) if self.server.answers else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Keeps the test's output clean."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def begun(home: Path, *told: Recipient, secret: str = SECRET) -> tuple[Settings, str]:
    """A first champion that waits for its approval, and that `told` hear of."""
    settings = Settings(home=home, webhook_secret=secret)
    release = constant_release(settings.releases, "m", 0.3)
    plan = msgspec.structs.replace(PLAN, notify=told)
    return settings, rollouts.start(settings, "m", release, actor="test", plan=plan).id


def undone(settings: Settings, rollout_id: str) -> list[str]:
    actions = [action for each in rollouts.show(settings, rollout_id)["decisions"] for action in each["actions"]]
    return [action.get("by", action["action"]) for action in actions if not action["done"]]


def test_a_webhook_is_signed_and_comes_again_with_the_same_key_until_it_is_taken(
    tmp_path: Path, receiver: Receiver
) -> None:
    settings, rollout_id = begun(tmp_path, Recipient(by="webhook", to=receiver.url))
    receiver.answers = [500, 302]
    for _ in range(2):
        effects = rollouts.advance(settings, rollout_id)
        assert "webhook" in undone(settings, rollout_id), effects
    rollouts.advance(settings, rollout_id)
    rollouts.advance(settings, rollout_id)
    assert undone(settings, rollout_id) == []
    assert len(receiver.came) == 3, "what has been taken is not sent again"
    for headers, body in receiver.came:
        signed = f"{headers['X-Slipway-Timestamp']}.".encode() + body
        expected = hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
        assert headers["X-Slipway-Signature"] == f"sha256={expected}"
        assert headers["Idempotency-Key"] == "m:1"
    message = json.loads(receiver.came[0][1])
    assert (message["decision"], message["model"], message["level"]) == ("m:1", "m", "info")
    assert "has to approve" in message["text"]


def test_a_receiver_that_is_away_delays_no_other_and_no_route(tmp_path: Path, receiver: Receiver) -> None:
    gone = Recipient(by="webhook", to="http://127.0.0.1:9/hook")
    settings, rollout_id = begun(tmp_path, gone, Recipient(by="webhook", to=receiver.url))
    rollouts.approve(settings, rollout_id, "anna", "so be it")
    rollouts.advance(settings, rollout_id)
    assert [headers["Idempotency-Key"] for headers, _ in receiver.came] == ["m:1", "m:2"]
    assert undone(settings, rollout_id) == ["webhook", "webhook"]
    assert rollouts.rollout_store(settings).db.champion("m") is not None


def test_without_a_secret_nothing_is_sent(tmp_path: Path, receiver: Receiver) -> None:
    settings, rollout_id = begun(tmp_path, Recipient(by="webhook", to=receiver.url), secret="")
    (effect,) = [each for each in rollouts.advance(settings, rollout_id) if not each.done]
    assert "SLIPWAY_WEBHOOK_SECRET" in effect.detail
    assert receiver.came == []


def test_what_nobody_was_told_of_is_told_by_the_collectors_messenger(tmp_path: Path, receiver: Receiver) -> None:
    settings, rollout_id = begun(tmp_path, Recipient(by="webhook", to=receiver.url))
    assert len(receiver.came) == 0
    rollout_messages.run(settings, lambda: bool(receiver.came))
    assert "webhook" not in undone(settings, rollout_id)
    assert len((settings.logs_dir / "notifications.jsonl").read_text().splitlines()) == 1
    assert rollout_messages.tell(settings) == []
