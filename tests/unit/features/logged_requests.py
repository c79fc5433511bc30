"""Requests of the sample answered with features read by the gateway's own code, as they lie in the inference log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.contracts.clocks import parse_event_time
from pipelines.contracts.events import Assignment, Response
from pipelines.contracts.release import InputField, ViewPin
from pipelines.settings import Settings
from pipelines.wiring import point_in_time, requests_and_labels
from pipelines.wiring.collect import collect_once
from serving.online_features.plan import ReadPlan, Reads, Wanted
from serving.online_features.store import open_store
from tests.builders import constant_release
from tests.unit.collect.traffic import Worker

MODEL = "late_arrival"
HOUR_US = 3_600_000_000
Inputs = dict[str, Any]


class LoggedRequests:
    """A home whose lake has the sample's datasets and views, an online store, and one release that reads every view.

    `of_champion`: what the champion reads.
    """

    def __init__(self, home: Path, sample: Settings, of_champion: Sequence[ViewPin] = ()) -> None:
        for part in ("datasets", "features"):
            (home / "lake").mkdir(parents=True, exist_ok=True)
            (home / "lake" / part).symlink_to(sample.lake / part)
        self.settings = Settings(home=home, clock="replay")
        self.pins: list[ViewPin] = point_in_time.pins(self.settings, MODEL)
        inputs = [
            InputField(name=name, datatype="BYTES", required=False) for name in ("carrier", "origin", "dest", "tailnum")
        ]
        inputs += [InputField(name=name, datatype="FP64", required=False) for name in ("x", "distance", "local_hour")]
        self.release = constant_release(self.settings.releases, MODEL, 0.3, inputs=inputs, views=self.pins)
        self.of_champion = list(of_champion)
        self.champion = constant_release(
            self.settings.releases, MODEL, 0.29, semver="0.9.0", inputs=inputs, views=self.of_champion
        )
        self._worker = Worker(self.settings.bus)

    def asked(self, start: str, hours: int, every: int = 4) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """The sample's requests, hour by hour."""
        begin = parse_event_time(start)
        end = begin + hours * HOUR_US
        rows = requests_and_labels.requests(self.settings, MODEL, end).to_pylist()[::every]
        for hour in range(begin, end, HOUR_US):
            yield hour, [row for row in rows if hour <= _us(row) < hour + HOUR_US]

    def answer(
        self,
        rollout_id: str,
        start: str,
        hours: int,
        *,
        publish: Callable[[int], object] | None = None,
        sent: Callable[[Inputs], Inputs] = dict,
        stage: str = "shadow",
    ) -> int:
        """Answer and log the requests of some hours; `publish` is called at each hour's start. How many there were."""
        return asyncio.run(self._answer(rollout_id, start, hours, publish, sent, stage))

    async def _answer(
        self,
        rollout_id: str,
        start: str,
        hours: int,
        publish: Callable[[int], object] | None,
        sent: Callable[[Inputs], Inputs],
        stage: str,
    ) -> int:
        count = 0
        store = open_store(self.settings, budget_ms=5000)
        await store.start()
        try:
            plan = ReadPlan({self.release: self.pins, self.champion: self.of_champion})
            for hour, rows in self.asked(start, hours):
                if publish is not None:
                    publish(hour)
                for row in rows:
                    names = ("carrier", "origin", "dest", "tailnum", "distance", "local_hour")
                    inputs = sent({name: row[name] for name in names})
                    columns = {name: np.array([value], dtype=object) for name, value in inputs.items()}
                    reading = store.read(plan, [Wanted(columns, 1, _us(row))])
                    (reads,) = reading if isinstance(reading, list) else await reading
                    self._log(rollout_id, stage, row, inputs, reads)
                    count += 1
        finally:
            await store.stop()
        collect_once(self.settings)
        return count

    def _log(self, rollout_id: str, stage: str, row: dict[str, Any], inputs: Inputs, reads: Reads) -> None:
        common = {"model": MODEL, "request_id": row["request_id"], "rollout_id": rollout_id, "event_us": _us(row)}
        self._worker.append(
            Assignment,
            **common,
            arm="challenger",
            share_ppm=0,
            salt="",
            unit="",
            mode="shadow",
            stage=stage,
            route_version=1,
            champion=self.champion,
            challenger=self.release,
            inputs={name: [value] for name, value in inputs.items()},
        )
        arms = [("challenger", self.release)]
        arms += [("champion", self.champion)] if self.of_champion else []
        for arm, release in arms:
            views = reads.of(release)
            self._worker.append(
                Response,
                **common,
                arm=arm,
                release=release,
                status="ok",
                served=arm == "champion",
                shadow=arm == "challenger",
                score=[0.3],
                features=[view.logged for view in views],
                degraded=[view.degraded for view in views if view.degraded],
            )


def _us(row: dict[str, Any]) -> int:
    return round(row["event_timestamp"].timestamp() * 1e6)
