"""From the event that decides to the last answer of a challenger, with the whole system live under load.

    .venv/bin/python -m benchmarks.decision_latency [--gate 20] [--breaker 50] [--rate 500] [--out FILE]

Airflow, gateway and collector run; requests come at an even rate over all models. Each trial is a rollout as a DAG run,
with a challenger that fails some of its requests, in a canary of one half; some models are rolled out at a time:

- by gate: the gateway's breaker is out of the way. The deciding event is found afterwards: the inference log is folded
  again request by request, and the first one counts behind which the judge demands the rollback. Its time is that of
  the request, so that log, collector, evidence, judge, gate, record and route all lie between;
- by breaker: the gate is out of the way (warm-up). The deciding event is the override that the gateway writes.

A trial's result is the time from the deciding event to the last answer that the challenger gave to any client. For the
gate the time to the route in the database is told as well. Goals: p99 at most 3 s by gate, below 1 s by breaker. The
p99 of fewer than 100 trials is the longest of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
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
AT_A_TIME = {"gate": 2, "breaker": 5}
"""Models of each way, whose rollouts run side by side."""
CONNECTIONS = 10


class Load:
    """Requests at an even rate over some connections, to one model after the other, from a process of its own.

    `answered` says when each model's challenger answered last: a failed challenger's request is answered by the
    champion, so what is followed are the answers that it gave itself.
    """

    def __init__(self, port: int, models: list[str], rate: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.models = models
        self._answered = context.Array("d", len(models))
        self._counts = context.Array("q", 2)
        self.ended = context.Event()
        given = (port, models, rate, self._answered, self._counts, self.ended)
        self._process = context.Process(target=_load, args=given, daemon=True)
        self._process.start()

    def answered(self, model: str) -> float:
        """When the model's challenger answered last, seconds since 1970; 0 for never."""
        return float(self._answered[self.models.index(model)])

    def counts(self) -> tuple[int, int]:
        """Requests that were answered, and refused."""
        return int(self._counts[0]), int(self._counts[1])

    def end(self) -> None:
        """Stop asking."""
        self.ended.set()
        self._process.join(10)


