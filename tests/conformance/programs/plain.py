"""Plain grpcio on Triton's generated stubs: what arrives without a client's own handling. As `triton.py`."""

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

SIZES = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
STUB = service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(sys.argv[1], options=SIZES))
Request = service_pb2.ModelInferRequest


def say(call: str, run: Callable[[], Any]) -> None:
    try:
        answer = {"call": call, "result": run()}
    except grpc.RpcError as error:
        answer = {"call": call, "error": error.details(), "code": error.code().name}
    print(json.dumps(answer), flush=True)


def request(model: str, name: str, array: np.ndarray, datatype: str, ident: str = "") -> Request:
    found = Request(model_name=model, id=ident, raw_input_contents=[array.tobytes()])
    found.inputs.add(name=name, datatype=datatype, shape=array.shape)
    return found


def double(ident: str = "", width: int = 4) -> Request:
    return request("double", "x", np.arange(1, width + 1, dtype=np.float32).reshape(1, width), "FP32", ident)


def to(model: str, session: str = "") -> Request:
    found = request(model, "x", np.ones((1, 1), np.float32), "FP32")
    if session:
        found.parameters["sequence_id"].string_param = session
    return found


def step(sequence: int, value: int, ident: str, flag: str = "") -> Request:
    found = request("sequence", "INPUT", np.array([[value]], np.int64), "INT64", ident)
    found.parameters["sequence_id"].int64_param = sequence
    if flag:
        found.parameters[flag].bool_param = True
    return found


def infer(asked: Request, **options: Any) -> Any:
    return np.frombuffer(STUB.ModelInfer(asked, **options).raw_output_contents[0], np.float32).reshape(1, -1).tolist()


def stream(*requests: Request, kind: Any = np.int64, **options: Any) -> Iterator[list[Any]]:
    """Of each answer [id, the first number of its first output], or [the text of an error that came in the stream]."""
    for response in STUB.ModelStreamInfer(iter(requests), **options):
        if response.error_message:
            yield [response.error_message]
        else:
            reply = response.infer_response
            yield [reply.id, np.frombuffer(reply.raw_output_contents[0], kind)[0].item()]


def errors() -> Any:
    """An error in the stream, which goes on: the two are of two sessions, so they may come in either order."""
    (error,), answer = sorted(stream(step(1, 1, "lost"), step(9, 2, "next", "sequence_start")), key=len)
    return [error, *answer]


STEPS = [step(8888, 5, "a", "sequence_start"), step(8888, 1, "b"), step(8888, 1, "c", "sequence_end")]
STATUS = (("triton_grpc_error", "true"),)
LATE = request("sleepy", "seconds", np.array([3], np.float32), "FP32")

say("infer", lambda: infer(double()))
say("unknown model", lambda: infer(to("none")))
say("session id too long", lambda: infer(to("counter", "x" * 129)))
say("stopped", lambda: infer(to("stopped")))
say("hold expired", lambda: infer(to("stuck")))
say("too large", lambda: infer(double(width=17 << 18)))
say("stream", lambda: next(stream(double("an id"), kind=np.float32)))
say("stream sequence", lambda: list(stream(*STEPS)))
say("stream error", errors)
say("stream unknown model", lambda: next(stream(to("none"))))
say("stream stopped function", lambda: next(stream(to("stopped"))))
say("stream hold expired", lambda: next(stream(to("stuck"))))
say("stream session id too long", lambda: next(stream(to("counter", "x" * 129))))
say("stream error as status", lambda: list(stream(step(1, 1, "lost"), metadata=STATUS)))
say("stream unknown model as status", lambda: list(stream(to("none"), metadata=STATUS)))
say("stream stopped function as status", lambda: list(stream(to("stopped"), metadata=STATUS)))
say("stream timeout", lambda: list(stream(LATE, timeout=0.5)))
say("stream too large", lambda: list(stream(double(width=17 << 18))))
