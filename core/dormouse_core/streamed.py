"""What `ModelStreamInfer` sends back, as bytes: Triton's form, so that its clients find what they look for.

A stream's response is `{error_message, infer_response}`. Every `infer_response` carries the parameter
`triton_final_response`: whether it is the last one to its request. An error carries the request's id and model beside
its text (`tritonclient` shows the text alone). Dormouse adds two parameters: `dormouse_step`, the session's step count
(a unary reply has it as metadata), and `dormouse_code`, the name of an error's gRPC code, which Triton leaves out.

Replies are encoded already when they come here. Protobuf joins what is written one behind the other, so that
parameters are appended and nothing is decoded: a reply may have 64 MiB.
"""

from dormouse_proto import inference_pb2

from dormouse_core.errors import Code

FINAL = "triton_final_response"
EMPTY_FINAL = "triton_enable_empty_final_response"
STEP = "dormouse_step"
CODE = "dormouse_code"


def _flag(final: bool) -> bytes:
    message = inference_pb2.ModelInferResponse()
    message.parameters[FINAL].bool_param = final
    encoded: bytes = message.SerializeToString()
    return encoded


_FLAGS = {final: _flag(final) for final in (False, True)}
_CODES = {int(code): code.name for code in Code}
_INFER_RESPONSE = b"\x12"  # field 2 of ModelStreamInferResponse, length-delimited


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def response(reply: bytes, *, final: bool, step: int = 0) -> bytes:
    """An encoded ModelInferResponse as a stream's response. `step` 0: not known."""
    count = b""
    if step:
        message = inference_pb2.ModelInferResponse()
        message.parameters[STEP].int64_param = step
        count = message.SerializeToString()
    size = len(reply) + len(_FLAGS[final]) + len(count)
    return b"".join((_INFER_RESPONSE, varint(size), reply, _FLAGS[final], count))


def acknowledgement(ident: str, model: str, version: str, step: int) -> bytes:
    """The empty last response to a request whose parts were all sent: everything that it did is stored."""
    message = inference_pb2.ModelInferResponse(model_name=model, model_version=version, id=ident)
    return response(message.SerializeToString(), final=True, step=step)


def error(text: str, code: int, ident: str, model: str, version: str) -> bytes:
    message = inference_pb2.ModelStreamInferResponse(error_message=text or "no message")  # empty would read as success
    message.infer_response.id = ident
    message.infer_response.model_name = model
    message.infer_response.model_version = version
    message.infer_response.parameters[FINAL].bool_param = True
    message.infer_response.parameters[CODE].string_param = _CODES.get(code, str(code))
    encoded: bytes = message.SerializeToString()
    return encoded
