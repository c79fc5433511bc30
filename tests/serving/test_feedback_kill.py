"""What a 202 promises: the labels and KPI values are there when everything is killed in the same moment."""

from __future__ import annotations

import os
import signal

import httpx

from pipelines.contracts.events import Kpi, Label
from tests.serving.conftest import Installation
from tests.serving.processes import bentoml_serve


def test_ten_thousand_labels_survive_a_kill_of_everything_right_after_their_202(home: Installation) -> None:
    home.publish()
    count = 10_000
    # Of requests that were never made: early, as far as the gateway knows, and late by years.
    labels = [{"id": f"q{n}", "value": n % 2, "at": "2013-01-02T00:00:00Z"} for n in range(count)]
    kpis = [{"id": f"q{n}", "name": "cost", "value": n / 4} for n in range(count)]
    with bentoml_serve(home.home) as gateway, httpx.Client(base_url=gateway.url, timeout=30) as client:
        for _ in range(2):  # again, as a client does that is not sure
            assert client.post("/v1/models/m/labels", json={"labels": labels}).json() == {"accepted": count}
        assert client.post("/v1/models/m/kpis", json={"kpis": kpis}).status_code == 202
        os.killpg(gateway.process.pid, signal.SIGKILL)
    kept = [(event.request_id, event.value) for event in home.events(Label)]
    assert kept == [(f"q{n}", float(n % 2)) for n in range(count)] * 2
    assert [(event.name, event.value) for event in home.events(Kpi)] == [("cost", n / 4) for n in range(count)]
