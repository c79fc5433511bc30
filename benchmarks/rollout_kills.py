"""`kill -9` at seeded points of live rollouts: does every rollout end as it should, its chain intact?

    .venv/bin/python -m benchmarks.rollout_kills [--kills 50] [--seed N] [--out FILE]

Airflow, gateway and collector run, requests come in, and rollouts go their ways as DAG runs: every other challenger is
as good as the champion and has to be promoted, the others fail some requests and have to be rolled back. Meanwhile the
collector, the triggerer and the scheduler (with the tasks it has forked) are killed at drawn moments and started again
as an operator would, and executors of actions kill themselves before a drawn statement of the control database. At the
end of each rollout: its status, route and champion, nothing left undone, its chain, and every verdict from the log
again. Exit 1 when any of it is wrong.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from benchmarks.provenance import PROJECT, provenance, record
from pipelines.adapters.airflow_rest import AirflowRest
from pipelines.adapters.control_db import control_db
from pipelines.contracts.errors import SlipwayError
from pipelines.settings import Settings
from pipelines.stack import airflow_password, down, processes, up
from pipelines.wiring import rollouts
from pipelines.wiring.rollout_replay import replay_rollout
from tests.builders import constant_release
from tests.e2e.live_run import MODEL, Traffic
from tests.free_ports import free_port
from tests.waiting import wait_until

AIRFLOW = ["airflow-api-server", "airflow-scheduler", "airflow-dag-processor", "airflow-triggerer"]
PARTS = [*AIRFLOW, "gateway", "collector"]
DAG = f"model.{MODEL}.rollout"
VICTIMS = ["collector", "airflow-triggerer", "airflow-scheduler", "executor"]
PATIENCE_S = 300.0
LONGEST_S = 900.0
"""Of one rollout: Airflow takes minutes to see that a killed task is gone."""
STATEMENTS = 60
"""An executor of actions dies before one of so many first statements: it looks at least once."""


def include(folder: Path) -> Path:
    """The sample's `late_arrival` under another name, with stages of seconds and metrics that need no labels."""
    spec = yaml.safe_load((PROJECT / "include" / "models" / "late_arrival.yaml").read_text())
    stages = [{"name": "shadow", "requests": 400}, {"name": "canary_50", "share": 0.5, "requests": 400}]
    spec["name"] = MODEL
    spec["rollout"] |= {"stages": [*stages, {"name": "bake", "requests": 200}], "max_wait": "1d event_time"}
    spec["rollout"]["policy"] = {
        "warmup_requests": 20,
        "metrics": [
            {"name": "error_rate", "kind": "event", "harm_ratio": 1.5, "promote_margin_abs": 0.05, "weight": 0.5},
            {"name": "invalid_score", "kind": "event", "weight": 0.5},
        ],
    }
    for key in ("monitor", "score", "schedule", "traffic"):
        spec.pop(key, None)
    (folder / "models").mkdir(parents=True)
    (folder / "models" / f"{MODEL}.yaml").write_text(yaml.safe_dump(spec))
    return folder


