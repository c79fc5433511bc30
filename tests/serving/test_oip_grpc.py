"""The gRPC door at its edges: typed contents, bytes that are no request, refusals, faults, the end of the gateway."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.contracts.events import Assignment, Response
from serving.admission import Admission
from serving.grpc_door import STATUS, GrpcDoor
from serving.oip import errors
from serving.oip.grpc_codec import infer_request
from serving.oip.grpc_messages import SERVICE, message_class
from serving.pinned import PinnedModels
from tests.free_ports import free_port
from tests.serving.conftest import Installation, Running, Start
from tests.serving.echo_release import DATATYPES, VALUES, echo_release
from tests.serving.processes import PROJECT, bentoml_serve
from tests.serving.test_batching import LONG_MS, batched, batches
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio

Request = message_class("ModelInferRequest")
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


class Client:
    """Calls methods of a door with messages or with any bytes."""

    def __init__(self, running: Running, door: GrpcDoor, channel: grpc.aio.Channel, address: str) -> None:
        self.running = running
        self.door = door
        self.address = address
        self._channel = channel

    async def call(self, method: str, message: Any, **options: Any) -> Any:
        body = message if isinstance(message, bytes) else message.SerializeToString()
        answers = message_class(f"{method}Response")
        call = self._channel.unary_unary(f"/{SERVICE}/{method}", lambda data: data, answers.FromString)
        return await call(body, **options)

    async def infer(self, request: Any, **options: Any) -> Any:
        return await self.call("ModelInfer", request, **options)

    async def refusal(self, request: Any) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await self.infer(request)
        return refused.value


@asynccontextmanager
async def opened(running: Running) -> AsyncIterator[Client]:
    gateway, address = running.gateway, f"127.0.0.1:{free_port()}"
    door = GrpcDoor(gateway, PinnedModels(gateway.settings.releases, 4), Admission(gateway.limits))
    await door.start(address)
    async with grpc.aio.insecure_channel(address) as channel:
        try:
            yield Client(running, door, channel, address)
        finally:
            await door.stop(0)


CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip


def typed(model: str = "m", **tensors: tuple[str, list[Any]]) -> Any:
    """A request with typed contents."""
    request = Request(model_name=model)
    for name, (datatype, values) in tensors.items():
        tensor = request.inputs.add(name=name, datatype=datatype, shape=[len(values)])
        values = [one.encode() for one in values] if datatype == "BYTES" else values
        getattr(tensor.contents, CONTENTS[datatype]).extend(values)
    return request


async def test_typed_contents_are_answered_in_typed_contents(home: Installation, start: Start) -> None:
    home.publish(model="every", champion=echo_release(home.home / "releases", "every"))
    tensors = {name.lower(): (name, VALUES[name]) for name in DATATYPES if name != "FP16"}
    # FP16 has no typed contents: any number that is not past it may stand for it.
    request = typed("every", fp16=("FP32", VALUES["FP16"]), **tensors)
    request.id = "q1"
    for name in CONTENTS:
        request.outputs.add(name=f"out_{name.lower()}")
    async with start() as running, opened(running) as client:
        answer = await client.infer(request)
        assert not answer.raw_output_contents
        for output, (name, field) in zip(answer.outputs, CONTENTS.items(), strict=True):
            wanted = [one.encode() for one in VALUES[name]] if name == "BYTES" else VALUES[name]
            got = list(getattr(output.contents, field))
            assert got == (pytest.approx(wanted, rel=1e-6) if name == "FP32" else wanted), name
        request.outputs.add(name="out_fp16")
        whole = await client.infer(request)
        assert len(whole.raw_output_contents) == len(whole.outputs) == len(DATATYPES)
        assert not any(output.HasField("contents") for output in whole.outputs)


async def test_requests_for_a_heavy_release_are_gathered_whichever_door_they_come_by(
    home: Installation, start: Start
) -> None:
    home.publish(champion=batched(home, 0.1, 4, LONG_MS, slope=0.01))
    values = [0.5, 1.5, 2.5, 3.5]
    async with start() as running, opened(running) as client:
        over_grpc = [client.infer(typed(x=("FP64", [x]))) for x in values[:3]]
        *answers, over_http = await asyncio.gather(*over_grpc, running.infer(x=values[3]))
        assert batches(running) == {4.0: 1}
    outputs = [one for answer in answers for one in answer.outputs if one.name == "score"]
    scores = [getattr(one.contents, CONTENTS[one.datatype])[0] for one in outputs]
    scores += [one["data"][0] for one in over_http.json()["outputs"] if one["name"] == "score"]
    assert scores == pytest.approx([0.1 + 0.01 * x for x in values])


async def test_an_answer_over_grpc_is_logged_paired_and_traced_as_over_http(home: Installation, start: Start) -> None:
    home.publish("shadow", stage="shadow")
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with start() as running, opened(running) as client:
        request = typed(x=("FP64", [1.0, float("nan")]))
        answer = await client.infer(request, metadata=(("traceparent", trace),))
        await running.shadows_done()
        metrics = (await running.client.get("/metrics")).text
    (assignment,) = home.events(Assignment)
    assert (assignment.request_id, assignment.traceparent) == (answer.id, trace)
    assert assignment.inputs == {"x": [1.0, None]}
    assert [(one.arm, one.served, one.shadow) for one in home.events(Response)] == [
        ("champion", True, False), ("challenger", False, True),
    ]  # fmt: skip
    assert 'slipway_request_seconds_count{model="m"} 1.0' in metrics


def broken() -> list[tuple[str, Any, str]]:
    """Requests that are refused, and what the refusal says."""
    raw = Request(model_name="m", raw_input_contents=[b"\0" * 8])
    raw.inputs.add(name="x", datatype="FP64", shape=[1])
    cases = [
        ("bytes that are no message", b"\xff\xff\xff", "expected a ModelInferRequest"),
        ("no inputs", Request(model_name="m"), "got none"),
        ("rows and contents differ", typed(x=("FP64", [1.0])), "got 1 values; expected 2"),
        ("contents of another datatype", typed(x=("FP32", [1.0])), "fp64_contents; got 0 values"),
        ("unknown datatype", typed(x=("FP32", [1.0])), "got FP8; expected one of"),
        ("infinite", typed(x=("FP64", [float("inf")])), "got inf; expected a finite FP64"),
        ("FP16 in contents", typed(x=("FP32", [1.0])), "FP16 has no other form"),
        ("text that is not UTF-8", typed(origin=("BYTES", ["x"])), "utf-8"),
        ("a number past its datatype", typed(x=("INT32", [300])), "got 300; expected INT8"),
        ("parameter without a value", typed(x=("FP64", [1.0])), "parameters.unit; got no value"),
        ("too many raw contents", Request.FromString(raw.SerializeToString()), "got 2; expected 1"),
        ("raw and contents", Request.FromString(raw.SerializeToString()), "one of the two"),
        ("raw contents too short", Request.FromString(raw.SerializeToString()), "got 7 bytes; expected 8"),
        ("negative shape", Request.FromString(raw.SerializeToString()), "shape; got [-1]"),
        ("shared memory", Request.FromString(raw.SerializeToString()), "shared_memory_region"),
    ]
    found = {name: request for name, request, _ in cases}
    found["rows and contents differ"].inputs[0].shape[0] = 2
    found["contents of another datatype"].inputs[0].datatype = "FP64"
    found["unknown datatype"].inputs[0].datatype = "FP8"
    found["FP16 in contents"].inputs[0].datatype = "FP16"
    found["text that is not UTF-8"].inputs[0].contents.bytes_contents[0] = b"\xff"
    found["a number past its datatype"].inputs[0].datatype = "INT8"
    found["parameter without a value"].parameters.get_or_create("unit")
    found["too many raw contents"].raw_input_contents.append(b"")
    found["raw and contents"].inputs[0].contents.fp64_contents.append(1.0)
    found["raw contents too short"].raw_input_contents[0] = b"\0" * 7
    found["negative shape"].inputs[0].shape[0] = -1
    found["shared memory"].inputs[0].parameters["shared_memory_region"].string_param = "r"
    return cases


async def test_what_is_no_request_is_an_invalid_argument_that_says_why(home: Installation, start: Start) -> None:
    home.publish()
    async with start() as running, opened(running) as client:
        for name, request, text in broken():
            refused = await client.refusal(request)
            assert (name, refused.code()) == (name, grpc.StatusCode.INVALID_ARGUMENT)
            assert text in (refused.details() or ""), name
    assert home.events() == []


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.sampled_from([*DATATYPES, "FP8", ""]), min_size=1, max_size=3),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
    st.lists(st.binary(max_size=24), max_size=4),
    st.booleans(),
)
def test_any_message_is_a_request_or_refused(
    datatypes: list[str], shape: list[int], raw: list[bytes], contents: bool
) -> None:
    request = Request(raw_input_contents=raw)
    for datatype in datatypes:
        tensor = request.inputs.add(name="x", datatype=datatype, shape=shape)
        if contents:
            tensor.contents.bytes_contents.extend(raw)
    try:
        decoded = infer_request(request)
    except errors.Malformed:
        return
    assert all(len(tensor.data) == shape[0] for tensor in decoded.inputs)


async def test_a_model_that_fails_is_internal_and_one_that_is_not_loaded_is_unavailable(
    home: Installation, start: Start
) -> None:
    home.publish(champion=home.release(0.3, semver="3.0.0", error=True))
    home.publish(model="n", champion="0" * 64)
    async with start() as running, opened(running) as client:
        failed = await client.refusal(typed(x=("FP64", [1.0])))
        assert failed.code() == grpc.StatusCode.INTERNAL
        assert "built to fail" in (failed.details() or "")
        loading = await client.refusal(typed("n", x=("FP64", [1.0])))
        assert loading.code() == grpc.StatusCode.UNAVAILABLE
        assert ("grpc-retry-pushback-ms", "1000") in list(loading.trailing_metadata() or ())
        ready = await client.call("ModelReady", message_class("ModelReadyRequest")(name="n"))
        assert ready.ready is False
    assert [one.status for one in home.events(Response)] == ["error"]


async def test_past_the_limit_of_calls_in_flight_one_more_is_resource_exhausted(
    home: Installation, start: Start
) -> None:
    home.publish("split", share_ppm=1_000_000, challenger=home.release(0.7, semver="1.2.0", sleep_s=0.5))
    async with start(limits={"max_inflight": 1}) as running, opened(running) as client:
        first = asyncio.create_task(client.infer(typed(x=("FP64", [1.0]))))
        await running.until(lambda: len(home.events(Assignment)) == 1)
        assert (await client.refusal(typed(x=("FP64", [1.0])))).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await first).parameters["arm"].string_param == "challenger"


async def test_a_message_over_the_limit_is_refused_and_so_is_one_that_unfolds_to_more(
    home: Installation, start: Start
) -> None:
    home.publish()
    large = typed(x=("FP64", [0.0] * 20_000))
    async with start(limits={"max_body_bytes": 100_000}) as running, opened(running) as client:
        for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip, grpc.Compression.Deflate):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await client.infer(large, compression=compression)
            assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        answer = await client.infer(typed(x=("FP64", [0.0] * 10_000)), compression=grpc.Compression.Gzip)
        assert list(answer.outputs[0].shape) == [10_000]


async def test_a_stopping_door_answers_the_calls_that_have_begun(home: Installation, start: Start) -> None:
    home.publish("split", share_ppm=1_000_000, challenger=home.release(0.7, semver="1.2.0", sleep_s=0.5))
    async with start() as running, opened(running) as client:
        begun = asyncio.create_task(client.infer(typed(x=("FP64", [1.0]))))
        await running.until(lambda: len(home.events(Assignment)) == 1)
        await client.door.stop(5.0)
        assert (await begun).parameters["arm"].string_param == "challenger"
        assert (await client.refusal(typed(x=("FP64", [1.0])))).code() == grpc.StatusCode.UNAVAILABLE


async def test_a_closing_door_refuses_calls_that_nobody_has_taken_up_so_that_they_can_be_sent_again(
    home: Installation, start: Start
) -> None:
    home.publish()
    async with start() as running:
        ends = [await _codes_of_a_closing_door(running) for _ in range(3)]
    assert all(grpc.StatusCode.UNAVAILABLE in codes for codes in ends)
    # Of three: what a busy machine brings in the last instant may be cancelled all the same.
    assert any(codes <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE} for codes in ends)


async def _codes_of_a_closing_door(running: Running) -> set[grpc.StatusCode]:
    body = typed(x=("FP64", [1.0])).SerializeToString()
    async with opened(running) as client, AsyncExitStack() as stack:
        ends = []
        for _ in range(3):  # connections of their own, read by threads of gRPC's
            channel = stack.enter_context(grpc.insecure_channel(client.address, options=OWN_CONNECTION))
            method = channel.unary_unary(f"/{SERVICE}/ModelInfer")
            await asyncio.to_thread(method, body, wait_for_ready=True)
            ends += [method.future(body) for _ in range(8)]
        time.sleep(0.5)  # noqa: ASYNC251 - the loop is busy, and gRPC reads what it cannot take up
        await client.door.stop(5.0)
        return {await asyncio.to_thread(one.code) for one in ends}


def test_a_killed_workers_port_is_taken_over_and_sigterm_answers_the_calls_on_their_way(home: Installation) -> None:
    home.publish("split", champion=home.release(0.4, semver="3.0.0", sleep_s=0.5), share_ppm=1)
    port = free_port()
    x = typed(x=("FP64", [1.0]))

    def connected() -> Any:
        """A channel with a connection of its own: one that is shared may not know yet that its worker is gone."""
        return grpc.insecure_channel(f"127.0.0.1:{port}", options=OWN_CONNECTION)

    def infer_of(channel: Any) -> Any:
        answers = message_class("ModelInferResponse").FromString
        return channel.unary_unary(f"/{SERVICE}/ModelInfer", Request.SerializeToString, answers)

    with bentoml_serve(home.home, SLIPWAY_GATEWAY_GRPC_PORT=str(port)) as gateway:
        with connected() as channel:
            assert infer_of(channel)(x, timeout=60).id
        (worker,) = gateway.workers()
        worker.kill()
        worker.wait(60)
        with connected() as channel:
            method = infer_of(channel)
            assert method(x, wait_for_ready=True, timeout=60).id
            began = len(home.events(Assignment))
            asked = [method.future(x) for _ in range(3)]
            wait_until(lambda: len(home.events(Assignment)) == began + 3, "all calls are on their way")
            gateway.process.send_signal(signal.SIGTERM)
            answers = {one.result(timeout=30).id for one in asked}
        assert gateway.process.wait(30) == 0
    assert answers < {one.request_id for one in home.events(Response) if one.served}
    killed, ended = sorted((home.home / "bus" / "gw0").iterdir(), key=lambda path: int(path.name.split("-")[1]))
    assert not (killed / "closed").exists()
    assert (ended / "closed").exists()


def test_every_refusal_of_a_prediction_has_a_status_in_grpc() -> None:
    http_only = {"WrongMethod", "UnsupportedEncoding"}
    kinds = [kind for kind in errors.Refusal.__subclasses__() if kind.__name__ not in http_only]
    assert len(kinds) >= 6
    assert {kind.status for kind in kinds} <= set(STATUS)


def test_a_gateway_whose_grpc_port_is_taken_does_not_start(home: Installation) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        variables = {"SLIPWAY_HOME": str(home.home), "SLIPWAY_GATEWAY_GRPC_PORT": str(other.getsockname()[1])}
        done = subprocess.run(
            [sys.executable, "-m", "bentoml", "serve", "serving.service:Gateway", "--port", str(free_port())],
            cwd=PROJECT,
            env={"PATH": "/usr/bin:/bin", "BENTOML_DO_NOT_TRACK": "True", **variables},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode != 0
    assert "got a port in use; expected a free one. Set SLIPWAY_GATEWAY_GRPC_PORT" in done.stdout + done.stderr
