"""An installation of the pump model with rows everywhere: lake, online store, training set, inference log."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
from pydantic import SecretStr

from pipelines.adapters.control_db import ReleaseRow, control_db
from pipelines.adapters.delta_lake import open_lake
from pipelines.contracts.clocks import from_us, parse_event_time
from pipelines.contracts.events import Assignment, Label, Response
from pipelines.contracts.pii import KeyedHash
from pipelines.contracts.release import ViewPin
from pipelines.rollout.policy import Policy
from pipelines.rollout.stages import from_spec
from pipelines.rollout.state import Plan
from pipelines.settings import Settings
from pipelines.wiring import datasets, features, rollouts, training
from pipelines.wiring.collect import collect_all
from tests.builders import constant_release
from tests.e2e.pumps.generate import readings, serial
from tests.unit.collect.installation import PLAN, POLICY, STAGES
from tests.unit.collect.traffic import STEP_US, Worker

PUMPS = Path(__file__).parent.parent / "e2e" / "pumps"
MODEL = "pump_failure"
KEY = "the key of the pumps"
AS_OF_US = parse_event_time("2026-01-11T00:00:00+00:00")
LATER_US = parse_event_time("2026-01-12T00:00:00+00:00")
SUBJECT = serial(2)


def hash_of(pump: int) -> str:
    """How a pump is known to the platform."""
    return KeyedHash(KEY).of(serial(pump))


_STAGES = [{"name": "backtest", "requests": 20}, *STAGES]
TESTED = Plan(stages=from_spec(_STAGES), policy=Policy.parse({**POLICY, "stages": _STAGES}).to_mapping())


class Park:
    """Five pumps for ten days; every request is about one pump, whose hash is its unit, too."""

    def __init__(self, home: Path, include: Path) -> None:
        for folder in ("datasets", "features", "models"):
            (include / folder).mkdir(parents=True)
        shutil.copy(PUMPS / "pump_failure.yaml", include / "models")
        shutil.copytree(PUMPS / "transforms", include / "transforms")
        readings(include / "data" / "pump_readings.csv", pumps=5, days=12, seed=2)
        self.settings = Settings(home=home, include_dir=include, clock="replay", pii_key=SecretStr(KEY))
        self.settings.event_clock().tick(AS_OF_US)
        datasets.ingest(self.settings, "pump_readings", AS_OF_US)
        (self.version,) = features.apply(self.settings)
        features.refresh(self.settings, "pump_condition", AS_OF_US)
        self.training_set = training.make_training_set(self.settings, MODEL, AS_OF_US)
        pin = ViewPin(
            view=self.version, entity={"pump": "pump"}, join_key_types={"pump": "string"}, features=["vibration_last"]
        )
        releases = self.settings.releases
        self.champion = constant_release(releases, MODEL, 0.3, views=[pin])
        self.challenger = constant_release(releases, MODEL, 0.31, semver="1.1.0", views=[pin])
        release = ReleaseRow(model=MODEL, digest=self.champion, semver="1.0.0", training_set=self.training_set)
        control_db(self.settings).put_release(release)
        first = rollouts.start(self.settings, MODEL, self.champion, actor="test", plan=PLAN)
        rollouts.approve(self.settings, first.id, "anna")
        rollouts.advance(self.settings, first.id)
        self.worker = Worker(self.settings.bus)
        for number in range(1000, 1040):
            self.ask(number, number % 5)
            self.worker.append(Label, model=MODEL, request_id=f"ask-{number}", value=float(number % 2))
        collect_all(self.settings)
        self.rollout = rollouts.start(self.settings, MODEL, self.challenger, actor="test", plan=TESTED).id
        assert rollouts.backtest(self.settings, self.rollout)["requests"] == 40
        rollouts.look(self.settings, self.rollout)
        rollouts.advance(self.settings, self.rollout)
        for number in range(50):
            self.ask(number, number % 5)
        collect_all(self.settings)
        unfit = {
            "row": f'{{"pump": "{hash_of(2)}", "load": 9}}',
            "reason": "load is above 2",
            "run": "",
            "known_at": None,
        }
        rows = pa.Table.from_pylist([unfit, {**unfit, "row": '{"pump": "other"}'}], schema=datasets.QUARANTINE)
        open_lake(self.settings).append("quarantine/pump_readings", rows)

    def ask(self, number: int, pump: int) -> None:
        """One request about a pump as a gateway logs it, both arms answering."""
        route = control_db(self.settings).route(MODEL)
        assert route is not None
        self.worker.now_us += STEP_US
        about = {"model": MODEL, "request_id": f"ask-{number}", "rollout_id": route.rollout_id}
        self.worker.append(
            Assignment,
            **about,
            arm="champion",
            share_ppm=route.share_ppm,
            salt=route.salt,
            unit=hash_of(pump),
            mode=route.mode,
            stage=route.stage,
            route_version=route.version,
            champion=route.champion,
            challenger=route.challenger,
            slices={"origin": "JFK"},
            inputs={"pump": [hash_of(pump)], "x": [0.6], "origin": ["JFK"]},
            paired=route.challenger is not None,
        )
        for arm, release in (("champion", route.champion), ("challenger", route.challenger)):
            if release is None:
                continue
            self.worker.append(
                Response,
                **about,
                arm=arm,
                release=release,
                status="ok",
                served=arm == "champion",
                shadow=arm != "champion",
                score=[0.3],
                outputs={"score": [0.3]},
                features=[(self.version, ["vibration_last"], [AS_OF_US], [[1.25]])],
                latency_us=3000,
            )

    def later(self) -> str:
        """When the next batch is taken, as the quarantine says it."""
        return from_us(LATER_US).isoformat()
