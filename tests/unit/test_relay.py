"""The relay on simulated parts: where calls go, when they wait, when they are sent again, and what each guard prevents."""

import asyncio
import contextlib
import math
import random
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Mapping
from typing import Any

import pytest
from dormouse_core import callkeys, deaths, limits
from dormouse_core.errors import Again, Code, ResourceExhausted
from dormouse_core.holding import Patience
from dormouse_core.seams import Delete, Reply, Txn
from dormouse_core.spec import Duration, Timeouts
from dormouse_gateway.paths import INFERENCE
from dormouse_gateway.relay import gates, turns
from dormouse_gateway.relay import relaying as relay
from dormouse_gateway.serving.methods import Methods
from dormouse_gateway.settings import parse
from dormouse_gateway.watching import table
from dormouse_proto import inference_pb2, state_pb2
from dormouse_testing import simloop
from dormouse_testing.gateway import request
from dormouse_testing.memory_store import UNREACHED
from dormouse_testing.relaying import RESET, Sent, Sim, again, good

Body = Callable[[Sim], Coroutine[Any, Any, None]]
A, B = "10.0.0.1:9000", "10.0.0.2:9000"


def simulate(body: Body, **options: int) -> None:
    async def main() -> None:
        async with Sim(**options).running() as sim:
            await body(sim)
            assert sim.workers.running == 0
            assert all(each.held == 0 for each in sim.demand.report())

    simloop.run(main())


async def stateful(sim: Sim, *owners: str) -> None:
    """Function `steps` of 8 shards; with `owners`, dealt out to them."""
    function = await sim.world.function("steps", shards=8, uid="u")
    for number, address in enumerate(owners):
        await sim.world.register(function, None, name=f"w-{address}", address=address)
        await sim.world.own(function, f"w-{address}", list(range(number, 8, len(owners))))
        sim.workers.behave.setdefault(address, good)
    await asyncio.sleep(0.1)


async def move(sim: Sim, address: str, epoch: int = 2) -> None:
    """All shards to a worker at `address`."""
    function = await sim.world.function("steps", shards=8, uid="u")
    await sim.world.register(function, None, name=f"w-{address}", address=address)
    await sim.world.own(function, f"w-{address}", list(range(8)), epoch=epoch)
    sim.workers.behave.setdefault(address, good)


async def stateless(sim: Sim, *addresses: str, **more: Any) -> None:
    function = await sim.world.function("plain", uid="p", **more)
    for address in addresses:
        await sim.world.register(function, None, name=f"w-{address}", address=address)
        sim.workers.behave.setdefault(address, good)
    await asyncio.sleep(0.1)


# ---------------------------------------------------------------------------------------------------------------------- sending


def test_the_first_send_goes_by_the_watched_map() -> None:
    async def body(sim: Sim) -> None:
        await stateful(sim, A, B)
        before = sim.reads()
        replies = await asyncio.gather(*(sim.call("steps", n) for n in range(1, 50)))
        assert {reply.code for reply in replies} == {0}
        assert len(sim.workers.sent) == 49
        assert sim.reads() == before
        sent = sim.workers.sent[0]
        assert sent.metadata["dormouse-uid"] == "u"
        assert sent.metadata["dormouse-function"] == "default/steps"
        assert int(sent.metadata["dormouse-rev"]) > 0
        assert "dormouse-fn" not in sent.metadata

    simulate(body)


def test_a_refusal_makes_one_read_for_all_who_were_refused() -> None:
    async def body(sim: Sim) -> None:
        await stateful(sim, A)
        sim.store.watch_delay = 60  # the watch is far behind: only a read knows
        await move(sim, B)

        async def not_mine(sent: Sent) -> Reply:
            return again(Again.NOT_MINE)

        sim.workers.behave[A] = not_mine
        before = sim.reads()
        calls = [sim.call("steps", n) for n in range(1, 200)]
        replies = await asyncio.gather(*calls)
        assert {reply.code for reply in replies} == {0}
        assert sim.reads() - before <= 2
        assert len(sim.workers.sent) == 2 * 199
        keys = [sent.metadata["dormouse-call"] for sent in sim.workers.sent]
        assert sorted(keys[:199]) == sorted(keys[199:]), "the same key at every send"

    simulate(body)


