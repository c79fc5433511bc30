"""Requests the gateway refuses: the status, what was got, what was expected. None is a 5xx."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.contracts.release import InputField
from tests.serving.conftest import Installation, Running, Start

pytestmark = pytest.mark.anyio


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "FP64", "shape": [1], "data": [1.0]} | changes


def request(*tensors: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"inputs": list(tensors) or [tensor()], **more}


CASES: list[tuple[str, Any, int, str]] = [
    ("no JSON", b"{", 400, "not JSON"),
    ("not an object", b"[]", 400, "Expected `object`, got `array`"),
    ("NaN token", b'{"inputs":[{"name":"x","datatype":"FP64","shape":[1],"data":[NaN]}]}', 400, "not JSON"),
    ("infinite number", b'{"inputs":[{"name":"x","datatype":"FP64","shape":[1],"data":[1e999]}]}', 400, "range"),
    ("not UTF-8", b'{"id":"\xff","inputs":[]}', 400, "utf-8"),
    ("deep nesting", b'{"inputs":' + b"[" * 50_000, 400, "nests deeper"),
    (
        "deep nesting in data",
        b'{"inputs":[{"name":"x","datatype":"FP64","shape":[1],"data":[' + b"[" * 50_000,
        400,
        "JSON",
    ),
    ("no inputs", {}, 400, "missing required field `inputs`"),
    ("empty inputs", {"inputs": []}, 400, "got none"),
    ("unknown input", request(tensor(name="orign")), 400, "Did you mean origin?"),
    ("input twice", request(tensor(), tensor()), 400, "it twice"),
    ("output twice", request(outputs=[{"name": "score"}, {"name": "score"}]), 400, "output score; got it twice"),
    ("unknown datatype", request(tensor(datatype="DOUBLE")), 400, "got DOUBLE; expected one of"),
    ("text for a number", request(tensor(datatype="BYTES", data=["1"])), 400, "got BYTES; expected FP64"),
    ("text in numbers", request(tensor(data=["1"])), 400, "row 0; got '1'; expected FP64 or null"),
    ("bool in numbers", request(tensor(data=[True])), 400, "got True"),
    ("number in text", request(tensor(name="origin", datatype="BYTES", data=[7])), 400, "got 7; expected BYTES"),
    ("object as value", request(tensor(data=[{}])), 400, "got {}"),
    ("shape says more", request(tensor(shape=[2])), 400, "got 1 values; expected 2"),
    ("negative shape", request(tensor(shape=[-1])), 400, "shape"),
    ("three dimensions", request(tensor(shape=[1, 1, 1])), 400, "shape"),
    ("scalar shape", request(tensor(shape=[])), 400, "shape"),
    ("no rows", request(tensor(shape=[0], data=[])), 400, "1 or more"),
    ("ragged", request(tensor(shape=[2, 1], data=[[1.0], [1.0, 2.0]])), 400, "ragged"),
    (
        "rows differ",
        request(tensor(), tensor(name="origin", datatype="BYTES", shape=[2], data=["a", "b"])),
        400,
        "rows",
    ),
    ("too many rows", request(tensor(shape=[101], data=[1.0] * 101)), 413, "at most 100"),
    ("long id", request(id="x" * 300), 400, "at most 256"),
    ("id of another type", request(id=7), 400, "Expected `str | null`, got `int`"),
    ("unit of another type", request(parameters={"unit": True}), 400, "parameters.unit"),
    ("empty unit", request(parameters={"unit": ""}), 400, "parameters.unit"),
    ("nested parameter", request(parameters={"unit": {}}), 400, "parameters"),
]


async def post(running: Running, body: Any, path: str = "/v2/models/m/infer") -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await running.client.post(path, content=content)


async def test_malformed_requests_are_told_what_was_got_and_expected(home: Installation, start: Start) -> None:
    home.publish()
    async with start(limits={"max_rows": 100}) as running:
        for name, body, status, text in CASES:
            answer = await post(running, body)
            assert (name, answer.status_code) == (name, status)
            assert text in answer.json()["error"], name
        assert (await running.infer()).status_code == 200
    assert len(home.events()) == 2


async def test_a_required_input_must_be_there_and_not_null(home: Installation, start: Start) -> None:
    fields = [InputField(name="x", datatype="FP64"), InputField(name="carrier", datatype="BYTES")]
    home.publish(champion=home.release(0.4, inputs=fields))
    carrier = tensor(name="carrier", datatype="BYTES", data=["UA"])
    async with start() as running:
        assert (await post(running, request(tensor(), carrier))).status_code == 200
        missing = await post(running, request(tensor()))
        null = await post(running, request(tensor(data=[None]), carrier))
    assert (missing.status_code, null.status_code) == (400, 400)
    assert "no carrier" in missing.json()["error"]
    assert "input x, row 0; got None; expected FP64; the input is required" in null.json()["error"]


@pytest.mark.parametrize(
    ("datatype", "good", "bad"),
    [
        ("INT8", [-128, 127], 128),
        ("UINT8", [0, 255], -1),
        ("INT64", [-(2**63), 2**63 - 1], 2**63),
        ("UINT64", [2**64 - 1, 0], 2**64),
        ("INT32", [1, 2], 1.5),
        ("BOOL", [True, False], 1),
        ("FP32", [1, 2.5], "1"),
        ("BYTES", ["", "日本"], None),
    ],
)
async def test_every_datatype_takes_its_values_and_refuses_others(
    home: Installation, start: Start, datatype: str, good: list[Any], bad: Any
) -> None:
    fields = [InputField(name="x", datatype="FP64", required=False), InputField(name="v", datatype=datatype)]
    home.publish(champion=home.release(0.4, inputs=fields))
    async with start() as running:
        taken = await post(running, request(tensor(name="v", datatype=datatype, shape=[2], data=good)))
        refused = await post(running, request(tensor(name="v", datatype=datatype, data=[bad])))
    assert taken.status_code == 200, taken.text
    assert refused.status_code == 400
    assert "input v, row 0" in refused.json()["error"]


async def test_unknown_models_and_paths_are_404_with_near_names(home: Installation, start: Start) -> None:
    home.publish()
    home.publish(model="late_arrival", champion=home.release(0.2, model="late_arrival"))
    async with start() as running:
        answer = await post(running, request(), "/v2/models/late_arival/infer")
        assert answer.status_code == 404
        assert "Did you mean late_arrival?" in answer.json()["error"]
        assert (await running.client.post("/v1/models/x/labels", content=b"{}")).status_code == 404
        assert (await running.client.get("/v2/nothing")).status_code == 404
        for method, path, allowed in (
            ("GET", "/v2/models/m/infer", "POST"),
            ("POST", "/v1/routes", "GET, HEAD"),
            ("POST", "/metrics", "GET, HEAD"),
        ):
            answer = await running.client.request(method, path)
            assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


async def test_a_body_over_the_limit_is_413_by_its_header_and_by_its_bytes(home: Installation, start: Start) -> None:
    home.publish()

    async def chunks() -> Any:
        for _ in range(20):
            yield b" " * 100

    async with start(limits={"max_body_bytes": 1000}) as running:
        assert (await post(running, b" " * 1001)).status_code == 413
        assert (await running.client.post("/v2/models/m/infer", content=chunks())).status_code == 413
        assert (await running.infer()).status_code == 200


async def test_past_its_concurrency_the_gateway_answers_429_with_retry_after(home: Installation, start: Start) -> None:
    import anyio

    slow = home.release(0.7, sleep_s=0.2, semver="1.2.0")
    home.publish("split", champion=slow, challenger=home.champion, share_ppm=1)  # in threads, side by side
    statuses: list[int] = []
    async with start(limits={"max_inflight": 2}) as running:

        async def one() -> None:
            answer = await running.infer()
            statuses.append(answer.status_code)
            if answer.status_code == 429:
                assert answer.headers["retry-after"] == "1"

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(one)
        await running.shadows_done()
    assert sorted(statuses) == [200, 200, 429, 429, 429]


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
tensors = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["x", "origin", "y"]) | values,
        "datatype": st.sampled_from(["FP64", "BYTES", "INT64", "BOOL", "FP32", "?"]) | values,
        "shape": st.lists(st.integers(-1, 3), max_size=3) | values,
        "data": st.lists(scalars, max_size=3) | values,
    },
)
bodies = st.fixed_dictionaries(
    {},
    optional={"inputs": st.lists(tensors, max_size=3) | values, "id": values, "parameters": values, "outputs": values},
)


def test_no_body_whatever_gives_a_5xx(tmp_path: Path) -> None:
    import anyio

    from serving.app import GatewayApp
    from serving.gateway import Gateway
    from serving.limits import Limits

    home = Installation(tmp_path)
    home.publish()

    async def send_all(contents: list[bytes]) -> list[int]:
        gateway = Gateway(home.settings(), Limits(fsync_ms=5))
        await gateway.start()
        try:
            transport = httpx.ASGITransport(app=GatewayApp(gateway))
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
                return [(await client.post("/v2/models/m/infer", content=one)).status_code for one in contents]
        finally:
            await gateway.stop()

    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.lists(bodies.map(lambda body: json.dumps(body).encode()) | st.binary(max_size=40), min_size=30, max_size=30)
    )
    def try_them(contents: list[bytes]) -> None:
        assert set(anyio.run(send_all, contents)) <= {200, 400}

    try_them()


async def test_an_integer_past_64_bits_in_a_float_input_is_logged_as_the_float_it_is(
    home: Installation, start: Start
) -> None:
    home.publish()
    async with start() as running:
        assert (await running.infer("q", x=[10**30, -(2**63), 2**64 - 1])).status_code == 200
        assert (await running.infer("r", x=10**400)).status_code == 400
    assert home.events()[0].inputs == {"x": [1e30, -(2.0**63), float(2**64 - 1)]}
