"""The collector over a real topic: exactly once through a death at any step, and what `slipway log verify` proves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipelines.adapters.collector_store import CollectorStore
from pipelines.adapters.inference_tables import InferenceTables
from pipelines.cli import log
from pipelines.contracts import segments
from pipelines.contracts.kafka import connection
from pipelines.settings import Settings
from pipelines.wiring.collect import Collector, collect_all, verify_log
from serving.shipper import Shipper
from tests.kafka_broker import Broker
from tests.unit.collect.installation import Installation
from tests.unit.collect.traffic import Worker


class DeathError(Exception):
    """The process ends here."""


class Site:
    """An installation whose log goes over a topic of its own."""

    def __init__(self, home: Path, servers: str) -> None:
        self.installation = Installation(home)
        self.on_kafka = Settings(home=home, kafka=servers, kafka_topic=f"slipway-{home.name}")
        self.worker = Worker(self.installation.bus)

    def serve(self, begin: int, count: int) -> None:
        for number in range(begin, begin + count):
            self.worker.request(self.installation.route, f"q{number}", label=1.0)

    def ship(self) -> None:
        state = self.on_kafka.root / "positions.json"
        kafka = connection(self.on_kafka.kafka, self.on_kafka.kafka_topic)
        shipper = Shipper(self.installation.bus, state, kafka, quiet_s=0.0)
        while shipper.once():
            pass
        shipper.close()


@pytest.fixture
def site(kafka: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    home = tmp_path / f"home-{tmp_path.name}"
    made = Site(home, kafka.servers)
    monkeypatch.setenv("SLIPWAY_HOME", str(home))
    monkeypatch.setenv("SLIPWAY_KAFKA", kafka.servers)
    monkeypatch.setenv("SLIPWAY_KAFKA_TOPIC", made.on_kafka.kafka_topic)
    return made


def events(worker: Worker) -> list[tuple[str, int, int, int]]:
    return [(worker.gateway, worker.worker, worker.epoch, n) for n in range(worker.n)]


def test_a_collector_that_dies_at_any_step_stores_every_event_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[type, str]] = [
        (CollectorStore, "plan"),
        (InferenceTables, "append"),
        (InferenceTables, "set_aside"),
        (CollectorStore, "complete"),
    ]
    for number, (owner, name) in enumerate(steps):
        for is_done in (False, True):
            site.serve(20 * number + 10 * is_done, 10)
            site.worker.frame(b"no event")
            site.ship()
            real = getattr(owner, name)

            def dying(self: Any, *arguments: Any, real: Any = real, is_done: bool = is_done) -> Any:
                if is_done:
                    real(self, *arguments)
                raise DeathError

            with monkeypatch.context() as patch:
                patch.setattr(owner, name, dying)
                with pytest.raises(DeathError):
                    Collector(site.on_kafka).once()
    site.worker.close()
    site.ship()
    collect_all(site.on_kafka)
    aside = [event_id for event_id, _ in site.installation.quarantined()]
    assert len(aside) == 2 * len(steps)
    assert sorted([*site.installation.stored(), *aside]) == events(site.worker)
    (report,) = verify_log(site.on_kafka)
    assert (report.whole, report.ended, report.waiting) == (True, True, 0)
    assert report.written == site.worker.n


def test_removing_one_frame_by_hand_makes_log_verify_fail(site: Site) -> None:
    site.serve(0, 20)
    site.ship()
    collect_all(site.on_kafka)
    assert CliRunner().invoke(log.app, ["verify"]).exit_code == 0

    robbed = site.worker = Worker(site.installation.bus, worker=1)
    site.serve(20, 20)
    whole = robbed.path.read_bytes()
    ends = [len(segments.MAGIC), *(frame.end for frame in segments.read_frames(whole))]
    robbed.path.write_bytes(whole[: ends[10]] + whole[ends[11] :])
    site.ship()
    collect_all(site.on_kafka)
    result = CliRunner().invoke(log.app, ["verify", "--json"])
    assert result.exit_code == 1
    first, second = json.loads(result.output)
    assert (first["whole"], second["whole"]) == (True, False)
    assert second["lost"] == [[10, 10]]


def test_what_the_brokers_have_had_for_long_leaves_the_gateways_disk(site: Site) -> None:
    site.serve(0, 5)
    first = site.worker.path
    site.worker.rotate()
    site.serve(5, 5)
    site.ship()
    shipper = Shipper(site.installation.bus, site.on_kafka.root / "positions.json", connection("nobody:1", "t"))
    assert shipper.remove_old_segments(keep_days=1) == 0
    assert shipper.remove_old_segments(keep_days=-1) == 1
    assert (first.exists(), site.worker.path.exists()) == (False, True)
    collect_all(site.on_kafka)
    assert sorted(site.installation.stored()) == events(site.worker)
    assert all(report.whole for report in verify_log(site.on_kafka))


def test_what_lies_on_the_topic_and_not_in_the_lake_is_told(site: Site) -> None:
    site.serve(0, 5)
    site.ship()
    (report,) = verify_log(site.on_kafka)
    assert (report.written, report.stored, report.waiting) == (site.worker.n, 0, site.worker.n)


def test_an_installation_moves_to_kafka_and_back_without_losing_or_repeating(site: Site) -> None:
    folder = site.installation.settings
    site.serve(0, 10)
    collect_all(folder)
    site.serve(10, 10)
    site.ship()
    collect_all(site.on_kafka)
    site.serve(20, 10)
    collect_all(folder)
    site.serve(30, 10)
    site.ship()
    collect_all(site.on_kafka)
    assert sorted(site.installation.stored()) == events(site.worker)
    assert all(report.whole for report in [*verify_log(folder), *verify_log(site.on_kafka)])
