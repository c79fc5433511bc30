"""A live rollout whose judge's every word is written down, and the same words from the lake alone, by a fresh process.

The run: a gateway of two workers, requests from a seed, labels that come late (some of them behind the rollout's end),
a collector that is killed while events arrive. What the judge says is written, line by line, as it says it. Then
everything is stopped, the control database is removed, and `python -m tests.e2e.live_run HOME` folds the inference log
in the lake again and compares every line, byte for byte.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import msgspec

from pipelines.adapters.rollout_store import RolloutView
from pipelines.contracts.canonical import canonical_json
from pipelines.rollout.policy import Policy
from pipelines.rollout.stages import from_spec
from pipelines.rollout.state import Plan
from pipelines.settings import Settings
from pipelines.stack import down, processes, up
from pipelines.wiring import rollouts
from pipelines.wiring.collect import verify_log
from pipelines.wiring.rollout_gate import rollout_store, standing_of
from pipelines.wiring.rollout_replay import evidence_again, from_lake, replay
from tests.builders import constant_release
from tests.free_ports import free_port
from tests.waiting import wait_until, wait_until_ended

MODEL = "live"
PARTS = ["gateway", "collector"]
SAID = "judge.jsonl"
PATIENCE_S = 180.0


def plan_of(requests: int) -> Plan:
    """Shadow, two canaries and a bake, of so many requests each; errors, invalid scores, and losses on late labels."""
    stages: list[dict[str, Any]] = [
        {"name": "shadow", "requests": requests},
        {"name": "canary_20", "share": 0.2, "requests": requests},
        {"name": "canary_50", "share": 0.5, "requests": requests},
        {"name": "bake", "requests": requests // 4},
    ]
    policy = {
        "stages": stages,
        "warmup_requests": 20,
        "response_deadline_s": 20,
        "label_maturity_s": 2,
        "slices": ["origin"],
        "score_range": [0.0, 1.0],
        "metrics": [
            {"name": "error_rate", "kind": "event", "harm_ratio": 1.5, "promote_margin_abs": 0.05, "weight": 0.3},
            {"name": "invalid_score", "kind": "event", "weight": 0.1},
            {"name": "latency_p50", "kind": "quantile", "q": 0.5, "harm_ratio": 3.0, "weight": 0.1},
            {"name": "logloss", "kind": "paired_loss", "harm_rel": 0.05, "weight": 0.3},
        ],
    }
    return Plan(stages=from_spec(stages), policy=Policy.parse(policy).to_mapping(), slice_inputs=("origin",))


class Traffic:
    """Requests over two connections, and a label for most of them, seconds later; `pause_s` is the longest between
    two of a connection.
    """

    def __init__(self, url: str, seed: int, pause_s: float = 0.008) -> None:
        self.url, self.seed, self.pause_s = url, seed, pause_s
        self.sent = self.labelled = 0
        self._waiting: list[tuple[float, str, float]] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(n,)) for n in range(2)]
        self._threads.append(threading.Thread(target=self._label))

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _send(self, number: int) -> None:
        rng = random.Random(f"{self.seed}/{number}")
        with httpx.Client(base_url=self.url, timeout=30) as client:
            count = 0
            while not self._stop.is_set():
                count += 1
                name, x = f"{number}-{count}", rng.random()
                tensors = [
                    {"name": "x", "shape": [1], "datatype": "FP64", "data": [x]},
                    {"name": "origin", "shape": [1], "datatype": "BYTES", "data": [rng.choice(["JFK", "EWR"])]},
                ]
                self._post(client, f"/v2/models/{MODEL}/infer", {"id": name, "inputs": tensors})
                self.sent += 1
                if rng.random() < 0.9:
                    late_s = rng.choice([0.1, 1.0, 3.0, 8.0]) * rng.random()
                    self._waiting.append((time.monotonic() + late_s, name, float(rng.random() < x)))
                time.sleep(rng.random() * self.pause_s)  # some hundred requests a second by default, unevenly

    def _label(self) -> None:
        with httpx.Client(base_url=self.url, timeout=30) as client:
            while not self._stop.is_set():
                due = [each for each in list(self._waiting) if each[0] <= time.monotonic()]
                for each in due:
                    self._waiting.remove(each)
                if due:
                    labels = [{"id": name, "value": value} for _, name, value in due]
                    self._post(client, f"/v1/models/{MODEL}/labels", {"labels": labels})
                    self.labelled += len(due)
                time.sleep(0.1)  # labels come in batches

    def _post(self, client: httpx.Client, path: str, body: dict[str, Any]) -> None:
        """Send it until it is taken: a gateway that has too much to do says when to come again."""
        while not self._stop.is_set():
            answer = client.post(path, json=body)
            if answer.status_code not in (429, 503):
                answer.raise_for_status()
                return
            time.sleep(float(answer.headers.get("retry-after", 1)))  # as it was told


class Ran(msgspec.Struct, frozen=True, kw_only=True):
    """What a live run came to."""

    seed: int
    status: str
    stages: list[str]
    requests: int
    labels: int
    judgements: int
    decisions: int


def run_live(home: Path, seed: int, requests: int, *, error_share: float = 0.0) -> Ran:
    """A rollout under traffic to its end, its collector killed once; the home is left with its parts stopped."""
    settings = Settings(home=home, gateway_port=free_port(), route_poll_ms=50, gateway_workers=2)
    rng = random.Random(seed)
    plan = plan_of(requests)
    champion = constant_release(settings.releases, MODEL, 0.5)
    challenger = constant_release(settings.releases, MODEL, 0.51, semver="1.1.0", error_share=error_share)
    first = rollouts.start(settings, MODEL, champion, actor="test", plan=plan)
    rollouts.approve(settings, first.id, "anna")
    rollouts.advance(settings, first.id)
    try:
        up(settings, PARTS)
        ready = f"{settings.gateway_url}/v2/models/{MODEL}/ready"
        wait_until(lambda: httpx.get(ready).status_code == 200, f"{MODEL} is served", PATIENCE_S)
        with Traffic(settings.gateway_url, seed) as traffic:
            rollout = rollouts.start(settings, MODEL, challenger, actor="test", plan=plan).id
            rollouts.advance(settings, rollout)
            early = 0.2 if error_share else 1.0  # harm is proven within the first stage
            said = _watch(settings, rollout, traffic, kill_after=round(early * requests * rng.uniform(0.3, 1.5)))
            time.sleep(3.0)  # labels of the rollout's requests arrive behind its end, too
        wait_until(lambda: all(one.waiting == 0 for one in verify_log(settings)), "all is collected", PATIENCE_S)
        rollouts.advance(settings, rollout)
    finally:
        down(settings, PARTS)
    shown = rollouts.show(settings, rollout)
    return Ran(
        seed=seed,
        status=shown["status"],
        stages=list(dict.fromkeys(each["stage"] for each in shown["decisions"] if each.get("stage"))),
        requests=traffic.sent,
        labels=traffic.labelled,
        judgements=said,
        decisions=len(shown["decisions"]),
    )


def _watch(settings: Settings, rollout: str, traffic: Traffic, kill_after: int) -> int:
    """Look as a gate does until the rollout has ended, and write down what the judge says of each evidence."""
    store, deadline, killed, seen = rollout_store(settings), time.monotonic() + 4 * PATIENCE_S, False, set[str]()
    with (settings.root / SAID).open("a") as said:
        while rollouts.load(settings, rollout).slot != "ended":
            assert time.monotonic() < deadline, rollouts.show(settings, rollout)
            view = store.view(rollout)
            standing = standing_of(view)
            line = {
                "rollout": rollout,
                "stage": view.rollout.stage,
                "evidence": standing.evidence_digest,
                "verdicts": canonical_json(standing.verdicts).decode(),
            }
            if standing.verdicts and (mark := f"{line['stage']} {line['evidence']}") not in seen:
                seen.add(mark)
                said.write(json.dumps(line) + "\n")
                said.flush()
            if rollouts.look(settings, rollout).decision is not None:
                rollouts.advance(settings, rollout)
            if not killed and traffic.sent >= kill_after:
                killed = True
                record = processes.read_record("collector", settings.run_dir)
                leader = processes.leader(record) if record is not None else None
                assert leader is not None
                leader.send_signal(signal.SIGKILL)
                wait_until_ended([leader])
                up(settings, PARTS)
            time.sleep(0.1)  # looks as often as a gate
    assert killed, "the rollout ended before the collector was to be killed"
    return len(seen)


def forget_the_control_database(settings: Settings) -> None:
    """Only the lake (and the releases) are left."""
    for file in settings.root.glob("control.db*"):
        file.unlink()


def differences(settings: Settings) -> tuple[int, list[str]]:
    """How many lines of the judge were compared with what the lake alone gives, and every difference in words."""
    lines = [json.loads(line) for line in (settings.root / SAID).read_text().splitlines()]
    found = [each for one in replay(settings, lake_only=True) for each in one.differences]
    for recorded in from_lake(settings):
        mine = [line for line in lines if line["rollout"] == recorded.rollout.id]
        known, _ = evidence_again(settings, recorded, {line["evidence"] for line in mine}, found)
        for line in mine:
            rows = known.get(line["evidence"])
            if rows is None:
                found.append(f"evidence {line['evidence'][:12]} does not come up")
                continue
            then = msgspec.structs.replace(recorded.rollout, stage=line["stage"])
            again = standing_of(RolloutView(rollout=then, evidence=rows, overrides=[]))
            if canonical_json(again.verdicts).decode() != line["verdicts"]:
                found.append(f"the judge says otherwise of evidence {line['evidence'][:12]} in {line['stage']}")
    return len(lines), found


if __name__ == "__main__":
    compared, wrong = differences(Settings(home=Path(sys.argv[1])))
    print(json.dumps({"compared": compared, "differences": wrong}))
