"""What ends a term of leadership, and what ends the process."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from dormouse_core.errors import Unavailable
from dormouse_core.seams import StoreError
from dormouse_operator import terms


def test_a_lost_lease_ends_the_term_and_not_the_process_and_no_task_of_the_term_is_left() -> None:
    codes, alone, left = [terms.LOST, terms.CLOCK, terms.LOST, 0], list[bool](), list[asyncio.Task[None]]()
    ended: list[int] = []

    async def believes() -> None:
        try:
            await asyncio.sleep(1e9)
        finally:
            ended.append(len(left))

    async def run(lonely: bool) -> int:
        assert all(task.done() for task in left), "a former leader's"
        alone.append(lonely)
        left.append(asyncio.create_task(believes()))
        await asyncio.sleep(0)
        return codes.pop(0)

    assert terms.again(run) == 0
    assert alone == [False, False, True, False]
    assert ended == [1, 2, 3, 4]


def test_negative_control_an_error_of_ours_ends_the_process() -> None:
    ran: list[bool] = []

    async def run(alone: bool) -> int:
        ran.append(alone)
        return 1

    assert terms.again(run) == 1
    assert ran == [False]


class Played:
    """A leader whose run ends in `error`, and its election. As a service it can be stopped."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error
        self.timekeeper = SimpleNamespace(off=asyncio.Event())
        self.lost = asyncio.Event()

    async def run(self) -> None:
        await asyncio.sleep(0)
        if self._error is not None:
            raise self._error
        await asyncio.sleep(1e9)

    async def listed(self, running: asyncio.Task[None]) -> None:
        return None

    async def stop(self) -> None:
        return None


async def led(played: Any, serving: Exception | None = None) -> int:
    async def serve() -> Any:
        if serving is not None:
            raise serving
        return played

    return await terms.lead(played, played, asyncio.Event(), serve)


@pytest.mark.parametrize(("lost", "said"), [(True, "the lease is lost"), (False, "leads no more")])
async def test_a_lost_lease_is_told_where_it_is_lost_alone(lost: bool, said: str, events: pytest.LogCaptureFixture) -> None:
    played = Played()

    async def kept_out() -> None:
        if lost:
            played.lost.set()
            await asyncio.sleep(1e9)

    async def serve() -> Any:
        return played

    leader: Any = played
    assert await terms.lead(leader, leader, asyncio.Event(), serve, [kept_out]) == terms.LOST
    assert said in events.text
    assert ("the lease is lost" in events.text) is lost


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StoreError("away"), terms.LOST),
        (ExceptionGroup("loops", [StoreError("away"), ExceptionGroup("more", [StoreError("slow")])]), terms.LOST),
        (ExceptionGroup("loops", [StoreError("away"), ValueError("ours")]), 1),
        (ValueError("ours"), 1),
    ],
)
async def test_a_store_that_does_not_answer_is_no_reason_to_exit_and_an_error_of_ours_is(error: Exception, code: int) -> None:
    assert await led(Played(error)) == code


@pytest.mark.parametrize(("error", "code"), [(StoreError("away"), terms.LOST), (Unavailable("the port is taken"), 1)])
async def test_who_cannot_begin_to_serve_stands_again_only_where_it_is_the_store(error: Exception, code: int) -> None:
    assert await led(Played(), error) == code


async def test_a_lost_lease_is_a_lost_term() -> None:
    played = Played()
    played.lost.set()
    assert await led(played) == terms.LOST