def test_without_the_read_a_stale_map_would_hold_the_call_to_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard of the test above, taken away."""

    async def body(sim: Sim) -> None:
        await stateful(sim, A)
        sim.store.watch_delay = 600
        await move(sim, B)

        async def not_mine(sent: Sent) -> Reply:
            return again(Again.NOT_MINE)

        sim.workers.behave[A] = not_mine
        look = relay.Relay._look

        async def watched_only(self: relay.Relay, call: relay.Held) -> Any:
            call.fresh = False
            return await look(self, call)

        monkeypatch.setattr(relay.Relay, "_look", watched_only)
        assert (await sim.call("steps", 1, timeout=30)).code == Code.DEADLINE_EXCEEDED

    simulate(body)


def test_envoys_second_try_reads_first() -> None:
    async def body(sim: Sim) -> None:
        await stateful(sim, A)
        sim.store.watch_delay = 60
        await move(sim, B)
        assert (await sim.call("steps", 1, attempt=2, dormouse_fn="default/steps")).code == 0
        assert [sent.address for sent in sim.workers.sent] == [B], "the owner that the watch knows is not asked"
        assert "dormouse-alone" in sim.workers.sent[0].metadata, "a worker may have died of it: nobody else's rows are to be with it"
        assert (await sim.call("steps", 1)).code == 0
        assert "dormouse-alone" not in sim.workers.sent[1].metadata

    simulate(body)


def test_a_reset_is_sent_again_under_its_key_unless_the_function_forbids_it() -> None:
    async def body(sim: Sim) -> None:
        await stateful(sim, A)
        await stateless(sim, A)
        once = await sim.world.function("once", retry_stateless=False)
        await sim.world.register(once, None, name="w-once", address=A)
        await asyncio.sleep(0.1)
        broke: set[str] = set()

        async def dies_once(sent: Sent) -> Reply:
            if sent.message.model_name not in broke:
                broke.add(sent.message.model_name)
                return RESET
            return await good(sent)

        sim.workers.behave[A] = dies_once
        assert (await sim.call("steps", 1)).code == 0
        assert (await sim.call("plain")).code == 0
        reply = await sim.call("once")
        assert (reply.code, reply.details) == (Code.UNAVAILABLE, relay.UNKNOWN_OUTCOME)
        assert [sent.message.model_name for sent in sim.workers.sent] == ["steps", "steps", "plain", "plain", "once"]
        # Envoy lost its relay while such a call was there: the next relay does not send it either.
        assert (await sim.call("once", attempt=2)).details == relay.UNKNOWN_OUTCOME
        # But on the function's own route Envoy tries again only what no worker has run.
        assert (await sim.call("once", attempt=2, dormouse_fn="default/once")).code == 0

    simulate(body)


async def resets(sent: Sent) -> Reply:
    return RESET


@pytest.mark.parametrize(("attempt", "route", "sends"), [(1, "+", 3), (2, "+", 3), (2, "default/steps", 2)])
def test_a_call_whose_workers_die_and_nobody_says_why_takes_three(attempt: int, route: str, sends: int) -> None:
    """As where the kernel ends whole containers. By a function's own route Envoy's first try went to a worker, too; by `+` to a relay."""

    async def body(sim: Sim) -> None:
        await stateful(sim, A)
        sim.workers.behave[A] = resets
        reply = await sim.call("steps", 1, attempt=attempt, dormouse_fn=route)
        tried = "" if sends == 3 else " after Envoy's first try failed"
        text = f"{sends} workers died while this call ran in them{tried}, and it is not sent to another: {relay.NOBODY_SAYS}"
        assert (reply.code, reply.details) == (Code.UNAVAILABLE, text)
        assert len(sim.workers.sent) == sends
        assert [sent.metadata.get("dormouse-alone") for sent in sim.workers.sent][-1] == "cleared"

    simulate(body)


def test_where_workers_cannot_be_cleared_a_call_takes_eight() -> None:
    """Those of an earlier version do not know what that is, and have run nothing when they say so."""

    async def body(sim: Sim) -> None:
        await stateful(sim, A)
        sim.workers.clears = False
        sim.workers.behave[A] = resets
        assert (await sim.call("steps", 1)).details.startswith("8 workers died")
        assert len(sim.workers.sent) == limits.LOST_WORKERS
        assert "cleared" not in {sent.metadata.get("dormouse-alone") for sent in sim.workers.sent}

    simulate(body)


def test_where_a_worker_was_not_tried_its_word_counts_for_nothing() -> None:
    async def body(sim: Sim) -> None:
        await stateless(sim, A)
        asks = limits.CLEAR_ASKS + 2
        clear = sim.workers._clear

        async def busy(address: str, metadata: Mapping[str, str], timeout: float | None) -> Reply:
            nonlocal asks
            asks -= 1
            return again(Again.UNTRIED) if asks >= 0 else await clear(address, metadata, timeout)

        sim.workers._clear = busy  # type: ignore[method-assign]
        sim.workers.behave[A] = lambda sent: resets(sent) if len(sim.workers.sent) <= 2 else good(sent)
        assert (await sim.call("plain")).code == 0
        assert [sent.metadata.get("dormouse-alone") for sent in sim.workers.sent][2:] == ["cleared"]
        assert asks < 0

    simulate(body)


def test_where_what_runs_is_long_an_innocent_call_is_answered_all_the_same() -> None:
    async def body(sim: Sim) -> None:
        await stateless(sim, A)

        async def behave(sent: Sent) -> Reply:
            if sent.id == "long":
                await asyncio.sleep(60)
            return await good(sent)

        async def dies(sent: Sent) -> Reply:
            del sim.workers.behave[B]
            return RESET

        sim.workers.behave[A] = behave
        long = sim.call("plain", ident="long")
        await asyncio.sleep(0.1)
        sim.workers.behave[B] = dies
        await stateless(sim, A, B)
        began = sim.clock.monotonic()
        innocent = await sim.call("plain", ident="innocent", attempt=2, dormouse_fn="default/plain")
        assert (innocent.code, long.done(), sim.workers.asked[A]) == (0, False, limits.CLEAR_ASKS)
        assert sim.clock.monotonic() - began < (2 * limits.CLEAR_ASKS - 1) * limits.CLEAR_SECONDS + 3, "with its rests"
        await long

    simulate(body)


def test_what_dies_while_it_is_being_cleared_is_not_the_doing_of_who_asked() -> None:
    async def body(sim: Sim) -> None:
        await stateless(sim, A)
        sends: Counter[str] = Counter()

        async def behave(sent: Sent) -> Reply:
            sends[sent.id] += 1
            if sent.id == "other":
                await asyncio.sleep(1)
                return RESET
            return RESET if sends[sent.id] <= 2 else await good(sent)

        sim.workers.behave[A] = behave
        innocent = sim.call("plain", ident="innocent")
        for _ in range(2 * limits.LOST_WORKERS):  # each time somebody else's call is there
            asked = sim.workers.asked.total()
            sim.call("plain", ident="other", timeout=1.5)
            await sim.workers.asking(asked + 1)
        assert (await innocent).code == 0
        assert sends["innocent"] == 3

    simulate(body)


def test_a_caller_that_goes_away_leaves_no_worker_closed() -> None:
    async def body(sim: Sim) -> None:
        await stateless(sim, A)
        sends: Counter[str] = Counter()

        async def behave(sent: Sent) -> Reply:
            sends[sent.id] += 1
            if sent.id == "long":
                await asyncio.sleep(3)
            elif sent.id == "suspect" and sends[sent.id] <= 2:
                return RESET
            elif sent.id == "suspect":
                await asyncio.sleep(60)
            return await good(sent)

        sim.workers.behave[A] = behave
        for seconds in (0.3, 5.0):  # while it is being cleared; while the call runs in it alone
            sends.clear()
            suspect = sim.call("plain", ident="suspect")
            await asyncio.sleep(0.2)
            long = sim.call("plain", ident="long")
            await asyncio.sleep(seconds)
            suspect.cancel()
            await asyncio.gather(suspect, return_exceptions=True)
            assert (await asyncio.wait_for(sim.call("plain", ident="next"), 5)).code == 0
            await long

    simulate(body)


def test_negative_control_without_the_guard_it_takes_every_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deaths, "guilty", lambda *_: False)

    async def body(sim: Sim) -> None:
        await stateful(sim, A)
        sim.workers.behave[A] = resets
        await sim.call("steps", 1, timeout=10)
        assert len(sim.workers.sent) > 6

    simulate(body)


def test_who_loses_two_workers_for_another_reason_is_answered() -> None:
    """Nodes are lost, pods are deleted: of two deaths that nobody explains no call is accused."""

    async def body(sim: Sim) -> None:
        await stateless(sim, A, B)
        lost: list[str] = []

        async def lost_twice(sent: Sent) -> Reply:
            lost.append(sent.address)
            return await good(sent) if len(lost) > 2 else RESET

        sim.workers.behave[A] = sim.workers.behave[B] = lost_twice
        assert (await sim.call("plain")).code == 0

    simulate(body)


class Fatal:
    """A worker that dies whole, with every call that runs there, where one of them is `guilty`; the next one is there at once."""

    def __init__(self, guilty: Collection[str], seconds: float = 0.02) -> None:
        self._guilty = guilty
        self._seconds = seconds
        self._running: set[asyncio.Task[Reply]] = set()
        self.killed: Counter[str] = Counter()
        self.under: Counter[str] = Counter()

    async def __call__(self, sent: Sent) -> Reply:
        name = sent.metadata["dormouse-call"]
        task = asyncio.create_task(self._run(name, sent))
        self._running.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if not task.cancelled():
                task.cancel()
                raise
            self.under[name] += 1
            return RESET
        finally:
            self._running.discard(task)

    async def _run(self, name: str, sent: Sent) -> Reply:
        await asyncio.sleep(0.02)
        if name not in self._guilty:
            await asyncio.sleep(self._seconds)
            return await good(sent)
        self.killed[name] += 1
        for task in self._running:
            task.cancel()
        await asyncio.sleep(0)
        return RESET


def names(*numbers: int) -> list[str]:
    return [f"{number:016}-g-envoy-1" for number in numbers]


def beside(innocent: int) -> tuple[Fatal, list[Reply]]:
    """A call that kills and so many others, sent together."""
    all_ = names(*range(1, 2 + innocent))
    fatal = Fatal(all_[:1])
    replies: list[Reply] = []

    async def body(sim: Sim) -> None:
        await stateless(sim, A)
        sim.workers.behave[A] = fatal
        replies.extend(await asyncio.gather(*(sim.call("plain", dormouse_call=name, timeout=60) for name in all_)))

    simulate(body)
    return fatal, replies


@pytest.mark.parametrize("innocent", [3, 20])
def test_of_those_whose_whole_worker_died_beside_each_other_the_innocent_are_answered(innocent: int) -> None:
    fatal, (guilty, *others) = beside(innocent)
    assert fatal.killed.total() == 3
    assert guilty.code == Code.UNAVAILABLE
    assert [reply.code for reply in others] == [0] * innocent
    assert max(fatal.under.values()) <= 3
    assert any(fatal.under[name] == 2 for name in names(*range(2, 2 + innocent))), "they were with it twice"


def killers(seed: int, clears: bool = True) -> tuple[Counter[str], dict[str, Reply], set[str]]:
    """Several calls that kill, and others, sent at random to one to three workers, some by Envoy first: deaths by each, the answers, and
    who kills."""
    rng = random.Random(seed)
    addresses = rng.sample([A, B, "10.0.0.3:9000"], rng.randint(1, 3))
    guilty = set(names(*range(1, 1 + rng.randint(1, 4))))
    every = [*guilty, *names(*range(10, 10 + rng.randint(1, 8)))]
    workers = [Fatal(guilty, rng.choice([0.02, 0.5])) for _ in addresses]
    replies: dict[str, Reply] = {}

    async def body(sim: Sim) -> None:
        await stateless(sim, *addresses)
        sim.workers.clears = clears
        sim.workers.behave.update(zip(addresses, workers, strict=True))

        async def one(name: str) -> None:
            await asyncio.sleep(rng.uniform(0, 1))
            tried = rng.random() < 0.5
            replies[name] = await sim.call("plain", dormouse_call=name, attempt=1 + tried, dormouse_fn="default/plain" if tried else "+")

        await asyncio.gather(*map(one, every))

    simulate(body)
    return sum((worker.killed for worker in workers), Counter()), replies, guilty


@pytest.mark.parametrize("seed", range(60))
def test_no_innocent_call_is_ever_convicted_and_each_that_kills_takes_three_workers(seed: int) -> None:
    killed, replies, guilty = killers(seed)
    assert {name for name, reply in replies.items() if reply.code} == guilty
    assert {reply.code for reply in replies.values()} == {0, Code.UNAVAILABLE}
    assert set(killed) == guilty
    assert max(killed.values()) <= 3


def test_negative_control_convicted_by_whatever_death_innocent_calls_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was before: three that were lost are a call's doing."""
    monkeypatch.setattr(deaths, "guilty", lambda alone: len(alone) > 2 or (len(alone) == 2 and alone[-1] is True))
    refused = 0
    for seed in range(60):
        _, replies, guilty = killers(seed, clears=False)
        refused += sum(1 for name, reply in replies.items() if reply.code and name not in guilty)
    assert refused > 0


