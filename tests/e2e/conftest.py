"""Which end-to-end tests share a worker when two run side by side, and which begin."""

from __future__ import annotations

import pytest

REHEARSALS = "test_rehearsal"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests share its stack, so they share a worker; rehearsals are alone and the longest, so they begin."""
    for item in items:
        file = item.path.stem
        item.add_marker(pytest.mark.xdist_group(item.name if file == REHEARSALS else file))
    items.sort(key=lambda item: item.path.stem != REHEARSALS)
