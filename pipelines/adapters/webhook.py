"""Sends a message to a webhook, signed, so that its receiver can tell who sent it, when, and whether it has it already.

Headers: `Idempotency-Key` (the decision's id: a message that comes again has the same one), `X-Slipway-Timestamp`
(seconds since 1970) and `X-Slipway-Signature`: `sha256=` and the hex HMAC-SHA256, by the shared secret, of the
timestamp, a full stop and the body.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

import httpx

from pipelines.contracts.canonical import canonical_json
from pipelines.contracts.errors import TransientError

TIMEOUT_S = 5.0
GONE = 410


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """What a receiver has to compute and compare."""
    return "sha256=" + hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()


def send(url: str, message: Mapping[str, Any], *, key: str, secret: str, now_s: int) -> str:
    """POST `message` as JSON; returns what the receiver said. Safe to call again with the same `key`.

    Raises TransientError when it has not been taken: the receiver is away, slow, or answers other than 2xx. `410 Gone`
    is taken for an answer: nobody wants it.
    """
    if not secret:
        hint = "Set SLIPWAY_WEBHOOK_SECRET; the next advance sends it."
        raise TransientError(f"webhook {url}", got="no secret to sign with", hint=hint)
    body, timestamp = canonical_json(dict(message)), str(now_s)
    headers = {
        "Content-Type": "application/json",
        "Idempotency-Key": key,
        "X-Slipway-Timestamp": timestamp,
        "X-Slipway-Signature": signature(secret, timestamp, body),
    }
    try:
        answer = httpx.post(url, content=body, headers=headers, timeout=TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise TransientError(f"webhook {url}", got=f"{type(error).__name__}: {error}", expected="an answer") from error
    if not answer.is_success and answer.status_code != GONE:
        raise TransientError(f"webhook {url}", got=str(answer.status_code), expected="2xx")
    return f"webhook {url}: {answer.status_code}"
