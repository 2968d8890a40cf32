"""Rule *confirmed-no* where it is narrowest: a call that comes while its session is read for the call before it."""

from typing import Any

import pytest
from dormouse_core.sessions.boundary import Step
from dormouse_core.sessions.memory import Session
from dormouse_core.sessions.names import session_key, shard_of
from dormouse_core.sessions.turns import Turns
from dormouse_testing.clock import SimClock
from dormouse_testing.memory_store import Fault, MemoryStore
from dormouse_testing.session_worker import SHARDS, Worker, error, give, simulated


async def two_owners() -> str:
    """What the former owner tells a call that came when the session was there already; '': the step's answer. It has not heard that it
    was replaced, and the read for another call, whose answer is on the way, is of before."""
    store = MemoryStore(SimClock())
    late = store.client()
    async with Worker(late, "w-1") as former, Worker(store.client(), "w-2") as owner:
        shard = shard_of(session_key("", "a"), SHARDS)
        await former.own()
        late.watch_delay = 60.0
        late.fault("get", Fault(reply_delay=2.0))
        first = former.submit("a", 1, create=False)
        await former.sessions._clock.sleep(0.5)
        await give(store, shard, "w-2", epoch=2)
        await owner.sessions._clock.sleep(0.5)
        assert (await owner.call("a", 2, start=True)).error is None
        second = former.submit("a", 3, create=False)
        assert "START flag" in str(error(await first)), "when it came there was none"
        answer = await second
        return "" if answer.error is None else str(answer.error)


@simulated
async def test_a_read_of_before_the_call_is_made_again() -> None:
    assert "START flag" not in await two_owners()


def test_without_the_age_of_the_read_a_session_that_lives_would_be_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that counts for every call that waits when its answer comes."""
    loaded, turn = Turns.loaded, Turns._turn
    waiting: dict[Session, list[Step]] = {}

    def load(self: Turns, session: Session, *args: Any) -> None:
        waiting[session] = list(session.queue)
        loaded(self, session, *args)
        del waiting[session]

    def take(self: Turns, session: Session, step: Step) -> None:
        if step in waiting.get(session, ()):
            session.confirmed = step
        turn(self, session, step)

    monkeypatch.setattr(Turns, "loaded", load)
    monkeypatch.setattr(Turns, "_turn", take)

    @simulated
    async def denied() -> None:
        assert "START flag" in await two_owners()

    denied()
