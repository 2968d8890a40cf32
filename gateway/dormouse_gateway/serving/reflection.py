"""gRPC reflection (grpc.reflection.v1, and v1alpha by the same messages): what grpcurl and its like ask before they can call anything.

The package grpcio-reflection serves the same, but registers in protobuf's default pool; ours are in a pool of their own, so that one
process may import tritonclient beside Dormouse (docs/decisions/0001-messages.md).
"""

from typing import Any

from dormouse_core.errors import Code
from dormouse_proto import health_pb2, inference_pb2, reflection_pb2
from google.protobuf import descriptor_pb2
from google.protobuf.message import DecodeError

METHODS = frozenset(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo" for version in ("v1", "v1alpha"))
FILES = (inference_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)
SERVICES = tuple(sorted(service.full_name for file in FILES for service in file.services_by_name.values()))


def _symbols() -> dict[str, Any]:
    """Every service, method, message, field and enum by its full name: the file that defines it."""
    found: dict[str, Any] = {}

    def message(descriptor: Any, file: Any) -> None:
        found[descriptor.full_name] = file
        found.update((field.full_name, file) for field in descriptor.fields)
        found.update((enum.full_name, file) for enum in descriptor.enum_types)
        for nested in descriptor.nested_types:
            message(nested, file)

    for file in FILES:
        for each in file.message_types_by_name.values():
            message(each, file)
        found.update((enum.full_name, file) for enum in file.enum_types_by_name.values())
        for service in file.services_by_name.values():
            found[service.full_name] = file
            found.update((method.full_name, file) for method in service.methods)
    return found


_SYMBOLS = _symbols()
_BY_NAME = {file.name: file for file in FILES}


def answer(message: bytes) -> bytes:
    """One response to one request. What cannot be answered is an error inside the response, as the protocol has it."""
    response = reflection_pb2.ServerReflectionResponse()
    try:
        request = reflection_pb2.ServerReflectionRequest.FromString(message)
    except DecodeError:
        _refuse(response, Code.INVALID_ARGUMENT, "the message is not a ServerReflectionRequest")
        return bytes(response.SerializeToString())
    response.valid_host = request.host
    response.original_request.CopyFrom(request)
    kind = request.WhichOneof("message_request")
    if kind == "list_services":
        response.list_services_response.service.extend(reflection_pb2.ServiceResponse(name=name) for name in SERVICES)
    elif kind == "file_by_filename":
        _file(response, _BY_NAME.get(request.file_by_filename), request.file_by_filename)
    elif kind == "file_containing_symbol":
        _file(response, _SYMBOLS.get(request.file_containing_symbol), request.file_containing_symbol)
    elif kind == "all_extension_numbers_of_type" and request.all_extension_numbers_of_type in _SYMBOLS:
        response.all_extension_numbers_response.base_type_name = request.all_extension_numbers_of_type
    elif kind in ("all_extension_numbers_of_type", "file_containing_extension"):
        _refuse(response, Code.NOT_FOUND, "no message of this server has extensions")
    else:
        _refuse(response, Code.INVALID_ARGUMENT, "the request has no field set that this server knows")
    return bytes(response.SerializeToString())


def _file(response: Any, file: Any, name: str) -> None:
    if file is None:
        _refuse(response, Code.NOT_FOUND, f"this server does not define {name!r}")
        return
    content = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(content)
    response.file_descriptor_response.file_descriptor_proto.append(content.SerializeToString())  # none of them imports another


def _refuse(response: Any, code: Code, text: str) -> None:
    response.error_response.error_code = int(code)
    response.error_response.error_message = text
