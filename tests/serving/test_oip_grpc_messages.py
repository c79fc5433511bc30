"""The gRPC messages are the published ones: every field as compiled into another implementation, tritonclient's."""

from __future__ import annotations

from typing import Any

from tritonclient.grpc import service_pb2

from serving.oip.grpc_messages import MESSAGES, SERVICE, message_class


def described(message: Any) -> dict[str, Any]:
    """A message's fields with all that decides their bytes."""
    return {
        field.name: (
            field.number,
            field.type,
            field.is_repeated,
            field.containing_oneof.name if field.containing_oneof else None,
            field.message_type.full_name if field.message_type else None,
            described(field.message_type) if field.message_type and field.message_type.GetOptions().map_entry else None,
        )
        for field in message.fields
    }


def published(name: str) -> Any:
    outer, _, inner = name.partition(".")
    message = service_pb2.DESCRIPTOR.message_types_by_name[outer]
    return message.nested_types_by_name[inner] if inner else message


def test_every_message_has_the_fields_of_the_published_one() -> None:
    for name in MESSAGES:
        assert described(message_class(name).DESCRIPTOR) == described(published(name)), name


def test_the_service_has_its_published_name_and_methods_their_messages() -> None:
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert service.full_name == SERVICE
    for name in ("ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelInfer"):
        method = service.methods_by_name[name]
        assert (method.input_type.name, method.output_type.name) == (f"{name}Request", f"{name}Response")


def test_bytes_of_either_implementation_are_read_by_the_other() -> None:
    ours = message_class("ModelInferRequest")(model_name="m", id="q1", raw_input_contents=[b"\0\1"])
    ours.parameters["unit"].string_param = "u"
    ours.inputs.add(name="x", datatype="FP64", shape=[1]).contents.fp64_contents.append(1.5)
    theirs = service_pb2.ModelInferRequest.FromString(ours.SerializeToString())
    assert theirs.inputs[0].contents.fp64_contents == [1.5]
    assert theirs.parameters["unit"].string_param == "u"
    back = message_class("ModelInferRequest").FromString(theirs.SerializeToString())
    assert back == ours
