"""What one look of the monitor found: kept in the lake as text, named by its digest."""

from __future__ import annotations

import msgspec

from pipelines.contracts.canonical import canonical_json, digest
from pipelines.monitoring.columns import Windows
from pipelines.monitoring.verdicts import Verdict

SCHEMA = "slipway-monitor/1"


class MonitorReport(msgspec.Struct, frozen=True, kw_only=True):
    """Verdicts about one champion at one event time. `inputs` windows end at `as_of`, `labels` windows at maturity."""

    schema: str = SCHEMA
    model: str
    champion: str
    as_of_us: int
    inputs: Windows
    labels: Windows
    verdicts: list[Verdict]

    @property
    def digest(self) -> str:
        """SHA-256 of the report's canonical JSON."""
        return digest(msgspec.to_builtins(self))

    @property
    def failed(self) -> list[str]:
        """Names of what failed and asks for a retraining."""
        return [verdict.name for verdict in self.verdicts if verdict.asks]

    def to_json(self) -> str:
        """The report as canonical JSON, whose digest names it."""
        return canonical_json(msgspec.to_builtins(self)).decode()


def from_json(text: str) -> MonitorReport:
    """The report of its text. Raises `msgspec.ValidationError`."""
    return msgspec.json.decode(text, type=MonitorReport)
