"""Where a token is set for clients, predictions, labels and KPIs need it, on every way in; telling paths do not."""

from __future__ import annotations

import grpc
import pytest

from pipelines.contracts.events import Assignment, Label
from tests.serving.conftest import TOKEN, Installation, Start
from tests.serving.test_direct import connected, post, served
from tests.serving.test_oip_grpc import opened, typed

pytestmark = pytest.mark.anyio

CLIENTS = "open"
RIGHT, WRONG, OPERATORS = (f"Bearer {token}" for token in (CLIENTS, "shut", TOKEN))


async def test_over_http_requests_without_the_clients_token_are_refused_and_change_nothing(
    home: Installation, start: Start
) -> None:
    home.publish()
    tensor = {"name": "x", "datatype": "FP64", "shape": [1], "data": [1.0]}
    facts = [{"id": "q", "value": 1.0}]
    calls = {
        "/v2/models/m/infer": {"inputs": [tensor]},
        "/v2/models/m/versions/1.0.0/infer": {"inputs": [tensor]},
        "/v1/models/m/labels": {"labels": facts},
        "/v1/models/m/kpis": {"kpis": facts},
    }
    async with start(client_token=CLIENTS) as running:
        for path, body in calls.items():
            for sent, status in ((None, 401), ("Basic b3Blbg==", 401), (WRONG, 403), (OPERATORS, 403)):
                headers = {"authorization": sent} if sent else {}
                refused = await running.client.post(path, json=body, headers=headers)
                assert refused.status_code == status, path
                assert CLIENTS not in refused.text
        assert home.events() == []
        for path, body in calls.items():
            answer = await running.client.post(path, json=body, headers={"authorization": RIGHT})
            assert answer.status_code in (200, 202), path
        for path in ("/v2/health/ready", "/v2/models/m", "/v1/routes", "/metrics"):
            assert (await running.client.get(path)).status_code == 200
        back = await running.client.post("/v1/models/m/rollback", headers={"authorization": RIGHT})
        assert back.status_code == 403, "operators have a token of their own"
        async with served(running) as port, connected(port) as client:
            for line, status in (("", 401), (f"Authorization: {WRONG}\r\n", 403), (f"Authorization: {RIGHT}\r\n", 200)):
                client.send(post("direct", headers=line))
                assert (await client.answer())[0] == status
    assert len(home.events(Assignment)) == 2
    assert len(home.events(Label)) == 1


@pytest.mark.parametrize(("sent", "is_shown"), [(None, False), (WRONG, False), (RIGHT, False), (OPERATORS, True)])
async def test_a_salt_which_lets_a_client_choose_its_arm_is_shown_to_operators_alone(
    home: Installation, start: Start, sent: str | None, is_shown: bool
) -> None:
    home.publish("split", share_ppm=500_000, salt="a5a5a5")
    async with start(client_token=CLIENTS) as running:
        answer = await running.client.get("/v1/routes", headers={"authorization": sent} if sent else {})
    assert answer.status_code == 200
    assert answer.json()["routes"][0]["route"]["share_ppm"] == 500_000
    assert ("a5a5a5" in answer.text) == is_shown


async def test_calls_over_grpc_need_it_as_metadata(home: Installation, start: Start) -> None:
    home.publish()
    async with start(client_token=CLIENTS) as running, opened(running) as client:
        for metadata, code in (
            ((), grpc.StatusCode.UNAUTHENTICATED),
            ((("authorization", WRONG),), grpc.StatusCode.PERMISSION_DENIED),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await client.infer(typed(x=("FP64", [1.0])), metadata=metadata)
            assert refused.value.code() == code
        answer = await client.infer(typed(x=("FP64", [1.0])), metadata=(("authorization", RIGHT),))
        assert answer.parameters["route_version"].int64_param == 1
