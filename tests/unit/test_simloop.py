"""Simulated time: jumps when idle, is deterministic, and says when nothing will ever happen."""

import asyncio
import time

import pytest
from dormouse_testing import simloop
from dormouse_testing.clock import ManualClock, SimClock


def test_an_hour_takes_no_time() -> None:
    async def main() -> float:
        clock = SimClock()
        began = clock.monotonic()
        await clock.sleep(3600)
        return clock.monotonic() - began

    began = time.perf_counter()
    assert simloop.run(main()) == pytest.approx(3600)
    assert time.perf_counter() - began < 1


def test_timeouts_and_timers_fire_in_order() -> None:
    async def main() -> list[str]:
        seen: list[str] = []

        async def after(seconds: float, name: str) -> None:
            await asyncio.sleep(seconds)
            seen.append(name)

        async with asyncio.TaskGroup() as group:
            for seconds in (3.0, 1.0, 2.0):
                group.create_task(after(seconds, f"{seconds:g}"))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.sleep(10), 1.5)
            seen.append("timeout")
        return seen

    assert simloop.run(main()) == ["1", "timeout", "2", "3"]


def test_the_same_program_gives_the_same_history() -> None:
    async def main() -> list[tuple[float, int]]:
        clock = SimClock()
        seen: list[tuple[float, int]] = []

        async def tick(number: int) -> None:
            for _ in range(5):
                await clock.sleep(0.1 * (number % 3 + 1))
                seen.append((clock.monotonic(), number))

        await asyncio.gather(*(tick(number) for number in range(10)))
        return seen

    assert simloop.run(main()) == simloop.run(main())


def test_waiting_for_what_never_comes_is_an_error() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        simloop.run(main(), limit=60)
    with pytest.raises(simloop.Deadlock):
        simloop.run(main(), limit=None)


def test_what_runs_on_and_on_at_one_moment_is_an_error() -> None:
    def again() -> None:
        asyncio.get_running_loop().call_soon(again)

    async def main() -> None:
        again()
        await asyncio.sleep(1)

    with pytest.raises(simloop.Livelock, match="the clock stands still"):
        simloop.run(main())


def test_a_task_that_fails_unseen_fails_the_run() -> None:
    async def fail() -> None:
        raise ValueError("unseen")

    async def main() -> None:
        task = asyncio.create_task(fail())
        await asyncio.sleep(1)
        del task

    with pytest.raises(AssertionError, match="unseen"):
        simloop.run(main())


def test_the_real_world_is_refused() -> None:
    async def main() -> None:
        await asyncio.to_thread(print)

    with pytest.raises(RuntimeError, match="no threads"):
        simloop.run(main())


def test_skew_is_of_the_wall_clock_only() -> None:
    async def main() -> None:
        right, wrong = SimClock(), SimClock(skew=-30)
        assert right.now() - wrong.now() == 30
        assert right.monotonic() == wrong.monotonic()

    simloop.run(main())


async def test_manual_clock_wakes_sleepers_in_order() -> None:
    clock = ManualClock()
    seen: list[float] = []

    async def sleep(seconds: float) -> None:
        await clock.sleep(seconds)
        seen.append(seconds)

    tasks = [asyncio.create_task(sleep(seconds)) for seconds in (2.0, 1.0, 3.0)]
    await asyncio.sleep(0)
    clock.advance(2.5)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert seen == [1.0, 2.0]
    clock.advance(0.5)
    await asyncio.gather(*tasks)
    assert seen == [1.0, 2.0, 3.0]
