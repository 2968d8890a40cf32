"""grpc.health.v1: is the gateway serving, and can a function be served, asleep or not. Neither question wakes anybody.

The service "" (and "inference.GRPCInferenceService") is the gateway itself; "namespace/name" is a function. `Check` of an unknown one is
NOT_FOUND, `Watch` of one says SERVICE_UNKNOWN and goes on: it may appear (https://github.com/grpc/grpc/blob/master/doc/health-checking.md).

A watch costs nothing while nothing changes: those of one name share its status, which the watched table alone decides, and are woken when
it is another. Thousands of them must not take the time of the agent's other callers.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from typing import Any

from dormouse_proto import health_pb2

from dormouse_gateway.serving.methods import Methods, parse

Status = health_pb2.HealthCheckResponse


class _Name:
    """What is watched under one name. `label`: of its function, None: it is the gateway's, or nobody's."""

    def __init__(self, label: str | None, status: Any) -> None:
        self.label = label
        self.status = status
        self.watchers = 0
        self.changed = asyncio.Event()
        """Set, and replaced, when the status is another."""


class Health:
    def __init__(self, methods: Methods) -> None:
        self._methods = methods
        self._names: dict[str, _Name] = {}
        self._labels: dict[str, set[str]] = {}
        self._closing = False

    async def watch(self, messages: AsyncIterator[bytes], named: Callable[[str], None]) -> AsyncGenerator[bytes]:
        """Now, and at every change, until the caller leaves or the agent stops. `named` is told the function, where it is one's. Raises
        DormouseError for a message that is none."""
        message = await anext(aiter(messages), b"")
        service = parse(health_pb2.HealthCheckRequest, message).service
        name = self._enter(service)
        last = -1
        try:
            while not self._closing:
                if name.label is not None:
                    named(name.label)  # again: a function may appear while it is watched
                changed = name.changed
                if name.status != last:
                    last = name.status
                    yield Status(status=last).SerializeToString()
                    continue
                await changed.wait()
        finally:
            self._leave(service, name)

    def changed(self, labels: Iterable[str]) -> None:
        """The table changed in these functions."""
        for label in labels:
            for service in self._labels.get(label, ()):
                self._look(service)

    def look(self) -> None:
        """To be called each second: the gateway's own state changes without an event, and with it what is known of absent functions."""
        for service in list(self._names):
            self._look(service)

    def drain(self) -> None:
        """Every watch ends: a client that watches dials the next gateway."""
        self._closing = True
        for name in self._names.values():
            name.changed.set()

    def _enter(self, service: str) -> _Name:
        name = self._names.get(service)
        if name is None:
            label, status = self._methods.watched(service)
            name = self._names[service] = _Name(label, status)
            if label is not None:
                self._labels.setdefault(label, set()).add(service)
        name.watchers += 1
        return name

    def _leave(self, service: str, name: _Name) -> None:
        name.watchers -= 1
        if name.watchers:
            return
        del self._names[service]
        if name.label is not None:
            self._labels[name.label].discard(service)
            if not self._labels[name.label]:
                del self._labels[name.label]

    def _look(self, service: str) -> None:
        name = self._names[service]
        _, status = self._methods.watched(service)
        if status != name.status:
            name.status = status
            changed, name.changed = name.changed, asyncio.Event()
            changed.set()
