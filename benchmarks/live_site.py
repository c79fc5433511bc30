"""An installation at work for benchmarks: Airflow, gateway and collector, and a model whose rollouts are DAG runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks.provenance import PROJECT
from pipelines.adapters.airflow_rest import AirflowRest
from pipelines.contracts.errors import SlipwayError
from pipelines.rollout.state import Rollout
from pipelines.settings import Settings
from pipelines.stack import airflow_password, down, up
from pipelines.wiring import rollouts
from tests.builders import constant_release
from tests.free_ports import free_port
from tests.waiting import wait_until

PARTS = [
    "airflow-api-server",
    "airflow-scheduler",
    "airflow-dag-processor",
    "airflow-triggerer",
    "gateway",
    "collector",
]
PATIENCE_S = 300.0


def spec(name: str, stages: Sequence[Mapping[str, Any]], warmup: int, **rollout: Any) -> dict[str, Any]:
    """The sample's `late_arrival` under another name, with these stages and metrics that need no labels."""
    made: dict[str, Any] = yaml.safe_load((PROJECT / "include" / "models" / "late_arrival.yaml").read_text())
    policy = {
        "warmup_requests": warmup,
        "metrics": [
            {"name": "error_rate", "kind": "event", "harm_ratio": 1.5, "promote_margin_abs": 0.05, "weight": 0.5},
            {"name": "invalid_score", "kind": "event", "weight": 0.5},
        ],
    }
    made["name"] = name
    made["rollout"] |= {"stages": [dict(stage) for stage in stages], "max_wait": "1d event_time", "policy": policy}
    made["rollout"] |= rollout
    for key in ("monitor", "score", "schedule", "traffic"):
        made.pop(key, None)
    return made


class Site:
    """The installation of these models; `running` starts it."""

    def __init__(self, root: Path, specs: Sequence[Mapping[str, Any]]) -> None:
        models = root / "include" / "models"
        models.mkdir(parents=True)
        self.models = [str(each["name"]) for each in specs]
        for each in specs:
            (models / f"{each['name']}.yaml").write_text(yaml.safe_dump(dict(each)))
        self.settings = Settings(
            home=root / "home",
            include_dir=root / "include",
            airflow_port=free_port(),
            gateway_port=free_port(),
            gateway_workers=1,
            route_poll_ms=100,
        )

    @contextmanager
    def running(self) -> Iterator[AirflowRest]:
        """Every model has a champion that the gateway serves, and its DAG is known to the Airflow that is given."""
        settings = self.settings
        for model in self.models:
            first = rollouts.start(settings, model, constant_release(settings.releases, model, 0.5), actor="approver")
            rollouts.approve(settings, first.id, "approver", "the benchmark's")
            rollouts.advance(settings, first.id)
        try:
            up(settings, PARTS)
            for model in self.models:
                ready = f"{settings.gateway_url}/v2/models/{model}/ready"
                wait_until(lambda ready=ready: httpx.get(ready).status_code == 200, f"{model} is served", PATIENCE_S)
            with AirflowRest(settings.airflow_url, "admin", airflow_password(settings, "admin")) as admin:
                admin.wait_for_dags([f"model.{model}.rollout" for model in self.models], timeout_s=PATIENCE_S)
                yield admin
        finally:
            down(settings, PARTS)

    def begin(self, admin: AirflowRest, model: str, number: int, **fault: float) -> str:
        """A DAG run with a fresh challenger; returns the id of its rollout once that has begun."""
        release = constant_release(self.settings.releases, model, 0.5, semver=f"1.{number + 1}.0", **fault)
        conf = {"challenger": release, "actor": "benchmark"}
        patiently(lambda: admin.trigger(f"model.{model}.rollout", run_id=f"challenger-{number}", conf=conf))

        def newest() -> Rollout:
            return rollouts.list(self.settings, model)[-1]

        wait_until(lambda: newest().challenger == release, f"rollout {number} of {model} begins", PATIENCE_S)
        return newest().id


def patiently(act: Callable[[], object]) -> None:
    """Airflow's API may be busy with the start of what was killed."""
    for attempt in range(10):
        try:
            act()
            return
        except SlipwayError as error:
            if attempt == 9:
                raise
            print(f"    again: {error}")
            time.sleep(3)  # nothing tells when it answers again
