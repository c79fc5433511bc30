"""The gateway shows how old the views are that its releases read."""

from __future__ import annotations

import asyncio
import sqlite3
import time

import pytest

from tests.serving.conftest import Installation, Start
from tests.serving.test_online_features import put, view


@pytest.mark.anyio
async def test_the_age_of_what_can_be_read_is_shown_by_view(home: Installation, start: Start) -> None:
    pin = view(entity={"origin": "origin"}, features=["temp"], ttl_us=None)
    database = home.home / "feast" / "online_store.db"
    put(database, pin, {"origin": "EWR"}, "2026-01-01 00:00:00", {"temp": 39.5})
    through_us = int((time.time() - 7200) * 1e6)
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE slipway_materialised (feature_view TEXT PRIMARY KEY, through_us INTEGER)")
        connection.executemany(
            "INSERT INTO slipway_materialised VALUES (?, ?)", [(pin.view, through_us), ("other__0000", 1)]
        )
    home.publish(champion=home.release(0.4, semver="2.0.0", views=[pin]))
    async with start() as running:
        text = ""
        while pin.view not in text:  # asked for beside the requests; the test's time limit ends it
            await asyncio.sleep(0.02)  # the gateway shares this loop
            text = (await running.client.get("/metrics")).text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("slipway_view_"))
    assert float(lines[f'slipway_view_readable_through_timestamp_seconds{{view="{pin.view}"}}']) == through_us / 1e6
    assert 7200 <= float(lines[f'slipway_view_age_seconds{{view="{pin.view}"}}']) < 7300
    assert not any("other__0000" in line for line in lines)