@pytest.mark.parametrize(("workers", "most"), [((A,), 1), ((A, B), 2)])
def test_suspects_run_one_at_a_time_in_a_worker(workers: tuple[str, ...], most: int) -> None:
    async def body(sim: Sim) -> None:
        await stateless(sim, *workers)
        sends: Counter[str] = Counter()
        running, seen = 0, 0

        async def behave(sent: Sent) -> Reply:
            nonlocal running, seen
            name = sent.metadata["dormouse-call"]
            sends[name] += 1
            if sends[name] < 3:
                return RESET
            running += 1
            seen = max(seen, running)
            await asyncio.sleep(1)
            running -= 1
            return await good(sent)

        for address in workers:
            sim.workers.behave[address] = behave
        suspects = [sim.call("plain", dormouse_call=f"{n:016}-g-s") for n in range(1, 5)]
        assert {reply.code for reply in await asyncio.gather(*suspects)} == {0}
        assert seen == most

    simulate(body)


async def killing(sim: Sim, sent: Sent) -> Reply:
    """What a supervisor does for a step that held the interpreter for too long: word in the entry, then the kill."""
    stateful = sent.message.model_name == "steps"
    function = await sim.world.function(sent.message.model_name, shards=8 if stateful else 0, uid="u" if stateful else "p")
    entry = state_pb2.WorkerEntry(address=sent.address, revision="r1", state=state_pb2.WorkerEntry.READY)
    entry.killed.calls.append(sent.metadata["dormouse-call"])
    entry.killed.cause = "worker w was killed: a step has held the interpreter for 61.2 s"
    await sim.world.put(sim.world.keys.worker(function, f"w-{sent.address}"), entry.SerializeToString())
    return RESET


def test_a_call_that_a_worker_was_killed_for_is_told_so_and_kills_no_other() -> None:
    async def body(sim: Sim) -> None:
        await stateful(sim, A)
        await stateless(sim, A, B)
        for address in (A, B):
            sim.workers.behave[address] = lambda sent: killing(sim, sent)
        for reply in (await sim.call("steps", 1), await sim.call("plain")):
            assert reply.code == Code.DEADLINE_EXCEEDED
            assert "a step has held the interpreter for 61.2 s; what this call changed is not committed" in reply.details
        assert len(sim.workers.sent) == 2
        # Envoy sent it first: the relay, to which it comes then, finds the word too.
        name = "0000000000000001-g-envoy-1"
        entry = state_pb2.WorkerEntry(address=B, revision="r1", state=state_pb2.WorkerEntry.READY)
        entry.killed.calls.append(name)
        entry.killed.cause = "the cause"
        function = await sim.world.function("plain", uid="p")
        await sim.world.put(sim.world.keys.worker(function, f"w-{B}"), entry.SerializeToString())
        assert (await sim.call("plain", attempt=2, dormouse_call=name)).code == Code.DEADLINE_EXCEEDED
        assert len(sim.workers.sent) == 2

    simulate(body)


