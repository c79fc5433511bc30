"""The protocol as its real clients speak it: tritonclient over HTTP and gRPC, MLServer's types and codecs.

One gateway process with two workers answers them all; `every` is a model with an input and an output of every datatype.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from pipelines.contracts.events import Assignment
from pipelines.contracts.release import InputField, ModelFeature
from tests.free_ports import free_port
from tests.serving.conftest import Installation
from tests.serving.echo_release import DATATYPES, VALUES, echo_release
from tests.serving.processes import PROJECT, GatewayProcess, bentoml_serve

PEERS = PROJECT / "benchmarks" / "peers" / ".venv" / "bin" / "python"


class Served(NamedTuple):
    """The installation and the addresses of its gateway."""

    home: Installation
    every: str
    process: GatewayProcess
    http: str
    grpc: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = Installation(tmp_path_factory.mktemp("clients") / "home")
    every = echo_release(home.home / "releases", "every")
    home.publish()
    home.publish(model="every", champion=every)
    home.publish(model="late_arrival", champion=late_arrival(home))
    port = free_port()
    variables = {"SLIPWAY_GATEWAY_WORKERS": "2", "SLIPWAY_GATEWAY_GRPC_PORT": str(port)}
    with bentoml_serve(home.home, **variables) as process:
        yield Served(home, every, process, process.url.removeprefix("http://"), f"127.0.0.1:{port}")


def late_arrival(home: Installation) -> str:
    """A release with the inputs of the sample's model, for the examples of the how-to."""
    texts, numbers = ("carrier", "origin", "dest", "tailnum"), ("distance", "local_hour", "local_weekday")
    fields = [InputField(name=name, datatype="BYTES", required=name != "tailnum") for name in texts]
    fields += [InputField(name=name, datatype="FP64") for name in numbers]
    features = [ModelFeature(name=name, source="input") for name in numbers]
    return home.release(0.3, model="late_arrival", inputs=fields, features=features)


@pytest.fixture
def http(served: Served) -> Iterator[Any]:
    with triton_http.InferenceServerClient(served.http) as client:
        yield client


@pytest.fixture
def grpc(served: Served) -> Iterator[Any]:
    with triton_grpc.InferenceServerClient(served.grpc) as client:
        yield client


def array(datatype: str) -> np.ndarray:
    kind = np.object_ if datatype == "BYTES" else triton_to_np_dtype(datatype)
    return np.array(VALUES[datatype], dtype=kind)


def tensors(library: Any, **options: Any) -> list[Any]:
    """An InferInput of every datatype, [3] or [3, 1]."""
    made = []
    for index, datatype in enumerate(DATATYPES):
        values = array(datatype).reshape((3, 1) if index % 2 else (3,))
        tensor = library.InferInput(datatype.lower(), values.shape, datatype)
        made.append(tensor.set_data_from_numpy(values, **options))
    return made


def same(answered: np.ndarray, datatype: str) -> bool:
    got = [value.decode() if isinstance(value, bytes) else value for value in answered.tolist()]
    return got == array(datatype).tolist()


# --- tritonclient over HTTP ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [True, False], ids=["binary-inputs", "json-inputs"])
@pytest.mark.parametrize("asked", [None, True, False], ids=["no-outputs-named", "binary-outputs", "json-outputs"])
def test_triton_http_gets_every_datatype_back_in_every_form(
    served: Served, http: Any, sent: bool, asked: bool | None
) -> None:
    outputs = None
    if asked is not None:
        outputs = [triton_http.InferRequestedOutput(f"out_{name.lower()}", binary_data=asked) for name in DATATYPES]
    request_id = f"http-{sent}-{asked}"
    answer = http.infer("every", tensors(triton_http, binary_data=sent), outputs=outputs, request_id=request_id)
    said = answer.get_response()
    assert (said["id"], said["model_name"], said["model_version"]) == (request_id, "every", "1.2.3")
    assert said["parameters"]["release"] == served.every
    for datatype in DATATYPES:
        name = f"out_{datatype.lower()}"
        assert answer.get_output(name)["datatype"] == datatype
        assert ("binary_data_size" in answer.get_output(name).get("parameters", {})) == (asked is not False)
        assert same(answer.as_numpy(name), datatype), datatype
    assert ("score" in [one["name"] for one in said["outputs"]]) == (asked is None)


def test_the_log_holds_binary_inputs_as_it_holds_json(served: Served, http: Any) -> None:
    for sent in (True, False):
        http.infer("every", tensors(triton_http, binary_data=sent), request_id=f"logged-{sent}")
    logged = {event.request_id: event.inputs for event in served.home.events(Assignment)}
    assert logged["logged-True"] == logged["logged-False"]
    wanted = {datatype.lower(): array(datatype).tolist() for datatype in DATATYPES}
    assert logged["logged-True"] == wanted


