"""The aggregated delta xDS server: `delta` over gRPC, on a Unix socket.

Raw bytes in and out: generated stubs of Envoy's services would register in protobuf's default pool and own the package name `envoy`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from dormouse_kit import log
from dormouse_proto import envoy

from dormouse_gateway import metrics
from dormouse_gateway.envoy.delta import Answer, Ask, DeltaStream
from dormouse_gateway.envoy.snapshot import Snapshot

SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"


def read(data: bytes) -> Ask:
    request: Any = envoy.message("envoy.service.discovery.v3.DeltaDiscoveryRequest").FromString(data)
    return Ask(
        type_url=request.type_url,
        nonce=request.response_nonce,
        error=request.error_detail.message or "no reason given" if request.HasField("error_detail") else "",
        subscribe=tuple(request.resource_names_subscribe),
        unsubscribe=tuple(request.resource_names_unsubscribe),
        initial=dict(request.initial_resource_versions),
    )


def write(answer: Answer, generation: int) -> bytes:
    response: Any = envoy.message("envoy.service.discovery.v3.DeltaDiscoveryResponse")()
    response.type_url = answer.type_url
    response.nonce = answer.nonce
    response.system_version_info = str(generation)
    response.removed_resources.extend(answer.removed)
    for each in answer.resources:
        one = response.resources.add(name=each.name, version=each.version)
        one.resource.type_url = each.type_url
        one.resource.value = each.body
    return bytes(response.SerializeToString())


class Server:
    """Serves every Envoy that connects: one, or for a moment two when one is replaced."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._streams: set[DeltaStream] = set()

    def handlers(self) -> grpc.GenericRpcHandler:
        method: Any = grpc.stream_stream_rpc_method_handler(self._serve)
        return grpc.method_handlers_generic_handler(SERVICE, {"DeltaAggregatedResources": method})

    async def _serve(self, requests: AsyncIterator[bytes], context: "grpc.aio.ServicerContext[Any, Any]") -> AsyncIterator[bytes]:
        stream = DeltaStream(self._snapshot)
        self._streams.add(stream)
        metrics.ENVOYS.set(len(self._streams))
        wake = asyncio.Event()

        async def receive() -> None:
            async for data in requests:
                ask = read(data)
                stream.receive(ask)
                if ask.error:
                    metrics.NACKS.inc()
                    kind, found = ask.type_url.rpartition(".")[2], ", ".join(sorted(stream.refused()))
                    log.event("Envoy refused resources", type=kind, functions=found[:1000], reason=ask.error[:1000])
                wake.set()

        reading = asyncio.create_task(receive())
        try:
            while not reading.done():
                wake.clear()
                changed = self._snapshot.changed()  # taken before the look, so that no change falls between
                for answer in stream.answers():
                    metrics.PUSHES.labels(answer.type_url.rpartition(".")[2]).inc()
                    yield write(answer, self._snapshot.generation)
                waits = [asyncio.ensure_future(wake.wait()), asyncio.ensure_future(changed.wait())]
                try:
                    await asyncio.wait([*waits, reading], return_when=asyncio.FIRST_COMPLETED)
                finally:  # also when Envoy leaves, which cancels this: a task that waits for ever is reported when it is collected
                    for each in waits:
                        each.cancel()
        finally:
            self._streams.discard(stream)
            metrics.ENVOYS.set(len(self._streams))
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError, grpc.aio.UsageError, grpc.aio.AbortError):
                await reading