def test_without_the_word_it_kills_three(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control."""
    monkeypatch.setattr(table.Function, "killer", lambda *_: None)

    async def body(sim: Sim) -> None:
        await stateful(sim, A)
        sim.workers.behave[A] = lambda sent: killing(sim, sent)
        reply = await sim.call("steps", 1)
        assert (reply.code, len(sim.workers.sent)) == (Code.UNAVAILABLE, 3), "the limit where nobody says why"

    simulate(body)


MEMORY, CRASH = state_pb2.WorkerEntry.Killed.MEMORY, state_pb2.WorkerEntry.Killed.CRASH


async def dying(
    sim: Sim, sent: Sent, why: state_pb2.WorkerEntry.Killed.Why.ValueType, *beside: str, late: float = 0.0, alone: bool = True
) -> Reply:
    """A worker that dies of itself while this call and those beside it run; its supervisor says so `late` seconds later, and starts the
    next one."""
    stateful = sent.message.model_name == "steps"
    function = await sim.world.function(sent.message.model_name, shards=8 if stateful else 0, uid="u" if stateful else "p")
    next_ = state_pb2.WorkerEntry(address=sent.address, revision="r1", state=state_pb2.WorkerEntry.READY)
    dead = state_pb2.WorkerEntry(address=sent.address, revision="r1", state=state_pb2.WorkerEntry.READY)
    dead.killed.calls.extend([sent.metadata["dormouse-call"], *beside])
    dead.killed.cause = "worker w died"
    dead.killed.why = why
    dead.killed.alone = alone and not beside
    died, name = sim.died.get(sent.address, f"w-{sent.address}"), f"w-{sent.address}-{len(sim.workers.sent)}"
    sim.died[sent.address] = name

    async def word() -> None:
        await asyncio.sleep(late)
        await sim.world.put(sim.world.keys.worker(function, died), dead.SerializeToString())
        await sim.world.put(sim.world.keys.worker(function, name), next_.SerializeToString())

    sim.words.append(asyncio.create_task(word()))
    return RESET


@pytest.mark.parametrize("late", [0.0, 0.02, 0.25])
@pytest.mark.parametrize(("why", "code"), [(MEMORY, Code.RESOURCE_EXHAUSTED), (CRASH, Code.INTERNAL)])
def test_a_call_that_workers_die_of_ends_after_two(why: state_pb2.WorkerEntry.Killed.Why.ValueType, code: Code, late: float) -> None:
    async def body(sim: Sim) -> None:
        await stateless(sim, A, B)
        for address in (A, B):
            sim.workers.behave[address] = lambda sent: dying(sim, sent, why, late=late)
        reply = await sim.call("plain")
        assert (reply.code, len(sim.workers.sent)) == (code, 2)
        assert reply.details == "2 workers died while this call ran in them, and it is not sent to another: worker w died"
        assert ["dormouse-alone" in sent.metadata for sent in sim.workers.sent] == [False, True]

    simulate(body)


def test_what_ran_beside_it_once_is_sent_again() -> None:
    async def body(sim: Sim) -> None:
        await stateless(sim, A, B)
        names = [f"000000000000000{n}-g-envoy-1" for n in range(1, 4)]

        async def behave(sent: Sent) -> Reply:
            if sent.metadata["dormouse-call"] == names[0]:
                return await dying(sim, sent, MEMORY, *([] if "dormouse-alone" in sent.metadata else names[1:]))
            return await good(sent)

        sim.workers.behave[A] = sim.workers.behave[B] = behave
        assert (await sim.call("plain", dormouse_call=names[0])).code == Code.RESOURCE_EXHAUSTED
        for name in names[1:]:  # they were with it in the first worker, and come to the relay from Envoy
            assert (await sim.call("plain", attempt=2, dormouse_call=name)).code == 0
        assert all("dormouse-alone" in sent.metadata for sent in sim.workers.sent[2:])

    simulate(body)


def test_the_only_one_that_ran_is_convicted_by_no_death_in_which_others_waited_to_run() -> None:
    """What waits to run uses the worker's memory too: the supervisor names what ran, and says that it was not all."""

    async def body(sim: Sim) -> None:
        await stateless(sim, A, B)

        async def behave(sent: Sent) -> Reply:
            if len(sim.workers.sent) <= 2:
                return await dying(sim, sent, MEMORY, alone=False)
            return await good(sent)

        sim.workers.behave[A] = sim.workers.behave[B] = behave
        assert (await sim.call("plain")).code == 0
        assert [sent.metadata.get("dormouse-alone", "") for sent in sim.workers.sent][2:] == ["cleared"]

    simulate(body)


def test_of_two_that_died_beside_each_other_twice_the_innocent_is_answered() -> None:
    """They are sent again together, so both are named twice; from then on one is under way at a time."""

    async def body(sim: Sim) -> None:
        await stateless(sim, A)
        guilty, innocent = (f"000000000000000{n}-g-envoy-1" for n in (1, 2))
        sent: list[str] = []

        async def behave(call: Sent) -> Reply:
            name = call.metadata["dormouse-call"]
            sent.append(name)
            beside = sent.count(guilty) <= 2 and sent.count(innocent) <= 2
            if name == innocent:
                await asyncio.sleep(0.02)
                return RESET if beside else await good(call)
            await asyncio.sleep(0.01)
            return await dying(sim, call, MEMORY, *([innocent] if beside else []))

        sim.workers.behave[A] = behave
        calls = [sim.call("plain", dormouse_call=name) for name in (guilty, innocent)]
        codes = [reply.code for reply in await asyncio.gather(*calls)]
        assert codes == [Code.RESOURCE_EXHAUSTED, 0]
        assert sent.count(guilty) == 3

    simulate(body)


def test_deaths_of_a_call_are_remembered_longer_than_their_words_last() -> None:
    async def body(sim: Sim) -> None:
        await stateless(sim, A)
        function = await sim.world.function("plain", uid="p")

        async def behave(sent: Sent) -> Reply:
            if sent.address == A:  # the only worker: its lease ends before there is the next
                sim.words.append(asyncio.create_task(gone()))
            return await dying(sim, sent, MEMORY)

        async def gone() -> None:
            await asyncio.sleep(0.5)
            await sim.world.unregister(function, f"w-{A}")
            await sim.world.unregister(function, f"w-{A}-1")
            await asyncio.sleep(5)
            await sim.world.register(function, None, name=f"w-{B}", address=B)

        sim.workers.behave[A] = sim.workers.behave[B] = behave
        reply = await sim.call("plain")
        assert (reply.code, len(sim.workers.sent)) == (Code.RESOURCE_EXHAUSTED, 2)

    simulate(body)


def test_without_the_words_it_kills_three(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control."""
    monkeypatch.setattr(table.Function, "died_under", lambda *_: {})

    async def body(sim: Sim) -> None:
        await stateless(sim, A, B)
        sim.workers.behave[A] = sim.workers.behave[B] = lambda sent: dying(sim, sent, MEMORY)
        reply = await sim.call("plain")
        assert (reply.code, len(sim.workers.sent)) == (Code.UNAVAILABLE, 3), "the limit where nobody says why"

    simulate(body)


def test_a_neighbour_of_such_a_call_is_sent_again() -> None:
    async def body(sim: Sim) -> None:
        await stateless(sim, A, B)
        broke: list[str] = []

        async def dies_once(sent: Sent) -> Reply:
            if broke:
                return await good(sent)
            broke.append(sent.address)
            other = Sent(sent.at, sent.address, sent.message, {"dormouse-call": "another"})
            return await killing(sim, other)

        sim.workers.behave[A] = sim.workers.behave[B] = dies_once
        assert (await sim.call("plain")).code == 0

    simulate(body)


def test_a_call_that_is_not_sent_again_is_told_the_cause_too() -> None:
    async def body(sim: Sim) -> None:
        await stateless(sim, A, retry_stateless=False)
        sim.workers.behave[A] = lambda sent: killing(sim, sent)
        assert (await sim.call("plain")).code == Code.DEADLINE_EXCEEDED

    simulate(body)


def test_a_workers_own_error_is_the_answer() -> None:
    async def body(sim: Sim) -> None:
        await stateful(sim, A)

        async def unavailable(sent: Sent) -> Reply:
            return Reply(14, b"", "the store did not answer")

        sim.workers.behave[A] = unavailable
        assert (await sim.call("steps", 1)).details == "the store did not answer"
        assert len(sim.workers.sent) == 1

    simulate(body)


# ---------------------------------------------------------------------------------------------------------------------- holding


def test_calls_wait_at_zero_and_go_when_somebody_registers() -> None:
    async def body(sim: Sim) -> None:
        await stateful(sim)
        first: list[float] = []
        sim.demand.on_first = lambda: first.append(sim.clock.monotonic())
        began = sim.clock.monotonic()
        calls = [sim.call("steps", n) for n in range(1, 3001)]
        await asyncio.sleep(5)
        assert first == [began], "reported at once, and once"
        assert sim.demand.report()[0].held == 3000
        await move(sim, A)
        moved = sim.clock.monotonic()
        await asyncio.gather(*calls)
        assert sim.clock.monotonic() - moved < 1
        assert len(sim.workers.sent) == 3000
        assert sim.workers.most <= 256, "no more at a worker than its function's maxConcurrency"
        report = sim.demand.report()[0]
        assert report.arrived == 3000
        assert 3000 * 5 <= report.held_seconds < 3000 * 6

    simulate(body)


def test_the_hold_limit_and_the_callers_deadline() -> None:
    async def body(sim: Sim) -> None:
        await stateless(sim, timeouts=Timeouts(hold=Duration("20s")))
        began = sim.clock.monotonic()
        long, short = sim.call("plain"), sim.call("plain", timeout=3)
        reply = await short
        assert (reply.code, sim.clock.monotonic() - began) == (Code.DEADLINE_EXCEEDED, pytest.approx(3))
        reply = await long
        assert (reply.code, sim.clock.monotonic() - began) == (Code.UNAVAILABLE, pytest.approx(20))
        assert reply.details == "no worker of default/plain could serve the call within the hold limit of 20s: no worker is ready"

    simulate(body)


def test_a_cancelled_call_is_never_sent() -> None:
    async def body(sim: Sim) -> None:
        await stateful(sim)
        gone, stays = sim.call("steps", 1, ident="gone"), sim.call("steps", 1, ident="stays")
        await asyncio.sleep(1)
        gone.cancel()
        await asyncio.sleep(0.1)
        await move(sim, A)
        assert (await stays).message == b"stays"
        running = sim.call("steps", 1, ident="running")
        await asyncio.sleep(0.005)
        running.cancel()
        await asyncio.sleep(1)
        assert sim.workers.cancelled == 1
        assert [sent.id for sent in sim.workers.sent] == ["stays", "running"]
        assert (await sim.call("steps", 1, ident="next")).code == 0, "a cancelled call does not keep its session's turn"

    simulate(body)


def test_limits_of_the_hold() -> None:
    async def body(sim: Sim) -> None:
        await stateless(sim)
        held = [sim.call("plain") for _ in range(3)]
        await asyncio.sleep(0.1)
        full = await sim.call("plain")
        assert (full.code, full.details) == (Code.RESOURCE_EXHAUSTED, "3 calls of function default/plain wait already; try again later")
        bodies = await sim.call("plain", ident="x" * 2000)
        assert bodies.code == Code.RESOURCE_EXHAUSTED
        assert "2000 bytes" in bodies.details
        await stateless(sim, A)
        assert {(await each).code for each in held} == {0}
        assert (await sim.call("plain", ident="x" * 1500)).code == 0

    simulate(body, max_held=3, max_held_bytes=2000)


@pytest.mark.parametrize("told", [(), ("max_held", "max_held_bytes")], ids=["the relay's own", "the agent's"])
def test_unless_told_otherwise_ten_thousand_calls_and_a_gibibyte_are_held(told: tuple[str, ...]) -> None:
    """At the limit and one beyond."""

    async def body(sim: Sim) -> None:
        await stateless(sim)
        for _ in range(9_999):
            sim.demand.hold("default/plain", "p")
        last = sim.call("plain")
        await asyncio.sleep(0.1)
        assert not last.done()
        assert (await sim.call("plain")).details == "10000 calls of function default/plain wait already; try again later"
        last.cancel()
        for _ in range(9_999):
            sim.demand.release("default/plain", "p")
        await asyncio.sleep(0.1)
        message = len(request("plain", None, id="x").SerializeToString())
        sim.relay.bodies.take(1 << 28, "c")
        with pytest.raises(ResourceExhausted, match="268435456 bytes of waiting messages of this connection"):
            sim.relay.bodies.take(1, "c")
        sim.relay.bodies.take(3 * (1 << 28) - message)
        last = sim.call("plain", ident="x")
        await asyncio.sleep(0.1)
        assert not last.done()
        assert (await sim.call("plain", ident="x")).details == "the gateway holds 1073741824 bytes of waiting messages; try again later"
        last.cancel()
        await asyncio.sleep(0.1)

    settings = parse([], "gateway")
    simulate(body, **{name: getattr(settings, name) for name in told})


def test_waiting_calls_of_a_namespace_leave_room_for_others() -> None:
    """Three functions' worth wait in a gateway: of two namespaces the first has half of it, however many functions it has."""

    async def body(sim: Sim) -> None:
        await stateless(sim)
        for name in ("a", "b", "c"):
            await sim.world.function(name, uid=name, namespace="hog")
        await asyncio.sleep(0.1)
        held = [sim.call(f"hog/{name}") for name in "aabb"]
        await asyncio.sleep(0.1)
        full = await sim.call("hog/c")
        assert full.code == Code.RESOURCE_EXHAUSTED
        assert full.details.startswith("4 calls of the namespace hog wait in this gateway, its share of 9")
        neighbours = [sim.call("plain") for _ in range(2)]
        await asyncio.sleep(0.1)
        assert not any(each.done() for each in neighbours)
        held.pop().cancel()
        await asyncio.sleep(0.1)
        held.append(sim.call("hog/c"))
        await asyncio.sleep(0.1)
        assert not held[-1].done()
        for each in held:
            each.cancel()
        await asyncio.sleep(0.1)
        assert len(sim.relay.waiting) == 2
        await stateless(sim, A)
        assert {(await each).code for each in neighbours} == {0}
        assert len(sim.relay.waiting) == 0

    simulate(body, max_held=3)


def test_negative_control_in_one_namespace_they_would_take_all_and_the_neighbour_would_be_refused() -> None:
    async def body(sim: Sim) -> None:
        await stateless(sim)
        for name in ("a", "b", "c"):
            await sim.world.function(name, uid=name)
        await asyncio.sleep(0.1)
        held = [sim.call(name) for name in "aaabbbccc"]
        await asyncio.sleep(0.1)
        assert not any(each.done() for each in held)
        full = await sim.call("plain")
        assert (full.code, full.details) == (
            Code.RESOURCE_EXHAUSTED,
            "9 calls wait in this gateway, which is its limit; try again later",
        )
        for each in held:
            each.cancel()
        await asyncio.sleep(0.1)

    simulate(body, max_held=3)


def test_a_namespace_that_fills_the_relay_with_messages_leaves_room_for_others() -> None:
    async def body(sim: Sim) -> None:
        await stateless(sim)
        await sim.world.function("f", uid="f", namespace="hog")
        await asyncio.sleep(0.1)
        held = [sim.call("hog/f", ident="x" * 1000, dormouse_connection=str(n)) for n in range(10)]
        await asyncio.sleep(0.1)
        refused = [await each for each in held if each.done()]
        assert len(refused) == 6, "four of ten, with their frames, are half of what may be"
        assert all(each.code == Code.RESOURCE_EXHAUSTED and "for the namespace hog" in each.details for each in refused)
        neighbour = sim.call("plain", ident="x" * 2000, dormouse_connection="n")
        await asyncio.sleep(0.1)
        assert not neighbour.done(), "a single message is always taken"
        for each in held:
            each.cancel()
        await stateless(sim, A)
        assert (await neighbour).code == 0
        assert not sim.relay.bodies._for

    simulate(body, max_held_bytes=10_000)


def test_negative_control_without_a_share_of_its_own_it_would_take_all(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(sim: Sim) -> None:
        monkeypatch.setattr(sim.relay.bodies, "within", lambda *_: contextlib.nullcontext())
        await stateless(sim)
        await sim.world.function("f", uid="f", namespace="hog")
        await asyncio.sleep(0.1)
        held = [sim.call("hog/f", ident="x" * 1000, dormouse_connection=str(n)) for n in range(10)]
        await asyncio.sleep(0.1)
        neighbour = await sim.call("plain", ident="x" * 2000, dormouse_connection="n")
        assert neighbour.code == Code.RESOURCE_EXHAUSTED
        for each in held:
            each.cancel()
        await asyncio.sleep(0.1)

    simulate(body, max_held_bytes=10_000)


# --------------------------------------------------------------------------------------------------------------------- sessions


async def one_session(sim: Sim) -> tuple[list[int], int]:
    """Thirty held calls of one session, in no order: the order in which they came to the worker, and the most at once there."""
    await stateful(sim)
    now = round(sim.clock.now() * 1e6)
    order = list(range(30))
    random.Random(5).shuffle(order)
    calls = [sim.call("steps", 7, ident=str(n), dormouse_call=f"{now + n}-g-x-{n}") for n in order]
    await asyncio.sleep(1)
    await move(sim, A)
    await asyncio.gather(*calls)
    return [int(sent.id) for sent in sim.workers.sent], sim.workers.most


def test_held_calls_of_a_session_leave_one_by_one_by_timestamp() -> None:
    async def body(sim: Sim) -> None:
        assert await one_session(sim) == (list(range(30)), 1)

    simulate(body)


def test_without_turns_they_would_leave_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns.Turn, "mine", True)

    async def body(sim: Sim) -> None:
        order, most = await one_session(sim)
        assert most == 30
        assert order != list(range(30))

    simulate(body)


def test_an_older_call_overtakes_one_that_waits_and_not_one_that_runs() -> None:
    async def body(sim: Sim) -> None:
        await stateful(sim, A)
        now = round(sim.clock.now() * 1e6)

        def step(n: int) -> "asyncio.Task[Reply]":
            return sim.call("steps", 7, ident=str(n), dormouse_call=f"{now + n}-g-x-{n}")

        calls = [step(5)]
        await asyncio.sleep(0.002)
        calls += [step(9), step(1), step(3)]
        await asyncio.gather(*calls)
        assert [sent.id for sent in sim.workers.sent] == ["5", "1", "3", "9"]

    simulate(body)


def test_sessions_do_not_wait_for_one_another() -> None:
    async def body(sim: Sim) -> None:
        await stateful(sim, A)

        async def slow_seven(sent: Sent) -> Reply:
            await asyncio.sleep(60 if sent.id == "slow" else 0.01)
            return Reply(0)

        sim.workers.behave[A] = slow_seven
        slow = sim.call("steps", 7, ident="slow")
        behind = sim.call("steps", 7)
        began = sim.clock.monotonic()
        await asyncio.gather(*(sim.call("steps", n) for n in range(8, 100)))
        assert sim.clock.monotonic() - began < 1
        assert not behind.done()
        await asyncio.gather(slow, behind)

    simulate(body)


# ------------------------------------------------------------------------------------------------------------- busy and broken


async def crowd(sim: Sim, calls: int, room: int = 10) -> int:
    """Many calls for a worker that takes `room` at once: how many refusals it took."""
    await stateless(sim, A)
    inside = 0
    refusals = 0

    async def takes_ten(sent: Sent) -> Reply:
        nonlocal inside, refusals
        if inside >= room:
            refusals += 1
            return again(Again.BUSY)
        inside += 1
        try:
            return await good(sent)
        finally:
            inside -= 1

    sim.workers.behave[A] = takes_ten
    replies = await asyncio.gather(*(sim.call("plain") for _ in range(calls)))
    assert {reply.code for reply in replies} == {0}
    return refusals


@pytest.mark.parametrize(("why", "together"), [(Again.COUNTING, True), (Again.BUSY, False)])
def test_who_waits_for_a_count_keeps_nobody_else_waiting(why: Again, together: bool) -> None:
    """A new session's call does, while it is not known whether there is room for it. What is `busy` is the worker, for everybody."""

    async def body(sim: Sim) -> None:
        await stateful(sim, A)
        running, most, counted = 0, 0, False

        async def counts(sent: Sent) -> Reply:
            nonlocal running, most
            if sent.metadata["dormouse-call"].endswith("-new") and not counted:
                return again(why)
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.01)
            running -= 1
            return await good(sent)

        sim.workers.behave[A] = counts
        new = sim.call("steps", 99, dormouse_call=f"{1:016}-g-new")
        await asyncio.sleep(0.001)
        others = asyncio.gather(*(sim.call("steps", n) for n in range(1, 11)))
        await asyncio.sleep(0.035)
        assert (most == 10) == together
        counted = True
        assert {reply.code for reply in (await new, *await others)} == {0}

    simulate(body)


def test_a_busy_worker_is_not_asked_by_all_who_wait() -> None:
    async def body(sim: Sim) -> None:
        began = sim.clock.monotonic()
        assert await crowd(sim, 1000) < 600  # of these 246 at once: the window begins at maxConcurrency
        assert sim.clock.monotonic() - began < 4  # 1,000 calls, 10 at once, 12 ms each: 1.2 s at best

    simulate(body)


def test_without_gates_refusals_would_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates.Gate, "open", lambda self, now, waiting=0: True)

    async def body(sim: Sim) -> None:
        assert await crowd(sim, 200) > 2000

    simulate(body)


