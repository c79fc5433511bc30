"""Tells people of decisions: a line in a log, webhooks, e-mails; and goes on trying what could not be told."""

from __future__ import annotations

import fcntl
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

from pipelines.contracts.clocks import from_us, wall_us
from pipelines.contracts.errors import SlipwayError
from pipelines.rollout.actions import Action, Notify
from pipelines.rollout.executor import Effect, Mirror, execute
from pipelines.settings import Settings
from pipelines.wiring.rollout_gate import rollout_store

EVERY_S = 2.0
SLOWEST_S = 60.0
_log = logging.getLogger("slipway.messages")


def messengers(settings: Settings) -> dict[str, Mirror]:
    """Handlers of what is told to people, by target."""

    def log(action: Action, key: str) -> str:
        assert isinstance(action, Notify)
        return _note(settings.logs_dir / "notifications.jsonl", action, key)

    def webhook(action: Action, key: str) -> str:
        assert isinstance(action, Notify)
        from pipelines.adapters import webhook

        decision, _, _ = key.partition("/")
        model, _, _ = decision.rpartition(":")
        message = {"decision": decision, "model": model, "level": action.level, "text": action.text}
        secret = settings.webhook_secret.get_secret_value()
        return webhook.send(action.to, message, key=decision, secret=secret, now_s=wall_us() // 1_000_000)

    def email(action: Action, key: str) -> str:
        assert isinstance(action, Notify)
        from pipelines.adapters import airflow_email

        decision, _, _ = key.partition("/")
        return airflow_email.send(action.to, f"Slipway: {decision} ({action.level})", action.text, key=decision)

    return {"people": log, "webhook": webhook, "email": email}


def tell(settings: Settings) -> list[Effect]:
    """Tell what has not been told yet of any model's decisions; what fails is tried again by the next call."""
    store, handlers = rollout_store(settings), messengers(settings)
    return [effect for model in store.unfinished_models() for effect in execute(store, handlers, model)]


def run(settings: Settings, stopping: Callable[[], bool]) -> None:
    """`tell` every `EVERY_S`, less often while it fails, until `stopping()`.

    It has a thread of its own in the collector's process: decisions about held rollouts and overrides are made there,
    by no task that would tell anybody, and a receiver that hangs must not keep evidence waiting.
    """
    pause = EVERY_S
    while not stopping():
        try:
            failed = any(not effect.done for effect in tell(settings))
        except SlipwayError as error:
            _log.warning("%s", error)
            failed = True
        pause = min(pause * 2, SLOWEST_S) if failed else EVERY_S
        until = time.monotonic() + pause
        while time.monotonic() < until and not stopping():
            time.sleep(0.2)  # a signal sets a flag, and is obeyed within this


def _note(path: Path, action: Notify, key: str) -> str:
    """Append one line to the notification log, once a key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        log.seek(0)
        mark = json.dumps(key)
        if not any(mark in line for line in log):
            line = {"key": key, "at": from_us(wall_us()).isoformat(), "level": action.level, "text": action.text}
            log.write(json.dumps(line) + "\n")
    return str(path)
