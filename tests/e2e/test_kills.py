"""Every acknowledged request survives `kill -9` of whatever carries it, in the lake exactly once, on either bus.

Kills come at moments, and at bytes of the log's own writes, drawn from a printed seed while requests are in flight.
`benchmarks/kills.py` does the same a hundred times.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.stack.environment import serving_python
from tests.e2e.kills import Client, Site, count, running, wait_for_answers
from tests.kafka_broker import broker

pytestmark = pytest.mark.e2e

SEED = int(os.environ.get("SLIPWAY_KILL_SEED") or random.SystemRandom().randrange(2**31))
TURNS = {
    "folder": ["gateway supervisor", "gateway, all of it", "gateway worker in a write", "collector"],
    "kafka": ["gateway worker", "gateway worker in a write", "shipper", "shipper", "collector", "broker"],
}


@pytest.fixture(params=TURNS)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    if not serving_python().exists():
        assert os.environ.get("CI") != "true", f"{serving_python()} is missing: run `make setup`"
        pytest.skip("no serving environment: run `make setup`")
    if request.param == "folder":
        with running(tmp_path / "home", None) as made:
            yield made
        return
    with broker(tmp_path / "kafka") as started, running(tmp_path / "home", started) as made:
        yield made


def test_what_was_acknowledged_is_in_the_lake_once_whoever_is_killed(site: Site, tmp_path: Path) -> None:
    rng = random.Random(SEED)
    turns = list(TURNS["kafka" if site.broker else "folder"])
    rng.shuffle(turns)
    turns.append("shadow process")  # of a worker that lives on
    print(f"\nseed {SEED} (SLIPWAY_KILL_SEED): {turns}")
    with Client(site.settings, tmp_path / "acknowledged") as client:
        for name in turns:
            site.kill(client, name, rng)
        wait_for_answers(client, 50)
    counted = count(site, client)
    print(f"sent {counted.sent}, acknowledged {counted.acknowledged}, found exactly once {counted.found}")
    print(f"{dict(client.outcomes)}; {counted}")
    assert counted.found == counted.acknowledged
    assert counted.stored_twice == 0, "nothing is stored twice, acknowledged or not"
    assert counted.not_whole == []
    assert counted.second_arms > 0
    assert counted.pairs_missing == 0
    assert counted.streams == 1 + sum(name.startswith("gateway") for name in turns), "one epoch a worker's life"