def test_a_dead_owner_is_tried_by_one_call_at_growing_intervals() -> None:
    async def body(sim: Sim) -> None:
        await stateful(sim, A)
        del sim.workers.behave[A]  # its lease still says that it lives
        calls = [sim.call("steps", n) for n in range(1, 500)]
        await asyncio.sleep(3)
        assert sim.demand.report()[0].held >= 498
        probes = len(sim.workers.sent) - 256
        assert probes < 30
        await move(sim, B)
        assert {(await call).code for call in calls} == {0}

    simulate(body)


def test_a_worker_that_comes_back_at_the_same_address_is_found() -> None:
    async def body(sim: Sim) -> None:
        await stateful(sim, A)
        behave = sim.workers.behave.pop(A)
        calls = [sim.call("steps", n) for n in range(1, 500)]
        await asyncio.sleep(10)
        sim.workers.behave[A] = behave
        back = sim.clock.monotonic()
        assert {(await call).code for call in calls} == {0}
        assert sim.clock.monotonic() - back < 2

    simulate(body)


@pytest.mark.parametrize("known", [True, False])
def test_a_key_that_envoy_made_by_a_clock_far_ahead_goes_on_with_the_time_that_the_agent_knows(known: bool) -> None:
    """Every worker would refuse it, and the call would wait until it is given up. Where no leader told the time, the workers judge."""

    async def body(sim: Sim) -> None:
        await stateful(sim, A)
        clock = Trusted(known)
        sim.relay._time = clock
        ids = ["g-nonce-1", "g-nonce-2", "g-nonce-3"]
        aheads = [0, callkeys.MAX_AHEAD_US, 3_600_000_000]
        for ident, ahead in zip(ids, aheads, strict=True):
            reply = await sim.call("steps", 1, dormouse_call=f"{clock.us + ahead:016d}-{ident}")
            assert reply.code == 0
        found = [callkeys.split(sent.metadata["dormouse-call"]) for sent in sim.workers.sent]
        aheads[2] = 0 if known else aheads[2]
        assert found == [(clock.us + ahead, ident) for ident, ahead in zip(ids, aheads, strict=True)]

    simulate(body)


