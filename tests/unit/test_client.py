"""The Python client against a server in this process: what travels as metadata, what comes back, and what it refuses itself."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from dormouse.client import Client, Input
from dormouse_core import streamed
from dormouse_core.errors import Code, DormouseError
from dormouse_proto import inference_pb2, inference_pb2_grpc


class Echo(inference_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self) -> None:
        self.seen: list[tuple[inference_pb2.ModelInferRequest, dict[str, str]]] = []
        self.trailing = False
        self.release = threading.Event()
        self.parts = 3
        self.acknowledges = True
        self.cancelled = threading.Event()

    def ModelInfer(self, request: inference_pb2.ModelInferRequest, context: Any) -> inference_pb2.ModelInferResponse:
        metadata = {key: value for key, value in context.invocation_metadata() if not key.startswith(("user-agent", "grpc-"))}
        self.seen.append((request, metadata))
        if request.model_name == "none":
            context.abort(grpc.StatusCode.NOT_FOUND, "function none not found")
        if request.model_name == "slow":
            self.release.wait(30)
        step = (("dormouse-step", "3"),)
        (context.set_trailing_metadata if self.trailing else context.send_initial_metadata)(step)
        answer = inference_pb2.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
            answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            answer.raw_output_contents.append(raw)
        return answer

    def ModelStreamInfer(self, requests: Any, context: Any) -> Iterator[inference_pb2.ModelStreamInferResponse]:
        (request,) = requests
        context.add_callback(self.cancelled.set)
        self.seen.append(
            (request, {key: value for key, value in context.invocation_metadata() if not key.startswith(("user-agent", "grpc-"))})
        )
        for number in range(self.parts):
            reply = inference_pb2.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
            reply.outputs.add(name="n", datatype="INT64", shape=[1])
            reply.raw_output_contents.append(np.array([number]).tobytes())
            last = request.model_name == "one"
            yield inference_pb2.ModelStreamInferResponse.FromString(streamed.response(reply.SerializeToString(), final=last))
        if request.model_name == "none":
            context.abort(grpc.StatusCode.NOT_FOUND, "function none not found")
        if self.acknowledges:
            yield inference_pb2.ModelStreamInferResponse.FromString(streamed.acknowledgement(request.id, request.model_name, "1", 3))


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def client(echo: Echo) -> Iterator[Client]:
    server = grpc.server(ThreadPoolExecutor(4))
    inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(echo, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with Client(f"127.0.0.1:{port}") as made:
        yield made
    server.stop(None).wait()


ONE = {"x": np.ones((1, 2), np.float32)}


def test_names_travel_as_metadata_and_sequences_as_parameters(client: Client, echo: Echo) -> None:
    client.infer("ns/fn", ONE, session="s", tenant="t", idempotency_key="k", metadata={"X-Mine": "m"}, request_id="r", outputs=["y"])
    request, metadata = echo.seen[-1]
    assert metadata == {"dormouse-session": "s", "dormouse-tenant": "t", "dormouse-idempotency-key": "k", "x-mine": "m"}
    assert (request.model_name, request.id, [each.name for each in request.outputs]) == ("ns/fn", "r", ["y"])
    for sequence, kind in ((7, "int64_param"), ("seven", "string_param")):
        client.infer("fn", ONE, sequence_id=sequence, start=True)
        request, metadata = echo.seen[-1]
        assert metadata == {}
        assert getattr(request.parameters["sequence_id"], kind) == sequence
        flags = [request.parameters[name].bool_param for name in ("sequence_start", "sequence_end")]
        assert flags == [True, False]


@pytest.mark.parametrize("trailing", [False, True])
def test_the_step_and_the_tensors_come_back(client: Client, echo: Echo, trailing: bool) -> None:
    echo.trailing = trailing
    given: dict[str, Any] = {
        "f": np.arange(6, dtype=np.float64).reshape(2, 3),
        "text": np.array([b"a", b""], object),
        "half": Input(np.array([0x3F80], np.uint16), "BF16"),
    }
    answer = client.infer("fn", given, request_id="r")
    assert (answer.step, answer.id, answer.model_version) == (3, "r", "1")
    assert np.array_equal(answer.outputs["f"], given["f"])
    assert answer.outputs["text"].tolist() == [b"a", b""]
    assert answer.outputs["half"].tolist() == [0x3F80]


def test_errors_have_grpcs_code_and_wrong_arguments_are_value_errors(client: Client, echo: Echo) -> None:
    with pytest.raises(DormouseError, match="function none not found") as refused:
        client.infer("none", ONE)
    assert refused.value.code is Code.NOT_FOUND
    with pytest.raises(DormouseError) as late:
        client.infer("slow", ONE, timeout=0.1)
    echo.release.set()
    assert late.value.code is Code.DEADLINE_EXCEEDED
    with pytest.raises(ValueError, match="start and end belong to a sequence_id"):
        client.infer("fn", ONE, start=True)
    with pytest.raises(ValueError, match=r"session: 7 found, text is allowed; .* sequence_id"):
        client.infer("fn", ONE, session=7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="input x: no datatype of the protocol holds NumPy's complex64"):
        client.infer("fn", {"x": np.ones(1, np.complex64)})


def test_one_object_serves_several_threads(client: Client) -> None:
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda n: client.infer("fn", {"x": np.full(2, n, np.int64)}), range(50)))
    assert [answer.outputs["x"].tolist() for answer in answers] == [[n, n] for n in range(50)]


def test_the_parts_of_a_stream_come_until_the_last_response_acknowledges(client: Client, echo: Echo) -> None:
    found = client.stream(
        "talk", ONE, session="s", tenant="t", idempotency_key="k", metadata={"X-Mine": "m"}, request_id="r", outputs=["n"]
    )
    assert [answer.outputs["n"].tolist() for answer in found] == [[0], [1], [2]]
    request, metadata = echo.seen[-1]
    assert metadata == {"dormouse-session": "s", "dormouse-tenant": "t", "x-mine": "m", "triton_grpc_error": "true"}
    assert request.parameters["dormouse_idempotency_key"].string_param == "k", "the key belongs to what is sent"
    assert request.parameters["triton_enable_empty_final_response"].bool_param
    assert (request.model_name, request.id, [each.name for each in request.outputs]) == ("talk", "r", ["n"])


def test_a_function_that_answers_once_is_one_part(client: Client, echo: Echo) -> None:
    echo.parts, echo.acknowledges = 1, False
    assert [answer.outputs["n"].tolist() for answer in client.stream("one", ONE)] == [[0]]


def test_a_stream_without_its_last_response_is_no_answer(client: Client, echo: Echo) -> None:
    echo.acknowledges = False
    with pytest.raises(DormouseError, match="ended before its last response; whether the step is stored is not known") as broken:
        list(client.stream("talk", ONE))
    assert broken.value.code is Code.UNAVAILABLE


def test_a_stream_that_is_refused_has_grpcs_code(client: Client) -> None:
    with pytest.raises(DormouseError, match="function none not found") as refused:
        list(client.stream("none", ONE))
    assert refused.value.code is Code.NOT_FOUND


def test_a_stream_that_is_closed_is_cancelled(client: Client, echo: Echo) -> None:
    echo.parts = 1_000_000
    found = client.stream("talk", ONE)
    next(found)
    found.close()
    assert echo.cancelled.wait(10), "nobody goes on for a caller that has gone"
