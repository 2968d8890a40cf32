"""The leader's orders to a worker, of a leader that leads and of one that leads no more."""

import asyncio
from collections.abc import Callable
from typing import Any

from dormouse_proto import control_pb2, state_pb2
from dormouse_testing import simloop
from dormouse_worker.serving.control import Control
from dormouse_worker.transport import frames
from dormouse_worker.transport.asgi import Exchange

HELLO = control_pb2.WorkerOrder.Hello
NO_TAKER = control_pb2.WorkerOrder(no_taker=control_pb2.WorkerOrder.NoTaker())


class Stream:
    """One leader's stream, as the worker's side sees it."""

    def __init__(self) -> None:
        self._orders: asyncio.Queue[bytes] = asyncio.Queue()

    async def chunk(self) -> tuple[bytes, bool]:
        return await self._orders.get(), True

    async def begin(self) -> None:
        return

    async def write(self, message: bytes) -> None:
        return

    async def say(self, order: control_pb2.WorkerOrder) -> None:
        self._orders.put_nowait(frames.frame(order.SerializeToString()))
        await asyncio.sleep(0.01)


def told(story: Callable[[Callable[[], Stream]], Any]) -> list[str]:
    """The orders that the worker obeyed."""
    obeyed: list[str] = []

    async def main() -> None:
        control = Control(
            lambda first: control_pb2.WorkerReport(),
            lambda: obeyed.append("drain"),
            lambda: obeyed.append("no taker"),
            lambda limits: obeyed.append("limits"),
            lambda time: obeyed.append("time"),
        )
        tasks = []

        def stream() -> Stream:
            made = Stream()
            tasks.append(asyncio.create_task(control.serve(made)))  # type: ignore[arg-type]
            return made

        await story(stream)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    simloop.run(main())
    return obeyed


def two_leaders(former_term: int, term: int) -> list[str]:
    """What the worker obeys of the former leader once another has said hello."""

    async def story(stream: Callable[[], Stream]) -> None:
        former, leader = stream(), stream()
        await former.say(control_pb2.WorkerOrder(hello=HELLO(leader="a", term=former_term)))
        await leader.say(control_pb2.WorkerOrder(hello=HELLO(leader="b", term=term)))
        await former.say(NO_TAKER)
        await former.say(control_pb2.WorkerOrder(limits=control_pb2.WorkerOrder.Limits()))
        again = stream()
        await again.say(control_pb2.WorkerOrder(hello=HELLO(leader="a", term=former_term)))
        await again.say(NO_TAKER)

    return told(story)


def test_a_former_leaders_orders_are_none() -> None:
    assert two_leaders(7, 9) == []


def test_negative_control_without_terms_they_would_be_obeyed() -> None:
    assert two_leaders(0, 0) == ["no taker", "limits", "no taker"]


def test_the_leaders_orders_and_those_of_the_next_are_obeyed() -> None:
    async def story(stream: Callable[[], Stream]) -> None:
        first = stream()
        await first.say(control_pb2.WorkerOrder(hello=HELLO(leader="a", term=7)))
        await first.say(NO_TAKER)
        second = stream()
        await second.say(control_pb2.WorkerOrder(hello=HELLO(leader="b", term=9)))
        await second.say(control_pb2.WorkerOrder(drain=control_pb2.WorkerOrder.Drain()))

    assert told(story) == ["no taker", "drain"]


def test_metadata_is_in_the_first_report_and_again_when_it_changed() -> None:
    said: list[bool] = []

    async def main() -> None:
        control = Control(
            lambda whole: said.append(whole) or control_pb2.WorkerReport(),
            lambda: None,
            lambda: None,
            lambda limits: None,
            lambda time: None,
            informed=lambda batching: control.described_anew(),
        )
        stream = Stream()
        task = asyncio.create_task(control.serve(stream))  # type: ignore[arg-type]
        await stream.say(control_pb2.WorkerOrder(hello=HELLO(leader="a", report_interval_ms=1000)))
        await asyncio.sleep(1.5)
        assert said == [True, False, False]
        await stream.say(control_pb2.WorkerOrder(batching=state_pb2.Batching(key="kept")))
        assert said == [True, False, False, True], "at once, for the leader tells others of it"
        await asyncio.sleep(1.5)
        assert said[4:] == [False]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    simloop.run(main())


def test_a_leader_that_names_no_election_is_of_an_earlier_release_and_obeyed() -> None:
    async def story(stream: Callable[[], Stream]) -> None:
        await stream().say(control_pb2.WorkerOrder(hello=HELLO(leader="b", term=9)))
        earlier = stream()
        await earlier.say(control_pb2.WorkerOrder(hello=HELLO(leader="a")))
        await earlier.say(NO_TAKER)

    assert told(story) == ["no taker"]


async def test_who_waits_for_a_caller_may_be_cancelled_and_pyvoys_future_is_not() -> None:
    """It is answered when the call ends. pyvoy logs a traceback where it cannot: each drain left one."""
    answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
    exchange = Exchange({"path": "/", "method": "POST", "headers": []}, lambda: answer, None, 1)  # type: ignore[arg-type]  # it sends nothing
    waiting = asyncio.create_task(exchange.chunk())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert not answer.done()
    answer.set_result({"type": "http.disconnect"})