class Trusted:
    """A clock that stands, known to be good or not."""

    us = 1_790_000_000_000_000

    def __init__(self, good: bool) -> None:
        self._good = good

    def read(self) -> tuple[int, bool]:
        return self.us, self._good

    def now_us(self) -> int | None:
        return self.us if self._good else None

    def best_us(self) -> int:
        return self.us


@pytest.mark.parametrize("why", list(Again))
def test_every_refusal_is_sent_again(why: Again) -> None:
    async def body(sim: Sim) -> None:
        await stateful(sim, A)
        await stateless(sim, A)
        left = 3

        async def refuses(sent: Sent) -> Reply:
            nonlocal left
            left -= 1
            return again(why) if left >= 0 else await good(sent)

        sim.workers.behave[A] = refuses
        assert (await sim.call("steps", 1)).code == 0
        left = 3
        assert (await sim.call("plain")).code == 0

    simulate(body)


# ------------------------------------------------------------------------------------------------------- functions and the store


def test_functions_that_cannot_be_served_are_refused_at_once() -> None:
    async def body(sim: Sim) -> None:
        began = sim.clock.monotonic()
        unknown = await sim.call("nobody")
        assert (unknown.code, "default/nobody" in unknown.details) == (Code.NOT_FOUND, True)
        await stateless(sim, replicas=0)
        assert (await sim.call("plain")).details == "function default/plain is stopped: spec.replicas is 0"
        problem = state_pb2.Problem(code=9, reason="ModelInvalid", message="opset 99", revision="r1")
        await stateless(sim, problem=problem)
        assert (await sim.call("plain")).code == Code.FAILED_PRECONDITION
        assert sim.clock.monotonic() - began < 1
        # Somebody of the older revision serves: the problem is the new one's.
        await stateless(sim, problem=problem, proved_revision="r0")
        function = await sim.world.function("plain", uid="p", problem=problem, proved_revision="r0")
        await sim.world.register(function, None, name="old", address=A, revision="r0")
        sim.workers.behave[A] = good
        await asyncio.sleep(0.1)
        assert (await sim.call("plain")).code == 0

    simulate(body)


