"""Every POST path of a gateway process under seeded garbage: a 2xx or a 4xx each time, promptly, and the worker lives.

`SLIPWAY_FUZZ_EXAMPLES=100000` makes it a long run (the seed is printed; `SLIPWAY_FUZZ_SEED` sets it).
"""

from __future__ import annotations

import gzip
import json
import os
import struct
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from pipelines.contracts import events, segments
from pipelines.contracts.release import InputField
from tests.serving.conftest import Installation
from tests.serving.processes import GatewayProcess, bentoml_serve

EXAMPLES = int(os.environ.get("SLIPWAY_FUZZ_EXAMPLES", "600"))
SEED = int(os.environ.get("SLIPWAY_FUZZ_SEED", "20260"))
PROMPT_S = 5.0
FIELDS = {"x": "FP64", "n": "INT64", "flag": "BOOL", "origin": "BYTES"}
DATATYPES = ["FP64", "FP32", "FP16", "INT64", "INT8", "UINT64", "UINT8", "BOOL", "BYTES", "BF16", "", "fp64"]

numbers = st.integers() | st.floats() | st.sampled_from([0, -0.0, 1e308, 2**63, -(2**63) - 1, 10**400])
scalars = st.none() | st.booleans() | numbers | st.text(max_size=8)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)
names = st.sampled_from([*FIELDS, "y", "", "\x00", "x" * 2000]) | st.text(max_size=8)
parameters = st.dictionaries(
    st.sampled_from(["unit", "event_time", "binary_data_size", "binary_data", "content_type", "sequence_id"])
    | st.text(max_size=5),
    values | st.integers(-2, 100),
    max_size=3,
)


