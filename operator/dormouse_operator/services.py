"""The two gRPC services that the leader serves: `Control` for people, `Coordinator` for gateways' agents. Thin: what is asked goes to the
part that knows, what is wrong comes back with its code and one readable message."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, NoReturn, TypeVar

import grpc
import grpc.aio
from dormouse_core import spec
from dormouse_core.errors import Code, DormouseError, NotFound, ResourceExhausted
from dormouse_core.spec import environments
from dormouse_kit import log
from dormouse_proto import control_pb2, control_pb2_grpc

from dormouse_operator import listing
from dormouse_operator.leading import Leader

T = TypeVar("T")
USAGES = 8
"""Questions for usage that are answered at once: each reads up to 16 MiB/s, for as long as its caller reads."""
WATCH_INTERVAL = 0.2  # seconds between looks for a change that a watcher should see


class ControlService(control_pb2_grpc.ControlServicer):
    def __init__(self, leader: Leader) -> None:
        self._leader = leader
        self._usages = 0

    async def Apply(self, request: control_pb2.ApplyRequest, context: Any) -> control_pb2.ApplyResponse:  # noqa: N802 - gRPC's name
        async def run() -> control_pb2.ApplyResponse:
            entry, outcome, revision = await self._leader.entries.apply(request.manifest, refresh=request.refresh)
            await self._leader.registry.wait_for(revision)
            note = environments.told(spec.spec_from_json(entry.spec))
            return control_pb2.ApplyResponse(function=self._leader.status(entry.namespace, entry.name), outcome=outcome, note=note)

        return await _answer(run, context)

    async def Get(self, request: control_pb2.GetRequest, context: Any) -> control_pb2.GetResponse:  # noqa: N802
        async def run() -> control_pb2.GetResponse:
            return self._get(request)

        return await _answer(run, context)

    async def Watch(self, request: control_pb2.GetRequest, context: Any) -> AsyncIterator[control_pb2.GetResponse]:  # noqa: N802
        before = None
        while True:
            try:
                response = self._get(request)
            except DormouseError as error:
                await _abort(context, error)
            if response != before:
                before = response
                yield response
            await asyncio.sleep(WATCH_INTERVAL)

    async def Delete(self, request: control_pb2.DeleteRequest, context: Any) -> control_pb2.DeleteResponse:  # noqa: N802
        async def run() -> control_pb2.DeleteResponse:
            await self._leader.delete(request.namespace, request.name)
            return control_pb2.DeleteResponse()

        return await _answer(run, context)

    async def Scale(self, request: control_pb2.ScaleRequest, context: Any) -> control_pb2.ScaleResponse:  # noqa: N802
        async def run() -> control_pb2.ScaleResponse:
            replicas = request.replicas if request.HasField("replicas") else None
            entry, revision = await self._leader.entries.scale(request.namespace, request.name, replicas)
            await self._leader.registry.wait_for(revision)
            return control_pb2.ScaleResponse(function=self._leader.status(entry.namespace, entry.name))

        return await _answer(run, context)

    async def Sessions(self, request: control_pb2.SessionsRequest, context: Any) -> control_pb2.SessionsResponse:  # noqa: N802
        async def run() -> control_pb2.SessionsResponse:
            seen = self._leader.find(request.namespace, request.name)
            return await listing.page(self._leader.store, self._leader.keys, seen, request)

        return await _answer(run, context)

    async def DeleteSessions(  # noqa: N802
        self, request: control_pb2.DeleteSessionsRequest, context: Any
    ) -> control_pb2.DeleteSessionsResponse:
        async def run() -> control_pb2.DeleteSessionsResponse:
            seen = self._leader.find(request.namespace, request.name)
            return control_pb2.DeleteSessionsResponse(deleted=await self._leader.deleter.delete(seen, request))

        return await _answer(run, context)

    async def Usage(self, request: control_pb2.UsageRequest, context: Any) -> AsyncIterator[control_pb2.UsageResponse]:  # noqa: N802
        if self._usages >= USAGES:
            await _abort(context, ResourceExhausted(f"usage is being read for {USAGES} callers, and for no more at once: ask again later"))
        self._usages += 1
        try:
            async for response in self._leader.usage.rows(request, self._leader.timekeeper.skew.best_us()):
                yield response
        except DormouseError as error:
            await _abort(context, error)
        finally:
            self._usages -= 1

    async def CancelAlarm(self, request: control_pb2.CancelAlarmRequest, context: Any) -> control_pb2.CancelAlarmResponse:  # noqa: N802
        async def run() -> control_pb2.CancelAlarmResponse:
            await self._leader.canceller.cancel(self._leader.find(request.namespace, request.name), request)
            return control_pb2.CancelAlarmResponse()

        return await _answer(run, context)

    def _get(self, request: control_pb2.GetRequest) -> control_pb2.GetResponse:
        if request.name:
            return control_pb2.GetResponse(functions=[self._leader.status(request.namespace, request.name, owners=request.owners)])
        return control_pb2.GetResponse(functions=self._leader.statuses(request.namespace, owners=request.owners))


class CoordinatorService(control_pb2_grpc.CoordinatorServicer):
    def __init__(self, leader: Leader) -> None:
        self._leader = leader

    async def Agent(  # noqa: N802
        self, requests: AsyncIterator[control_pb2.AgentReport], context: Any
    ) -> AsyncIterator[control_pb2.AgentOrder]:
        agent = ""
        try:
            async for report in requests:
                if not agent:
                    agent = report.agent
                    log.event("a gateway's agent connected", agent=agent)
                self._leader.demands.agent(report)
                self._leader.view.reaches.take(agent, report.reaches, self._leader.clock.monotonic())
                order = self._leader.timekeeper.agent(report)
                order.tries.extend(self._leader.view.tries())
                order.refused.extend(self._leader.view.refused())
                order.starved.extend(self._leader.view.starving.lately(self._leader.clock.now()))
                yield order
        finally:
            if agent:
                self._leader.demands.agent_left(agent)
                self._leader.timekeeper.forget(agent, None)
                log.event("a gateway's agent disconnected", agent=agent)


async def _answer(run: Callable[[], Awaitable[T]], context: Any) -> T:
    try:
        return await run()
    except DormouseError as error:
        await _abort(context, error)


async def _abort(context: Any, error: DormouseError) -> NoReturn:
    code = next(c for c in grpc.StatusCode if c.value[0] == int(error.code))
    await context.abort(code, error.message)
    raise AssertionError("abort returned")


async def serve(
    leader: Leader,
    control: str,
    coordinator: str,
    options: list[tuple[str, int | str]],
    guards: Sequence[grpc.aio.ServerInterceptor] = (),
) -> "Served":
    """Two servers: people's on `control` (a Unix socket on one machine), agents' on `coordinator` (unix:PATH, or host:port, 0: any free
    port). `guards`: who asks people's must pass them; on one machine the socket's folder is the guard."""
    people = grpc.aio.server(options=options, interceptors=guards)
    control_pb2_grpc.add_ControlServicer_to_server(ControlService(leader), people)
    if not people.add_insecure_port(control):
        raise DormouseError(f"cannot listen at {control}", Code.UNAVAILABLE)
    agents = grpc.aio.server(options=options)
    control_pb2_grpc.add_CoordinatorServicer_to_server(CoordinatorService(leader), agents)
    port = agents.add_insecure_port(coordinator)
    if not port:
        raise DormouseError(f"cannot listen at {coordinator}", Code.UNAVAILABLE)
    await people.start()
    await agents.start()
    where = coordinator if coordinator.startswith("unix:") else f"{coordinator.rpartition(':')[0]}:{port}"
    return Served(people, agents, where)


class Served:
    def __init__(self, people: grpc.aio.Server, agents: grpc.aio.Server, address: str) -> None:
        self._servers = (people, agents)
        self.address = address

    async def stop(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*(server.stop(0.2) for server in self._servers))


__all__ = ["ControlService", "CoordinatorService", "NotFound", "Served", "serve"]
