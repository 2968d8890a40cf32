"""What one namespace and one connection may have open in a gateway: the rule by itself, its books, and streams and watches under it."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable

import pytest
from dormouse_core import shares
from dormouse_core.errors import Code, ResourceExhausted
from dormouse_core.seams import Delete, Reply, Txn
from dormouse_core.shares import OpenStream, OpenStreams, admits
from dormouse_gateway.serving.port import lasting
from dormouse_proto import inference_pb2
from dormouse_testing import simloop
from dormouse_testing.relaying import Caller, Sent, Sim, infers
from dormouse_testing.streaming_sim import A, simulate
from hypothesis import given, settings
from hypothesis import strategies as st

# -------------------------------------------------------------------------------------------------------------------- the rule


def fill(held: Counter[str], namespace: str, known: set[str], limit: int) -> int:
    """How many it may have, where it takes as many as it gets."""
    while held.total() < limit and admits(held, namespace, known, limit):
        held[namespace] += 1
    return held[namespace]


def test_of_two_each_gets_half_and_of_many_the_last_its_part() -> None:
    assert fill(Counter(), "a", {"a"}, 10_000) == 10_000, "alone it has everything"
    two: Counter[str] = Counter()
    assert [fill(two, each, {"a", "b"}, 10_000) for each in "ab"] == [5_000, 3_125]
    many: Counter[str] = Counter()
    names = [f"n{n}" for n in range(100)]
    found = [fill(many, each, set(names), 10_000) for each in names]
    assert found[0] == 25 + 3_750
    assert found[-1] >= 25, "however many take what they can get"


def test_what_is_not_listed_any_more_and_has_streams_counts_as_one_that_shares() -> None:
    held = Counter({"gone": 4_000})
    assert fill(held, "a", {"a"}, 10_000) < 6_000


def test_nobodys_have_what_is_kept_for_others_at_most_and_dilute_no_share() -> None:
    held: Counter[str] = Counter({"a": 1_000})
    assert fill(held, "", {"a", "b"}, 10_000) == 2_500
    assert [fill(held, each, {"a", "b"}, 10_000) for each in "ab"] == [3_750, 2_500]
    assert fill(Counter({"a": 8_000}), "", {"a"}, 10_000) == 2_000
    assert fill(Counter({"a": 9_000, "b": 500}), "", {"a", "b"}, 10_000) == 0, "they take nothing of what b has not taken yet"
    assert fill(Counter(), "", set(), 10_000) == 10_000


@given(
    st.integers(8, 400),
    st.sets(st.sampled_from("abcdef"), min_size=2),
    st.lists(st.tuples(st.sampled_from(["", *"abcdef"]), st.booleans()), max_size=400),
)
def test_whatever_others_do_a_namespace_gets_its_part(limit: int, known: set[str], moves: list[tuple[str, bool]]) -> None:
    held: Counter[str] = Counter()
    for namespace, more in moves:
        if namespace and namespace not in known:
            continue
        if more and admits(held, namespace, known, limit):
            held[namespace] += 1
        elif not more and held[namespace]:
            held[namespace] -= 1
    part = limit // 4 // len(known)
    for namespace in known:
        assert fill(Counter(held), namespace, known, limit) >= part
    assert held.total() <= limit


# ------------------------------------------------------------------------------------------------------------------- the books


class Books:
    """Streams under a limit. `lost`: whose place went to another, and what they were told."""

    def __init__(self, limit: int) -> None:
        self.streams = OpenStreams(limit)
        self.lost: list[tuple[str, str]] = []

    def open(self, connection: str, namespace: str = "", known: str = "ab") -> OpenStream:
        made = self.streams.open(connection)
        made.end = lambda error: self.lost.append((connection, error.message))
        if namespace:
            self.streams.name(made, namespace, set(known))
        return made


def test_at_the_limit_who_has_named_a_function_stays_and_the_most_silent_loses() -> None:
    books = Books(10)
    named = [books.open("1", "a") for _ in range(5)]
    few, many = books.open("few"), [books.open("many") for _ in range(4)]
    assert len(books.streams) == 10
    many.append(books.open("many"))
    new = books.open("new")
    assert [connection for connection, _ in books.lost] == ["many", "many"], "its oldest, to another and to one more of its own"
    assert "named no function" in books.lost[0][1]
    books.streams.leave(many[0])
    books.streams.name(many[0], "b", {"a", "b"})
    assert (len(books.streams), many[0].namespace) == (10, ""), "it has none to lose or to name any more"
    books.streams.name(new, "b", {"a", "b"})
    for each in [*named, few, *many, new]:
        books.streams.leave(each)
    assert len(books.streams) == 0


def test_where_each_connection_has_one_the_oldest_loses() -> None:
    books = Books(3)
    for connection in "1234":
        books.open(connection)
    assert [connection for connection, _ in books.lost] == ["1"]


def test_where_each_connection_has_one_a_caller_who_has_one_too_may_open_another() -> None:
    """A client that watches the gateway's health on the connection of its calls, among silent streams on as many connections as there is
    room for: it is let in, may name its function, and loses nothing."""
    books = Books(10)
    for connection in ("caller", *"123456789"):
        books.open(connection)
    stream = books.open("caller")
    books.streams.name(stream, "a", {"a", "b"})
    assert (stream.namespace, [connection for connection, _ in books.lost]) == ("a", ["1"])


def test_who_alone_has_the_most_loses_his_own_to_his_next() -> None:
    books = Books(3)
    for connection in ("1", "2", "2", "2"):
        books.open(connection)
    assert [connection for connection, _ in books.lost] == ["2"]


def test_where_all_have_named_functions_nobody_is_cut_for_the_next() -> None:
    books = Books(3)
    for _ in range(3):
        books.open("1", "a", known="a")
    with pytest.raises(ResourceExhausted):
        books.open("2")
    assert books.lost == []


def test_over_its_share_a_namespace_is_told_so_and_another_goes_on() -> None:
    books = Books(16)
    for _ in range(8):
        books.open("1", "a")
    with pytest.raises(ResourceExhausted, match="8 streams of the namespace a are open in this gateway, its share of 16"):
        books.open("1", "a")
    books.open("2", "b")


def test_negative_control_without_the_share_one_takes_all_and_the_next_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "admits", lambda *_: True)
    books = Books(16)
    for _ in range(16):
        books.open("1", "a")
    with pytest.raises(ResourceExhausted):
        books.open("2", "b")


MOVES = st.lists(st.tuples(st.sampled_from(["open", "name", "leave"]), st.sampled_from("123"), st.sampled_from("ab"), st.integers(0, 30)))


@given(MOVES, st.integers(1, 12))
@settings(max_examples=300)
def test_the_books_are_right_whatever_happens_and_empty_in_the_end(moves: list[tuple[str, str, str, int]], limit: int) -> None:
    streams, live = OpenStreams(limit), []

    def lost(stream: OpenStream) -> Callable[[object], None]:
        return lambda error: live.remove(stream)

    for what, connection, namespace, which in moves:
        before = list(live)
        if what == "open":
            try:
                made = streams.open(connection)
            except ResourceExhausted:
                assert len(live) == limit
                assert live == before
                continue
            made.end = lost(made)
            live.append(made)
            gone = set(before) - set(live)
            assert all(not each.namespace for each in gone)
            assert len(gone) == (len(before) == limit)
            for each in gone:
                mine = Counter(other.connection for other in before if not other.namespace)
                assert mine[each.connection] == max(mine.values())
                assert each.connection != connection or list(mine.values()).count(mine[connection]) == 1
        elif live:
            stream = live[which % len(live)]
            if what == "leave":
                live.remove(stream)
                streams.leave(stream)
                streams.leave(stream)
            else:
                try:
                    streams.name(stream, namespace, {"a", "b"})
                except ResourceExhausted:
                    assert not stream.namespace
        assert len(streams) == len(live) <= limit
    for stream in live:
        streams.leave(stream)
    assert len(streams) == 0
    assert (streams._held, streams._nobodys, streams._ranks, streams._most) == ({}, {}, {}, 0)


# ------------------------------------------------------------------------------------------------------------------ the streams


async def functions(sim: Sim) -> None:
    """`f` in the namespaces default and hog, both served."""
    for namespace in ("default", "hog"):
        function = await sim.world.function("f", uid=namespace, namespace=namespace)
        await sim.world.register(function, None, name=f"w-{namespace}", address=A)
    sim.workers.behave[A] = infers
    await asyncio.sleep(0.1)


def opened(sim: Sim, connection: str, model: str = "") -> Caller:
    caller = sim.open({"dormouse-connection": connection})
    if model:
        caller.send(model, "x")
    return caller


async def left(callers: list[Caller]) -> None:
    for each in callers:
        await each.cancel()


def refused(callers: list[Caller]) -> list[str]:
    done = [each for each in callers if each.task.done()]
    assert {each.code for each in done} <= {Code.RESOURCE_EXHAUSTED}
    return [each.details for each in done]


def test_a_namespaces_streams_leave_room_for_anothers_from_whatever_connections() -> None:
    async def body(sim: Sim) -> None:
        await functions(sim)
        hog = []
        for n in range(30):
            hog.append(opened(sim, str(n), "hog/f"))
            await asyncio.sleep(0.01)
        await asyncio.sleep(1)
        assert len(refused(hog)) == 20
        assert all("streams of the namespace hog are open in this gateway, its share of 20" in text for text in refused(hog))
        near = [opened(sim, "n", "f") for _ in range(6)]
        await asyncio.gather(*(each.answers(1, 5) for each in near))
        assert len(refused(hog)) == 20, "nobody that runs is cut for them"
        assert Counter(sim.counted) == {0: 16, Code.RESOURCE_EXHAUSTED: 20}
        await left([*hog, *near])

    simulate(body, max_streams=20)


def test_negative_control_in_one_namespace_it_has_everything() -> None:
    async def body(sim: Sim) -> None:
        await functions(sim)
        hog = [opened(sim, str(n), "f") for n in range(10)]
        await sim.world.store.txn(Txn((), (Delete(f"{sim.world.keys.functions}hog/f"),)))
        await asyncio.sleep(1)
        hog += [opened(sim, str(n), "f") for n in range(20)]
        await asyncio.sleep(1)
        assert len(refused(hog)) == 10
        near = opened(sim, "n", "f")
        await near.ended()
        assert "20 streams are open in this gateway" in near.details
        await left(hog)

    simulate(body, max_streams=20)


def test_silent_streams_and_those_of_no_function_keep_nobody_out() -> None:
    async def body(sim: Sim) -> None:
        await functions(sim)
        silent = [opened(sim, "1", "" if n % 2 else "made-up/f") for n in range(20)]
        quiet = opened(sim, "2")
        await asyncio.sleep(1)
        near = [opened(sim, "n", "f") for _ in range(4)]
        await asyncio.gather(*(each.answers(1, 5) for each in near))
        assert not quiet.task.done(), "who has few of them keeps his"
        assert len(refused(silent)) == 5
        assert all("named no function" in text for text in refused(silent))
        quiet.send("f", "late")
        await quiet.answers(1, 5)
        await left([*silent, quiet, *near])

    simulate(body, max_streams=20)


async def large(sent: Sent) -> Reply:
    """1,000 bytes and some."""
    return Reply(0, inference_pb2.ModelInferResponse(id=sent.id, raw_output_contents=[bytes(1000)]).SerializeToString())


async def unread(sim: Sim, model: str) -> list[Caller]:
    """Ten callers, each on a connection of its own, who do not read their answers."""
    callers = []
    for n in range(10):
        callers.append(sim.open({"dormouse-connection": str(n)}))
        callers[-1].stop_reading()
        callers[-1].send(model, "x")
        await asyncio.sleep(0.1)
    await asyncio.sleep(1)
    return callers


def test_answers_that_nobody_reads_leave_room_for_anothers() -> None:
    async def body(sim: Sim) -> None:
        await functions(sim)
        sim.workers.behave[A] = large
        hog = await unread(sim, "hog/f")
        assert len(refused(hog)) == 6, "four of ten are less than half of what may be"
        assert all("bytes of waiting messages for the namespace hog, its share of 10000" in text for text in refused(hog))
        near = [opened(sim, "n", "f") for _ in range(2)]
        await asyncio.gather(*(each.answers(1, 5) for each in near))
        for each in hog:
            each.read_on()
        await asyncio.sleep(1)
        assert [len(each.responses) for each in hog if not each.task.done()] == [1] * 4
        assert sim.relay.bodies.held == 0
        await left([*hog, *near])

    simulate(body, max_held_bytes=10_000)


def test_negative_control_in_one_namespace_unread_answers_take_all() -> None:
    async def body(sim: Sim) -> None:
        await functions(sim)
        await sim.world.store.txn(Txn((), (Delete(f"{sim.world.keys.functions}hog/f"),)))
        await asyncio.sleep(1)
        sim.workers.behave[A] = large
        first = await unread(sim, "f")
        assert len(refused(first)) == 1
        near = opened(sim, "n", "f")
        await near.ended()
        assert "the gateway holds 10000 bytes of waiting messages" in near.details
        await left(first)

    simulate(body, max_held_bytes=10_000)


@pytest.mark.parametrize("end", ["half close", "cancel", "deadline", "status", "unread", "bug", "drain", "share", "place"])
def test_a_place_is_given_back_however_a_stream_ends(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`simulate` asks in the end that nothing is counted any more."""

    async def body(sim: Sim) -> None:
        await functions(sim)
        metadata = {"dormouse-connection": "1", **({"triton_grpc_error": "true"} if end == "status" else {})}
        if end == "bug":
            monkeypatch.setattr("dormouse_gateway.serving.streams.Stream.receive", lambda *_, **__: 1 / 0)
        if end == "share":
            monkeypatch.setattr(shares, "admits", lambda *_: False)
        caller = sim.open(metadata, timeout=5 if end == "deadline" else None)
        if end != "place":
            caller.send("nobody" if end == "status" else "f", "x")
        if end == "unread":
            caller.stop_reading()
        await asyncio.sleep(1)
        if end == "half close":
            caller.half_close()
        elif end in ("cancel", "unread"):
            await caller.cancel()
        elif end == "drain":
            sim.streaming.drain()
        elif end == "place":
            assert len(sim.quotas) == 2
            near = opened(sim, "2")
            await caller.ended()
            await near.cancel()
        await asyncio.gather(caller.task, return_exceptions=True)
        assert len(sim.quotas) == 0

    simulate(body, max_streams=1)