def test_what_is_left_of_a_hold_is_never_less_than_a_clock_can_show() -> None:
    """A sum of times is off by its last digits: waited for that, a call would look again and again without a pause."""
    patience = Patience(Duration("60s"), math.inf)
    assert patience.refusal(1e6, 60 - 1e-10, late="", long="") is not None
    assert patience.refusal(1e6, 59.9, late="", long="") is None


def mute() -> state_pb2.Problem:
    return state_pb2.Problem(code=14, reason="WorkerFailed", message="it ended 3 times in a row", revision="r1", mute=True)


def test_calls_wait_for_workers_that_served_and_end_again_and_again() -> None:
    """Other calls may be what ends them. Of a revision that never served it is known at once that it cannot."""

    async def body(sim: Sim) -> None:
        await stateless(sim, problem=mute(), proved_revision="")
        assert (await sim.call("plain")).details == "function default/plain cannot be served: it ended 3 times in a row (WorkerFailed)"
        await stateless(sim, problem=mute(), proved_revision="r1")
        began = sim.clock.monotonic()
        reply = await sim.call("plain")
        assert sim.clock.monotonic() - began > 299
        assert "within the hold limit of 5m: no worker is ready (it ended 3 times in a row)" in reply.details
        held = sim.call("plain")
        await asyncio.sleep(30)
        await stateless(sim, A, problem=mute(), proved_revision="r1")
        assert (await held).code == 0

    simulate(body)


def test_negative_control_refused_at_once_they_are_convicted_with_what_ends_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table.Function, "refusal", lambda function, held=False, *, refusal=table.Function.refusal: refusal(function))
    with pytest.raises(AssertionError):
        test_calls_wait_for_workers_that_served_and_end_again_and_again()


@pytest.mark.parametrize("name", ["plain", "steps"])
def test_who_waits_is_told_what_is_wrong_and_nobody_waits_for_workers_that_cannot_begin(name: str) -> None:
    async def body(sim: Sim) -> None:
        shards, uid = (8, "u") if name == "steps" else (0, "p")
        await sim.world.function(name, shards=shards, uid=uid, problem=mute(), proved_revision="r1")
        await asyncio.sleep(0.1)
        for timeout in (None, 20.0):
            reply = await (sim.call(name, 1) if timeout is None else sim.call(name, 1, timeout=timeout))
            assert "(it ended 3 times in a row)" in reply.details
        cannot = state_pb2.Problem(code=14, reason="WorkerFailed", message="no configmap", revision="r1")
        await sim.world.function(name, shards=shards, uid=uid, problem=cannot, proved_revision="r1")
        await asyncio.sleep(0.1)
        began = sim.clock.monotonic()
        assert (await sim.call(name, 1)).details == f"function default/{name} cannot be served: no configmap (WorkerFailed)"
        assert sim.clock.monotonic() - began < 1

    simulate(body)


def test_a_held_call_hears_of_the_problem_and_of_the_deletion() -> None:
    async def body(sim: Sim) -> None:
        await stateless(sim)
        held = sim.call("plain")
        await asyncio.sleep(1)
        await stateless(sim, problem=state_pb2.Problem(code=14, reason="ModelUnavailable", message="404"))
        assert (await held).details == "function default/plain cannot be served: 404 (ModelUnavailable)"
        await stateless(sim)
        deleted, remade = sim.call("plain"), sim.call("plain")
        await asyncio.sleep(1)
        await stateless(sim, deleting=True)
        assert (await deleted).code == Code.NOT_FOUND
        await remade
        await stateless(sim)
        held = sim.call("plain")
        await asyncio.sleep(1)
        function = await sim.world.function("plain", uid="another")
        await sim.world.register(function, None, name="w", address=A)
        reply = await held
        assert (reply.code, "made again" in reply.details) == (Code.UNAVAILABLE, True), "it was meant for the one that is gone"

    simulate(body)


def test_a_held_call_hears_of_a_deletion_of_which_nothing_was_written() -> None:
    """As in a full store: the function is not marked, and then it is gone."""

    async def body(sim: Sim) -> None:
        await stateless(sim)
        held = sim.call("plain")
        await asyncio.sleep(1)
        assert not held.done()
        await sim.world.store.txn(Txn((), (Delete(sim.world.keys.function("default", "plain")),)))
        assert (await held).code == Code.NOT_FOUND

    simulate(body)


def test_a_store_that_is_away() -> None:
    async def body(sim: Sim) -> None:
        await stateful(sim, A)
        sim.store.down = True
        await asyncio.sleep(1)
        assert (await sim.call("steps", 1)).code == 0, "what is known serves on"
        unknown = await sim.call("nobody")
        assert unknown.code == Code.UNAVAILABLE, "not NOT_FOUND: nobody knows"
        left = 2

        async def refuses(sent: Sent) -> Reply:
            nonlocal left
            left -= 1
            return again(Again.DROPPED) if left >= 0 else await good(sent)

        sim.workers.behave[A] = refuses
        assert (await sim.call("steps", 1)).code == 0, "and is tried again by the map that is known"
        sim.store.down = False
        await asyncio.sleep(2)
        await move(sim, B)
        await asyncio.sleep(1)
        assert (await sim.call("steps", 1)).code == 0
        assert sim.workers.sent[-1].address == B

    simulate(body)


def test_a_call_of_a_function_that_is_not_known_waits_for_the_store() -> None:
    async def body(sim: Sim) -> None:
        sim.store.down = True
        held, nobody, late = sim.call("plain"), sim.call("nobody"), sim.call("plain", timeout=5)
        await asyncio.sleep(20)
        assert not held.done()
        assert not nobody.done()
        assert (await late).code == Code.DEADLINE_EXCEEDED
        assert len(sim.relay.waiting) == 2
        sim.store.down = False
        await stateless(sim, A)
        assert ((await held).code, (await nobody).code) == (0, Code.NOT_FOUND)
        assert len(sim.relay.waiting) == 0

    simulate(body)


