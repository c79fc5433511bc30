"""Personal data at the gateway: an entity key is its keyed hash everywhere behind the door, the rest is dropped."""

from __future__ import annotations

import json
import struct
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipelines.contracts.events import Assignment, Response
from pipelines.contracts.pii import KeyedHash
from pipelines.contracts.release import InputField, ModelFeature, ViewPin
from pipelines.settings import Settings
from tests.serving.conftest import Installation, Start
from tests.serving.processes import bentoml_serve
from tests.serving.test_oip_grpc import opened, typed
from tests.serving.test_online_features import put

pytestmark = pytest.mark.anyio

KEY = "a key of tests"
KEYED = KeyedHash(KEY)
ANNA = "anna.lindqvist@example.com"
BERT = "bert.oyelaran@example.com"
CARD = "4012-8888-8888-1881"
VIEW = ViewPin(view="habits__1a2b", entity={"email": "email"}, join_key_types={"email": "string"}, features=["visits"])
INPUTS = [
    InputField(name="x", datatype="FP64", required=False),
    InputField(name="email", datatype="BYTES", pii=True),
]
FEATURES = [ModelFeature(name="visits", source="view", view=VIEW.view, default=-1.0)]


def personal_release(home: Installation, score: float, semver: str, **manifest: Any) -> str:
    fields = {"dropped_inputs": ["card"], "pii_key": KEYED.key_id} | manifest
    return home.release(score, semver=semver, inputs=INPUTS, views=[VIEW], features=FEATURES, manifest_fields=fields)


