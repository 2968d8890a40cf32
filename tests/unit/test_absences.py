"""A function that is not in the store: when its callers are told that it does not exist, which is final, and when that nobody knows."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from dormouse_core.absences import DOUBT, Absences
from dormouse_core.errors import Code
from dormouse_core.keys import Keys
from dormouse_core.seams import Delete, Put, Txn
from dormouse_gateway.serving.methods import Methods
from dormouse_gateway.watching.reads import Reads
from dormouse_operator import marking, store_users
from dormouse_operator.function_entries import FunctionEntries
from dormouse_proto import inference_pb2
from dormouse_testing import simloop
from dormouse_testing.clock import SimClock
from dormouse_testing.memory_store import FULL, REQUEST_LOST, MemoryStore
from dormouse_testing.relaying import Sim

KEYS = Keys()


def test_without_the_mark_nothing_is_known_to_be_absent() -> None:
    known = Absences()
    assert not known.known(0, 0, 1.0)
    assert not known.known(0, 7, 1.0), "it is written by who leads, when it has written all else"
    assert known.known(9, 0, 1.0), "also while nobody leads"


@pytest.mark.parametrize(
    ("mark", "leader", "after", "known"),
    [
        (9, 8, DOUBT, True),
        (9, 8, DOUBT - 0.1, False),  # the leader's key may be of before, like the mark
        (9, 0, DOUBT, False),
        (9, 12, DOUBT, False),  # who leads since has not compared yet
        (0, 8, DOUBT, False),
    ],
)
def test_a_mark_that_was_restored_with_the_store_counts_no_more(mark: int, leader: int, after: float, known: bool) -> None:
    found = Absences()
    assert found.known(500, 400, 10.0)
    found.rewound(10.0)
    assert found.known(mark, leader, 10.0 + after) is known
    if known:
        assert found.known(mark, 0, 10.0 + after), "from then on as before"


def simulate(body: Callable[[Sim], Awaitable[None]]) -> None:
    async def main() -> None:
        async with Sim().running() as sim:
            await body(sim)

    simloop.run(main())


def test_after_the_store_came_back_empty_a_function_that_exists_is_not_told_to_be_gone() -> None:
    async def body(sim: Sim) -> None:
        reads = Reads(KEYS, sim.store, sim.clock)
        methods = Methods(sim.table, reads, sim.clock, sim.workers)
        asked = inference_pb2.ModelMetadataRequest(name="plain")

        async def codes() -> set[int]:
            found = await asyncio.gather(sim.call("plain"), _ask(methods, "ModelMetadata", asked))
            return {reply.code for reply in found}

        assert await codes() == {Code.NOT_FOUND}
        function = await sim.world.function("plain", uid="p")
        await sim.store.txn(Txn((), (Delete(KEYS.function("default", "plain")), Delete(KEYS.written))))
        await asyncio.sleep(0.5)
        assert await codes() == {Code.UNAVAILABLE}
        reply = await sim.call("plain")
        assert reply.details.startswith("whether function default/plain exists is not known: the operator has not written all functions")
        await sim.world.function("other", uid="o")
        await sim.world.mark()
        await asyncio.sleep(0.5)
        assert await codes() == {Code.NOT_FOUND}
        assert function.label == "default/plain"

    simulate(body)


def test_negative_control_by_the_listing_alone_it_would_be_told_not_to_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Absences, "known", lambda *_: True)

    async def body(sim: Sim) -> None:
        await sim.store.txn(Txn((), (Delete(KEYS.written),)))
        assert (await sim.call("plain")).code == Code.NOT_FOUND

    simulate(body)


def test_a_function_that_is_written_between_the_two_reads_is_found() -> None:
    async def body(sim: Sim) -> None:
        reads = Reads(KEYS, sim.store, sim.clock)
        ask, asked = sim.store.get, list[int]()

        async def get(keys: list[str]) -> object:
            if asked:
                await sim.world.function("late", uid="l")
                await sim.world.mark()
            asked.append(len(keys))
            return await ask(keys)

        sim.store.get = get  # type: ignore[method-assign, assignment]
        read = await reads.function("default/late")
        assert asked == [1, 3]
        assert read.function is not None
        assert (await reads.stranger("default/nobody")).absent
        assert asked[-1] == 3, "made-up names cost one read each"

    simulate(body)


async def _ask(methods: Methods, name: str, message: inference_pb2.ModelMetadataRequest) -> object:
    from dormouse_gateway.relay.relaying import Request

    return await methods.call(Request(f"/inference.GRPCInferenceService/{name}", message.SerializeToString(), {}))


# ------------------------------------------------------------------------------------------------------------------ who leaves it


async def test_the_leader_leaves_the_mark_when_every_function_has_its_entry_and_however_often_it_takes() -> None:
    clock = SimClock()
    store = MemoryStore(clock)
    election = (await store.txn(Txn((), (Put(KEYS.leader, b"me"),)))).revision
    entries = FunctionEntries(store, KEYS, clock, election)
    done = False

    async def marked() -> bool:
        return KEYS.written in (await store.get([KEYS.written]))[1]

    running = asyncio.create_task(marking.Marking(entries, clock, lambda: done).run())
    await asyncio.sleep(3 * marking.LOOK)
    assert not await marked()
    done = True
    store.fault("txn", FULL)
    store.fault("txn", REQUEST_LOST)
    await asyncio.sleep(5 * marking.LOOK)
    assert await marked()
    assert not running.done(), "a loop that ends would end the term"
    running.cancel()


async def test_a_former_leader_leaves_no_mark() -> None:
    clock = SimClock()
    store = MemoryStore(clock)
    former = (await store.txn(Txn((), (Put(KEYS.leader, b"me"),)))).revision
    await store.txn(Txn((), (Delete(KEYS.leader),)))
    await store.txn(Txn((), (Put(KEYS.leader, b"another"),)))
    assert not await FunctionEntries(store, KEYS, clock, former).mark()
    assert KEYS.written not in (await store.get([KEYS.written]))[1]


def test_a_gateway_may_read_the_mark_and_nothing_beside_it() -> None:
    [grant] = [each for each in store_users.gateway_grants(KEYS) if each.key == KEYS.written]
    assert (grant.prefix, grant.write) == (False, False)
