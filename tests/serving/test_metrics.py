"""What the gateway shows of itself: read by a real Prometheus, drawn by the dashboard, watched by the alerts."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipelines.settings import PROJECT
from tests.prometheus_server import Prometheus, program, prometheus
from tests.serving.conftest import Installation, Start
from tests.serving.processes import GatewayProcess, bentoml_serve
from tests.serving.test_online_features import put, two_releases, view
from tests.waiting import wait_until

DASHBOARDS = PROJECT / "include" / "dashboards"
RULES = DASHBOARDS / "rules.yaml"
DASHBOARD = json.loads((DASHBOARDS / "gateway.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
PRICE = "0.36"

ROWS = 3
SENT = 40
MISSING = 10


def ask(client: httpx.Client, origin: str, request_id: str) -> int:
    inputs = [
        {"name": "x", "datatype": "FP64", "shape": [ROWS], "data": [1.0] * ROWS},
        {"name": "origin", "datatype": "BYTES", "shape": [ROWS], "data": [origin] * ROWS},
    ]
    return client.post("/v2/models/m/infer", json={"id": request_id, "inputs": inputs}).status_code


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """Two workers with a rollout and a feature view, after some of everything that is counted."""
    home = Installation(tmp_path_factory.mktemp("metrics"))
    pin = view(entity={"origin": "origin"}, features=["temp"], ttl_us=None)
    one, two = two_releases(home, pin)
    home.publish("split", champion=one, challenger=two, share_ppm=500_000)
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
    put(home.home / "feast" / "online_store.db", pin, {"origin": "EWR"}, now, {"temp": 39.5})
    settings = {"SLIPWAY_GATEWAY_WORKERS": "2", "SLIPWAY_CORE_PRICE_PER_HOUR": PRICE}
    with bentoml_serve(home.home, **settings) as process:
        wait_until(lambda: len(list((home.home / "bus" / "gw0").iterdir())) == 2, "both workers have started")
        for n in range(SENT):
            # A connection each, so that both workers get some.
            with httpx.Client(base_url=process.url) as client:
                assert ask(client, "JFK" if n < MISSING else "EWR", f"q{n}") == 200
        with httpx.Client(base_url=process.url) as client:
            assert client.post("/v2/models/m/infer", content=b"{").status_code == 400
            assert client.post("/v1/models/m/labels", json={"labels": [{"id": "q0", "value": 1}]}).status_code == 202
        yield process


@pytest.fixture(scope="module")
def server(gateway: GatewayProcess) -> Iterator[Prometheus]:
    with prometheus(gateway.url.removeprefix("http://"), RULES) as running:
        counted = "sum(slipway_request_seconds_count)"
        wait_until(lambda: running.query(counted) and running.value(counted) == SENT, "all requests are scraped")
        yield running


def test_counts_of_all_workers_are_added_by_model_arm_and_release(server: Prometheus) -> None:
    served = server.query("sum by (model, arm) (slipway_predictions_total)")
    assert {one["metric"]["arm"] for one in served} == {"champion", "challenger"}
    assert sum(float(one["value"][1]) for one in served) == SENT * ROWS
    assert server.value('sum(slipway_responses_total{status="ok"})') >= SENT
    assert len(server.query("count by (release) (slipway_responses_total)")) == 2
    assert server.value('slipway_refused_total{status="400"}') == 1
    assert server.value('slipway_refused_total{status="429"}') == 0
    assert server.value('slipway_feedback_total{kind="label"}') == 1
    assert server.value("slipway_connections") >= 0


def test_feature_misses_and_their_age_are_told_by_view(server: Prometheus) -> None:
    assert server.value('slipway_feature_rows_total{view="weather__3f2a",found="no"}') == MISSING * ROWS
    assert server.value('slipway_feature_rows_total{found="yes"}') == (SENT - MISSING) * ROWS
    assert server.value("slipway_feature_age_seconds_count") == SENT - MISSING
    assert server.value("slipway_feature_age_seconds_sum / slipway_feature_age_seconds_count") < 300


def test_the_route_and_its_age_are_told(server: Prometheus) -> None:
    assert server.value('slipway_route_version{model="m"}') == 1
    assert server.value('slipway_route_version_slowest_worker{model="m"}') == 1
    assert 0 < server.value("time() - slipway_route_in_force_timestamp_seconds") < 600
    assert 0 <= server.value("slipway_control_database_age_seconds") < 30
    assert server.value("slipway_override_in_force") == 0


def test_latency_is_told_by_part(server: Prometheus) -> None:
    for part in ("request", "scoring", "features", "model", "log_write", "log_fsync"):
        assert server.value(f"sum(slipway_{part}_seconds_count)") > 0, part
        assert server.value(f"sum(slipway_{part}_seconds_sum)") >= 0, part
    assert server.value("sum(slipway_request_seconds_sum)") > server.value(
        'sum(slipway_model_seconds_sum{arm="champion"})'
    )


def test_the_cost_is_the_processor_time_used_at_the_price_of_a_core(server: Prometheus) -> None:
    cost = "slipway_cost_per_1000_predictions"
    reckoned = f"sum(slipway_cpu_seconds_total) / 3600 * {PRICE} / sum(slipway_predictions_total) * 1000"
    assert server.value(cost) == pytest.approx(server.value(reckoned), rel=0.2)
    assert server.value("slipway_cpu_seconds_total") > 0.5


def test_every_panel_and_rule_is_about_something_the_gateway_shows(server: Prometheus, gateway: GatewayProcess) -> None:
    shown = set(httpx.get(f"{server.url}/api/v1/label/__name__/values").json()["data"])
    rules = server.rules()
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
    recorded = {rule["name"] for rule in rules if rule["type"] == "recording"}
    for expression in [*EXPRESSIONS, *(rule["query"] for rule in rules)]:
        named = set(re.findall(r"\bslipway[_:][a-z0-9_:]+", expression))
        assert named, expression
        assert named <= shown | recorded, expression


def test_every_panel_draws(server: Prometheus) -> None:
    wait_until(lambda: server.query("rate(slipway_cpu_seconds_total[1m])"), "two scrapes")
    for expression in EXPRESSIONS:
        asked = expression.replace("$__rate_interval", "1m").replace("$model", ".*")
        assert server.query(asked), asked


def test_the_dashboard_has_one_place_for_each_panel() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    assert len(set(places)) == len(places)


def test_alerts_fire_when_they_should_and_not_before(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(RULES.read_text())
    (tmp_path / "alerts.yaml").write_text((Path(__file__).parent / "alerts.yaml").read_text())
    promtool = program("promtool")
    done = subprocess.run(
        [promtool, "test", "rules", "alerts.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    checked = subprocess.run(
        [promtool, "check", "config", "prometheus.yaml"], cwd=DASHBOARDS, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.anyio
async def test_rare_counts_are_shown_from_zero_on(home: Installation, start: Start) -> None:
    home.publish()
    async with start() as running:
        await running.infer()
        text = (await running.client.get("/metrics")).text
    for name in ("unlogged", "shadow_shed", "fallbacks", "retries"):
        assert f'slipway_{name}_total{{model="m"}} 0.0' in text
    assert 'slipway_overrides_total{by="breaker",model="m"} 0.0' in text


@pytest.mark.anyio
async def test_an_override_is_counted_by_who_made_it_and_shown_while_in_force(home: Installation, start: Start) -> None:
    home.publish("shadow")
    headers: dict[str, Any] = {"authorization": "Bearer sesame"}
    async with start() as running:
        assert (await running.client.post("/v1/models/m/rollback", headers=headers)).status_code == 200
        text = (await running.client.get("/metrics")).text
    assert 'slipway_overrides_total{by="hand",model="m"} 1.0' in text
    assert 'slipway_override_in_force{model="m"} 1.0' in text