def away(sim: Sim) -> None:
    """As the real client has it, which looks for a connection for the whole of its timeout."""
    sim.store.hook = lambda method, _: UNREACHED if method in ("get", "list") else None


def test_such_calls_are_bounded_and_have_their_end() -> None:
    """More names than are read at a time, each of which takes 5 s."""

    async def body(sim: Sim) -> None:
        away(sim)
        began, reads = sim.clock.monotonic(), sim.reads()
        calls = [sim.call(f"f{number}") for number in range(600)]
        soon = sim.call("f0", timeout=12.0)
        await asyncio.sleep(1)
        assert len(sim.relay.waiting) == 60
        refused = [await each for each in [*calls, soon] if each.done()]
        assert (len(refused), {each.code for each in refused}) == (541, {Code.RESOURCE_EXHAUSTED})
        assert "60 calls wait in this gateway, which is its limit" in refused[0].details
        calls.pop(59).cancel()
        await asyncio.sleep(1)
        soon = sim.call("f0", timeout=12.0)
        assert ((await soon).code, sim.clock.monotonic() - began) == (Code.DEADLINE_EXCEEDED, 14.0)
        ended = await asyncio.gather(*calls)
        assert {each.code for each in ended} == {Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE}
        assert sim.clock.monotonic() - began == Timeouts().hold.seconds
        assert sim.reads() - reads < 8 + 300 / 5, "who waits shares one ask"
        assert len(sim.relay.waiting) == 0

    simulate(body, max_held=20)


def test_other_methods_of_such_a_function_are_not_held() -> None:
    async def body(sim: Sim) -> None:
        away(sim)
        held = sim.call("plain")
        await asyncio.sleep(6)
        methods = Methods(sim.table, sim.relay._reads, sim.clock, sim.workers, waiting=sim.relay.waiting)
        began = sim.clock.monotonic()
        for name in ("ModelReady", "ModelMetadata", "ModelConfig"):
            message = inference_pb2.ModelReadyRequest(name="plain").SerializeToString()
            reply = await methods.call(relay.Request(f"{INFERENCE}{name}", message, {}))
            assert reply.code == Code.UNAVAILABLE
            assert reply.details.startswith("whether function default/plain exists is not known: the store did not answer")
        assert sim.clock.monotonic() == began
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)

    simulate(body)


def test_of_one_such_function_as_many_wait_as_of_any_other() -> None:
    async def body(sim: Sim) -> None:
        away(sim)
        calls = [sim.call("plain") for _ in range(5)]
        await asyncio.sleep(1)
        refused = [await each for each in calls if each.done()]
        assert [each.details for each in refused] == ["2 calls of function default/plain wait already; try again later"] * 3
        sim.store.hook = None
        await stateless(sim, A)
        assert Counter(each.code for each in await asyncio.gather(*calls)) == {0: 2, Code.RESOURCE_EXHAUSTED: 3}

    simulate(body, max_held=2)


def test_once_the_store_is_back_all_of_them_are_told_at_once() -> None:
    async def body(sim: Sim) -> None:
        away(sim)
        calls = [sim.call(f"f{number}") for number in range(100)]
        await asyncio.sleep(60)
        assert not any(each.done() for each in calls)
        sim.store.hook = None
        began = sim.clock.monotonic()
        assert {each.code for each in await asyncio.gather(*calls)} == {Code.NOT_FOUND}
        assert sim.clock.monotonic() - began < 6.0

    simulate(body)


def test_who_leaves_while_the_store_is_away_leaves_nobody_behind_who_asks() -> None:
    async def body(sim: Sim) -> None:
        away(sim)
        await asyncio.gather(*(sim.call(f"f{number}", timeout=8) for number in range(20)))
        await asyncio.sleep(10)
        reads = sim.reads()
        await asyncio.sleep(60)
        assert sim.reads() == reads
        sim.store.hook = None
        assert (await sim.call("f1")).code == Code.NOT_FOUND, "and who comes then reads for himself"

    simulate(body)


async def made_up(sim: Sim, names: Callable[[int], str]) -> list["asyncio.Task[Reply]"]:
    """While the store is away: more calls than may wait of names that nobody has, and then ten of a tenant's own function."""
    for namespace in ("team1", "team2"):
        await sim.world.function("f", namespace=namespace, uid=namespace)
    await asyncio.sleep(0.2)
    away(sim)
    hostile = [sim.call(names(number)) for number in range(200)]
    await asyncio.sleep(60)
    mine = [sim.call("team1/f") for _ in range(10)]
    await asyncio.sleep(1)
    for each in hostile:
        each.cancel()
    await asyncio.gather(*hostile, return_exceptions=True)
    return mine


@pytest.mark.parametrize("names", [lambda number: f"made-up-{number}/x", lambda number: f"team1/x{number}"])
def test_calls_of_names_that_are_made_up_leave_room_for_those_of_functions(names: Callable[[int], str]) -> None:
    async def body(sim: Sim) -> None:
        mine = await made_up(sim, names)
        assert [each.done() for each in mine] == [False] * 10
        for each in mine:
            each.cancel()
        await asyncio.gather(*mine, return_exceptions=True)
        assert len(sim.relay.waiting) == 0

    simulate(body, max_held=20)


def test_negative_control_under_the_names_that_callers_write_they_take_the_tenants_places(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(sim: Sim) -> None:
        enter, made = sim.relay.waiting.enter, iter(range(1_000))
        monkeypatch.setattr(sim.relay.waiting, "enter", lambda whose, known: enter(whose or f"made-up-{next(made)}", known))
        monkeypatch.setattr(sim.relay.waiting, "leave", lambda whose: None)
        mine = await made_up(sim, lambda number: f"made-up-{number}/x")
        assert {(await each).code for each in mine} == {Code.RESOURCE_EXHAUSTED}

    simulate(body, max_held=20)


def test_their_messages_leave_room_for_those_of_functions() -> None:
    async def body(sim: Sim) -> None:
        for namespace in ("team1", "team2"):
            await sim.world.function("f", namespace=namespace, uid=namespace)
        await asyncio.sleep(0.2)
        away(sim)
        hostile = [sim.call(f"made-up-{number}/x", ident="x" * 1_000) for number in range(100)]
        await asyncio.sleep(1)
        full = [(await each).details for each in hostile if each.done()]
        assert any("bytes of waiting messages for functions that it has not heard of, the share of 40000" in each for each in full)
        mine = [sim.call("team1/f", ident="x" * 1_000) for _ in range(10)]
        await asyncio.sleep(1)
        assert [each.done() for each in mine] == [False] * 10
        for each in [*hostile, *mine]:
            each.cancel()
        await asyncio.gather(*hostile, *mine, return_exceptions=True)
        assert sim.relay.bodies.held == 0

    simulate(body, max_held_bytes=40_000)


def test_an_entry_that_cannot_be_read_concerns_nobody_else() -> None:
    async def body(sim: Sim) -> None:
        await stateful(sim, A)
        await sim.world.put(sim.world.keys.function("default", "odd"), b"\xff\xff")
        await sim.world.put(f"{sim.world.keys.maps}default/steps/u/workers/odd", b"\xff\xff")
        await asyncio.sleep(0.1)
        assert (await sim.call("odd")).code == Code.INTERNAL
        assert (await sim.call("steps", 1)).code == 0

    simulate(body)
