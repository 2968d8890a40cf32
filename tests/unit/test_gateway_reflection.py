"""Reflection: what is told of services and files, and that the answers resolve with nothing else at hand."""

import pytest
from dormouse_gateway.serving import reflection
from dormouse_proto import reflection_pb2
from google.protobuf import descriptor_pb2, descriptor_pool


def ask(**fields: object) -> reflection_pb2.ServerReflectionResponse:
    request = reflection_pb2.ServerReflectionRequest(host="h", **fields)  # type: ignore[arg-type]
    return reflection_pb2.ServerReflectionResponse.FromString(reflection.answer(request.SerializeToString()))


def test_services_and_what_they_use_resolve() -> None:
    found = ask(list_services="")
    names = [service.name for service in found.list_services_response.service]
    assert names == ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "inference.GRPCInferenceService"]
    assert (found.valid_host, found.original_request.host) == ("h", "h")
    pool = descriptor_pool.DescriptorPool()
    for name in names:
        for data in ask(file_containing_symbol=name).file_descriptor_response.file_descriptor_proto:
            pool.Add(descriptor_pb2.FileDescriptorProto.FromString(data))
    service = pool.FindServiceByName("inference.GRPCInferenceService")
    assert service.methods_by_name["ModelInfer"].input_type.full_name == "inference.ModelInferRequest"


@pytest.mark.parametrize(
    "symbol",
    ["inference.ModelInferRequest", "inference.ModelInferRequest.InferInputTensor", "inference.GRPCInferenceService.ModelInfer",
     "inference.DataType", "inference.ModelInferRequest.id", "grpc.health.v1.HealthCheckResponse.ServingStatus"],
)  # fmt: skip
def test_symbols(symbol: str) -> None:
    (data,) = ask(file_containing_symbol=symbol).file_descriptor_response.file_descriptor_proto
    assert symbol.startswith(descriptor_pb2.FileDescriptorProto.FromString(data).package)


def test_files_by_name() -> None:
    (data,) = ask(file_by_filename="health.proto").file_descriptor_response.file_descriptor_proto
    assert descriptor_pb2.FileDescriptorProto.FromString(data).package == "grpc.health.v1"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"file_by_filename": "state.proto"}, 5),
        ({"file_containing_symbol": "dormouse.control.v1.Control"}, 5),
        ({"file_containing_extension": reflection_pb2.ExtensionRequest(containing_type="inference.ModelConfig", extension_number=1)}, 5),
        ({"all_extension_numbers_of_type": "nope"}, 5),
        ({}, 3),
    ],
)
def test_what_is_not_there_is_an_error_in_the_response(fields: dict[str, object], code: int) -> None:
    """What is Dormouse's own, between its parts, is not shown to callers."""
    assert ask(**fields).error_response.error_code == code


def test_no_extensions_and_no_message() -> None:
    assert ask(all_extension_numbers_of_type="inference.ModelConfig").all_extension_numbers_response.extension_number == []
    found = reflection_pb2.ServerReflectionResponse.FromString(reflection.answer(b"\xff"))
    assert found.error_response.error_code == 3