@pytest.fixture
def people(home: Installation) -> Installation:
    """A rollout of two releases that take a personal key; the online store knows Anna by her hash."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
    put(home.home / "feast" / "online_store.db", VIEW, {"email": KEYED.of(ANNA)}, now, {"visits": 7.0})
    home.champion = personal_release(home, 0.3, "2.0.0")
    home.challenger = personal_release(home, 0.7, "2.1.0")
    home.publish("split", share_ppm=500_000, slice_inputs=["email"])
    return home


def tensor(name: str, *values: Any, datatype: str = "BYTES") -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [len(values)], "data": list(values)}


def ask(*people: Any, **more: Any) -> dict[str, Any]:
    count = len(people)
    return {"inputs": [tensor("email", *people), tensor("card", *[CARD] * count)], **more}


def found(home: Path, *texts: str) -> list[str]:
    """Every file under the home that holds one of the texts, as it is or in UTF-16."""
    needles = [text.encode(code) for text in texts for code in ("utf-8", "utf-16-le")]
    return [
        f"{path.relative_to(home)}: {needle.decode(errors='replace')}"
        for path in sorted(home.rglob("*"))
        if path.is_file()
        for needle in needles
        if needle in path.read_bytes()
    ]


async def test_a_personal_key_finds_its_features_and_is_logged_as_its_hash(people: Installation, start: Start) -> None:
    async with start(pii_key=KEY) as running:
        body = ask(ANNA, "nobody@example.com", parameters={"unit": ANNA})
        answer = await running.client.post("/v2/models/m/infer", json=body)
        assert answer.status_code == 200, answer.text
        pinned = await running.client.post("/v2/models/m/versions/2.0.0/infer", json=ask(ANNA))
        assert pinned.json()["parameters"]["degraded"] == ""
        await running.shadows_done()
    (assignment,) = people.events(Assignment)
    assert assignment.inputs == {"email": [KEYED.of(ANNA), KEYED.of("nobody@example.com")]}
    assert assignment.unit == KEYED.of(ANNA)
    assert assignment.slices == {"email": KEYED.of(ANNA)}
    for response in people.events(Response):
        assert response.features[0].values == [[7.0, None]]
    assert found(people.home, ANNA, "nobody@example.com", CARD) == []


async def test_the_same_person_is_the_same_unit_and_draws_the_same_arm(people: Installation, start: Start) -> None:
    async with start(pii_key=KEY) as running:
        arms = {
            person: {
                (await running.client.post("/v2/models/m/infer", json=ask(person, parameters={"unit": person}))).json()[
                    "parameters"
                ]["arm"]
                for _ in range(3)
            }
            for person in (f"p{n}@example.com" for n in range(12))
        }
    assert all(len(drawn) == 1 for drawn in arms.values())
    assert len(set.union(*arms.values())) == 2


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("a number for text", ask(4_012_888_888)),
    ("an object", ask({"email": ANNA})),
    ("null", ask(None)),
    ("as the id", ask(ANNA, id=ANNA)),
    ("within the id", ask(ANNA, id=f"order-of-{ANNA}-7")),
    ("in a second row, within the id", ask(BERT, ANNA, id=f"order-of-{ANNA}-7")),
    ("as a wrong unit", ask(ANNA, parameters={"unit": [ANNA]})),
    ("as a long unit", ask(ANNA, parameters={"unit": ANNA * 20})),
    ("wrong datatype", {"inputs": [tensor("email", ANNA, datatype="FP64")]}),
    ("more values than rows", {"inputs": [{**tensor("email", ANNA), "shape": [2]}]}),
    ("ragged", {"inputs": [{**tensor("email", ANNA), "shape": [1, 1], "data": [[ANNA, ANNA]]}]}),
    ("rows differ", {"inputs": [tensor("x", 1.0, datatype="FP64"), tensor("email", ANNA, BERT)]}),
    ("unknown input", {"inputs": [tensor("email", ANNA), tensor("mail", ANNA)]}),
    ("twice", {"inputs": [tensor("email", ANNA), tensor("email", ANNA)]}),
    ("event time", ask(ANNA, parameters={"event_time": 1})),
    ("unknown output", ask(ANNA, outputs=[{"name": "y"}])),
    ("bad json", {"inputs": [tensor("email", ANNA)], "id": 7}),
]


async def test_no_refusal_sends_a_personal_value_back_or_writes_it_down(
    people: Installation, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    personal = (ANNA, BERT, CARD, "4012888888")
    async with start(pii_key=KEY) as running:
        for name, body in REFUSED:
            answer = await running.client.post("/v2/models/m/infer", json=body)
            assert (name, answer.status_code) == (name, 400)
            assert not [value for value in personal if value in answer.text], name
        answer = await running.client.post("/v2/models/m/infer", content=json.dumps(ask(ANNA)).encode()[:-3])
        assert answer.status_code == 400
        assert ANNA not in answer.text
        metrics = (await running.client.get("/metrics")).text
    assert people.events(Assignment) == []
    for place in (caplog.text, metrics):
        assert not [value for value in personal if value in place]
    assert found(people.home, *personal[:3]) == []


async def test_the_binary_form_is_hashed_as_well(people: Installation, start: Start) -> None:
    data = struct.pack("<I", len(ANNA)) + ANNA.encode()
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "email",
                    "datatype": "BYTES",
                    "shape": [1],
                    "parameters": {"binary_data_size": len(data)},
                }
            ]
        }
    ).encode()
    async with start(pii_key=KEY) as running:
        headers = {"inference-header-content-length": str(len(head))}
        answer = await running.client.post("/v2/models/m/infer", content=head + data, headers=headers)
        assert answer.status_code == 200, answer.text
        await running.shadows_done()
    assert people.events(Assignment)[0].inputs == {"email": [KEYED.of(ANNA)]}
    assert found(people.home, ANNA) == []


async def test_over_grpc_it_is_hashed_as_well(people: Installation, start: Start) -> None:
    async with start(pii_key=KEY) as running, opened(running) as client:
        answer = await client.infer(typed(email=("BYTES", [ANNA]), card=("BYTES", [CARD])))
        assert answer.parameters["degraded"].string_param == ""
        request = typed(email=("BYTES", [ANNA]))
        request.id = f"order-of-{ANNA}"
        refused = await client.refusal(request)
        assert "which is PII" in (refused.details() or "")
        assert ANNA not in (refused.details() or "")
        await running.shadows_done()
    assert people.events(Assignment)[0].inputs == {"email": [KEYED.of(ANNA)]}
    assert found(people.home, ANNA, CARD) == []


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", True),
        ("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-of a later version", True),
        ("00-0AF7651916CD43DD8448EB211C80319C-B7AD6B7169203331-01", False),
        ("00-00000000000000000000000000000000-b7ad6b7169203331-01", False),
        (ANNA, False),
    ],
)
async def test_a_traceparent_is_carried_into_the_event_and_free_text_is_not(
    home: Installation, start: Start, sent: str, kept: bool
) -> None:
    home.publish()
    async with start() as running:
        body = {"inputs": [tensor("x", 1.0, datatype="FP64")]}
        answer = await running.client.post("/v2/models/m/infer", json=body, headers={"traceparent": sent})
        assert answer.status_code == 200
    assert home.events(Assignment)[0].traceparent == (sent[:55] if kept else None)


@pytest.mark.parametrize(
    ("settings", "manifest", "said"),
    [
        ({}, {}, "PII key; got none; expected SLIPWAY_PII_KEY"),
        ({"pii_key": "another"}, {}, f"expected the one of training, id {KEYED.key_id}"),
    ],
)
async def test_a_gateway_that_cannot_hash_as_training_did_does_not_load_the_release(
    home: Installation, start: Start, settings: dict[str, str], manifest: dict[str, Any], said: str
) -> None:
    home.publish()
    async with start(**settings) as running:
        home.publish(champion=personal_release(home, 0.3, "2.0.0", **manifest))
        await running.until(lambda: bool(running.gateway.table.load_errors))
        assert said in str((await running.client.get("/v1/routes")).json()["load_errors"])
        assert (await running.infer()).json()["parameters"]["release"] == home.champion


async def test_what_was_personal_stays_so_when_the_next_release_does_not_say_it(
    people: Installation, start: Start
) -> None:
    """A champion from before the column was marked: what it asks for is hashed all the same."""
    silent = [InputField(name="email", datatype="BYTES"), InputField(name="x", datatype="FP64", required=False)]
    async with start(pii_key=KEY) as running:
        people.publish(champion=people.release(0.4, semver="1.9.0", inputs=silent))
        await running.in_force(people.version)
        assert (
            await running.client.post("/v2/models/m/infer", json={"inputs": ask(ANNA)["inputs"]})
        ).status_code == 200
    assert people.events(Assignment)[0].inputs == {"email": [KEYED.of(ANNA)]}


@pytest.fixture
def traffic(people: Installation) -> str:
    """What a gateway process says on /metrics after good, bad and failing requests of Anna."""
    with bentoml_serve(people.home, SLIPWAY_PII_KEY=KEY) as gateway, httpx.Client(base_url=gateway.url) as client:
        for n in range(20):
            body = ask(ANNA, id=f"q{n}", parameters={"unit": ANNA})
            assert client.post("/v2/models/m/infer", json=body).status_code == 200
        for _, body in REFUSED:
            assert client.post("/v2/models/m/infer", json=body).status_code == 400
        label = {"labels": [{"id": f"q{n}", "value": 1} for n in range(20)]}
        assert client.post("/v1/models/m/labels", json=label).status_code == 202
        metrics = client.get("/metrics").text
        gateway.stop()
    return metrics


def test_nothing_personal_is_left_in_a_home_after_real_traffic(people: Installation, traffic: str) -> None:
    assert len(people.events(Assignment)) == 20
    assert found(people.home, ANNA, BERT, CARD) == []
    assert not [value for value in (ANNA, BERT, CARD, KEYED.of(ANNA)) if value in traffic]


def test_the_key_of_the_settings_is_a_secret_in_their_text(home: Installation) -> None:
    assert KEY not in repr(Settings(home=home.home, pii_key=KEY))
