"""The binary form of requests and answers, by property: what was encoded is decoded, and nothing else is taken."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipelines.contracts.release import InputField, Manifest, ModelFeature, OutputContract
from serving.inputs import Binder
from serving.limits import Limits
from serving.oip.datatypes import DATATYPES, NUMERIC
from serving.oip.errors import Malformed, Refusal, TooLarge, UnsupportedEncoding
from serving.oip.http import infer_request, infer_response
from serving.oip.request import InferRequest, RequestedOutput, decode
from serving.oip.response import Prediction, check_outputs
from serving.oip.tensor_bytes import from_bytes, to_bytes

LENGTH = b"inference-header-content-length"
LIMITS = Limits(max_body_bytes=1_000_000)

text = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[str, list[Any] | np.ndarray]:
    """A datatype and some of its values."""
    datatype = draw(st.sampled_from(DATATYPES))
    rows = draw(st.integers(1, 20))
    if datatype == "BYTES":
        return datatype, draw(st.lists(text, min_size=rows, max_size=rows))
    return datatype, draw(arrays.arrays(NUMERIC[datatype], rows))


def binary_request(datatype: str, rows: int, data: bytes, **more: Any) -> tuple[bytes, bytes]:
    """The JSON and the binary part of a request with one tensor `x`; `more` are other fields of the tensor."""
    tensor = {"name": "x", "datatype": datatype, "shape": [rows], "parameters": {"binary_data_size": len(data)}}
    return json.dumps({"inputs": [tensor | more]}).encode(), data


def as_bytes(datatype: str, values: list[Any] | np.ndarray) -> bytes:
    data = to_bytes(datatype, values if isinstance(values, list) else values.tolist())
    assert data is not None
    return data


def sent(head: bytes, part: bytes, **headers: str) -> InferRequest:
    length = (LENGTH, str(len(head)).encode())
    more = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return infer_request([length, *more], head + part, LIMITS)


@given(tensors())
def test_values_of_every_datatype_come_back_from_their_bytes(tensor: tuple[str, Any]) -> None:
    datatype, values = tensor
    data = as_bytes(datatype, values)
    back = from_bytes("x", datatype, len(values), data)
    if datatype == "BYTES":
        assert back == values
    else:
        assert isinstance(back, np.ndarray)
        assert back.dtype == NUMERIC[datatype]
        assert np.array_equal(back, values, equal_nan=datatype.startswith("FP"))


@given(tensors(), st.sampled_from([(), (1,)]))
def test_a_binary_input_becomes_the_same_column_and_log_as_the_same_values_in_json(
    tensor: tuple[str, Any], more_shape: tuple[int, ...]
) -> None:
    datatype, values = tensor
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        values = np.where(np.isinf(values), np.float16(0), values)
    data = as_bytes(datatype, values)
    shape = [len(values), *more_shape]
    binary = sent(*binary_request(datatype, len(values), data, shape=shape))
    plain = [None if value != value else value for value in (values if isinstance(values, list) else values.tolist())]
    as_json = decode(
        json.dumps({"inputs": [{"name": "x", "datatype": datatype, "shape": shape, "data": plain}]}).encode()
    )
    fields = {"x": InputField(name="x", datatype=datatype, required=False)}
    one, other = (Binder(fields, frozenset()).bind(request, 100) for request in (binary, as_json))
    assert one.logged == other.logged
    assert one.columns["x"].dtype == other.columns["x"].dtype
    assert str(one.columns["x"].tolist()) == str(other.columns["x"].tolist())


@given(st.lists(tensors(), min_size=2, max_size=5), st.booleans())
def test_binary_inputs_have_their_own_values_whether_they_are_alike_or_not(
    inputs: list[tuple[str, Any]], alike: bool
) -> None:
    if alike:
        inputs = [("FP32", np.arange(7, dtype=np.float32) + number) for number in range(len(inputs))]
    parts = [as_bytes(*tensor) for tensor in inputs]
    heads = [
        {"name": f"x{k}", "datatype": datatype, "shape": [len(values)], "parameters": {"binary_data_size": len(part)}}
        for k, ((datatype, values), part) in enumerate(zip(inputs, parts, strict=True))
    ]
    request = sent(json.dumps({"inputs": heads}).encode(), b"".join(parts))
    found = [as_bytes(tensor.datatype, tensor.data) for tensor in request.inputs]
    assert found == parts


def test_binary_numbers_become_a_column_without_a_python_list_on_the_way() -> None:
    values = np.arange(100, dtype=np.float32)
    request = sent(*binary_request("FP32", 100, values.tobytes()))
    data = request.inputs[0].data
    assert isinstance(data, np.ndarray)
    assert data.base is not None, "a view of the body"
    bound = Binder({"x": InputField(name="x", datatype="FP64")}, frozenset({"x"})).bind(request, 100)
    assert bound.columns["x"].dtype == np.float64
    bound.columns["x"][0] = 7.0  # a release may write into its inputs


@given(tensors(), st.data())
def test_a_binary_part_of_any_other_length_is_refused(tensor: tuple[str, Any], data: st.DataObject) -> None:
    datatype, values = tensor
    whole = as_bytes(datatype, values)
    cut = data.draw(st.integers(0, max(0, len(whole) - 1)))
    # The size and the part are short alike; the size alone is right; there are bytes behind.
    for head_data, part in ((whole[:cut], whole[:cut]), (whole, whole[:cut]), (whole, whole + b"\0")):
        if head_data == part == whole:
            continue
        head, _ = binary_request(datatype, len(values), head_data)
        with pytest.raises(Malformed):
            sent(head, part)


@given(tensors(), st.one_of(st.integers(-(2**70), 2**70), st.text(max_size=5), st.floats(), st.booleans(), st.none()))
def test_a_size_that_is_not_the_datas_is_refused(tensor: tuple[str, Any], size: Any) -> None:
    datatype, values = tensor
    data = as_bytes(datatype, values)
    if type(size) is int and size == len(data):
        return
    body = {"name": "x", "datatype": datatype, "shape": [len(values)], "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [body]}, allow_nan=True).encode()
    with pytest.raises(Malformed):
        sent(head, data)


@given(st.binary(max_size=40), st.integers(0, 12), st.sampled_from([*DATATYPES, "FP8", "", "INT"]))
def test_arbitrary_bytes_are_values_of_the_datatype_or_refused(data: bytes, rows: int, datatype: str) -> None:
    try:
        values = from_bytes("x", datatype, rows, data)
    except Refusal:
        return
    assert len(values) == rows
    assert as_bytes(datatype, values) == data or datatype.startswith("FP")  # a NaN may carry other bits


@given(st.one_of(st.binary(max_size=20), st.integers(-10, 10_000).map(lambda n: str(n).encode())))
def test_a_header_length_that_lies_is_refused(value: bytes) -> None:
    head, part = binary_request("FP64", 1, struct.pack("<d", 1.5))
    if value.strip() == str(len(head)).encode() or value.strip().lstrip(b"0") == str(len(head)).encode():
        return
    with pytest.raises(Malformed):
        infer_request([(LENGTH, value)], head + part, LIMITS)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"data": [1.5]}, "got data as well; expected one of the two"),
        ({"parameters": {"shared_memory_region": "r"}}, "got shared_memory_region; expected the data in the request"),
        ({"parameters": {}}, "got no data; expected data, or binary_data_size"),
        ({"parameters": {"content_type": "base64"}, "data": [1.5]}, "got content_type base64"),
        ({"shape": [10**30]}, "expected 8000000000000000000000000000000 for"),
        ({"shape": [-1]}, "shape"),
        ({"datatype": "BF16"}, "got BF16; expected one of"),
    ],
)
def test_a_tensor_that_cannot_be_what_it_says_is_refused(fields: dict[str, Any], text: str) -> None:
    part = struct.pack("<d", 1.5)
    tensor = {"name": "x", "datatype": "FP64", "shape": [1], "parameters": {"binary_data_size": 8}} | fields
    head = json.dumps({"inputs": [tensor]}).encode()
    with pytest.raises(Malformed) as refused:
        sent(head, part)
    assert text in str(refused.value)


def test_a_size_without_its_header_is_refused() -> None:
    head, part = binary_request("FP64", 1, struct.pack("<d", 1.5))
    for body in (head, head + part):
        with pytest.raises(Malformed):
            infer_request([], body, LIMITS)


@pytest.mark.parametrize(
    ("datatype", "declared", "values", "text"),
    [
        ("FP64", "FP64", [1.0, np.inf], "row 1; got inf; expected a finite FP64"),
        ("FP32", "FP64", [1.0, np.nan], "row 1; got nan; expected a finite FP64; the input is required"),
        ("INT16", "INT8", [1, 128, -129], "row 2; got -129; expected INT8"),
        ("UINT64", "INT64", [2**63], f"row 0; got {2**63}; expected INT64"),
        ("INT8", "UINT8", [-1], "row 0; got -1; expected UINT8"),
    ],
)
def test_binary_values_are_held_against_the_declared_datatype(
    datatype: str, declared: str, values: list[Any], text: str
) -> None:
    data = np.array(values, dtype=NUMERIC[datatype]).tobytes()
    request = sent(*binary_request(datatype, len(values), data))
    with pytest.raises(Malformed) as refused:
        Binder({"x": InputField(name="x", datatype=declared)}, frozenset({"x"})).bind(request, 100)
    assert text in str(refused.value)


def test_a_boolean_byte_is_0_or_1_and_text_is_utf8() -> None:
    with pytest.raises(Malformed, match="row 1; got byte 2"):
        from_bytes("x", "BOOL", 2, b"\1\2")
    with pytest.raises(Malformed, match=r"row 0.*utf-8"):
        from_bytes("x", "BYTES", 1, b"\1\0\0\0\xff")
    with pytest.raises(Malformed, match="row 0; got 1 bytes; expected 4294967295 by its length"):
        from_bytes("x", "BYTES", 1, b"\xff\xff\xff\xffa")


@pytest.mark.parametrize("folded", [gzip.compress, zlib.compress], ids=["gzip", "deflate"])
def test_compressed_bodies_unfold_up_to_the_limit(folded: Any, request: pytest.FixtureRequest) -> None:
    encoding = request.node.callspec.id
    head, part = binary_request("FP64", 100, np.arange(100.0).tobytes())
    headers = [(LENGTH, str(len(head)).encode()), (b"content-encoding", encoding.encode())]
    body = folded(head + part)
    assert np.array_equal(infer_request(headers, body, LIMITS).inputs[0].data, np.arange(100.0))
    with pytest.raises(TooLarge):
        infer_request(headers, body, Limits(max_body_bytes=len(head + part) - 1))
    for broken in (body[:-3], body + b"x", b"not compressed", b""):
        with pytest.raises(Malformed):
            infer_request(headers, broken, LIMITS)
    with pytest.raises(TooLarge):
        infer_request(headers, folded(b" " * 50_000_000), LIMITS)
    with pytest.raises(UnsupportedEncoding):
        infer_request([(b"content-encoding", b"br")], body, LIMITS)


# --- answers ---------------------------------------------------------------------------------------------------------


def prediction(outputs: dict[str, tuple[str, list[Any]]]) -> Prediction:
    fields = {name: datatype for name, (datatype, _) in outputs.items()}
    manifest = Manifest(
        model="m", semver="1.0.0", task="constant", inputs=[], features=[ModelFeature(name="x", source="input")],
        output=OutputContract(fields=fields), files={},
    )  # fmt: skip
    return Prediction("q1", manifest, {name: values for name, (_, values) in outputs.items()}, {"arm": "champion"})


def read(answer: tuple[bytes, bytes, tuple[tuple[bytes, bytes], ...]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The JSON of an answer, and the values of each output."""
    body, kind, headers = answer
    length = int(dict(headers).get(LENGTH, len(body)))
    assert kind == (b"application/octet-stream" if headers else b"application/json")
    head, at = json.loads(body[:length]), length
    values: dict[str, Any] = {}
    for output in head["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            values[output["name"]] = output["data"]
            continue
        assert "data" not in output
        got = from_bytes(output["name"], output["datatype"], output["shape"][0], body[at : at + size])
        values[output["name"]] = got if isinstance(got, list) else got.tolist()
        at += size
    assert at == len(body)
    return head, values


@given(
    st.lists(tensors(), min_size=1, max_size=4),
    st.booleans(),
    st.lists(st.sampled_from([None, True, False]), min_size=4),
)
def test_answers_come_back_in_the_form_each_output_asks_for(
    made: list[tuple[str, Any]], whole: bool, flags: list[bool | None]
) -> None:
    outputs = {
        f"o{k}": (datatype, list(v) if isinstance(v, list) else v.tolist()) for k, (datatype, v) in enumerate(made)
    }
    said = prediction(outputs)
    asked = [
        RequestedOutput(name, None if flag is None else {"binary_data": flag})
        for name, flag in zip(outputs, flags, strict=False)
    ]
    for request in (InferRequest([], parameters={"binary_data_output": whole}, outputs=asked), InferRequest([])):
        check_outputs(request, said.manifest)
        head, values = read(infer_response(request, said))
        for index, (output, (name, (datatype, wanted))) in enumerate(
            zip(head["outputs"], outputs.items(), strict=True)
        ):
            assert (output["name"], output["datatype"], output["shape"]) == (name, datatype, [len(wanted)])
            flag = flags[index] if flags[index] is not None else whole
            binary = bool(flag) and request.outputs is not None
            assert ("binary_data_size" in output.get("parameters", {})) == binary
            if binary or datatype.startswith(("INT", "UINT", "BO", "BY")):
                assert str(values[name]) == str(wanted)


def test_an_output_with_nulls_that_have_no_bytes_is_json_among_binary_ones() -> None:
    said = prediction(
        {
            "a": ("INT8", [1, None]),
            "b": ("BOOL", [None]),
            "c": ("BYTES", ["x", None]),
            "d": ("FP32", [None, 1.5, 1e300]),
        }
    )
    head, values = read(infer_response(InferRequest([], parameters={"binary_data_output": True}), said))
    assert [("parameters" in one) for one in head["outputs"]] == [False, False, False, True]
    assert values["a"] == [1, None]
    assert str(values["d"]) == "[nan, 1.5, inf]"


@pytest.mark.parametrize(
    ("request_parameters", "output_parameters"),
    [
        ({"binary_data_output": "yes"}, None),
        (None, {"binary_data": 1}),
        (None, {"classification": 2}),
        (None, {"shared_memory_region": "r"}),
    ],
)
def test_a_form_of_output_that_is_not_served_is_refused(request_parameters: Any, output_parameters: Any) -> None:
    request = InferRequest([], parameters=request_parameters, outputs=[RequestedOutput("a", output_parameters)])
    with pytest.raises(Malformed):
        check_outputs(request, prediction({"a": ("FP64", [1.0])}).manifest)
