"""Labels and KPI values: durable before 202, kept as they came, refused when malformed."""

from __future__ import annotations

import gzip
import os

import anyio
import pytest

from pipelines.contracts.events import Assignment, Kpi, Label
from tests.serving.conftest import Installation, Start

pytestmark = pytest.mark.anyio


async def test_labels_are_on_the_disk_before_they_are_acknowledged(
    home: Installation, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.publish()
    order: list[str] = []
    fdatasync = os.fdatasync

    def slow(descriptor: int) -> None:
        import time

        time.sleep(0.05)  # the disk is slow
        fdatasync(descriptor)
        order.append("fsync")

    async with start() as running:
        monkeypatch.setattr(os, "fdatasync", slow)
        body = {
            "labels": [{"id": "q1", "value": 1}, {"id": "q1", "row": 1, "value": 0.25, "at": "2013-01-02T00:00:00Z"}]
        }
        answer = await running.client.post("/v1/models/m/labels", json=body)
        order.append("answer")
        assert (answer.status_code, answer.json()) == (202, {"accepted": 2})
        assert order[0] == "fsync"
        assert order[-1] == "answer"
        monkeypatch.undo()
    first, second = home.events(Label)
    assert (first.request_id, first.row, first.value) == ("q1", 0, 1.0)
    assert (second.row, second.value, second.event_us) == (1, 0.25, 1_357_084_800_000_000)


async def test_repeated_early_and_contradicting_labels_are_all_kept(home: Installation, start: Start) -> None:
    home.publish()
    async with start() as running:
        for value in (1, 1, 0):
            answer = await running.client.post(
                "/v1/models/m/labels", json={"labels": [{"id": "never", "value": value}]}
            )
            assert answer.status_code == 202
    assert [event.value for event in home.events(Label)] == [1.0, 1.0, 0.0]


async def test_kpi_values_carry_their_name(home: Installation, start: Start) -> None:
    home.publish()
    async with start() as running:
        body = {"kpis": [{"id": "q1", "value": 3.5}, {"id": "q1", "name": "cost", "value": True}]}
        assert (await running.client.post("/v1/models/m/kpis", json=body)).status_code == 202
    assert [(event.name, event.value) for event in home.events(Kpi)] == [("kpi", 3.5), ("cost", 1.0)]


async def test_ten_thousand_labels_go_in_one_call_and_many_calls_share_an_fsync(
    home: Installation, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.publish()
    calls: list[int] = []
    fdatasync = os.fdatasync

    def counted(descriptor: int) -> None:
        import time

        calls.append(descriptor)
        time.sleep(0.02)  # the disk is slow
        fdatasync(descriptor)

    async with start() as running:
        many = {"labels": [{"id": f"q{k}", "value": 1} for k in range(10_000)]}
        assert (await running.client.post("/v1/models/m/labels", json=many)).status_code == 202
        too_many = {"labels": [*many["labels"], {"id": "one more", "value": 1}]}
        assert (await running.client.post("/v1/models/m/labels", json=too_many)).status_code == 413
        monkeypatch.setattr(os, "fdatasync", counted)
        async with anyio.create_task_group() as group:
            for k in range(20):
                body = {"labels": [{"id": f"c{k}", "value": 1}]}
                group.start_soon(lambda b: running.client.post("/v1/models/m/labels", json=b), body)
        monkeypatch.undo()
    assert len(home.events(Label)) == 10_020
    assert 1 <= len(calls) < 10


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"{", "no JSON"),
        (b"{}", "missing required field `labels`"),
        (b'{"labels":[]}', "empty list"),
        (b'{"labels":[{"id":"q","value":NaN}]}', "no JSON"),
        (b'{"labels":[{"id":"q","value":null}]}', "Expected `bool | float`"),
        (b'{"labels":[{"id":"q","value":"1"}]}', "Expected `bool | float`"),
        (b'{"labels":[{"id":"","value":1}]}', "id"),
        (b'{"labels":[{"id":"q","value":1,"row":-1}]}', "row"),
        # The lake's column would not hold it, and one such label would stop the collector.
        (b'{"labels":[{"id":"q","value":1,"row":2147483648}]}', "labels[0].row"),
        (b'{"labels":[{"id":"q","value":1,"row":18446744073709551616}]}', "labels[0].row"),
        (b'{"labels":[{"id":"q","value":1,"at":9223372036854775808}]}', "labels[0].at"),
        (b'{"labels":[{"id":"q","value":1,"at":-9223372036854776000}]}', "between the years 1677 and 2262"),
        (b'{"labels":[{"id":"q","value":1,"at":18446744073709551616}]}', "labels[0].at"),
        (b'{"labels":[{"id":"q","value":1,"at":"9999-12-31T23:59:59Z"}]}', "labels[0].at"),
        (b'{"labels":[{"id":"q","value":1},{"id":"q","value":1,"at":"noon"}]}', "labels[1].at"),
    ],
)
async def test_malformed_labels_are_refused_and_nothing_of_the_call_is_written(
    home: Installation, start: Start, body: bytes, text: str
) -> None:
    home.publish()
    async with start() as running:
        answer = await running.client.post("/v1/models/m/labels", content=body)
    assert answer.status_code == 400
    assert text in answer.json()["error"]
    assert home.events() == []


