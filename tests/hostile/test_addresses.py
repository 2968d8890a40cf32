"""An entry that says that a worker is where the gateway itself is: what one call of its function costs, and its neighbour.

Whoever has a function's store user writes such an entry. The controls take the guards away one after the other."""

import asyncio
import contextlib
import math
import os
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
from dormouse_core.keys import Keys
from dormouse_core.spec import Duration
from dormouse_kit.etcd import EtcdStore
from dormouse_testing.etcd_server import EtcdServer
from dormouse_testing.gateway import Answer, FakeWorker, Gateway, Timeouts, World, infer, request, running

MIB = 1 << 20
NO_RULE = "from dormouse_core import addresses\naddresses.Rule.refusal = lambda self, text, more=(): ''\n"
NO_HOPS = "addresses.came_back = lambda metadata: False\n"


@contextlib.contextmanager
def gateway(endpoint: str, installation: str, folder: Path, patch: str = "") -> Iterator[Gateway]:
    """`patch`: what every process of it runs first."""
    (folder / "sitecustomize.py").write_text(patch)
    with pytest.MonkeyPatch.context() as environment:
        if patch:
            environment.setenv("PYTHONPATH", str(folder))
        with running(endpoint, installation) as made:
            yield made


@contextlib.asynccontextmanager
async def world(endpoint: str, installation: str, made: Gateway) -> AsyncIterator[FakeWorker]:
    """The functions `relayed` and `entered`, each with one entry that names the relay's or Envoy's address, and `neighbour`."""
    store, worker = EtcdStore([endpoint]), await FakeWorker("w").start()
    there = World(store, Keys(installation))
    for name, address in (("neighbour", worker.address), ("relayed", made.relay), ("entered", made.listen)):
        function = await there.function(name, timeouts=Timeouts(hold=Duration("1s")))
        await there.register(function, None, name=f"{name}-1", address=address)
        await made.routed(f"default/{name}")
    try:
        yield worker
    finally:
        await worker.stop()
        await store.close()


class Cost:
    """What the agent uses from now on: seconds of CPU, and bytes by which it grows at most."""

    def __init__(self, made: Gateway) -> None:
        assert made.agent is not None
        self._folder = Path(f"/proc/{made.agent.pid}")
        (self._folder / "clear_refs").write_text("5")
        self._cpu, self._peak = self._used()

    def _used(self) -> tuple[float, int]:
        ticks = (self._folder / "stat").read_text().rpartition(")")[2].split()[11:13]
        peak = next(line.split()[1] for line in (self._folder / "status").read_text().splitlines() if line.startswith("VmHWM:"))
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"), int(peak) * 1024

    @property
    def cpu(self) -> float:
        return self._used()[0] - self._cpu

    @property
    def grown(self) -> int:
        return self._used()[1] - self._peak


class Attack:
    """One call of a function, and a neighbour's one after the other until it has ended."""

    def __init__(self, made: Gateway) -> None:
        self._gateway = made
        self.neighbour: list[float] = []

    async def __call__(self, function: str, enough: float = math.inf) -> tuple[grpc.StatusCode, str]:
        """`enough`: bytes by which the agent may grow until the call is given up."""
        self.cost = Cost(self._gateway)
        async with self._gateway.channel() as mine, self._gateway.channel(**{"grpc.use_local_subchannel_pool": 1}) as theirs:
            call = asyncio.create_task(infer(mine, request(function, size=MIB), timeout=30))
            while not call.done() and self.cost.grown <= enough:
                began = time.monotonic()
                assert (await infer(theirs, request("neighbour"), timeout=60)).code is grpc.StatusCode.OK
                self.neighbour.append(time.monotonic() - began)
                await asyncio.sleep(0.05)
            if not call.done():
                call.cancel()
                await asyncio.wait({call})
            answer = Answer(grpc.StatusCode.CANCELLED) if call.cancelled() else call.result()
        self.cpu, self.grown = self.cost.cpu, self.cost.grown
        print(
            f"{function}: {answer.code.name}; relay: {self.cpu:.2f} s of CPU, grown {self.grown / MIB:.0f} MiB; "
            f"neighbour: {len(self.neighbour)} calls, the longest {max(self.neighbour):.3f} s"
        )
        return answer.code, answer.details


async def test_an_own_address_is_no_workers_and_its_function_alone_has_none(
    etcd_server: EtcdServer, installation: str, tmp_path: Path
) -> None:
    with gateway(etcd_server.endpoint, installation, tmp_path) as made:
        async with world(etcd_server.endpoint, installation, made):
            for function in ("relayed", "entered"):
                attack = Attack(made)
                code, text = await attack(function)
                assert code is grpc.StatusCode.UNAVAILABLE
                assert "within the hold limit of 1s: no worker is ready" in text
                assert attack.grown < 30 * MIB
                assert attack.cpu < 1.5
                assert statistics.median(attack.neighbour) < 1
            log = made.log("dormouse_gateway")
            assert log.count(f"address: {made.relay} is a gateway's, the operator's or the store's, not a worker's") == 1
            assert log.count(f"address: {made.listen} is a gateway's") == 1


async def test_what_comes_back_is_ended_at_the_first_repetition(etcd_server: EtcdServer, installation: str, tmp_path: Path) -> None:
    """As where the address is another gateway's, which this one does not know for its own."""
    with gateway(etcd_server.endpoint, installation, tmp_path, NO_RULE) as made:
        async with world(etcd_server.endpoint, installation, made) as worker:
            for function in ("relayed", "entered"):
                attack = Attack(made)
                code, text = await attack(function)
                assert (code, "came back to a gateway" in text) == (grpc.StatusCode.FAILED_PRECONDITION, True), (code, text)
                assert attack.grown < 30 * MIB
                assert statistics.median(attack.neighbour) < 1
            assert {seen.metadata["dormouse-hops"] for seen in worker.calls} == {"envoy"}
            async with made.channel() as channel:
                forged = await infer(channel, request("neighbour"), ("dormouse-hops", "envoy"))
            assert forged.code is grpc.StatusCode.FAILED_PRECONDITION  # who sends it himself ends his own call


async def test_negative_control_without_both_one_call_runs_in_circles(etcd_server: EtcdServer, installation: str, tmp_path: Path) -> None:
    with gateway(etcd_server.endpoint, installation, tmp_path, NO_RULE + NO_HOPS) as made:
        async with world(etcd_server.endpoint, installation, made):
            attack = Attack(made)
            code, _ = await attack("relayed", enough=100 * MIB)
            assert code is not grpc.StatusCode.FAILED_PRECONDITION
            assert attack.grown > 100 * MIB