# ------------------------------------------------------------------------------------------------------------------- the watches


async def forever(closed: list[bool]) -> AsyncIterator[bytes]:
    try:
        yield b"1"
        await asyncio.Event().wait()
    finally:
        closed.append(True)


def test_a_watch_ends_where_its_place_goes_to_another_and_as_it_did_where_its_caller_leaves() -> None:
    async def main() -> None:
        streams, closed, heard = OpenStreams(1), list[bool](), list[bytes]()

        async def watch(connection: str) -> None:
            async for message in lasting(forever(closed), streams.open(connection)):  # type: ignore[arg-type]
                heard.append(message)

        first = asyncio.create_task(watch("1"))
        await asyncio.sleep(1)
        second = asyncio.create_task(watch("2"))
        with pytest.raises(ResourceExhausted, match="to make room for others"):
            await first
        assert closed == [True]
        await asyncio.sleep(1)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert (closed, heard) == ([True, True], [b"1", b"1"])

    simloop.run(main())


def test_a_stream_that_writes_to_who_does_not_read_ends_too_when_it_loses_its_place() -> None:
    async def endless() -> AsyncGenerator[bytes]:
        while True:
            yield b"1"

    async def main() -> None:
        streams, began = OpenStreams(1), asyncio.Event()

        async def reflection() -> None:
            async for _ in lasting(endless(), streams.open("1")):  # type: ignore[arg-type]
                began.set()
                await asyncio.Event().wait()  # the write that nobody takes

        serving = asyncio.create_task(reflection())
        await began.wait()
        streams.open("2")
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(serving, 1)

    simloop.run(main())