@pytest.mark.parametrize("kind", ["labels", "kpis"])
async def test_what_has_not_happened_yet_is_refused_but_in_a_replay(
    home: Installation, start: Start, kind: str
) -> None:
    home.publish()
    body = {kind: [{"id": "q", "value": 1, "at": at} for at in ("2013-01-02T00:00:00Z", "2199-01-02T00:00:00Z")]}
    async with start() as running:
        refused = await running.client.post(f"/v1/models/m/{kind}", json=body)
    assert refused.status_code == 400
    assert f"{kind}[1].at; got 2199-01-02T00:00:00Z; expected no moment to come" in refused.json()["error"]
    assert home.events() == []
    async with start(clock="replay") as running:
        assert (await running.client.post(f"/v1/models/m/{kind}", json=body)).status_code == 202


@pytest.mark.parametrize("name", ["", "n" * 257])
async def test_the_name_of_a_kpi_is_short_and_not_empty(home: Installation, start: Start, name: str) -> None:
    home.publish()
    async with start() as running:
        answer = await running.client.post("/v1/models/m/kpis", json={"kpis": [{"id": "q", "value": 1, "name": name}]})
    assert answer.status_code == 400
    assert "kpis[0].name" in answer.json()["error"]


async def test_labels_may_come_compressed(home: Installation, start: Start) -> None:
    home.publish()
    body = gzip.compress(b'{"labels":[{"id":"q","value":1}]}')
    async with start() as running:
        for encoding, status in (("gzip", 202), ("deflate", 400), ("br", 415)):
            headers = {"content-encoding": encoding}
            answer = await running.client.post("/v1/models/m/labels", content=body, headers=headers)
            assert answer.status_code == status
    assert len(home.events(Label)) == 1


async def test_requests_are_answered_while_ten_thousand_labels_are_written(home: Installation, start: Start) -> None:
    home.publish()
    many = {"labels": [{"id": f"q{k}", "value": 1} for k in range(10_000)]}
    async with start() as running, anyio.create_task_group() as group:
        group.start_soon(lambda: running.client.post("/v1/models/m/labels", json=many))
        await running.until(lambda: running.gateway.log.n > 0)
        assert (await running.infer("a")).status_code == 200
    kinds = [type(event) for event in home.events()]
    assert 0 < kinds.index(Assignment) < kinds.count(Label)


async def test_under_replay_a_label_holds_at_the_drivers_tick(home: Installation, start: Start) -> None:
    home.publish()
    async with start(clock="replay") as running:
        body = {"labels": [{"id": "q", "value": 1}]}
        refused = await running.client.post("/v1/models/m/labels", json=body)
        assert refused.status_code == 400
        running.gateway.clock.tick(1_357_017_300_000_000)
        assert (await running.client.post("/v1/models/m/labels", json=body)).status_code == 202
    assert home.events(Label)[0].event_us == 1_357_017_300_000_000
