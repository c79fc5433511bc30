"""What is known of a release, as `slipway release` shows it: its manifest beside its row in the control database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from pipelines.contracts.clocks import from_us
from pipelines.contracts.release import verify


def description(releases: Path, digest: str) -> dict[str, Any]:
    """The verified manifest as JSON-ready values. Raises as `contracts.release.verify`."""
    found: dict[str, Any] = msgspec.to_builtins(verify(releases / digest, digest))
    found["created"] = from_us(found.pop("created_us")).isoformat()
    return found


def card(releases: Path, digest: str) -> str:
    """The model card of a verified release; empty when the bundle has none."""
    verify(releases / digest, digest)
    path = releases / digest / "model_card.md"
    return path.read_text() if path.is_file() else ""
