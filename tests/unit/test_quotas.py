"""What one connection may hold open in the relay, and what thousands of watches and of made-up names cost everybody else."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from typing import Any

import pytest
from dormouse_core import headernames, limits
from dormouse_core.errors import ResourceExhausted
from dormouse_core.seams import Reply
from dormouse_gateway.paths import INFERENCE
from dormouse_gateway.relay.bodies import Bodies
from dormouse_gateway.relay.relaying import Request
from dormouse_gateway.serving.health import Health
from dormouse_gateway.serving.methods import Methods
from dormouse_gateway.serving.quotas import Quotas
from dormouse_gateway.watching.reads import STRANGERS, Reads
from dormouse_proto import health_pb2, inference_pb2
from dormouse_testing import simloop
from dormouse_testing.relaying import Sim

Status = health_pb2.HealthCheckResponse


@pytest.mark.parametrize(
    ("kind", "most", "another"),
    [
        ("streams", limits.CONNECTION_STREAMS, "watches"),
        ("watches", limits.CONNECTION_WATCHES, "streams"),
        ("reflections", limits.CONNECTION_REFLECTIONS, "watches"),
    ],
)
def test_a_connection_has_its_share_and_takes_no_others(kind: str, most: int, another: str) -> None:
    quotas = Quotas(lambda label: frozenset())
    held = [quotas.taken(kind, {headernames.CONNECTION: "1"}) for _ in range(most)]
    for each in held:
        each.__enter__()
    with (
        pytest.raises(ResourceExhausted, match=f"{most} {kind} are open on this connection"),
        quotas.taken(kind, {headernames.CONNECTION: "1"}),
    ):
        pass
    for other in ({headernames.CONNECTION: "2"}, {}):
        with quotas.taken(kind, other):
            pass
    with quotas.taken(another, {headernames.CONNECTION: "1"}):
        pass
    held.pop().__exit__(None, None, None)
    with quotas.taken(kind, {headernames.CONNECTION: "1"}):
        pass
    for each in held:
        each.__exit__(None, None, None)
    assert not len(quotas)


def test_of_what_is_held_a_connection_has_its_share() -> None:
    bodies = Bodies(1000, limits.CONNECTION_HELD_FRACTION)
    bodies.take(250, "1")
    with pytest.raises(ResourceExhausted, match="holds 250 bytes of waiting messages of this connection"):
        bodies.take(1, "1")
    for connection in ("2", "3", "4"):
        bodies.take(250, connection)
    with pytest.raises(ResourceExhausted, match="holds 1000 bytes of waiting messages; "):
        bodies.take(1, "5")
    bodies.give(250, "1")
    bodies.take(200, "1")
    for size, connection in ((200, "1"), (250, "2"), (250, "3"), (250, "4")):
        bodies.give(size, connection)
    assert (bodies.held, len(bodies._of)) == (0, 0)


def test_nobody_holds_more_than_is_left_for_all_others() -> None:
    open_ = contextlib.ExitStack()

    def take(bodies: Bodies, namespace: str, known: set[str], size: int = 10) -> int:
        """How many of `size` are taken for `namespace`."""
        for count in range(1000):
            bodies.take(size)
            try:
                open_.enter_context(bodies.within(size, namespace, known))
            except ResourceExhausted:
                bodies.give(size)
                return count
        return 1000

    two, many, alone = Bodies(1000), Bodies(1000), Bodies(1000)
    assert take(two, "a", {"a", "b"}) == 50, "one gets half"
    assert take(two, "b", {"a", "b"}) == 31, "a part of its own, and half of what is left"
    names = {f"n{n}" for n in range(12)}
    assert min(take(many, each, names) for each in sorted(names)) == 1000 // 4 // 12 // 10, "the last has its part"
    for size in (900, 50):
        alone.take(size)
        open_.enter_context(alone.within(size, "a", {"a"}))
    open_.close()
    assert (two._for, many._for, alone._for) == ({}, {}, {})


def test_calls_that_wait_for_what_a_worker_says_count_with_the_others() -> None:
    """`ModelMetadata` of functions that no worker has loaded: beyond its namespace's share refused, and another's calls wait as before."""
    method = f"{INFERENCE}ModelMetadata"

    async def body() -> None:
        async with Sim(max_held=3).running() as sim:
            reads, waiting = Reads(sim.world.keys, sim.store, sim.clock), sim.relay.waiting
            methods = Methods(sim.table, reads, sim.clock, sim.workers, waiting=waiting)
            for namespace in ("hog", "default"):
                await sim.world.function("new", uid=namespace, namespace=namespace, proved_revision="")
            await asyncio.sleep(1)

            def ask(name: str) -> "asyncio.Task[Reply]":
                message = inference_pb2.ModelMetadataRequest(name=name).SerializeToString()
                return asyncio.create_task(methods.call(Request(method, message, {}, math.inf)))

            calls = [ask("hog/new") for _ in range(6)]
            await asyncio.sleep(1)
            refused = [(await each).details for each in calls if each.done()]
            assert len(refused) == 2
            assert refused[0].startswith("4 calls of the namespace hog wait in this gateway")
            neighbour = ask("new")
            await asyncio.sleep(1)
            assert not neighbour.done()
            assert len(waiting) == 5
            for each in (*calls, neighbour):
                each.cancel()
            await asyncio.gather(*calls, neighbour, return_exceptions=True)
            assert len(waiting) == 0

    simloop.run(body())


async def messages(service: str) -> AsyncIterator[bytes]:
    yield health_pb2.HealthCheckRequest(service=service).SerializeToString()


class Watched:
    """Watches of an agent's health."""

    def __init__(self, sim: Sim) -> None:
        self.sim = sim
        self.off = False
        self.methods = Methods(sim.table, Reads(sim.world.keys, sim.store, sim.clock), sim.clock, sim.workers, clock_off=lambda: self.off)
        self.looks = 0
        watched = self.methods.watched

        def counted(service: str) -> tuple[str | None, Any]:
            self.looks += 1
            return watched(service)

        self.methods.watched = counted  # type: ignore[method-assign]
        self.health = Health(self.methods)
        changed = sim.relay.changed

        def both(labels: set[str]) -> None:
            changed(labels)
            self.health.changed(labels)

        sim.watching._on_change = both
        self.tasks: list[asyncio.Task[None]] = []

    def watch(self, service: str) -> list[int]:
        found: list[int] = []

        async def listen() -> None:
            async for message in self.health.watch(messages(service), lambda label: None):
                found.append(Status.FromString(message).status)

        self.tasks.append(asyncio.create_task(listen()))
        return found

    async def leave(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        assert (self.health._names, self.health._labels) == ({}, {})


def test_watches_of_unknown_names_read_nothing_and_wake_nobody() -> None:
    async def main() -> None:
        async with Sim().running() as sim:
            watched = Watched(sim)
            reads = sim.reads()
            heard = [watched.watch(f"default/nobody-{n % 500}") for n in range(5000)]
            await asyncio.sleep(5)
            assert all(found == [Status.SERVICE_UNKNOWN] for found in heard)
            looks = watched.looks
            assert looks == 500, "once a name"
            await sim.world.function("late", uid="u")
            await asyncio.sleep(1)
            assert watched.looks == looks, "nobody watches it"
            await sim.world.function("nobody-7", uid="n")
            await asyncio.sleep(1)
            assert watched.looks == looks + 1
            assert [len(found) for found in heard].count(2) == 10
            assert sim.reads() == reads
            await watched.leave()

    simloop.run(main())


def test_a_watch_hears_each_change_of_its_own_name_and_of_the_gateway() -> None:
    async def main() -> None:
        async with Sim().running() as sim:
            watched = Watched(sim)
            own, late, wrong, nothing = (watched.watch(name) for name in ("", "default/late", "not a name", "A/B/C"))
            await asyncio.sleep(0.1)
            assert (own, late, wrong, nothing) == (
                [Status.SERVING],
                [Status.SERVICE_UNKNOWN],
                [Status.SERVICE_UNKNOWN],
                [Status.SERVICE_UNKNOWN],
            )
            await sim.world.function("late", uid="u", proved_revision="")
            await asyncio.sleep(0.1)
            await sim.world.function("late", uid="u")
            await asyncio.sleep(0.1)
            await sim.world.function("late", uid="u", deleting=True)
            await asyncio.sleep(0.1)
            assert late == [Status.SERVICE_UNKNOWN, Status.NOT_SERVING, Status.SERVING, Status.SERVICE_UNKNOWN]
            watched.off = True
            watched.health.look()
            await asyncio.sleep(0.1)
            assert own == [Status.SERVING, Status.NOT_SERVING]
            assert wrong == [Status.SERVICE_UNKNOWN]
            watched.health.drain()
            await asyncio.wait_for(asyncio.gather(*watched.tasks), 1)
            await watched.leave()

    simloop.run(main())


def test_names_that_are_made_up_are_read_a_few_at_a_time_and_once_a_name() -> None:
    async def main() -> None:
        async with Sim().running() as sim:
            reads = Reads(sim.world.keys, sim.store, sim.clock)
            most = running = 0
            fetch = reads._fetch

            async def counted(label: str, stranger: bool) -> Any:
                nonlocal most, running
                running += 1
                most = max(most, running)
                await asyncio.sleep(0.01)
                try:
                    return await fetch(label, stranger)
                finally:
                    running -= 1

            reads._fetch = counted  # type: ignore[method-assign]
            before = sim.reads()
            found = await asyncio.gather(*(reads.stranger(f"default/nobody-{n % 100}") for n in range(2000)))
            assert {each.function for each in found} == {None}
            assert most == STRANGERS
            assert sim.reads() - before <= 100
            await sim.world.function("known", uid="u")
            strangers = [asyncio.create_task(reads.stranger(f"default/more-{n}")) for n in range(2000)]
            await asyncio.sleep(0)
            began = sim.clock.monotonic()
            assert (await reads.function("default/known")).function is not None
            assert sim.clock.monotonic() - began < 0.1, "who is known does not wait behind them"
            await asyncio.gather(*strangers)
            assert not reads._waiting

    simloop.run(main())
