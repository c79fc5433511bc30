"""A client made of MLServer's types and codecs alone; runs in the environment of peers, started by a test.

Arguments: the gateway's addresses over HTTP and gRPC, and rows of every datatype as JSON. Prints a line for each part
that works.
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request

import grpc
import numpy as np
import pandas as pd
from mlserver import types
from mlserver.codecs import NumpyCodec, PandasCodec, StringCodec
from mlserver.grpc.converters import ModelInferRequestConverter, ModelInferResponseConverter
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub

URL, GRPC, VALUES = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
DTYPES = {"BOOL": "bool", "FP16": "float16", "FP32": "float32", "FP64": "float64"} | {
    f"{sign}INT{bits}": f"{sign.lower()}int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)
}


def call(path: str, body: str | None = None) -> tuple[int, str]:
    request = urllib.request.Request(URL + path, None if body is None else body.encode())
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def infer(model: str, request: types.InferenceRequest) -> types.InferenceResponse:
    status, text = call(f"/v2/models/{model}/infer", request.model_dump_json())
    assert status == 200, text
    return types.InferenceResponse.model_validate_json(text)


def check_metadata() -> None:
    server = types.MetadataServerResponse.model_validate_json(call("/v2")[1])
    assert server.name == "slipway"
    print("server metadata")
    model = types.MetadataModelResponse.model_validate_json(call("/v2/models/every")[1])
    assert {one.name: one.datatype for one in model.inputs} == {name.lower(): name for name in VALUES}
    print("model metadata")


def check_numpy_and_strings() -> None:
    arrays = {name: np.array(values, DTYPES[name]) for name, values in VALUES.items() if name != "BYTES"}
    inputs = [NumpyCodec.encode_input(name.lower(), values) for name, values in arrays.items()]
    inputs.append(StringCodec.encode_input("bytes", VALUES["BYTES"]))
    answer = infer("every", types.InferenceRequest(id="mlserver", inputs=inputs))
    assert (answer.id, answer.model_name, answer.model_version) == ("mlserver", "every", "1.2.3")
    outputs = {one.name: one for one in answer.outputs}
    for name, values in arrays.items():
        back = NumpyCodec.decode_output(outputs[f"out_{name.lower()}"])
        assert back.dtype == values.dtype
        assert back.tolist() == values.tolist(), name
    print("numpy codec")
    assert StringCodec.decode_output(outputs["out_bytes"]) == VALUES["BYTES"]
    asked = types.InferenceRequest(
        inputs=inputs, outputs=[types.RequestOutput(name="out_bytes")], parameters=types.Parameters(content_type="np")
    )
    assert [one.name for one in infer("every", asked).outputs] == ["out_bytes"]
    print("string codec")


def check_pandas() -> None:
    # MLServer 1.7 does not know the text type of pandas 3.
    origin = pd.Series(["JFK", "EWR", "LGA"], dtype=object)
    frame = pd.DataFrame({"x": [1.0, np.nan, 3.0], "origin": origin})
    answer = PandasCodec.decode_response(infer("m", PandasCodec.encode_request(frame)))
    assert answer["score"].tolist() == [0.3, 0.3, 0.3]
    assert answer["decision"].tolist() == [False, False, False]
    print("pandas codec")


def check_grpc() -> None:
    """MLServer's own messages and stub, in typed and in raw contents."""
    inputs = [NumpyCodec.encode_input("x", np.array([1.0, 2.0])), StringCodec.encode_input("origin", ["JFK", "EWR"])]
    request = types.InferenceRequest(id="mlserver-grpc", inputs=inputs)
    with grpc.insecure_channel(GRPC) as channel:
        for raw in (False, True):
            message = ModelInferRequestConverter.from_types(request, "m", None, use_raw=raw)
            assert bool(message.raw_input_contents) == raw
            answer = ModelInferResponseConverter.to_types(GRPCInferenceServiceStub(channel).ModelInfer(message))
            outputs = {one.name: NumpyCodec.decode_output(one).tolist() for one in answer.outputs}
            assert outputs == {"score": [0.3, 0.3], "decision": [False, False]}, outputs
            assert answer.id == "mlserver-grpc"
    print("grpc")


def check_errors() -> None:
    status, text = call("/v2/models/mm/infer", types.InferenceRequest(inputs=[]).model_dump_json())
    assert status == 404
    assert "Did you mean m?" in types.InferenceErrorResponse.model_validate_json(text).error
    mixed = pd.DataFrame({"origin": pd.Series(["JFK", 7], dtype=object)})
    status, text = call("/v2/models/m/infer", PandasCodec.encode_request(mixed).model_dump_json())
    assert status == 400
    assert "content_type pd_json" in types.InferenceErrorResponse.model_validate_json(text).error
    print("errors")


check_metadata()
check_numpy_and_strings()
check_pandas()
check_grpc()
check_errors()
