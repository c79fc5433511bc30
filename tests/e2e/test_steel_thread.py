"""The whole loop without Airflow: a real gateway, a real collector process, constant releases, and the gate.

Nothing is simulated: requests go over HTTP to `bentoml serve`, its segments are read by `slipway collector run`, the
evidence is judged by `look`, and what `advance` writes is what the gateway follows.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from pipelines.adapters.control_db import control_db
from pipelines.adapters.delta_lake import DeltaLake
from pipelines.contracts.routes import Route
from pipelines.rollout.policy import Policy
from pipelines.rollout.stages import from_spec
from pipelines.rollout.state import Plan
from pipelines.settings import PROJECT, Settings
from pipelines.wiring import rollouts
from pipelines.wiring.collect import verify_log
from tests.builders import constant_release
from tests.free_ports import free_port
from tests.threads import Threads
from tests.waiting import wait_until

SERVING = PROJECT / "serving" / ".venv" / "bin" / "python"
PATIENCE_S = 90.0
"""A deadline that says something is broken, on a busy machine too."""
STAGES: list[dict[str, Any]] = [
    {"name": "shadow", "requests": 400},
    {"name": "canary_20", "share": 0.2, "requests": 400},
    {"name": "canary_50", "share": 0.5, "requests": 600},
    {"name": "bake", "requests": 100},
]
POLICY: dict[str, Any] = {
    "stages": STAGES,
    "warmup_requests": 20,
    "response_deadline_s": 20,
    "score_range": [0.0, 1.0],
    "metrics": [
        {"name": "error_rate", "kind": "event", "harm_ratio": 1.5, "promote_margin_abs": 0.02, "weight": 0.4},
        {"name": "invalid_score", "kind": "event", "weight": 0.3},
    ],
}
PLAN = Plan(
    stages=from_spec(STAGES),
    policy=Policy.parse(POLICY).to_mapping(),
    approvers=("anna",),
    slice_inputs=("origin",),
)


class Installation:
    """A home with a gateway and a collector at work on it."""

    def __init__(self, home: Path, port: int) -> None:
        self.settings = Settings(home=home, gateway_port=port, route_poll_ms=50)
        self.environment = os.environ | {
            "SLIPWAY_GATEWAY_WORKERS": "1",
            "SLIPWAY_HOME": str(home),
            "SLIPWAY_ROUTE_POLL_MS": "50",
            "SLIPWAY_TOKEN": "sesame",
            "BENTOML_DO_NOT_TRACK": "True",
        }
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a part in its own process group, its output in a file of the home."""
        with (self.settings.root / f"{name}.out").open("ab") as output:
            process = subprocess.Popen(
                command,
                cwd=PROJECT,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def start_collector(self) -> subprocess.Popen[bytes]:
        """`slipway collector run`, at its usual pace."""
        return self.start("collector", sys.executable, "-m", "pipelines.cli.main", "collector", "run")

    def stop(self) -> None:
        """End every process group that was started."""
        for process in self.processes:
            for number, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 5)):
                try:
                    os.killpg(process.pid, number)
                    process.wait(patience)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    continue


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    if not SERVING.exists():
        assert os.environ.get("CI") != "true", f"{SERVING} is missing: run `make setup`"
        pytest.skip("no serving environment: run `make setup`")
    port = free_port()
    made = Installation(tmp_path_factory.mktemp("steel"), port)
    control_db(made.settings)
    bentoml = ("-m", "bentoml", "serve", "serving.service:Gateway", "--host", "127.0.0.1", "--port", str(port))
    gateway = made.start("gateway", str(SERVING), *bentoml)
    made.start_collector()
    try:
        wait_until(lambda: _alive(made.settings.gateway_url, gateway), "the gateway answers", PATIENCE_S)
        yield made
    finally:
        made.stop()


