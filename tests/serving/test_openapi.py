"""The description of the gateway's paths: what it names is there, with the methods and tokens that it says."""

from __future__ import annotations

from typing import Any

import pytest

from tests.serving.conftest import TOKEN, Installation, Start

pytestmark = pytest.mark.anyio

BODIES: dict[str, Any] = {
    "InferRequest": {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [1.0]}]},
    "LabelsBody": {"labels": [{"id": "a", "value": 1}]},
    "KpisBody": {"kpis": [{"id": "a", "value": 1}]},
    "RollbackBody": {},
}


async def test_every_path_of_the_description_answers_as_it_says(home: Installation, start: Start) -> None:
    home.publish("split", share_ppm=1)
    async with start(client_token="client") as running:
        told = (await running.client.get("/docs.json")).json()
        assert told["openapi"].startswith("3.")
        asked = 0
        for path, methods in told["paths"].items():
            url = path.replace("{model}", "m").replace("{version}", "1.0.0")
            for method, operation in methods.items():
                body = None
                if "requestBody" in operation:
                    schema = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
                    body = BODIES[schema.rpartition("/")[2]]
                    assert schema.rpartition("/")[2] in told["components"]["schemas"]
                needs = "operator" if {"operator": []} in operation.get("security", []) else "client"
                if "security" in operation:
                    refused = 200 if needs == "operator" and {} in operation["security"] else 401
                    assert (await running.client.request(method, url, json=body)).status_code == refused, path
                headers = {"authorization": f"Bearer {TOKEN if needs == 'operator' else 'client'}"}
                answer = await running.client.request(method, url, json=body, headers=headers)
                assert str(answer.status_code) in operation["responses"], (path, answer.text)
                asked += 1
        other = await running.client.request("POST", "/docs.json")
        page = await running.client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "://" not in page.text  # nothing is loaded from elsewhere
    assert asked == len(told["paths"]) == 14
    assert other.status_code == 405