def test_triton_http_describes_the_server_and_its_models(served: Served, http: Any) -> None:
    assert http.is_server_live()
    assert http.is_server_ready()
    assert http.get_server_metadata() == {"name": "slipway", "version": "0.1.0", "extensions": ["binary_tensor_data"]}
    for version in ("", "1.2.3", served.every):
        assert http.is_model_ready("every", version)
        described = http.get_model_metadata("every", version)
        assert (described["name"], described["versions"]) == ("every", ["1.2.3"])
        assert [(one["name"], one["datatype"], one["shape"]) for one in described["inputs"]] == [
            (datatype.lower(), datatype, [-1]) for datatype in DATATYPES
        ]
        assert {one["name"]: one["datatype"] for one in described["outputs"]} == {"score": "FP64"} | {
            f"out_{datatype.lower()}": datatype for datatype in DATATYPES
        }
    assert not http.is_model_ready("evry")
    assert not http.is_model_ready("every", "9.9.9")


def test_triton_http_asks_a_version_by_semver_and_by_digest(served: Served, http: Any) -> None:
    x = triton_http.InferInput("x", [100], "FP32").set_data_from_numpy(np.arange(100, dtype=np.float32))
    for version in ("1.1.0", served.home.challenger):
        answer = http.infer("m", [x], model_version=version)
        assert answer.get_response()["parameters"]["arm"] == "pinned"
        assert answer.as_numpy("score").tolist() == [0.7] * 100
    assert http.infer("m", [x]).as_numpy("score").tolist() == [0.3] * 100


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_triton_http_may_compress_its_requests(http: Any, algorithm: str) -> None:
    answer = http.infer(
        "every",
        tensors(triton_http),
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    assert all(same(answer.as_numpy(f"out_{datatype.lower()}"), datatype) for datatype in DATATYPES)


def test_triton_http_hears_why_it_was_refused(served: Served, http: Any) -> None:
    x = triton_http.InferInput("x", [1], "FP64").set_data_from_numpy(np.ones(1))
    wrong = triton_http.InferInput("x", [1], "BYTES").set_data_from_numpy(np.array(["1"], dtype=object))
    shared = triton_http.InferInput("x", [1], "FP64").set_shared_memory("region", 8)
    nan = triton_http.InferInput("fp64", [1], "FP64").set_data_from_numpy(np.array([np.nan]))
    classes = triton_http.InferRequestedOutput("score", class_count=2)
    cases: list[tuple[str, dict[str, Any], str, str]] = [
        ("mm", {"inputs": [x]}, "404", "Did you mean m?"),
        ("m", {"inputs": [x], "model_version": "7.0.0"}, "404", "version of m; got 7.0.0"),
        ("m", {"inputs": [wrong]}, "400", "got BYTES; expected FP64"),
        ("m", {"inputs": [shared]}, "400", "shared_memory_region"),
        ("m", {"inputs": [x], "outputs": [classes]}, "400", "classification"),
        ("m", {"inputs": [x], "outputs": [triton_http.InferRequestedOutput("nothing")]}, "400", "got nothing"),
        ("every", {"inputs": [nan]}, "400", "NaN is not allowed"),
    ]
    for model, arguments, status, text in cases:
        with pytest.raises(InferenceServerException) as refused:
            http.infer(model, **arguments)
        assert refused.value.status() == status
        assert text in refused.value.message()


# --- tritonclient over gRPC ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [True, False])
def test_triton_grpc_gets_every_datatype_back(served: Served, grpc: Any, named: bool) -> None:
    outputs = [triton_grpc.InferRequestedOutput(f"out_{name.lower()}") for name in DATATYPES] if named else None
    request_id = f"grpc-{named}"
    answer = grpc.infer(
        "every", tensors(triton_grpc), outputs=outputs, request_id=request_id, parameters={"unit": "u1"}
    )
    said = answer.get_response()
    assert (said.id, said.model_name, said.model_version) == (request_id, "every", "1.2.3")
    assert said.parameters["release"].string_param == served.every
    assert said.parameters["logged"].bool_param is True
    assert said.parameters["route_version"].int64_param == 2
    for datatype in DATATYPES:
        assert same(answer.as_numpy(f"out_{datatype.lower()}"), datatype), datatype
    assert len(said.outputs) == len(DATATYPES) + (not named)
    (assignment,) = [event for event in served.home.events(Assignment) if event.request_id == request_id]
    assert assignment.unit == "u1"
    assert assignment.inputs == {datatype.lower(): array(datatype).tolist() for datatype in DATATYPES}


def test_triton_grpc_describes_the_server_and_its_models(served: Served, grpc: Any) -> None:
    assert grpc.is_server_live()
    assert grpc.is_server_ready()
    assert grpc.get_server_metadata().name == "slipway"
    for version in ("", "1.2.3", served.every):
        assert grpc.is_model_ready("every", version)
        described = grpc.get_model_metadata("every", version)
        assert [(one.name, one.datatype, list(one.shape)) for one in described.inputs] == [
            (datatype.lower(), datatype, [-1]) for datatype in DATATYPES
        ]
    assert list(grpc.get_model_metadata("m").versions) == ["1.0.0", "1.1.0"]


def test_triton_grpc_asks_a_version_by_semver_and_by_digest(served: Served, grpc: Any) -> None:
    x = triton_grpc.InferInput("x", [2], "FP64").set_data_from_numpy(np.ones(2))
    for version in ("1.1.0", served.home.challenger):
        answer = grpc.infer("m", [x], model_version=version)
        assert answer.get_response().parameters["arm"].string_param == "pinned"
        assert answer.as_numpy("score").tolist() == [0.7, 0.7]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_triton_grpc_may_compress_its_requests(grpc: Any, algorithm: str) -> None:
    answer = grpc.infer("every", tensors(triton_grpc), compression_algorithm=algorithm)
    assert same(answer.as_numpy("out_fp64"), "FP64")


def test_triton_grpc_hears_why_it_was_refused(grpc: Any) -> None:
    x = triton_grpc.InferInput("x", [1], "FP64").set_data_from_numpy(np.ones(1))
    wrong = triton_grpc.InferInput("x", [1], "BYTES").set_data_from_numpy(np.array(["1"], dtype=object))
    many = triton_grpc.InferInput("x", [20_000], "FP64").set_data_from_numpy(np.ones(20_000))
    large = triton_grpc.InferInput("x", [2_000_000], "FP64").set_data_from_numpy(np.ones(2_000_000))
    cases: list[tuple[str, dict[str, Any], str, str]] = [
        ("mm", {"inputs": [x]}, "NOT_FOUND", "Did you mean m?"),
        ("m", {"inputs": [x], "model_version": "7.0.0"}, "NOT_FOUND", "version of m; got 7.0.0"),
        ("m", {"inputs": [wrong]}, "INVALID_ARGUMENT", "got BYTES; expected FP64"),
        ("m", {"inputs": [x], "parameters": {"unit": ""}}, "INVALID_ARGUMENT", "parameters.unit"),
        ("m", {"inputs": [many]}, "INVALID_ARGUMENT", "at most 10000"),
        ("m", {"inputs": [large]}, "RESOURCE_EXHAUSTED", "larger than max"),
    ]
    for model, arguments, status, text in cases:
        with pytest.raises(InferenceServerException) as refused:
            grpc.infer(model, **arguments)
        assert refused.value.status() == f"StatusCode.{status}"
        assert text in refused.value.message()
    with pytest.raises(InferenceServerException, match="Did you mean m"):
        grpc.is_model_ready("mm")
    with pytest.raises(InferenceServerException, match="Did you mean m"):
        grpc.get_model_metadata("mm")


# --- MLServer --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mlserver() -> Path:
    """The interpreter of the environment with the real MLServer, brought to its lock when it is not there yet."""
    subprocess.run([sys.executable, "scripts/setup.py", "--peers"], cwd=PROJECT, check=True, timeout=280)
    return PEERS


def test_mlservers_types_and_codecs_work_unchanged(served: Served, mlserver: Path) -> None:
    script = PROJECT / "tests" / "serving" / "mlserver_client.py"
    done = subprocess.run(
        [mlserver, script, f"http://{served.http}", served.grpc, json.dumps(VALUES)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "server metadata", "model metadata", "numpy codec", "string codec", "pandas codec", "grpc", "errors",
    ]  # fmt: skip


def test_mlservers_own_client_runs_a_batch(served: Served, mlserver: Path, tmp_path: Path) -> None:
    requests, answers = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
    body = {"inputs": [{"name": "x", "datatype": "FP64", "shape": [2], "data": [1.0, 2.0]}]}
    requests.write_text("\n".join(json.dumps(body | {"id": f"batch-{k}"}) for k in range(5)) + "\n")
    command = ["infer", "-u", served.http, "-m", "m", "-i", requests, "-o", answers, "-w", "2"]
    done = subprocess.run([mlserver.parent / "mlserver", *command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in answers.read_text().splitlines()]
    scores = [output["data"] for one in found for output in one["outputs"] if output["name"] == "score"]
    assert scores == [[0.3, 0.3]] * 5


# --- the how-to ------------------------------------------------------------------------------------------------------


def test_the_examples_of_the_how_to_work_as_they_stand(served: Served, mlserver: Path) -> None:
    page = (PROJECT / "docs" / "how-to" / "call-the-gateway.md").read_text()
    (body,) = re.findall(r"late_arrival/infer -d '(.*?)'", page, re.DOTALL)
    answer = httpx.post(f"{served.process.url}/v2/models/late_arrival/infer", content=body)
    assert {one["name"]: one["data"] for one in answer.json()["outputs"]} == {"score": [0.3], "decision": [False]}
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(examples) == 3
    for example in examples:
        interpreter = mlserver if "mlserver" in example else sys.executable
        here = example.replace("127.0.0.1:3000", served.http).replace("127.0.0.1:3001", served.grpc)
        done = subprocess.run([interpreter, "-c", here], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "0.3" in done.stdout
