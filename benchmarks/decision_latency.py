"""From the event that decides to the last answer of a challenger, with the whole system live under load.

    .venv/bin/python -m benchmarks.decision_latency [--trials 10] [--rate 500] [--out FILE]

Airflow, gateway and collector run; requests come at an even rate. Each trial is a rollout as a DAG run, with a
challenger that fails some of its requests, in a canary of one half:

- by gate: the gateway's breaker is out of the way. The deciding event is found afterwards: the inference log is folded
  again request by request, and the first one counts behind which the judge demands the rollback. Its time is that of
  the request, so that log, collector, evidence, judge, gate, record and route all lie between;
- by breaker: the gate is out of the way (warm-up). The deciding event is the override that the gateway writes.

A trial's result is the time from the deciding event to the last answer that the challenger gave to any client. For the
gate the time to the route in the database is told as well. Goals: p99 at most 3 s by gate, below 1 s by breaker.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import statistics
import sys
import tempfile
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.http_asking import request_bytes
from benchmarks.live_site import PATIENCE_S, Site, spec
from benchmarks.provenance import provenance, record
from pipelines.adapters.airflow_rest import AirflowRest
from pipelines.adapters.delta_lake import DeltaLake
from pipelines.rollout.judge import judge
from pipelines.rollout.policy import Policy
from pipelines.settings import Settings
from pipelines.wiring import rollouts
from pipelines.wiring.rollout_replay import states
from tests.waiting import wait_until

CANARY = [{"name": "canary_50", "share": 0.5, "requests": 1_000_000}]
NEVER = {"window": 1000, "failures": 1000, "timeout_ms": 1000}
WAYS = {"gate": (200, 0.4, {"breaker": NEVER}), "breaker": (1_000_000, 0.5, {})}
"""Warm-up of the gate, share of requests that the challenger fails, and what else its spec says."""
GOALS_S = {"gate": 3.0, "breaker": 1.0}
CONNECTIONS = 10


class Load(threading.Thread):
    """Requests at an even rate over some connections, to one model after the other; when each release answered last.

    A failed challenger's request is answered by the champion: what is followed are the answers that it gave itself.
    """

    def __init__(self, settings: Settings, models: list[str], rate: float) -> None:
        super().__init__(daemon=True)
        self.port, self.models, self.rate = settings.gateway_port, models, rate
        self.answered: dict[str, float] = {}
        self.answers = self.refused = 0
        self.ended = threading.Event()

    def run(self) -> None:
        asyncio.run(self._all())

    async def _all(self) -> None:
        await asyncio.gather(*(self._connection(n) for n in range(CONNECTIONS)))

    async def _connection(self, number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        rng, every = np.random.default_rng(number), CONNECTIONS / self.rate
        due = time.monotonic() + every * number / CONNECTIONS
        count = 0
        while not self.ended.is_set():
            model = self.models[count % len(self.models)]
            count += 1
            writer.write(_request(model, float(rng.random())))
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            answer = json.loads(await reader.readexactly(length))
            if b" 200 " in head[:16]:
                self.answers += 1
                if answer["parameters"]["arm"] == "challenger":
                    self.answered[model] = time.time()
            else:
                self.refused += 1
            due = max(due + every, time.monotonic() - 1.0)  # what is more than a second late is not made up for
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        writer.close()


def _request(model: str, x: float) -> bytes:
    tensors = [
        {"name": "x", "datatype": "FP64", "shape": [1], "data": [x]},
        {"name": "origin", "datatype": "BYTES", "shape": [1], "data": ["JFK"]},
    ]
    return request_bytes(f"/v2/models/{model}/infer", {}, json.dumps({"inputs": tensors}).encode())


def deciding_event_s(settings: Settings, rollout_id: str) -> float:
    """When the request came behind which the judge first demands the rollback, seconds since 1970."""
    rollout = rollouts.load(settings, rollout_id)
    policy, decision = Policy.parse(rollout.plan.policy), rollouts.show(settings, rollout_id)["decisions"][-1]
    where = f"model = '{rollout.model}' AND rollout_id = '{rollout_id}'"
    asked = DeltaLake(settings.lake).read("inference/assignment", ["seq", "wall_time"], where=where).sort_by("seq")
    times = dict(zip(asked["seq"].to_pylist(), asked["wall_time"].to_pylist(), strict=True))
    decided_s = _seconds(decision["at"])
    for state in states(settings, rollout, cuts=asked.num_rows):
        came = times.get(state.batch)
        if came is None or came.timestamp() < decided_s - 10:
            continue  # far from the decision: there is no need to ask the judge
        stop = judge(policy, state.evidence, rollout.stage).stop
        if stop is not None and stop.action == "rollback":
            return float(came.timestamp())
    raise SystemExit(f"{rollout_id}: the judge does not demand the rollback anywhere in the log")


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def trial(site: Site, admin: AirflowRest, load: Load, way: str, number: int) -> dict[str, Any]:
    """One rollout to its rollback; seconds from the deciding event."""
    settings = site.settings
    rollout_id = site.begin(admin, way, number, error_share=WAYS[way][1])
    wait_until(lambda: rollouts.load(settings, rollout_id).slot == "ended", f"{rollout_id} ends", PATIENCE_S)
    wait_until(lambda: time.time() - load.answered.get(way, 0.0) > 2.0, "the challenger answers no more", PATIENCE_S)

    def routed() -> bool:
        return rollouts.show(settings, rollout_id)["decisions"][-1]["seconds_to_route"] is not None

    wait_until(routed, "the route is set", PATIENCE_S)
    shown = rollouts.show(settings, rollout_id)
    last = shown["decisions"][-1]
    if shown["status"] != "rolled_back" or last["cause"] != {"gate": "verdict", "breaker": "override"}[way]:
        raise SystemExit(f"{rollout_id} is {shown['status']} by {last['cause']}")
    if way == "gate":
        event_s = deciding_event_s(settings, rollout_id)
    else:
        override = next(each["override"] for each in shown["decisions"] if each["kind"] == "observed")
        event_s = override["wall_us"] / 1e6
    routed_s = _seconds(last["at"]) + last["seconds_to_route"] - event_s
    for run in admin.runs(f"model.{way}.rollout"):
        admin.wait(f"model.{way}.rollout", run.dag_run_id, timeout_s=PATIENCE_S)
    return {
        "rollout": rollout_id,
        "silent_s": round(max(0.0, load.answered[way] - event_s), 3),
        "routed_s": round(routed_s, 3),
        "exposed": shown["exposed"],
    }


def p99(values: list[float]) -> float:
    return sorted(values)[math.ceil(len(values) * 0.99) - 1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=10, help="of each way")
    parser.add_argument("--rate", type=float, default=500.0, help="requests a second over all models")
    parser.add_argument("--out", type=Path, help="where the result is written; without it, it is printed alone")
    asked = parser.parse_args()
    made_by, rows = provenance(), {way: list[dict[str, Any]]() for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="slipway-decision-") as folder:
        specs = [spec(way, CANARY, warmup, **more) for way, (warmup, _, more) in WAYS.items()]
        site = Site(Path(folder), specs)
        with site.running() as admin:
            load = Load(site.settings, list(WAYS), asked.rate)
            load.start()
            began = time.monotonic()
            for number in range(asked.trials):
                for way, found in rows.items():
                    found.append(trial(site, admin, load, way, number))
                    print(f"{way:8} {found[-1]}", flush=True)
            rate = round(load.answers / (time.monotonic() - began))
            load.ended.set()
            load.join(10)
    results: dict[str, Any] = {"requests_per_s": rate, "refused": load.refused}
    for way, found in rows.items():
        silent = [row["silent_s"] for row in found]
        results[way] = {
            "trials": len(silent),
            "median_s": round(statistics.median(silent), 3),
            "p99_s": p99(silent),
            "routed_p99_s": p99([row["routed_s"] for row in found]),
            "goal_p99_s": GOALS_S[way],
        }
        print(f"{way:8} {results[way]}")
    print(f"{rate} requests/s, {load.refused} refused")
    if asked.out:
        record(asked.out, {**made_by, "rate": asked.rate, "results": results, "trials": rows})
    return 1 if any(results[way]["p99_s"] > goal for way, goal in GOALS_S.items()) else 0


if __name__ == "__main__":
    sys.exit(main())