def _load(port: int, models: list[str], rate: float, answered: Any, counts: Any, ended: Any) -> None:
    async def connection(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        rng, every = np.random.default_rng(number), CONNECTIONS / rate
        due = time.monotonic() + every * number / CONNECTIONS
        at = number
        while not ended.is_set():
            at = (at + 1) % len(models)
            writer.write(_request(models[at], float(rng.random())))
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            answer = json.loads(await reader.readexactly(length))
            if b" 200 " in head[:16]:
                counts[0] += 1
                if answer["parameters"]["arm"] == "challenger":
                    answered[at] = time.time()
            else:
                counts[1] += 1
            due = max(due + every, time.monotonic() - 1.0)  # what is more than a second late is not made up for
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        writer.close()

    async def all_of_them() -> None:
        await asyncio.gather(*(connection(n) for n in range(CONNECTIONS)))

    asyncio.run(all_of_them())


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


def _ending(shown: dict[str, Any]) -> dict[str, Any]:
    """The decision that ended the rollout; overrides that were observed may come behind it."""
    return next(each for each in reversed(shown["decisions"]) if each["kind"] != "observed")


def way_of(model: str) -> str:
    """The way by which a model's challengers are stopped."""
    return model.partition("_")[0]


def begin(site: Site, admin: AirflowRest, models: list[str], number: int) -> dict[str, str]:
    """A rollout of each model; their ids."""
    return {each: site.begin(admin, each, number, error_share=WAYS[way_of(each)][1]) for each in models}


def silent(settings: Settings, load: Load, rollout_id: str, model: str) -> None:
    """Wait until the rollout has ended and its challenger answers no more; what happened is in record and log."""
    wait_until(lambda: rollouts.load(settings, rollout_id).slot == "ended", f"{rollout_id} ends", PATIENCE_S)
    wait_until(lambda: time.time() - load.answered(model) > 2.0, "the challenger answers no more", PATIENCE_S)

    def routed() -> bool:
        return _ending(rollouts.show(settings, rollout_id))["seconds_to_route"] is not None

    wait_until(routed, "the route is set", PATIENCE_S)


def measure(settings: Settings, rollout_id: str, last_answer_s: float) -> dict[str, Any]:
    """What a rollout that has ended took, from its deciding event on."""
    shown = rollouts.show(settings, rollout_id)
    last, way = _ending(shown), way_of(shown["model"])
    if shown["status"] != "rolled_back" or last["cause"] != {"gate": "verdict", "breaker": "override"}[way]:
        raise SystemExit(f"{rollout_id} is {shown['status']} by {last['cause']}")
    if way == "gate":
        event_s = deciding_event_s(settings, rollout_id)
    else:
        override = next(each["override"] for each in shown["decisions"] if each["kind"] == "observed")
        event_s = override["wall_us"] / 1e6
    return {
        "rollout": rollout_id,
        "silent_s": round(max(0.0, last_answer_s - event_s), 3),
        "routed_s": round(_seconds(last["at"]) + last["seconds_to_route"] - event_s, 3),
        "exposed": shown["exposed"],
    }


def p99(values: list[float]) -> float:
    """The value that one of a hundred exceeds: of fewer than a hundred, the longest."""
    return sorted(values)[math.ceil(len(values) * 0.99) - 1]


def run(site: Site, wanted: dict[str, int], rate: float) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """So many trials of each way, and what the load was."""
    settings, ended = site.settings, list[tuple[str, str, float]]()
    with site.running() as admin:
        load = Load(settings.gateway_port, site.models, rate)
        wait_until(lambda: load.counts()[0] > rate, "requests are answered", PATIENCE_S)
        print("requests are answered", flush=True)
        (before, _), began, loads = load.counts(), time.monotonic(), [os.getloadavg()[0]]
        number = 0
        while todo := {way: n for way, count in wanted.items() if (n := count - _done(ended, way)) > 0}:
            models = [each for each in site.models if int(each.partition("_")[2]) < todo.get(way_of(each), 0)]
            for model, rollout_id in begin(site, admin, models, number).items():
                silent(settings, load, rollout_id, model)
                ended.append((way_of(model), rollout_id, load.answered(model)))
            for model in models:
                for one in admin.runs(f"model.{model}.rollout"):
                    admin.wait(f"model.{model}.rollout", one.dag_run_id, timeout_s=PATIENCE_S)
            loads.append(os.getloadavg()[0])
            number += 1
            print(f"{len(ended)} trials, {len(ended) / (time.monotonic() - began):.2f} a second", flush=True)
        answers, refused = load.counts()
        seconds = time.monotonic() - began
        load.end()
        wait_until(lambda: not rollouts.rollout_store(settings).unfinished_models(), "all is done", PATIENCE_S)
    rows: dict[str, list[dict[str, Any]]] = {way: [] for way in wanted}
    for way, rollout_id, last_answer_s in ended:
        rows[way].append(measure(settings, rollout_id, last_answer_s))
        print(f"{way:8} {rows[way][-1]}", flush=True)
    asked = {"requests_per_s": round((answers - before) / seconds), "refused": refused, "seconds": round(seconds)}
    return rows, asked | {"load_average": [round(min(loads), 1), round(max(loads), 1)]}


def _done(ended: list[tuple[str, str, float]], way: str) -> int:
    return sum(each[0] == way for each in ended)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gate", type=int, default=20, help="trials by gate")
    parser.add_argument("--breaker", type=int, default=50, help="trials by breaker")
    parser.add_argument("--rate", type=float, default=500.0, help="requests a second over all models")
    parser.add_argument("--out", type=Path, help="where the result is written; without it, it is printed alone")
    asked = parser.parse_args()
    made_by = provenance()
    with tempfile.TemporaryDirectory(prefix="slipway-decision-") as folder:
        names = [f"{way}_{n}" for way, count in AT_A_TIME.items() for n in range(count)]
        specs = [spec(name, CANARY, WAYS[way_of(name)][0], **WAYS[way_of(name)][2]) for name in names]
        rows, results = run(Site(Path(folder), specs), {"gate": asked.gate, "breaker": asked.breaker}, asked.rate)
    for way, found in rows.items():
        silent_s = [row["silent_s"] for row in found]
        results[way] = {
            "trials": len(found),
            "median_s": round(statistics.median(silent_s), 3),
            "p99_s": p99(silent_s),
            "routed_p99_s": p99([row["routed_s"] for row in found]),
            "goal_p99_s": GOALS_S[way],
        }
        print(f"{way:8} {results[way]}")
    print({name: value for name, value in results.items() if name not in rows})
    if asked.out:
        record(asked.out, {**made_by, "rate": asked.rate, "results": results, "trials": rows})
    return 1 if any(results[way]["p99_s"] > goal for way, goal in GOALS_S.items()) else 0


if __name__ == "__main__":
    sys.exit(main())
