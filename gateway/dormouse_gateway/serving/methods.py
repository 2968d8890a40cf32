"""What the relay answers itself, about the server and about functions: from `functions/`, so that it is right while a function sleeps.

None of these counts as demand or wakes anybody: clients poll readiness, platforms check health. `ModelReady` says whether a call would be
served, asleep or not; one that is not there is not ready. `ModelMetadata` and `ModelConfig` of a function that no worker has loaded yet
wait for the proof.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from dormouse_core import describing, headernames, statistics
from dormouse_core.errors import Code, DormouseError, InvalidArgument, NotFound, Unavailable
from dormouse_core.holding import Patience
from dormouse_core.seams import Clock, Reply, StoreError, Transport
from dormouse_core.shares import WaitingCalls
from dormouse_proto import health_pb2, inference_pb2
from google.protobuf.message import DecodeError, Message

from dormouse_gateway import naming
from dormouse_gateway.paths import HEALTH, INFERENCE, STREAM
from dormouse_gateway.relay.gates import Room
from dormouse_gateway.relay.relaying import Request, refuse
from dormouse_gateway.watching.reads import Reads, missing
from dormouse_gateway.watching.table import Function, Table, Unreadable

VERSION = "0.1.0"
EXTENSIONS = ("sequence", "model_configuration", "statistics")
CHECK_SECONDS = 5.0
WORKER_SECONDS = 1.0  # a worker that does not tell its figures by then is left out of the sum
SERVICE = "inference.GRPCInferenceService"
Status = health_pb2.HealthCheckResponse


class Methods:
    def __init__(
        self,
        table: Table,
        reads: Reads,
        clock: Clock,
        transport: Transport,
        *,
        default_namespace: str = "default",
        clock_off: Callable[[], bool] = lambda: False,
        waiting: WaitingCalls | None = None,
    ) -> None:
        """`clock_off`: whether this gateway's clock is known to be off. `waiting`: this gateway's, the relay's among them."""
        self._waiting = WaitingCalls() if waiting is None else waiting
        self._clock_off = clock_off
        self._table = table
        self._reads = reads
        self._clock = clock
        self._transport = transport
        self._default_namespace = default_namespace
        self._room = Room()
        self._answers: dict[str, Callable[[Request], Awaitable[Message]]] = {
            f"{INFERENCE}ServerLive": self._server_live,
            f"{INFERENCE}ServerReady": self._server_ready,
            f"{INFERENCE}ServerMetadata": self._server_metadata,
            f"{INFERENCE}ModelReady": self._model_ready,
            f"{INFERENCE}ModelMetadata": self._model_metadata,
            f"{INFERENCE}ModelConfig": self._model_config,
            f"{INFERENCE}ModelStatistics": self._model_statistics,
            f"{INFERENCE}RepositoryIndex": self._repository_index,
            f"{HEALTH}Check": self.health,
        }

    def changed(self) -> None:
        """The table changed: who waits for a proof looks again."""
        self._room.wake()

    async def call(self, request: Request) -> Reply:
        answer = self._answers.get(request.method)
        try:
            if answer is None:
                raise unimplemented(request.method)
            return Reply(0, (await answer(request)).SerializeToString())
        except DormouseError as error:
            return refuse(error)

    def ready(self) -> bool:
        """This gateway knows what the store holds, and its clock is not known to be off."""
        return self._table.complete and not self._clock_off()

    async def _server_live(self, request: Request) -> Message:
        return inference_pb2.ServerLiveResponse(live=True)

    async def _server_ready(self, request: Request) -> Message:
        return inference_pb2.ServerReadyResponse(ready=self.ready())

    async def _server_metadata(self, request: Request) -> Message:
        return inference_pb2.ServerMetadataResponse(name="dormouse", version=VERSION, extensions=EXTENSIONS)

    async def health(self, request: Request) -> health_pb2.HealthCheckResponse:
        service = parse(health_pb2.HealthCheckRequest, request.message).service
        if service in ("", SERVICE):
            serves = self.ready()
        elif "/" in service:
            function = await self._named(naming.function({}, service, self._default_namespace))
            serves = serving(function)
        else:
            raise NotFound(f"service: {service!r} found, '', {SERVICE!r} and a function's namespace/name are known")
        return Status(status=Status.SERVING if serves else Status.NOT_SERVING)

    def watched(self, service: str) -> tuple[str | None, Any]:
        """Of a service that is watched: its function, None where it is none's; and its status, by what the watch of the store has told."""
        if service in ("", SERVICE):
            return None, Status.SERVING if self.ready() else Status.NOT_SERVING
        try:
            label = naming.function({}, service, self._default_namespace).label if "/" in service else ""
        except DormouseError:
            label = ""
        if not label:
            return None, Status.SERVICE_UNKNOWN
        function = self._table.function(label)
        if function is None or function.entry.deleting:
            known = function is not None or self._table.complete
            return label, Status.SERVICE_UNKNOWN if known else Status.UNKNOWN
        return label, Status.SERVING if serving(function) else Status.NOT_SERVING

    async def _model_statistics(self, request: Request) -> Message:
        """The sum over the workers that live; of a function that sleeps: zeros, and nobody is woken."""
        asked = parse(inference_pb2.ModelStatisticsRequest, request.message)
        function = await self._function(request, asked)
        message = inference_pb2.ModelStatisticsRequest(name=function.label).SerializeToString()
        method = f"{INFERENCE}ModelStatistics"
        calls = [self._transport.call(worker.address, method, message, {}, timeout=WORKER_SECONDS) for worker in function.workers.values()]
        parts: list[inference_pb2.ModelStatistics] = []
        for reply in await asyncio.gather(*calls):
            if reply.code == 0:
                parts += parse(inference_pb2.ModelStatisticsResponse, reply.message).model_stats
        return inference_pb2.ModelStatisticsResponse(model_stats=[statistics.add(asked.name or function.entry.name, parts)])

    async def _repository_index(self, request: Request) -> Message:
        """The function that the call is addressed to: what else there is, is not for everybody who can infer."""
        asked = parse(inference_pb2.RepositoryIndexRequest, request.message)
        if headernames.FUNCTION not in request.metadata:
            text = (
                f"RepositoryIndex: functions are not listed to callers; address one by the metadata {headernames.FUNCTION} or the authority"
            )
            raise InvalidArgument(text)
        function = await self._named(naming.function(request.metadata, "", self._default_namespace))
        refusal = function.refusal()
        ready = function.entry.proved_revision != "" and refusal is None
        if asked.ready and not ready:
            return inference_pb2.RepositoryIndexResponse()
        model = inference_pb2.RepositoryIndexResponse.ModelIndex(
            name=function.entry.name,
            version=describing.VERSION,
            state="READY" if ready else "UNAVAILABLE",
            reason="" if ready else refusal.message if refusal is not None else "no worker has loaded it yet",
        )
        return inference_pb2.RepositoryIndexResponse(models=[model])

    async def _model_ready(self, request: Request) -> Message:
        """What is not there is not ready, as Triton says it: who waits for a model asks before there is one."""
        asked = parse(inference_pb2.ModelReadyRequest, request.message)
        try:
            function = await self._function(request, asked)
        except NotFound:
            return inference_pb2.ModelReadyResponse(ready=False)
        proved = function.entry.proved_revision != ""
        return inference_pb2.ModelReadyResponse(ready=proved and function.refusal() is None)

    async def _model_metadata(self, request: Request) -> Message:
        asked = parse(inference_pb2.ModelMetadataRequest, request.message)
        function = await self._proved(request, asked)
        return describing.model_metadata(asked.name or function.entry.name, function.entry.metadata)

    async def _model_config(self, request: Request) -> Message:
        asked = parse(inference_pb2.ModelConfigRequest, request.message)
        function = await self._proved(request, asked)
        spec = function.spec
        delay = spec.batching.max_queue_delay.microseconds
        idle = spec.sessions.ttl.microseconds if spec.sessions is not None else 0
        name = asked.name or function.entry.name
        return inference_pb2.ModelConfigResponse(config=describing.model_config(name, function.entry.metadata, delay, idle))

    async def _function(self, request: Request, asked: Any) -> Function:
        if asked.version not in ("", describing.VERSION):
            raise NotFound(f"version: {asked.version!r} found, '' and '{describing.VERSION}' are allowed")
        return await self._named(naming.function(request.metadata, asked.name, self._default_namespace))

    async def _named(self, named: naming.Named) -> Function:
        function = self._table.function(named.label)
        if function is None:
            try:
                read = await self._reads.stranger(named.label)
                if read.function is None:
                    raise missing(named.label, read)
                function = read.function
            except StoreError as away:
                raise Unavailable(f"whether function {named.label} exists is not known: the store did not answer ({away})") from None
            except Unreadable as wrong:
                raise DormouseError(f"the store's entry of function {named.label} cannot be read: {wrong}", Code.INTERNAL) from None
        if function.entry.deleting:
            raise NotFound(f"function {named.label} not found")
        return function

    async def _proved(self, request: Request, asked: Any) -> Function:
        """The function, once a worker has said what its model is; that of an older revision serves until the new one is proved."""
        began, held = self._clock.monotonic(), False
        with contextlib.ExitStack() as waiting:
            while True:
                wake = asyncio.Event()
                self._room.enter(wake)
                try:
                    function = await self._function(request, asked)
                    if function.entry.proved_revision:
                        return function
                    refusal = function.refusal()
                    if refusal is not None:
                        raise refusal
                    now = self._clock.monotonic()
                    patience = Patience(function.spec.timeouts.hold, request.deadline)
                    late = f"the deadline passed; no worker has loaded function {function.label} yet"
                    long = f"no worker has loaded function {function.label} within its hold limit of {patience.hold}"
                    refusal = patience.refusal(now, now - began, late=late, long=long)
                    if refusal is not None:
                        raise refusal
                    if not held:
                        self._waiting.enter(namespace := function.entry.namespace, self._table.namespaces())
                        waiting.callback(self._waiting.leave, namespace)
                        held = True
                    async with asyncio.timeout(min(patience.left(now, now - began), CHECK_SECONDS)):
                        await wake.wait()
                except TimeoutError:
                    continue
                finally:
                    self._room.leave(wake)


def serving(function: Function) -> bool:
    return function.entry.proved_revision != "" and function.refusal() is None


def parse(kind: Any, message: bytes) -> Any:
    try:
        return kind.FromString(message)
    except DecodeError:
        raise InvalidArgument(f"the message is not of the type {kind.DESCRIPTOR.full_name}") from None


def unimplemented(method: str) -> DormouseError:
    if method == STREAM:
        return DormouseError("ModelStreamInfer: streams are not in this release; send each step as a ModelInfer", Code.UNIMPLEMENTED)
    name = method.rpartition("/")[2]
    if method.startswith(INFERENCE):
        return DormouseError(f"{name}: refused; functions are not administered through the callers' port", Code.UNIMPLEMENTED)
    return DormouseError(f"{method}: no such method here", Code.UNIMPLEMENTED)
