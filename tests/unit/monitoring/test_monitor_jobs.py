"""The monitor's jobs over a real lake and control database: what is read, what is said, what is asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.adapters.control_db import control_db
from pipelines.adapters.delta_lake import DeltaLake
from pipelines.collect.numbering import Numbered
from pipelines.collect.tables import to_tables
from pipelines.contracts.assignment import PPM, payload_is_logged
from pipelines.contracts.clocks import from_us
from pipelines.contracts.events import Assignment, EventId, FeatureRead, Label, Response
from pipelines.settings import PROJECT, Settings
from pipelines.wiring import monitoring, rollouts
from tests.builders import constant_release

MODEL = "late_arrival"
DAY = 86_400_000_000
NOW = 16_000 * DAY


class Log:
    """Writes what a gateway would have logged, as the collector stores it."""

    def __init__(self, settings: Settings, release: str) -> None:
        self.settings, self.release = settings, release
        self.rng = np.random.default_rng(11)
        self.events: list[Numbered] = []
        self.requests = 0

    def days(
        self, first: float, last: float, share: float, *, a_day: int = 90, carrier: str = "", **given: Any
    ) -> None:
        """Requests on days [first, last) before NOW; positives with probability `share`; scores stay at .2."""
        for event_us in np.linspace(NOW + first * DAY, NOW + last * DAY, int((last - first) * a_day), endpoint=False):
            drawn = carrier or str(self.rng.choice(["UA", "AA", "DL"]))
            score = float(np.clip(self.rng.normal(0.2, 0.05), 0.02, 0.98))
            self.one(int(event_us), score, float(self.rng.random() < share), drawn, **given)

    def one(
        self,
        event_us: int,
        score: float,
        label: float,
        carrier: str = "UA",
        *,
        release: str = "",
        label_delay: int = DAY // 4,
        duplicate: bool = False,
        payload_ppm: int = PPM,
    ) -> None:
        self.requests += 1
        request_id = f"q{self.requests}"
        sampled = payload_is_logged(request_id, payload_ppm)
        common = {"model": MODEL, "request_id": request_id}
        inputs = {"carrier": [carrier], "distance": [float(self.rng.normal(1000, 200))]}
        asked = Assignment(
            id=self._id(), event_us=event_us, wall_us=event_us, arm="champion", share_ppm=0, salt="s", unit=request_id,
            mode="single", stage="", rollout_id=None, route_version=1, champion=self.release,
            inputs=inputs if sampled else {}, sampled=sampled, **common,
        )  # fmt: skip
        self._add(asked, duplicate)
        read = FeatureRead("weather_at_origin__ab12", ["temp"], [event_us], [[float(self.rng.normal(60, 5))]])
        self._add(
            Response(
                id=self._id(),
                arm="champion",
                release=release or self.release,
                rollout_id=None,
                event_us=event_us,
                wall_us=event_us,
                status="ok",
                served=True,
                score=[score],
                features=[read] if sampled else [],
                sampled=sampled,
                **common,
            )
        )
        told_us = event_us + label_delay
        self._add(Label(id=self._id(), value=label, event_us=told_us, wall_us=told_us, **common))

    def write(self) -> None:
        lake = DeltaLake(self.settings.lake)
        for kind, table in to_tables(self.events, 1).items():
            lake.append(f"inference/{kind}", table, partition_by=["model"])

    def _id(self) -> EventId:
        return EventId("gw0", 0, 1, len(self.events))

    def _add(self, event: Any, duplicate: bool = False) -> None:
        self.events.append(Numbered(event, len(self.events) + 1, None, duplicate))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = Settings(home=tmp_path, include_dir=PROJECT / "include", clock="replay")
    made.event_clock().tick(NOW - 100 * DAY)
    return made


@pytest.fixture
def champion(settings: Settings) -> str:
    release = constant_release(settings.releases, MODEL, 0.2)
    rollout = rollouts.start(settings, MODEL, release, actor="approver")
    rollouts.approve(settings, rollout.id, "approver")
    rollouts.advance(settings, rollout.id)
    return release


@pytest.fixture
def log(settings: Settings, champion: str) -> Iterator[Log]:
    return Log(settings, champion)


def verdicts_of(settings: Settings, as_of_us: int = NOW) -> dict[str, Any]:
    measured = monitoring.measure(settings, MODEL, as_of_us)
    found = monitoring.load(settings, MODEL, measured.digest, as_of_us)
    return {verdict.name: verdict for verdict in found.verdicts}


def test_without_a_champion_nothing_is_measured(settings):
    assert monitoring.measure(settings, MODEL, NOW) == monitoring.Measured(measured=False)


def test_a_champion_without_a_log_has_no_data_and_asks_for_nothing(settings, champion):
    measured = monitoring.measure(settings, MODEL, NOW)
    assert measured.measured
    assert not measured.drifted
    assert not monitoring.retrain(settings, MODEL, measured.digest, NOW).drifted


def test_calm_days_ask_for_nothing(settings, log):
    log.days(-45, 0, 0.2)
    log.write()
    found = verdicts_of(settings)
    assert {name for name, verdict in found.items() if verdict.verdict != "pass"} == set()
    assert {"carrier", "distance", "weather_at_origin.temp", "score", "label", "log_loss"} == set(found)
    assert found["carrier"].current_rows == 7 * 90
    assert found["label"].current_rows == pytest.approx(7 * 90, abs=1)


def test_more_positives_than_the_scores_say_ask_for_one_retraining(settings, log):
    log.days(-45, -8, 0.2)
    log.days(-8, 0, 0.45)
    log.write()
    measured = monitoring.measure(settings, MODEL, NOW)
    assert measured.failed == ["label", "log_loss"]
    ask = monitoring.retrain(settings, MODEL, measured.digest, NOW)
    assert ask.asked
    assert "label: share 0.1" in ask.reason
    assert monitoring.retrain(settings, MODEL, measured.digest, NOW) == ask
    rows = control_db(settings).retrains(MODEL)
    assert [(row.as_of_us, row.status) for row in rows] == [(NOW, "asked")]
    events = control_db(settings).asset_events(f"drift://{MODEL}")
    assert [event["extra"]["as_of_us"] for event in events] == [NOW]


def test_the_next_day_is_refused_by_the_cool_down_and_written_down(settings, log):
    log.days(-45, -8, 0.2)
    log.days(-8, 1, 0.45)
    log.write()
    for as_of_us, asked in ((NOW, True), (NOW + DAY, False)):
        measured = monitoring.measure(settings, MODEL, as_of_us)
        assert measured.drifted
        assert monitoring.retrain(settings, MODEL, measured.digest, as_of_us).asked is asked
    rows = control_db(settings).retrains(MODEL)
    assert [row.status for row in rows] == ["asked", "refused"]
    assert "cool-down" in rows[1].reason


def test_measuring_again_gives_the_same_report_once(settings, log):
    log.days(-45, 0, 0.2)
    log.write()
    digests = {monitoring.measure(settings, MODEL, NOW).digest for _ in range(2)}
    monitoring.measure(settings, MODEL, NOW - DAY)
    kept = DeltaLake(settings.lake).read(monitoring.table_of(MODEL))
    assert len(digests) == 1
    assert sorted(kept.column("as_of").to_pylist()) == [from_us(NOW - DAY), from_us(NOW)]


def test_a_label_that_was_not_known_yet_does_not_count(settings, log):
    log.days(-45, 0, 0.2, label_delay=60 * DAY)
    log.write()
    found = verdicts_of(settings)
    assert found["label"].verdict == "no_data"
    assert (found["label"].reference_rows, found["label"].current_rows) == (0, 0)
    assert found["carrier"].verdict == "pass"


def test_repeats_and_other_releases_do_not_count(settings, log):
    log.days(-45, 0, 0.2)
    log.days(-7, 0, 0.2, duplicate=True, carrier="ZZ")
    log.days(-7, 0, 0.2, release="f" * 64, carrier="ZZ")
    log.write()
    found = verdicts_of(settings)
    assert found["carrier"].verdict == "pass"
    assert found["carrier"].current_rows == 7 * 90


def test_a_new_carrier_is_drift_and_a_season_is_only_shown(settings, log):
    log.days(-45, -7, 0.2)
    log.days(-7, 0, 0.2, carrier="ZZ")
    for numbered in log.events:
        event = numbered.event
        if isinstance(event, Response) and event.event_us >= NOW - 7 * DAY:
            event.features[0].values[0][0] -= 40.0
    log.write()
    found = verdicts_of(settings)
    assert found["carrier"].asks
    assert found["weather_at_origin.temp"].verdict == "fail"
    assert not found["weather_at_origin.temp"].asks


def test_sampled_payloads_are_compared_among_themselves_and_the_rate_is_said(settings, log):
    log.days(-45, -7, 0.2, payload_ppm=300_000)
    log.days(-7, 0, 0.2, a_day=300, payload_ppm=300_000)
    log.write()
    found = verdicts_of(settings)
    assert {name for name, verdict in found.items() if verdict.verdict != "pass"} == set()
    for name in ("carrier", "distance", "weather_at_origin.temp"):
        assert found[name].current_rows == pytest.approx(0.3 * 7 * 300, rel=0.15)
        assert re.search(r"payloads of [23]\d\.\d% of the reference's rows and [23]\d\.\d% of", found[name].sentence)
    assert found["score"].current_rows == 7 * 300
    assert found["label"].current_rows > 1_800  # its window is an earlier one


@pytest.mark.slow
def test_the_report_is_an_artifact_of_one_run_in_mlflow(settings, log, tmp_path, monkeypatch):
    from mlflow.tracking import MlflowClient

    url = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setattr(Settings, "mlflow_url", property(lambda _: url))
    monkeypatch.chdir(tmp_path)
    log.days(-45, -8, 0.2)
    log.days(-8, 0, 0.45)
    log.write()
    measured = monitoring.measure(settings, MODEL, NOW)
    runs = {monitoring.report(settings, MODEL, measured.digest, NOW) for _ in range(2)}
    assert len(runs) == 1
    client = MlflowClient(url)
    run = client.get_run(runs.pop())
    assert run.data.metrics["label.label.current"] == pytest.approx(0.45, abs=0.06)
    assert run.data.tags["slipway.failed"] == "label, log_loss"
    assert {item.path for item in client.list_artifacts(run.info.run_id)} == {"drift.html", "report.json"}
    page = Path(client.download_artifacts(run.info.run_id, "drift.html", str(tmp_path))).read_text()
    assert "weather_at_origin.temp" in page
