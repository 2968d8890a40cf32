"""What a process whose clock is off answers: a worker's calls and probes, a gateway's health. Each answers so again when it is right."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from dormouse_core.clocks import Skew
from dormouse_core.errors import Again, DormouseError
from dormouse_core.keys import Function, Keys
from dormouse_gateway.paths import HEALTH
from dormouse_gateway.relay.relaying import Request
from dormouse_gateway.serving.methods import SERVICE
from dormouse_gateway.serving.methods import Methods as GatewayMethods
from dormouse_gateway.watching.table import Table
from dormouse_proto import health_pb2, inference_pb2
from dormouse_testing.clock import ManualClock
from dormouse_worker.batches.work import Runs
from dormouse_worker.models.signatures import Signature, TensorSpec
from dormouse_worker.serving.counters import Counters
from dormouse_worker.serving.methods import Methods
from dormouse_worker.serving.service import Service
from dormouse_worker.serving.worker import Worker
from dormouse_worker.transport.asgi import Exchange

TOLD = "the clock of this machine is 3600.0 s ahead of the others' median"


def skew_of(clock: ManualClock, skew: Skew | None = None) -> Skew:
    """Measured beside a leader's clock that is right, with two that agree."""
    skew = skew or Skew(clock)
    skew.heard(skew.mark(), round(ManualClock().now() * 1e6), 0, 3)
    return skew


# ------------------------------------------------------------------------------------------------------------------------- a worker


class Queue:
    """A transport: calls to take, and what was refused."""

    limit = 1 << 20

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.refused: list[DormouseError] = []

    def take(self, most: int) -> list[Any]:
        taken, self.calls = self.calls, []
        return taken

    def refuse(self, call: Any, error: DormouseError) -> None:
        self.refused.append(error)


class Call:
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body = b"no message"
    streams = clears = False
    level: int | None = None
    taken = True
    since = 0.0


def refusal(service: Service, queue: Queue) -> DormouseError:
    queue.calls.append(Call())
    service.turn()
    return queue.refused.pop()


def test_a_worker_that_is_off_refuses_every_call_as_one_that_did_not_run() -> None:
    clock, queue = ManualClock(skew=3600.0), Queue()
    skew = skew_of(clock)
    tensor = TensorSpec("x", "FP32", (1,))
    service = Service(
        Function("ns", "fn", "uid"),
        Signature("t", (tensor,), (tensor,)),
        SimpleNamespace(runs=Runs(1.0)),  # type: ignore[arg-type]  # nothing runs
        queue,  # type: ignore[arg-type]
        names=("fn",),
        nonce="n",
        max_concurrency=8,
        counters=Counters(),
        skew=skew,
    )
    service.ready = True
    error = refusal(service, queue)
    assert (error.code.name, error.again, error.message) == ("UNAVAILABLE", Again.CLOCK, TOLD)
    clock.skew = 0.0
    skew_of(clock, skew)
    assert "message" in refusal(service, queue).message, "it is read"


class Facts:
    names = ("fn",)

    def __init__(self, skew: Skew, healthy: bool = True) -> None:
        self.skew = skew
        self._healthy = healthy

    def healthy(self) -> bool:
        return self._healthy

    unready = Worker.unready


def probed(facts: Facts, query: bytes) -> tuple[int, str]:
    sent: list[dict[str, Any]] = []

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    async def ask() -> None:
        scope = {"path": "/probe", "method": "GET", "headers": [], "query_string": query}
        await Methods(facts, None)(Exchange(scope, None, send, 1))  # type: ignore[arg-type]  # a probe asks no more

    asyncio.run(ask())
    return sent[0]["status"], sent[1]["body"].decode().strip()


def test_a_worker_that_is_off_is_not_ready_and_is_not_started_again() -> None:
    clock = ManualClock(skew=3600.0)
    skew = skew_of(clock)
    assert probed(Facts(skew), b"ready=1") == (503, TOLD)
    assert probed(Facts(skew), b"") == (200, "ok"), "a restart mends no clock"
    assert probed(Facts(skew, healthy=False), b"ready=1") == (503, "a run is older than its step limit")
    clock.skew = 0.0
    skew_of(clock, skew)
    assert probed(Facts(skew), b"ready=1") == (200, "ok")


# ------------------------------------------------------------------------------------------------------------------------ a gateway


def answers(methods: GatewayMethods) -> tuple[bool, bool, bool]:
    """Health of the whole, of the service, and ServerReady."""

    async def ask() -> tuple[bool, bool, bool]:
        found = []
        for service in ("", SERVICE):
            message = health_pb2.HealthCheckRequest(service=service).SerializeToString()
            reply = await methods.call(Request(f"{HEALTH}Check", message, {}))
            found.append(health_pb2.HealthCheckResponse.FromString(reply.message).status == health_pb2.HealthCheckResponse.SERVING)
        reply = await methods.call(Request(f"/{SERVICE}/ServerReady", b"", {}))
        return found[0], found[1], inference_pb2.ServerReadyResponse.FromString(reply.message).ready

    return asyncio.run(ask())


@pytest.mark.parametrize("skew", [3600.0, -5.1])
def test_a_gateway_that_is_off_says_that_it_does_not_serve(skew: float) -> None:
    keys, clock = Keys("x"), ManualClock(skew=skew)
    table, measured = Table(keys), Skew(clock)
    for prefix in (keys.functions, keys.maps):
        table.replace(prefix, (), 1)
    methods = GatewayMethods(table, None, clock, None, clock_off=lambda: measured.off)  # type: ignore[arg-type]  # no function is asked for
    assert answers(methods) == (True, True, True), "its clock is not known"
    skew_of(clock, measured)
    assert answers(methods) == (False, False, False)
    clock.skew = 0.0
    skew_of(clock, measured)
    assert answers(methods) == (True, True, True)
