"""grpc.health.v1: is the gateway serving, and can a function be served, asleep or not. Neither question wakes anybody.

The service "" (and "inference.GRPCInferenceService") is the gateway itself; "namespace/name" is a function. `Check` of an unknown one is
NOT_FOUND, `Watch` of one says SERVICE_UNKNOWN and goes on: it may appear (https://github.com/grpc/grpc/blob/master/doc/health-checking.md).
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from dormouse_core.errors import DormouseError, NotFound
from dormouse_proto import health_pb2

from dormouse_gateway.gates import Room
from dormouse_gateway.methods import HEALTH, Methods, parse
from dormouse_gateway.relay import Request

WATCH = f"{HEALTH}Watch"
LOOK_SECONDS = 1.0  # a store that is away changes the answer without an event
Status = health_pb2.HealthCheckResponse


class Health:
    def __init__(self, methods: Methods) -> None:
        self._methods = methods
        self._room = Room()
        self._closing = False
        methods.on_change = self._room.wake

    async def watch(self, messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """Now, and at every change, until the caller leaves or the agent stops. Raises DormouseError for a message that is none."""
        message = await anext(aiter(messages), b"")
        service = parse(health_pb2.HealthCheckRequest, message).service
        last = -1
        while not self._closing:
            wake = asyncio.Event()
            self._room.enter(wake)
            try:
                status = await self._status(service)
                if status != last:
                    last = status
                    yield Status(status=status).SerializeToString()
                async with asyncio.timeout(LOOK_SECONDS):
                    await wake.wait()
            except TimeoutError:
                continue
            finally:
                self._room.leave(wake)

    async def _status(self, service: str) -> Any:
        request = Request(f"{HEALTH}Check", health_pb2.HealthCheckRequest(service=service).SerializeToString(), {}, float("inf"), 1)
        try:
            return (await self._methods.health(request)).status
        except NotFound:
            return Status.SERVICE_UNKNOWN
        except DormouseError:  # the store is away: nothing is known of a function that the table lacks
            return Status.UNKNOWN

    def drain(self) -> None:
        """Every watch ends: a client that watches dials the next gateway."""
        self._closing = True
        self._room.wake()
