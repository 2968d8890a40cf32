"""What the map says of a call that is at a worker, row by row; and that one call's end is nothing to another's."""

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any

import pytest
from dormouse_core.headernames import BROKEN
from dormouse_core.seams import Reply
from dormouse_core.spec.objects import FunctionSpec, Model
from dormouse_gateway.relay.flights import GRACE_GONE, GRACE_MOVED, Flights, lost
from dormouse_gateway.watching.table import Function, Shard, Worker
from dormouse_proto import state_pb2
from dormouse_testing import simloop

SHARD = 3


def worker(name: str, *, draining: bool = False, revision: str = "r1") -> Worker:
    return Worker(name, f"{name}:9000", revision, draining)


MINE = worker("mine")
OTHER = worker("other")


def function(*workers: Worker, owner: str = "", uid: str = "u", resend: bool = True) -> Function:
    """`owner`: of `SHARD`; '': stateless."""
    entry = state_pb2.FunctionEntry(namespace="ns", name="fn", uid=uid, revision="r1", proved_revision="r1", shards=8 if owner else 0)
    spec = FunctionSpec(runtime="onnx", model=Model(uri="file:///m.onnx"), retry_stateless=resend)
    shards: Mapping[int, Shard] = {SHARD: Shard(owner, 5)} if owner else {}
    return Function(entry, spec, {each.name: each for each in workers}, shards)


STATELESS: dict[str, tuple[Function, float | None]] = {
    "it is gone and another takes calls": (function(OTHER), GRACE_GONE),
    "it lives": (function(MINE, OTHER), None),
    "it drains and lives": (function(worker("mine", draining=True), OTHER), None),
    "nobody is there": (function(), None),
    "nobody takes calls": (function(worker("other", draining=True)), None),
    "nobody of the revision takes calls": (function(worker("other", revision="r0")), None),
    "it must not run twice": (function(OTHER, resend=False), None),
    "another life of the name": (function(OTHER, uid="u2"), None),
}
STATEFUL: dict[str, tuple[Function, float | None]] = {
    "it is gone and another owns": (function(OTHER, owner="other"), GRACE_GONE),
    "it lives and another owns": (function(MINE, OTHER, owner="other"), GRACE_MOVED),
    "it owns": (function(MINE, OTHER, owner="mine"), None),
    "nobody owns": (function(MINE, OTHER, owner="dead"), None),
    "another life of the name": (function(OTHER, owner="other", uid="u2"), None),
}


@pytest.mark.parametrize("name", STATELESS)
def test_a_stateless_call(name: str) -> None:
    seen, grace = STATELESS[name]
    found = lost(seen, "u", MINE, None)
    assert (None if found is None else (found.grace, found.why)) == (None if grace is None else (grace, "gone"))


@pytest.mark.parametrize("name", STATEFUL)
def test_a_step(name: str) -> None:
    seen, grace = STATEFUL[name]
    found = lost(seen, "u", MINE, SHARD)
    why = "moved" if grace == GRACE_MOVED else "gone"
    assert (None if found is None else (found.grace, found.why)) == (None if grace is None else (grace, why))


# ------------------------------------------------------------------------------------------------------------- under way

OWNED, MOVED = function(MINE, OTHER, owner="mine"), function(MINE, OTHER, owner="other")
GONE = function(OTHER, owner="other")


async def never() -> Reply:
    await asyncio.Event().wait()
    raise AssertionError


def carried(flights: Flights, answer: Awaitable[Reply]) -> "asyncio.Task[Reply]":
    return asyncio.ensure_future(flights.carry(OWNED, MINE, SHARD, 5, answer))


def simulated(main: Any) -> None:
    simloop.run(main())


def test_where_the_owner_dies_after_the_handoff_its_grace_is_over() -> None:
    async def main() -> None:
        flights, now = Flights(), asyncio.get_running_loop().time
        call = carried(flights, never())
        await asyncio.sleep(0)
        began = now()
        flights.changed(MOVED, 6)
        await asyncio.sleep(GRACE_MOVED / 4)
        flights.changed(GONE, 7)
        assert (await call).metadata[BROKEN] == "gone"
        assert now() - began == pytest.approx(GRACE_MOVED / 4 + GRACE_GONE, abs=0.01)

    simulated(main)


def test_one_calls_end_is_nothing_to_another_and_the_last_ones_leaves_nothing() -> None:
    async def main() -> None:
        flights, answer = Flights(), asyncio.get_running_loop().create_future()
        first, second = carried(flights, answer), carried(flights, never())
        await asyncio.sleep(0)
        answer.set_result(Reply(0, b"A"))
        assert (await first).message == b"A"
        flights.changed(GONE, 6)
        async with asyncio.timeout(2 * GRACE_GONE):
            assert (await second).metadata[BROKEN] == "gone"
        assert flights._flights == {}, "a function that is called no more is not remembered"

    simulated(main)


def test_an_answer_that_takes_its_time_to_be_cancelled_is_given_up_once() -> None:
    """The map changes again between the end of the grace and the end of the call."""

    async def main() -> None:
        flights, cancelled = Flights(), asyncio.Event()

        async def slow() -> Reply:
            try:
                return await never()
            finally:
                cancelled.set()
                await asyncio.sleep(1)

        call = carried(flights, slow())
        await asyncio.sleep(0)
        flights.changed(GONE, 6)
        await cancelled.wait()
        flights.changed(OWNED, 7)
        assert (await call).metadata[BROKEN] == "gone"

    simulated(main)


def test_a_timeout_of_the_answers_own_is_its_own() -> None:
    async def main() -> None:
        async def late() -> Reply:
            raise TimeoutError("mine")

        with pytest.raises(TimeoutError, match="mine"):
            await carried(Flights(), late())

    simulated(main)