def or_anything(likely: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly what belongs there."""
    return st.one_of(likely, likely, likely, likely, values)


tensors = st.fixed_dictionaries(
    {},
    optional={
        "name": or_anything(names),
        "datatype": or_anything(st.sampled_from(DATATYPES)),
        "shape": or_anything(st.lists(st.integers(-1, 3), min_size=1, max_size=2)),
        "data": or_anything(st.lists(scalars, max_size=3)),
        "parameters": or_anything(parameters),
    },
)
RIGHT: dict[str, Any] = {"name": "x", "datatype": "FP64", "shape": [1], "data": [0.5]}
fitting = st.sampled_from([*FIELDS]).flatmap(
    lambda name: st.builds(
        lambda value: {"name": name, "datatype": FIELDS[name], "shape": [1], "data": [value]},
        {"x": numbers, "n": st.integers(), "flag": st.booleans(), "origin": st.text(max_size=20)}[name],
    )
)
infers = st.fixed_dictionaries(
    {"inputs": or_anything(st.lists(tensors | fitting, max_size=4))},
    optional={
        "id": or_anything(st.text(max_size=300)),
        "parameters": or_anything(parameters),
        "outputs": or_anything(st.lists(st.fixed_dictionaries({"name": names | st.just("score")}), max_size=3)),
    },
)
facts = st.fixed_dictionaries(
    {},
    optional={
        "id": or_anything(st.text(max_size=300)),
        "value": or_anything(numbers | st.booleans()),
        "row": or_anything(st.integers()),
        "name": or_anything(st.text(max_size=300)),
        "at": or_anything(st.sampled_from(["2013-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59", "9999-12-31", ""])),
    },
)
feedback = st.fixed_dictionaries(
    {}, optional={"labels": or_anything(st.lists(facts, max_size=3)), "kpis": or_anything(st.lists(facts, max_size=3))}
)
rollbacks = st.fixed_dictionaries({}, optional={"reason": or_anything(st.text()), "actor": or_anything(st.text())})
right_infers = st.fixed_dictionaries(
    {"inputs": st.lists(fitting, max_size=3).map(lambda more: [{**RIGHT}, *more])},
    optional={"id": st.text(max_size=20), "parameters": st.just({}) | parameters},
)
right_facts = st.fixed_dictionaries(
    {"id": st.text(min_size=1, max_size=20), "value": st.floats(-1, 1) | st.booleans()},
    optional={"row": st.integers(0, 5), "at": st.just("2013-01-01T00:00:00Z")},
)
right_feedback = st.lists(right_facts, min_size=1, max_size=3).map(lambda list_: {"labels": list_, "kpis": list_})
MODELS = [*["m"] * 12, "n", "%00", "m%2f..", "é", "m" * 500]
paths = st.sampled_from(MODELS).flatmap(
    lambda model: st.sampled_from(
        [
            (f"/v2/models/{model}/infer", infers),
            (f"/v2/models/{model}/infer", right_infers),
            (f"/v2/models/{model}/infer", right_infers | infers),
            (f"/v2/models/{model}/versions/1.0.0/infer", right_infers | infers),
            (f"/v2/models/{model}/versions/%2e%2e/infer", infers),
            (f"/v1/models/{model}/labels", right_feedback | feedback),
            (f"/v1/models/{model}/kpis", right_feedback | feedback),
            (f"/v1/models/{model}/rollback", rollbacks),
            (f"/v2/models/{model}", infers),
        ]
    )
)
HEADERS: list[dict[str, str]] = [
    {},
    {},
    {},
    {"content-encoding": "gzip"},
    {"content-encoding": "deflate, gzip"},
    {"inference-header-content-length": "0"},
    {"inference-header-content-length": "-1"},
    {"inference-header-content-length": "99999999999999999999"},
    {"traceparent": "00-" + "z" * 52},
    {"content-type": "multipart/form-data"},
    {"authorization": "Bearer sesame"},
    {"authorization": "Bearer"},
    {"expect": "100-continue"},
]


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, dict[str, str], bytes]:
    """A path, headers and a body: JSON that nearly fits, cut, folded, with bytes behind it, or plain garbage."""
    path, bodies = draw(paths)
    headers = dict(draw(st.sampled_from(HEADERS)))
    body = json.dumps(draw(bodies)).encode()
    form = draw(st.sampled_from(["whole", "whole", "whole", "cut", "binary", "folded", "garbage", "spliced"]))
    if form == "cut":
        body = body[: draw(st.integers(0, len(body)))]
    elif form == "binary":
        headers["inference-header-content-length"] = str(len(body) + draw(st.sampled_from([0, 0, -1, 1, 10**6])))
        body += draw(st.binary(max_size=40) | st.builds(lambda text: struct.pack("<I", len(text)) + text, st.binary()))
    elif form == "folded":
        headers["content-encoding"] = draw(st.sampled_from(["gzip", "deflate", "br", "identity"]))
        body = gzip.compress(body)[: draw(st.integers(0, 200))]
    elif form == "garbage":
        body = draw(st.binary(max_size=60))
    elif form == "spliced":
        at = draw(st.integers(0, len(body)))
        body = (
            body[:at] + draw(st.binary(max_size=4) | st.sampled_from([b"NaN", b"[" * 500, b'"', b"\xff"])) + body[at:]
        )
    return path, headers, body


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    home = Installation(tmp_path_factory.mktemp("fuzz"))
    inputs = [InputField(name=name, datatype=kind, required=name == "x") for name, kind in FIELDS.items()]
    home.publish(champion=home.release(0.3, inputs=inputs))
    return home


@pytest.fixture(scope="module")
def gateway(installation: Installation) -> Iterator[GatewayProcess]:
    with bentoml_serve(installation.home) as process:
        yield process


@pytest.mark.timeout(300 + EXAMPLES // 5)
def test_garbage_on_any_path_is_a_4xx_and_never_more(gateway: GatewayProcess, installation: Installation) -> None:
    seen: dict[int, int] = {}
    (worker,) = gateway.workers()
    with httpx.Client(base_url=gateway.url, timeout=PROMPT_S) as client:

        @seed(SEED)
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(requests())
        def send(request: tuple[str, dict[str, str], bytes]) -> None:
            path, headers, body = request
            began = time.monotonic()
            answer = client.post(path, headers=headers, content=body)
            seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
            assert answer.status_code < 500, answer.text
            assert time.monotonic() - began < PROMPT_S
            if answer.status_code >= 400 and path.startswith("/v"):
                assert len(answer.content) < 8_000
                assert set(answer.json()) == {"error"}

        send()
    print(f"seed {SEED}, {EXAMPLES} examples: {dict(sorted(seen.items()))}")
    assert {200, 202, 400, 404} <= set(seen), "the garbage is near enough to what is right"
    assert [one.pid for one in gateway.workers()] == [worker.pid]
    output = gateway.output.read_text()
    assert "Traceback" not in output
    # Whatever was accepted is whole in the log.
    for path in (installation.home / "bus").rglob("*.seg"):
        data = path.read_bytes()
        frames = list(segments.read_frames(data))
        assert frames[-1].end == len(data)
        assert [events.decode(one.payload) for one in frames]
