"""Gateways that are not hurried by a machine that is busy with something else for a second."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

PATIENT = {"MAX_QUEUE_MS": "60000", "FEATURES_BUDGET_MS": "10000", "SLOW_DISK_MS": "60000", "SHADOW_SHARE": "1"}
"""Limits of wall time; what is said by keyword, or in a gateway's own environment, goes before."""


@pytest.fixture(scope="session", autouse=True)
def patient() -> Iterator[None]:
    """Every gateway that is started by these tests, in process or not."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in PATIENT.items():
            patch.setenv(f"SLIPWAY_GATEWAY_{name}", value)
        yield
