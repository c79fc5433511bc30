"""E-mails of decisions through Airflow's SMTP provider, against a real SMTP server on this machine."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from email import message_from_bytes, policy
from pathlib import Path

import pytest

from pipelines.contracts.errors import TransientError
from pipelines.rollout.policy import Policy
from pipelines.rollout.stages import from_spec
from pipelines.rollout.state import Plan, Recipient
from pipelines.settings import Settings
from pipelines.wiring import rollouts
from tests.builders import constant_release
from tests.dags.test_gates import POLICY, STAGES


class Mailbox(socketserver.ThreadingTCPServer):
    """An SMTP server that takes every message, unless `full`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Session)
        self.full = False
        self.came: list[tuple[str, bytes]] = []


class _Session(socketserver.StreamRequestHandler):
    server: Mailbox

    def handle(self) -> None:
        self._say("220 mailbox")
        to, lines = "", None
        for line in self.rfile:
            if lines is not None:
                if line != b".\r\n":
                    lines.append(line)
                    continue
                self.server.came.append((to, b"".join(lines)))
                lines = None
            word = line.split()[0].upper() if line.split() else b""
            if word == b"RCPT":
                to = line.decode().partition("<")[2].partition(">")[0]
            if word == b"DATA" and not self.server.full:
                lines = []
            self._say(
                "354 go on" if lines is not None else "452 full" if self.server.full and word == b"RCPT" else "250 ok"
            )
            if word == b"QUIT":
                return

    def _say(self, text: str) -> None:
        self.wfile.write(text.encode() + b"\r\n")


@pytest.fixture
def mailbox(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Mailbox]:
    with Mailbox() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        options = "disable_ssl=true&disable_tls=true&retry_limit=0&from_email=slipway%40example.com"
        monkeypatch.setenv("AIRFLOW_CONN_SMTP_DEFAULT", f"smtp://127.0.0.1:{port}/?{options}")
        yield server
        server.shutdown()


def begun(home: Path) -> tuple[Settings, str]:
    """A first champion that waits for its approval; its team is told by e-mail."""
    settings = Settings(home=home)
    told = (Recipient(by="email", to="team@example.com"),)
    plan = Plan(stages=from_spec(STAGES), policy=Policy.parse(POLICY).to_mapping(), notify=told)
    release = constant_release(settings.releases, "m", 0.3)
    return settings, rollouts.start(settings, "m", release, actor="test", plan=plan).id


def undone(settings: Settings, rollout_id: str) -> list[str]:
    actions = [action for each in rollouts.show(settings, rollout_id)["decisions"] for action in each["actions"]]
    return [action.get("by", action["action"]) for action in actions if not action["done"]]


def test_an_email_goes_through_airflows_provider_and_names_its_decision(tmp_path: Path, mailbox: Mailbox) -> None:
    settings, rollout_id = begun(tmp_path)
    mailbox.full = True
    rollouts.advance(settings, rollout_id)
    assert undone(settings, rollout_id) == ["email"]
    mailbox.full = False
    rollouts.advance(settings, rollout_id)
    rollouts.advance(settings, rollout_id)
    assert undone(settings, rollout_id) == []
    ((to, raw),) = mailbox.came
    mail = message_from_bytes(raw, policy=policy.default)
    assert (to, mail["Message-ID"], mail["Subject"]) == ("team@example.com", "<m.1@slipway>", "Slipway: m:1 (info)")
    (part,) = mail.iter_parts()
    assert "has to approve" in part.get_content()


def test_without_the_connection_the_email_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.adapters import airflow_email

    monkeypatch.delenv("AIRFLOW_CONN_SMTP_DEFAULT", raising=False)
    with pytest.raises(TransientError, match="smtp_default"):
        airflow_email.send("team@example.com", "subject", "text", key="m:1")
