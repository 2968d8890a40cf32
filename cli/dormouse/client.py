"""A small client of the Open Inference Protocol, for scripts and for `dormouse call`.

It speaks what any client of the protocol speaks; `tritonclient` and KServe's work as well. What it adds: sessions by name, idempotency
keys, and the step count, which travel as metadata.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc
from dormouse_core import asking, callkeys, headernames, limits, streamed
from dormouse_core.asking import Input as Input
from dormouse_core.errors import Code, DormouseError
from dormouse_proto import inference_pb2, inference_pb2_grpc
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Answer:
    outputs: dict[str, NDArray[Any]]
    step: int  # of the session; 0: stateless
    id: str
    model_version: str


class Client:
    """`address`: host:port of the gateway. One object may be used from several threads.

    What the system answers, or that it does not, is a `DormouseError` with gRPC's code; an argument that cannot be sent is a `ValueError`.
    """

    def __init__(self, address: str = "127.0.0.1:8001") -> None:
        options = [
            ("grpc.max_receive_message_length", limits.MESSAGE_BYTES_MAX),
            ("grpc.max_send_message_length", limits.MESSAGE_BYTES_MAX),
            ("grpc.enable_retries", 0),
        ]
        self._channel = grpc.insecure_channel(address, options=options)
        self._stub = inference_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def metadata(self, function: str, *, timeout: float | None = None) -> inference_pb2.ModelMetadataResponse:
        """What the function takes and gives. Wakes nobody."""
        request = inference_pb2.ModelMetadataRequest(name=function)
        response: inference_pb2.ModelMetadataResponse = self._unary(self._stub.ModelMetadata, request, [], timeout)[0]
        return response

    def infer(
        self,
        function: str,
        inputs: Mapping[str, NDArray[Any] | Input],
        *,
        session: str | None = None,
        sequence_id: int | str | None = None,
        start: bool = False,
        end: bool = False,
        outputs: Sequence[str] = (),
        tenant: str = "",
        idempotency_key: str = "",
        request_id: str = "",
        metadata: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """One call. `function`: namespace/name, or name in the gateway's default namespace.

        `session`: the session of that name, begun by its first step. `sequence_id` with `start` and `end`: Triton's sequences. With an
        `idempotency_key` the same call may be sent again and runs once. `metadata`: more of the call's; keys are put into lower case, as
        gRPC wants them. What contradicts something else of the call is refused by the gateway: none of the two is taken.
        """
        if not isinstance(session, str | None):
            raise ValueError(f"session: {session!r} found, text is allowed; a sequence that has a number is named by sequence_id")
        request = asking.request(function, inputs, outputs)
        request.id = request_id
        if sequence_id is not None:
            identity = request.parameters["sequence_id"]
            if isinstance(sequence_id, int):
                identity.int64_param = sequence_id
            else:
                identity.string_param = sequence_id
            request.parameters["sequence_start"].bool_param = start
            request.parameters["sequence_end"].bool_param = end
        elif start or end:
            raise ValueError("start and end belong to a sequence_id")
        told = _metadata(session, tenant, metadata)
        told += [(headernames.IDEMPOTENCY_KEY, idempotency_key)] if idempotency_key else []
        response, trailing = self._unary(self._stub.ModelInfer, request, told, timeout)
        return Answer(asking.outputs(response), int(trailing.get(headernames.STEP, "0")), response.id, response.model_version)

    def stream(
        self,
        function: str,
        inputs: Mapping[str, NDArray[Any] | Input],
        *,
        session: str | None = None,
        outputs: Sequence[str] = (),
        tenant: str = "",
        idempotency_key: str = "",
        request_id: str = "",
        metadata: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Generator[Answer, None, None]:
        """One call of a function that answers in parts: each part as it comes. (One that does not gives one answer.)

        Parts are provisional. Where the iterator ends, the step is stored; where it raises, that is not known: send the call again under
        its `idempotency_key`, for its parts from the first on. An iterator that is closed before its end cancels the call. `step` is 0 in a
        part: it comes before its step is stored.
        """
        request = asking.request(function, inputs, outputs)
        request.id = request_id
        request.parameters[streamed.EMPTY_FINAL].bool_param = True
        if idempotency_key:
            request.parameters[callkeys.PARAMETER].string_param = idempotency_key
        return self._parts(request, [*_metadata(session, tenant, metadata), _ERRORS_AS_STATUS], timeout)

    def _parts(self, request: Any, metadata: list[tuple[str, str]], timeout: float | None) -> Generator[Answer, None, None]:
        call = self._stub.ModelStreamInfer(iter([request]), metadata=metadata, timeout=timeout)
        try:
            for message in call:
                part = message.infer_response
                final = part.parameters[streamed.FINAL].bool_param
                if part.outputs or not final:
                    yield Answer(asking.outputs(part), part.parameters[streamed.STEP].int64_param, part.id, part.model_version)
                if final:
                    return
            raise DormouseError("the stream ended before its last response; whether the step is stored is not known", Code.UNAVAILABLE)
        except grpc.RpcError as error:
            raise _error(error) from error
        finally:
            call.cancel()

    def _unary(self, method: Any, request: Any, metadata: list[tuple[str, str]], timeout: float | None) -> tuple[Any, dict[str, Any]]:
        try:
            response, call = method.with_call(request, metadata=metadata, timeout=timeout)
        except grpc.RpcError as error:
            raise _error(error) from error
        told = {m.key: m.value for m in (*(call.initial_metadata() or ()), *(call.trailing_metadata() or ()))}
        return response, told


_ERRORS_AS_STATUS = ("triton_grpc_error", "true")


def _error(error: Any) -> DormouseError:
    return DormouseError(error.details() or error.code().name, Code(error.code().value[0]))


def _metadata(session: str | None, tenant: str, more: Mapping[str, str] | None) -> list[tuple[str, str]]:
    told = [(key, value) for key, value in ((headernames.SESSION, session), (headernames.TENANT, tenant)) if value]
    return told + [(key.lower(), value) for key, value in (more or {}).items()]