class Site:
    """The installation, the clients' traffic beside it, and ways to kill its parts."""

    def __init__(self, root: Path, rng: random.Random) -> None:
        self.settings = Settings(
            home=root / "home",
            include_dir=include(root / "include"),
            airflow_port=free_port(),
            gateway_port=free_port(),
            gateway_workers=1,
            route_poll_ms=100,
        )
        self.rng = rng
        self.kills: Counter[str] = Counter()

    def kill(self, name: str, rollout_id: str) -> str:
        """SIGKILL; what is gone is started again. Returns what was hit, in words."""
        self.kills[name] += 1
        if name == "executor":
            at = self.rng.randrange(STATEMENTS)
            command = [sys.executable, "-m", "tests.e2e.dying_executor", str(self.settings.root), rollout_id, str(at)]
            done = subprocess.run(command, cwd=PROJECT, capture_output=True, timeout=PATIENCE_S, check=False)
            return f"before statement {at}" if done.returncode == -9 else f"ended by itself ({done.returncode})"
        found = processes.members(processes.read_record(name, self.settings.run_dir))
        for process in found:
            process.kill()
        psutil.wait_procs(found, timeout=30)
        up(self.settings, PARTS)
        return f"{len(found)} processes"

    def champion(self) -> str:
        """A first champion that the gateway serves."""
        release = constant_release(self.settings.releases, MODEL, 0.5)
        first = rollouts.start(self.settings, MODEL, release, actor="approver")
        rollouts.approve(self.settings, first.id, "approver", "the benchmark's")
        rollouts.advance(self.settings, first.id)
        return release

    def rollout(self, admin: AirflowRest, number: int, kills: int) -> dict[str, Any]:
        """One rollout as a DAG run, with so many kills on its way; what it came to, and what is wrong with it."""
        good = number % 2 == 0
        before = control_db(self.settings).champion(MODEL)
        release = constant_release(
            self.settings.releases, MODEL, 0.5, semver=f"1.{number + 1}.0", error_share=0.0 if good else 0.25
        )
        began, hit = time.monotonic(), list[str]()
        run_id = f"challenger-{number}"
        _patiently(lambda: admin.trigger(DAG, run_id=run_id, conf={"challenger": release, "actor": "benchmark"}))
        wait_until(lambda: self._newest().challenger == release, f"rollout {number} begins", PATIENCE_S)
        rollout_id = self._newest().id
        for _ in range(kills):
            time.sleep(self.rng.uniform(0.2, 6.0))
            victim = self.rng.choice(VICTIMS)
            stage = rollouts.load(self.settings, rollout_id).stage
            hit.append(f"{victim} in {stage}: {self.kill(victim, rollout_id)}")
            print(f"    {hit[-1]}", flush=True)
        wait_until(lambda: rollouts.load(self.settings, rollout_id).slot == "ended", f"{rollout_id} ends", LONGEST_S)
        wait_until(lambda: not self._undone(), f"everything {rollout_id} ordered is done", LONGEST_S)
        return {
            "rollout": rollout_id,
            "status": rollouts.load(self.settings, rollout_id).status,
            "kills": hit,
            "seconds": round(time.monotonic() - began, 1),
            "wrong": self._wrong(rollout_id, "promoted" if good else "rolled_back", release if good else before),
        }

    def _newest(self) -> Any:
        return rollouts.list(self.settings, MODEL)[-1]

    def _undone(self) -> bool:
        return bool(rollouts.rollout_store(self.settings).unfinished_models())

    def _wrong(self, rollout_id: str, status: str, champion: str | None) -> list[str]:
        """What is not as it should be at the end of a rollout."""
        route, state = control_db(self.settings).route(MODEL), rollouts.load(self.settings, rollout_id)
        found = [] if state.status == status else [f"it is {state.status}, not {status}"]
        if route is None or (route.champion, route.challenger) != (champion, None):
            found.append(f"the route is {route}")
        if control_db(self.settings).champion(MODEL) != champion:
            found.append("another champion stands in the table")
        found += rollouts.audit(self.settings)[MODEL]
        return found + replay_rollout(self.settings, rollout_id).differences


def _patiently(act: Any) -> None:
    """Airflow's API may be busy with the start of what was killed."""
    for attempt in range(10):
        try:
            act()
            return
        except SlipwayError as error:
            if attempt == 9:
                raise
            print(f"    again: {error}")
            time.sleep(3)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--per-rollout", type=int, default=4)
    parser.add_argument("--seed", type=int, default=20265)
    parser.add_argument("--out", type=Path, help="where the result is written; without it, it is printed alone")
    asked = parser.parse_args()
    made_by, began, rows = provenance(), time.monotonic(), []
    # Airflow gives a task that was killed with its scheduler up after five minutes; here fifty are.
    os.environ["AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT"] = "30"
    with tempfile.TemporaryDirectory(prefix="slipway-rollout-kills-") as folder:
        site = Site(Path(folder), random.Random(asked.seed))
        settings = site.settings
        site.champion()
        try:
            up(settings, PARTS)
            ready = f"{settings.gateway_url}/v2/models/{MODEL}/ready"
            wait_until(lambda: httpx.get(ready).status_code == 200, f"{MODEL} is served", PATIENCE_S)
            with (
                AirflowRest(settings.airflow_url, "admin", airflow_password(settings, "admin")) as admin,
                Traffic(settings.gateway_url, asked.seed),
            ):
                admin.wait_for_dags([DAG], timeout_s=PATIENCE_S)
                while (left := asked.kills - site.kills.total()) > 0:
                    rows.append(site.rollout(admin, len(rows), min(left, asked.per_rollout)))
                    print({name: value for name, value in rows[-1].items() if name != "kills"}, flush=True)
        finally:
            down(settings, PARTS)
    wrong = [f"{row['rollout']}: {each}" for row in rows for each in row["wrong"]]
    total = {"rollouts": len(rows), "kills": dict(sorted(site.kills.items())), "wrong": wrong}
    print(f"{site.kills.total()} kills {total['kills']} in {len(rows)} rollouts; wrong: {wrong or 'nothing'}")
    if asked.out:
        seconds = round(time.monotonic() - began)
        record(asked.out, {**made_by, "seed": asked.seed, "seconds": seconds, "results": total, "rollouts": rows})
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
