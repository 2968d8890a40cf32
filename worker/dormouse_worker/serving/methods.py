"""Everything a worker answers besides ModelInfer: is it alive, what does it serve, how is it doing.

These are for probes and for people who dial a worker; callers of the gateway are answered there, from the same messages. None of them
counts as demand.
"""

from collections.abc import Callable
from typing import Any, Protocol

from dormouse_core import statistics
from dormouse_core.describing import model_config, model_metadata
from dormouse_core.errors import Code, DormouseError, InvalidArgument, NotFound
from dormouse_proto import health_pb2, inference_pb2, state_pb2
from google.protobuf.message import DecodeError, Message

from dormouse_worker.transport.asgi import Exchange

_SERVICE = "/inference.GRPCInferenceService/"
_HEALTH = "/grpc.health.v1.Health/Check"
CONTROL = "/dormouse.control.v1.Worker/Control"
VERSION = "0.1.0"


class Facts(Protocol):
    """What the answers are made of."""

    names: tuple[str, ...]
    metadata: state_pb2.ModelMetadata
    delay_us: int
    idle_us: int

    def serving(self) -> bool: ...
    def healthy(self) -> bool: ...
    def unready(self) -> str: ...
    def metrics(self) -> str: ...
    def tally(self) -> statistics.Tally: ...


class Methods:
    def __init__(self, facts: Facts, control: Callable[[Exchange], Any]) -> None:
        self._facts = facts
        self._control = control

    async def __call__(self, exchange: Exchange) -> None:
        path = exchange.path
        if path == CONTROL:
            await self._control(exchange)
        elif path == "/probe":
            # The supervisor and the kubelet's liveness ask whether to start it again; its readiness asks with ?ready whether it serves.
            asks_ready = exchange.query.startswith(b"ready")
            trouble = "" if self._facts.healthy() else "a run is older than its step limit"
            trouble = trouble or (self._facts.unready() if asks_ready else "")
            await exchange.text(503 if trouble else 200, (trouble or "ok").encode() + b"\n")
        elif path == "/metrics":
            await exchange.text(200, self._facts.metrics().encode(), b"text/plain; version=0.0.4; charset=utf-8")
        elif exchange.headers.get(b"content-type", b"").startswith(b"application/grpc"):
            await exchange.answer(self._answer(path, await exchange.message()).SerializeToString())
        else:
            await exchange.text(404, b"not found\n")

    def _answer(self, path: str, data: bytes) -> Message:
        facts = self._facts
        if path == _HEALTH:
            service = _parse(health_pb2.HealthCheckRequest, data).service
            if service not in ("", "inference.GRPCInferenceService"):
                raise NotFound(f"service: {service!r} found, '' and 'inference.GRPCInferenceService' are known")
            status = health_pb2.HealthCheckResponse.SERVING if facts.serving() else health_pb2.HealthCheckResponse.NOT_SERVING
            return health_pb2.HealthCheckResponse(status=status)
        method = path.removeprefix(_SERVICE)
        if method == "ServerLive":
            return inference_pb2.ServerLiveResponse(live=True)
        if method == "ServerReady":
            return inference_pb2.ServerReadyResponse(ready=facts.serving())
        if method == "ServerMetadata":
            return inference_pb2.ServerMetadataResponse(name="dormouse", version=VERSION, extensions=["sequence", "model_configuration"])
        if method == "ModelReady":
            self._check(_parse(inference_pb2.ModelReadyRequest, data))
            return inference_pb2.ModelReadyResponse(ready=facts.serving())
        if method == "ModelMetadata":
            request = _parse(inference_pb2.ModelMetadataRequest, data)
            self._check(request)
            return model_metadata(request.name, facts.metadata)
        if method == "ModelConfig":
            asked = _parse(inference_pb2.ModelConfigRequest, data)
            self._check(asked)
            return inference_pb2.ModelConfigResponse(config=model_config(asked.name, facts.metadata, facts.delay_us, facts.idle_us))
        if method == "ModelStatistics":
            wanted = _parse(inference_pb2.ModelStatisticsRequest, data)
            self._check(wanted)
            return inference_pb2.ModelStatisticsResponse(model_stats=[statistics.message(wanted.name, facts.tally())])
        raise DormouseError(
            f"{path}: not supported; a worker serves one function and is not administered by its callers", Code.UNIMPLEMENTED
        )

    def _check(self, request: Any) -> None:
        if request.name not in self._facts.names:
            raise NotFound(f"Request for unknown model: '{request.name}' is not found; this worker serves '{self._facts.names[0]}'")
        if request.version not in ("", "1"):
            raise NotFound(f"version: {request.version!r} found, '' and '1' are allowed")


def _parse(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidArgument(f"message: not a {kind.DESCRIPTOR.name}: {error}") from None
