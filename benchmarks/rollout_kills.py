"""`kill -9` at seeded points of live rollouts: does every rollout end as it should, its chain intact?

    .venv/bin/python -m benchmarks.rollout_kills [--kills 50] [--seed N] [--out FILE]

Airflow, gateway and collector run, requests come in, and rollouts go their ways as DAG runs: every other challenger is
as good as the champion and has to be promoted, the others fail some requests and have to be rolled back. Meanwhile the
collector, the triggerer and the scheduler (with the tasks it has forked) are killed at drawn moments and started again
as an operator would, and executors of actions kill themselves before a drawn write of the control database. At the
end of each rollout: its status, route and champion, nothing left undone, its chain, and every verdict from the log
again. Exit 1 when any of it is wrong.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from benchmarks.live_site import PARTS, PATIENCE_S, Site, spec
from benchmarks.provenance import PROJECT, provenance, record
from pipelines.adapters.airflow_rest import AirflowRest
from pipelines.adapters.control_db import control_db
from pipelines.stack import processes, up
from pipelines.wiring import rollouts
from pipelines.wiring.rollout_replay import replay_rollout
from tests.e2e.live_run import MODEL, Traffic
from tests.waiting import wait_until

STAGES = [
    {"name": "shadow", "requests": 600},
    {"name": "canary_50", "share": 0.5, "requests": 600},
    {"name": "bake", "requests": 100},
]
PAUSE_S = 0.04
"""Of each of two clients between its requests, at most: some eighty a second, so that the kills fall into stages."""
VICTIMS = ["collector", "airflow-triggerer", "airflow-scheduler", "executor"]
LONGEST_S = 900.0
"""Of one rollout: Airflow takes minutes to see that a killed task is gone."""
WRITES = 16
"""An executor of actions dies before one of its first writes and commits: in a decision, or in what it orders."""


class Killing(Site):
    """The installation, and ways to kill its parts."""

    def __init__(self, root: Path, rng: random.Random) -> None:
        super().__init__(root, [spec(MODEL, STAGES, warmup=20)])
        self.rng = rng
        self.kills: Counter[str] = Counter()
        self._executor = self._next_executor()
        self._deck = self._shuffled()

    def _shuffled(self) -> list[str]:
        """Every victim comes as often as the others."""
        return self.rng.sample(VICTIMS, len(VICTIMS))

    def _next_executor(self) -> subprocess.Popen[str]:
        """One that has imported everything, and waits to be told where to die."""
        command = [sys.executable, "-m", "tests.e2e.dying_executor", str(self.settings.root)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=PROJECT, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)

    def close(self) -> None:
        """End the executor that was never needed."""
        self._executor.kill()
        self._executor.wait()

    def _kill_executor(self, rollout_id: str) -> str:
        """Empty when the rollout has ended before."""
        assert self._executor.stdout is not None
        assert self._executor.stdout.readline() == "ready\n"
        at = self.rng.randrange(WRITES)
        self._executor.communicate(f"{rollout_id} {at}\n", timeout=PATIENCE_S)
        died, self._executor = self._executor.returncode == -signal.SIGKILL, self._next_executor()
        return f"before write {at}" if died else ""

    def kill(self, name: str, rollout_id: str) -> str:
        """SIGKILL; what is gone is started again. Returns what was hit, in words; nothing when it came too late."""
        if name == "executor":
            hit = self._kill_executor(rollout_id)
            self.kills[name] += bool(hit)
            return hit
        self.kills[name] += 1
        found = processes.members(processes.read_record(name, self.settings.run_dir))
        for process in found:
            process.kill()
        psutil.wait_procs(found, timeout=30)
        up(self.settings, PARTS)
        return f"{len(found)} processes"

    def rollout(self, admin: AirflowRest, number: int, kills: int) -> dict[str, Any]:
        """One rollout as a DAG run, with so many kills on its way; what it came to, and what is wrong with it."""
        good = number % 2 == 0
        before = control_db(self.settings).champion(MODEL)
        began, hit = time.monotonic(), list[str]()
        rollout_id = self.begin(admin, MODEL, number, error_share=0.0 if good else 0.04)
        release = rollouts.load(self.settings, rollout_id).challenger
        for _ in range(kills):
            time.sleep(self.rng.uniform(0.1, 6.0 if good else 1.5))  # drawn; harm is withdrawn within seconds
            state = rollouts.load(self.settings, rollout_id)
            if state.slot == "ended":
                break
            victim, stage = self._deck[-1], state.stage
            if what := self.kill(victim, rollout_id):
                self._deck.pop()
                self._deck = self._deck or self._shuffled()
                hit.append(f"{victim} in {stage}: {what}")
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
        site = Killing(Path(folder), random.Random(asked.seed))
        with site.running() as admin, Traffic(site.settings.gateway_url, asked.seed, PAUSE_S):
            while (left := asked.kills - site.kills.total()) > 0:
                rows.append(site.rollout(admin, len(rows), min(left, asked.per_rollout)))
                print({name: value for name, value in rows[-1].items() if name != "kills"}, flush=True)
        site.close()
    wrong = [f"{row['rollout']}: {each}" for row in rows for each in row["wrong"]]
    total = {"rollouts": len(rows), "kills": dict(sorted(site.kills.items())), "wrong": wrong}
    print(f"{site.kills.total()} kills {total['kills']} in {len(rows)} rollouts; wrong: {wrong or 'nothing'}")
    if asked.out:
        seconds = round(time.monotonic() - began)
        record(asked.out, {**made_by, "seed": asked.seed, "seconds": seconds, "results": total, "rollouts": rows})
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
