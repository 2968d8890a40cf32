"""Room for messages that have begun: within a share without a limit of time, beyond it the oldest makes room."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from dormouse_core.errors import ResourceExhausted
from dormouse_core.limits import MESSAGE_STALL_SECONDS, PRESSED_STALL_SECONDS
from dormouse_gateway.serving.unfinished import Place, Unfinished, announced, small
from dormouse_testing import simloop
from dormouse_testing.clock import SimClock


class Room:
    """100 bytes, 60 of one connection. `ended`: who lost his place, and what he was told."""

    def __init__(self) -> None:
        self.unfinished = Unfinished(SimClock(), 100, 60)
        self.ended: dict[str, str] = {}

    async def begin(self, name: str, size: int, connection: str) -> Place:
        def end(error: ResourceExhausted) -> None:
            assert name not in self.ended
            self.ended[name] = error.message

        return await self.unfinished.begin(size, connection, end)


def simulated(body: Callable[[Room], "asyncio.Future[None]"]) -> Callable[[], None]:
    async def main() -> None:
        room = Room()
        await body(room)

    def test() -> None:
        simloop.run(main())

    test.__doc__ = body.__doc__
    return test


@simulated
async def test_while_there_is_room_a_message_may_take_as_long_as_it_likes(room: Room) -> None:
    first = await room.begin("first", 60, "1")
    await asyncio.sleep(3600)
    second = await room.begin("second", 40, "2")
    assert room.ended == {}
    room.unfinished.finish(first)
    room.unfinished.finish(second)
    room.unfinished.finish(second)
    assert (room.unfinished.bytes, len(room.unfinished._of), len(room.unfinished._places)) == (0, 0, 0)


@simulated
async def test_a_single_message_always_has_room(room: Room) -> None:
    await room.begin("large", 1000, "1")
    assert room.unfinished.bytes == 1000


@simulated
async def test_beyond_a_connections_share_the_next_is_refused_until_the_oldest_is_old(room: Room) -> None:
    await room.begin("first", 60, "1")
    with pytest.raises(ResourceExhausted, match="60 bytes of unfinished messages of this connection found, at most 60 are allowed"):
        await room.begin("second", 1, "1")
    await room.begin("other", 1, "2")
    await asyncio.sleep(MESSAGE_STALL_SECONDS + 1)
    await room.begin("second", 1, "1")
    assert list(room.ended) == ["first"]
    assert "was not whole after 31 s" in room.ended["first"]


@simulated
async def test_where_room_is_short_the_next_waits_for_a_place_or_takes_the_oldests(room: Room) -> None:
    await room.begin("first", 60, "1")
    second = await room.begin("second", 40, "2")
    clock = SimClock()
    began = clock.monotonic()
    waits = asyncio.create_task(room.begin("third", 30, "3"))
    await asyncio.sleep(0.1)
    assert not waits.done()
    room.unfinished.finish(second)
    await waits
    assert (room.ended, clock.monotonic() - began) == ({}, pytest.approx(0.1, abs=0.01))
    await room.begin("fourth", 50, "4")
    assert list(room.ended) == ["first"]
    assert clock.monotonic() - began == pytest.approx(PRESSED_STALL_SECONDS, abs=0.01)


@simulated
async def test_who_stops_waiting_leaves_nothing(room: Room) -> None:
    await room.begin("first", 60, "1")
    await room.begin("second", 40, "2")
    waits = asyncio.create_task(room.begin("third", 30, "3"))
    await asyncio.sleep(0.1)
    waits.cancel()
    await asyncio.sleep(10)
    assert (room.ended, room.unfinished.bytes) == ({}, 100)


def test_an_announcement_has_the_word_that_no_caller_knows() -> None:
    assert announced(b"\0word12345", "word") == 12345
    for message in (b"\0wore12345", b"word12345", b"\0word", b"\0word-1", b"\0word1x", b""):
        assert announced(message, "word") is None
    assert announced(b"\x0012", "") is None, "where Envoy announces nothing, nothing is an announcement"


async def test_a_stream_of_small_messages_has_no_large_one() -> None:
    async def messages() -> AsyncIterator[bytes]:
        yield b"small"
        yield b"\0word9000"
        raise AssertionError("it is not read")

    found = small(messages(), "word")
    assert await anext(found) == b"small"
    with pytest.raises(ResourceExhausted, match="a message of 9000 bytes found, at most 8191 are allowed for this method"):
        await anext(found)
