"""The election on simulated time: one leads, the next follows, and a leader that is cut off knows by its own clock."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from dormouse_core.seams import CreatedIs, Put, StoreError, Txn
from dormouse_kit.election import Election
from dormouse_testing import simloop
from dormouse_testing.clock import SimClock
from dormouse_testing.memory_store import REPLY_LOST, REQUEST_LOST, Fault, MemoryStore

KEY = "/dormouse/default/leader"


def simulate(main: Callable[[MemoryStore, SimClock], Awaitable[None]]) -> None:
    async def run() -> None:
        clock = SimClock()
        await main(MemoryStore(clock), clock)

    simloop.run(run())


def candidate(store: MemoryStore, name: str = "a") -> Election:
    return Election(store, store.clock, KEY, name.encode())


def test_the_first_leads_and_its_election_key_is_the_create_revision() -> None:
    async def main(store: MemoryStore, clock: SimClock) -> None:
        election = candidate(store)
        assert not election.leading
        assert await election.campaign() == election.election
        _, found = await store.get([KEY])
        assert found[KEY].create_revision == election.election
        assert found[KEY].value == b"a"
        await clock.sleep(60)
        assert election.leading
        await election.resign()

    simulate(main)


def test_the_second_leads_at_once_when_the_first_resigns() -> None:
    async def main(store: MemoryStore, clock: SimClock) -> None:
        first, second = candidate(store), candidate(store.client(), "b")
        await first.campaign()
        campaign = asyncio.create_task(second.campaign())
        await clock.sleep(30)
        assert not campaign.done()
        before = clock.monotonic()
        await first.resign()
        assert await campaign > first.election
        assert clock.monotonic() - before < 0.1
        assert not first.leading
        await second.resign()

    simulate(main)


def test_the_second_leads_after_the_lease_when_the_first_is_cut_off_and_never_both_by_their_own_clocks() -> None:
    async def main(store: MemoryStore, clock: SimClock) -> None:
        cut = store.client()
        first, second = candidate(cut), candidate(store, "b")
        await first.campaign()
        campaign = asyncio.create_task(second.campaign())
        await clock.sleep(10.5)
        cut.down = True
        before = clock.monotonic()
        await first.lost.wait()
        assert clock.monotonic() - before <= 3
        assert not campaign.done(), "the store's lease ends no earlier than the leader's own reckoning"
        await campaign
        assert clock.monotonic() - before <= 3.1
        # What the former leader still sends is refused by the store.
        cut.down = False
        late = await cut.txn(Txn((CreatedIs(KEY, first.election),), (Put("/x", b""),)))
        assert not late.succeeded
        await second.resign()

    simulate(main)


def test_a_lease_that_the_store_ended_is_lost_within_a_keepalive() -> None:
    async def main(store: MemoryStore, clock: SimClock) -> None:
        election = candidate(store)
        await election.campaign()
        await clock.sleep(5)
        item = (await store.get([KEY]))[1][KEY]
        await store.revoke(item.lease)
        async with asyncio.timeout(1.1):
            await election.lost.wait()
        assert not election.leading

    simulate(main)


def test_a_keepalive_that_hangs_does_not_hide_the_lapse() -> None:
    async def main(store: MemoryStore, clock: SimClock) -> None:
        election = candidate(store)
        await election.campaign()
        store.fault("keep_alive", Fault(reply_delay=100), times=1000)
        began = clock.monotonic()
        await election.lost.wait()
        assert clock.monotonic() - began == pytest.approx(3, abs=0.01)

    simulate(main)


def test_one_lost_keepalive_is_not_the_end() -> None:
    async def main(store: MemoryStore, clock: SimClock) -> None:
        election = candidate(store)
        await election.campaign()
        store.fault("keep_alive", REQUEST_LOST, times=2)
        await clock.sleep(30)
        assert election.leading
        await election.resign()

    simulate(main)


@pytest.mark.parametrize("fault", [REPLY_LOST, REQUEST_LOST, Fault(reply_delay=9), Fault(request_delay=5.5)])
def test_an_unknown_outcome_is_resolved_by_reading(fault: Fault) -> None:
    async def main(store: MemoryStore, clock: SimClock) -> None:
        election = Election(store, clock, KEY, b"a", ttl=10)
        store.fault("txn", fault)
        await election.campaign()
        await clock.sleep(20)
        assert election.leading
        _, found = await store.get([KEY])
        assert found[KEY].create_revision == election.election
        await election.resign()
        assert (await store.get([KEY]))[1] == {}

    simulate(main)


def test_a_store_that_is_away_is_waited_for() -> None:
    async def main(store: MemoryStore, clock: SimClock) -> None:
        election = candidate(store)
        store.down = True
        campaign = asyncio.create_task(election.campaign())
        await clock.sleep(30)
        assert not campaign.done()
        store.down = False
        await campaign
        await election.resign()

    simulate(main)


def test_resigning_without_the_store_raises_nothing() -> None:
    async def main(store: MemoryStore, clock: SimClock) -> None:
        election = candidate(store)
        await election.campaign()
        store.down = True
        await election.resign()
        assert not election.leading
        with pytest.raises(StoreError):
            await store.get([KEY])

    simulate(main)


def test_of_many_candidates_exactly_one_leads_at_any_time() -> None:
    async def main(store: MemoryStore, clock: SimClock) -> None:
        stores = [store.client() for _ in range(5)]
        terms: list[Election] = []

        async def live(own: MemoryStore, name: int) -> None:
            while True:
                election = candidate(own, str(name))
                terms.append(election)
                await election.campaign()
                await election.lost.wait()
                await election.resign()

        lives = [asyncio.create_task(live(own, name)) for name, own in enumerate(stores)]
        led: set[int] = set()
        for second in range(120):
            await clock.sleep(1)
            leaders = [election for election in terms if election.leading]
            assert len(leaders) <= 1
            led |= {election.election for election in leaders}
            stores[second // 10 % 5].down = second % 10 < 5
        assert len(led) >= 5
        for task in lives:
            task.cancel()
        await asyncio.wait(lives)

    simulate(main)