def _alive(url: str, gateway: subprocess.Popen[bytes]) -> bool:
    assert gateway.poll() is None, "the gateway has ended"
    try:
        return httpx.get(f"{url}/v2/health/live", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


class Client(Threads):
    """Sends requests over a few connections until told to stop; remembers every acknowledged id and the arm it got."""

    def __init__(self, url: str, model: str, seed: int) -> None:
        super().__init__(self._send, 2)
        self.url, self.model, self.seed = url, model, seed
        self.answers: dict[str, dict[str, Any]] = {}
        self.refused: Counter[int] = Counter()

    def _send(self, number: int) -> None:
        rng = random.Random(f"{self.seed}/{number}")
        with httpx.Client(base_url=self.url, timeout=30) as client:
            for count in itertools.count():
                if self.stopping:
                    return
                request = f"{self.model}-{number}-{count}"
                tensors = [
                    {"name": "x", "shape": [1], "datatype": "FP64", "data": [rng.random()]},
                    {"name": "origin", "shape": [1], "datatype": "BYTES", "data": [rng.choice(["JFK", "EWR"])]},
                ]
                answer = client.post(f"/v2/models/{self.model}/infer", json={"id": request, "inputs": tensors})
                if answer.status_code == 200:
                    self.answers[request] = answer.json()["parameters"]
                else:
                    self.refused[answer.status_code] += 1
                time.sleep(0.002)  # a client of some hundred requests a second


def first_champion(settings: Settings, model: str, score: float) -> str:
    """A first champion, approved by name; returns when the gateway serves it."""
    release = constant_release(settings.releases, model, score, semver="1.0.0")
    rollout = rollouts.start(settings, model, release, actor="test", plan=PLAN)
    assert (rollout.status, rollout.stage) == ("running", "approval")
    assert control_db(settings).route(model) is None, "nothing is routed before the approval"
    rollouts.approve(settings, rollout.id, "anna", "offline gates passed")
    rollouts.advance(settings, rollout.id)
    url = f"{settings.gateway_url}/v2/models/{model}/ready"
    wait_until(lambda: httpx.get(url).status_code == 200, f"{model} is served", PATIENCE_S)
    return release


def until_ended(settings: Settings, rollout_id: str, seconds: float) -> dict[str, Any]:
    """Look and advance as the gates do, until the rollout has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if rollouts.look(settings, rollout_id).decision is not None:
            rollouts.advance(settings, rollout_id)
        if rollouts.load(settings, rollout_id).slot == "ended":
            rollouts.advance(settings, rollout_id)  # the collector may have decided, and not have set the route yet
            return rollouts.show(settings, rollout_id)
        time.sleep(0.1)  # looks as often as a gate
    shown = rollouts.show(settings, rollout_id)
    raise AssertionError(f"still {shown['status']} in {shown['stage']}: {shown['counts']} {shown['missing']}")


def collected(settings: Settings, model: str, ids: set[str]) -> dict[str, Any]:
    """The model's assignments in the lake once every id is there."""
    lake = DeltaLake(settings.lake)

    def found() -> list[dict[str, Any]]:
        return lake.read("inference/assignment", where=f"model = '{model}'").to_pylist()

    wait_until(
        lambda: ids <= {row["request_id"] for row in found()}, "every acknowledged request is in the lake", PATIENCE_S
    )
    rows = [row for row in found() if row["request_id"] in ids]
    assert len(rows) == len(ids), "each exactly once"
    return {row["request_id"]: row for row in rows}


def assert_whole(settings: Settings, model: str) -> None:
    """Nothing of the log is lost or stored twice, and the model's record holds."""
    wait_until(
        lambda: sum(report.waiting for report in verify_log(settings)) == 0, "everything is collected", PATIENCE_S
    )
    reports = verify_log(settings)
    assert reports
    assert all(report.whole for report in reports), reports
    assert rollouts.audit(settings)[model] == []


def test_a_good_challenger_goes_from_shadow_to_champion(installation: Installation) -> None:
    settings = installation.settings
    champion = first_champion(settings, "good", 0.3)
    challenger = constant_release(settings.releases, "good", 0.31, semver="1.1.0")

    with Client(settings.gateway_url, "good", seed=11) as client:
        rollout = rollouts.start(settings, "good", challenger, actor="test", plan=PLAN)
        rollouts.advance(settings, rollout.id)
        shown = until_ended(settings, rollout.id, 2 * PATIENCE_S)
        route = control_db(settings).route("good")
        assert route is not None
        wait_until(lambda: _served(client) == challenger, "the new champion answers", PATIENCE_S)

    assert shown["status"] == "promoted"
    assert [each["kind"] for each in shown["decisions"]] == ["continue", "continue", "continue", "promote", "promote"]
    assert (route.mode, route.champion, route.fallback) == ("single", challenger, champion)
    assert control_db(settings).champion("good") == challenger
    waits = [each["seconds_to_route"] for each in shown["decisions"]]
    assert min(waits) >= 0
    assert statistics.median(waits) < 2, "one may have met a busy machine"
    assert not client.refused
    logged = {name: answer for name, answer in client.answers.items() if answer["logged"]}
    rows = collected(settings, "good", set(logged))
    # On a busy machine a challenger may be too slow for a request that drew it; the champion answers then.
    drew = {name for name, row in rows.items() if row["arm"] == "challenger"}
    assert {name for name, answer in logged.items() if answer["arm"] == "challenger"} <= drew
    drawn = [row for row in rows.values() if row["mode"] == "split" and row["rollout_id"] == rollout.id]
    assert shown["exposed"] <= sum(row["arm"] == "challenger" for row in drawn)
    assert shown["counts"]["challenger"]["canary_20"] <= 0.3 * shown["counts"]["assignments"]["canary_20"]
    assert_whole(settings, "good")
    served = DeltaLake(settings.lake).read("inference/response", ["request_id", "arm"], "model = 'good' AND served")
    told = {row["request_id"]: row["arm"] for row in served.to_pylist()}
    assert {name: told.get(name) for name in logged} == {name: answer["arm"] for name, answer in logged.items()}


def test_the_gateways_breaker_acts_at_once_and_the_record_follows(installation: Installation) -> None:
    settings = installation.settings
    champion = first_champion(settings, "broken", 0.3)
    challenger = constant_release(settings.releases, "broken", 0.3, semver="1.1.0", error=True)
    stages = [{"name": "canary_50", "share": 0.5, "requests": 5000}]
    blind = Policy.parse(POLICY | {"stages": stages, "warmup_requests": 5000}).to_mapping()
    plan = msgspec.structs.replace(PLAN, stages=from_spec(stages), policy=blind)

    with Client(settings.gateway_url, "broken", seed=13) as client:
        rollout = rollouts.start(settings, "broken", challenger, actor="test", plan=plan)
        rollouts.advance(settings, rollout.id)
        wait_until(lambda: rollouts.load(settings, rollout.id).slot == "ended", "the collector's decision", PATIENCE_S)
        wait_until(
            lambda: _routed(settings, "broken").clears_overrides, "the route that deals with the override", PATIENCE_S
        )
        route = _routed(settings, "broken")

    shown = rollouts.show(settings, rollout.id)
    observed, decision = shown["decisions"][-2:]
    assert (shown["status"], observed["kind"], decision["cause"]) == ("rolled_back", "observed", "override")
    assert (route.champion, route.clears_overrides) == (champion, decision["overrides"])
    assert not client.refused, "a failed challenger's requests are answered by the champion"
    failed = [answer for answer in client.answers.values() if answer["arm"] == "challenger"]
    assert len(failed) < 200
    assert_whole(settings, "broken")


def _routed(settings: Settings, model: str) -> Route:
    route = control_db(settings).route(model)
    assert route is not None
    return route


def _served(client: Client) -> str:
    newest = list(client.answers.values())[-1]
    return str(newest["release"])


def test_a_failing_challenger_is_rolled_back_before_it_answers_anybody(installation: Installation) -> None:
    settings = installation.settings
    champion = first_champion(settings, "bad", 0.3)
    challenger = constant_release(settings.releases, "bad", 0.3, semver="1.1.0", error_share=0.05)

    with Client(settings.gateway_url, "bad", seed=12) as client:
        rollout = rollouts.start(settings, "bad", challenger, actor="test", plan=PLAN)
        rollouts.advance(settings, rollout.id)
        shown = until_ended(settings, rollout.id, PATIENCE_S)

    assert shown["status"] == "rolled_back"
    assert shown["decisions"][-1]["metrics"] == ["error_rate"]
    assert shown["exposed"] == 0
    route = control_db(settings).route("bad")
    assert route is not None
    assert (route.mode, route.champion) == ("single", champion)
    assert control_db(settings).champion("bad") == champion
    assert {answer["release"] for answer in client.answers.values()} == {champion}
    assert_whole(settings, "bad")
