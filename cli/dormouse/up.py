"""`dormouse up DIR`: the whole system on one machine, in the foreground, every part a process of its own.

Started: etcd, the operator, the gateway's agent and its Envoy; workers when the operator asks. Ended in the order in which nobody misses
what is gone: workers while the operator still leads (they hand over or are told to leave), then the gateway, the operator, etcd. If this
process itself is killed, the kernel kills the others.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from dormouse_core import limits
from dormouse_core.errors import Code, DormouseError
from dormouse_kit import log
from dormouse_kit.grpc_options import channel_options
from dormouse_proto import control_pb2, control_pb2_grpc, inference_pb2, inference_pb2_grpc

from dormouse import documents, parts
from dormouse.control import APPLY_TIMEOUT
from dormouse.home import Home, Run
from dormouse.parts import Part
from dormouse.supervisors import Supervisors, worker_command

WORKERS_GRACE = 4.0  # seconds
PART_GRACE = 1.5  # seconds for each of gateway, operator, etcd: the whole stop stays under 10
STARTUP = 30.0  # seconds until the operator answers


class ProviderService(control_pb2_grpc.ProviderServicer):
    """What the operator asks of us."""

    def __init__(self, supervisors: Supervisors) -> None:
        self._supervisors = supervisors

    async def Start(self, request: control_pb2.StartRequest, context: Any) -> control_pb2.StartResponse:  # noqa: N802 - gRPC's name
        try:
            self._supervisors.start(request.instance, request.spec, request.grace_seconds)
        except DormouseError as error:
            await context.abort(next(c for c in grpc.StatusCode if c.value[0] == int(error.code)), error.message)
        return control_pb2.StartResponse()

    async def Stop(self, request: control_pb2.StopRequest, context: Any) -> control_pb2.StopResponse:  # noqa: N802
        self._supervisors.stop(request.instance)
        return control_pb2.StopResponse()

    async def List(self, request: control_pb2.ListRequest, context: Any) -> control_pb2.ListResponse:  # noqa: N802
        return control_pb2.ListResponse(instances=self._supervisors.list())


async def up(
    directory: Path,
    *,
    port: int,
    etcd: str,
    etcd_endpoints: Sequence[str],
    etcd_quota: int = limits.ETCD_QUOTA_BYTES,
    installation: str,
    max_message: int = limits.MESSAGE_BYTES,
    removal_wait: str = "",
    stop: asyncio.Event | None = None,
) -> None:
    """Runs until SIGINT or SIGTERM (or `stop`). Raises DormouseError with one readable line when it cannot start."""
    home = Home(directory)
    home.prepare()
    end = stop or asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end.set)
    with home.locked(), home.sockets() as sockets:
        ports = parts.choose(port)
        endpoints, store = _store(home, sockets, etcd, etcd_endpoints, etcd_quota)
        async with _provider(home, sockets) as supervisors:
            system = [
                *store,
                Part("operator", lambda: parts.operator(endpoints, etcd_quota, sockets, ports, home.directory, installation, removal_wait)),
                Part("agent", lambda: parts.gateway("dormouse_gateway", endpoints, sockets, ports, installation, max_message)),
                Part("envoy", lambda: parts.gateway("dormouse_gateway.envoy", endpoints, sockets, ports, installation, max_message)),
            ]
            try:
                for part in system:
                    part.start()
                control = f"unix:{sockets / 'control.sock'}"
                metrics = {"operator": ports.operator_metrics, "gateway": ports.gateway_metrics}
                home.write_run(Run(os.getpid(), control, f"127.0.0.1:{ports.gateway}", metrics, endpoints))
                await _until(end, _begin(home, control, ports, endpoints))
                await end.wait()
            finally:
                await _stop(supervisors, system)
                home.forget_run()


def _store(home: Home, sockets: Path, binary: str, given: Sequence[str], quota: int) -> tuple[list[str], list[Part]]:
    if given:
        return list(given), []
    path = parts.find_etcd(binary)
    return [f"unix:{sockets / parts.STORE}"], [Part("etcd", lambda: parts.etcd(path, home.etcd, quota), cwd=sockets)]


@contextlib.asynccontextmanager
async def _provider(home: Home, sockets: Path) -> AsyncIterator[Supervisors]:
    supervisors = Supervisors(sockets, home.specs, home.reasons, worker_command)
    server = grpc.aio.server()
    control_pb2_grpc.add_ProviderServicer_to_server(ProviderService(supervisors), server)
    server.add_insecure_port(f"unix:{sockets / 'provider.sock'}")
    await server.start()
    try:
        yield supervisors
    finally:
        await server.stop(0.1)


async def _begin(home: Home, control: str, ports: parts.Ports, endpoints: Sequence[str]) -> None:
    """Waits until the system answers, then applies the folder's manifests. A manifest that is wrong is reported and does no other harm."""
    async with grpc.aio.insecure_channel(control, options=channel_options(keepalive=False)) as channel:
        stub = control_pb2_grpc.ControlStub(channel)
        try:
            await stub.Get(control_pb2.GetRequest(), timeout=STARTUP, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            # It answers as soon as it has read the store.
            text = f"no operator leads after {STARTUP:g} s: does etcd at {', '.join(endpoints)} answer? ({error.details()})"
            raise DormouseError(text, Code.UNAVAILABLE) from error
        found = documents.read([str(home.directory)])
        for sentence in found.others:
            log.event("a file is left out", why=sentence)
        for sentence in found.faults:
            log.warning("a manifest was not applied", error=sentence)
        for document in found.documents:
            try:
                response = await stub.Apply(control_pb2.ApplyRequest(manifest=document.text), timeout=APPLY_TIMEOUT)
                log.event(response.outcome, manifest=document.where, function=document.function)
            except grpc.aio.AioRpcError as error:
                log.warning("a manifest was not applied", manifest=document.where, error=error.details())
    gateway = f"127.0.0.1:{ports.gateway}"
    await _gateway(gateway)
    metrics = {"operator_metrics": f"127.0.0.1:{ports.operator_metrics}", "agent_metrics": f"127.0.0.1:{ports.gateway_metrics}"}
    log.event("ready", gateway=gateway, directory=home.directory, **metrics)


async def _gateway(address: str) -> None:
    """Until the gateway answers; Envoy may be there before the agent behind it."""
    deadline = time.monotonic() + STARTUP
    async with grpc.aio.insecure_channel(address, options=channel_options(keepalive=False)) as channel:
        stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        while True:
            try:
                await stub.ServerReady(inference_pb2.ServerReadyRequest(), timeout=STARTUP, wait_for_ready=True)
                return
            except grpc.aio.AioRpcError as error:
                if time.monotonic() > deadline:
                    text = f"the gateway does not answer after {STARTUP:g} s: {error.details()}"
                    raise DormouseError(text, Code.UNAVAILABLE) from error
            await asyncio.sleep(0.05)


async def _until(end: asyncio.Event, begin: Any) -> None:
    """`begin`, unless the end comes first."""
    beginning = asyncio.ensure_future(begin)
    ending = asyncio.ensure_future(end.wait())
    await asyncio.wait({beginning, ending}, return_when=asyncio.FIRST_COMPLETED)
    ending.cancel()
    if beginning.done():
        beginning.result()
    else:
        beginning.cancel()
        await asyncio.gather(beginning, return_exceptions=True)


async def _stop(supervisors: Supervisors, system: Sequence[Part]) -> None:
    log.event("stopping")
    await supervisors.close(WORKERS_GRACE)
    by_name = {part.name: part for part in system}
    await asyncio.gather(*(by_name[name].stop(PART_GRACE) for name in ("envoy", "agent")))
    await by_name["operator"].stop(PART_GRACE)
    if "etcd" in by_name:
        await by_name["etcd"].stop(PART_GRACE)
    log.event("stopped")
