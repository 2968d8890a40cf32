"""Rules taken away in the one world, as in `sessions_sim.controls`: each must be missed within the seeds of the kind that stresses it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as replace_txn
from itertools import count
from typing import Any

from dormouse_core import alarms, headernames, records
from dormouse_core.clocks import Clocks
from dormouse_core.seams import Txn
from dormouse_core.sessions import groups
from dormouse_core.sessions.boundary import Answer, Step
from dormouse_core.sessions.commands import Start
from dormouse_core.sessions.groups import Pending
from dormouse_core.sessions.memory import is_large
from dormouse_core.sessions.turns import Turns
from dormouse_gateway.relay import relaying
from dormouse_gateway.relay.sending import outgoing
from dormouse_gateway.watching.table import Function
from dormouse_operator.sweeping import Sweeper as LeaderSweeper
from dormouse_worker.sessions.removal import Sweeper
from msgspec.structs import replace

from dormouse_testing.one_world.world import MOVING, Shape
from dormouse_testing.sessions_sim.controls import Patch, failed_compare_means_no, keys_by_any_clock


@dataclass(frozen=True)
class Control:
    name: str
    apply: Callable[[Patch], None]
    breaks: frozenset[str]  # kinds of Violation
    shape: Shape | None = None
    """None: as the seeds have it."""


def a_new_key_for_each_try(patch: Patch) -> None:
    """The relay sends a call again under another key."""
    number = count(1)

    def sent(metadata: Mapping[str, str], function: Function) -> dict[str, str]:
        out = outgoing(metadata, function)
        return {**out, headernames.CALL: f"{out[headernames.CALL]}-{next(number)}"}

    patch(relaying, "outgoing", sent)


def reference_is_the_median(patch: Patch) -> None:
    """It jumps with it, and begins anew with each leader."""

    def follow(self: Clocks, median_us: int, _: float) -> int:
        self.anew = False
        return median_us

    patch(Clocks, "_follow", follow)


def nothing_is_removed(patch: Patch) -> None:
    async def none(*_: object) -> list[Any]:
        return []

    patch(Sweeper, "_remove_all", none)
    patch(LeaderSweeper, "_remove_all", none)


def refused_and_kept(patch: Patch) -> None:
    """A step that is told that there is no such session waits for one all the same."""
    told, committed = Turns.answer, Turns.committed
    kept: dict[str, list[Step]] = {}

    def answer(self: Turns, step: Step, it: Answer) -> None:
        if it.error is not None and "START flag" in it.error.message:
            kept.setdefault(step.session, []).append(step)
        told(self, step, it)

    def commit(self: Turns, pending: Pending, revision: int) -> None:
        committed(self, pending, revision)
        for step in kept.pop(pending.session.key, []):
            self.open += 1
            step.answer = lambda it: None
            self.offer(pending.session.shard, step)

    patch(Turns, "answer", answer)
    patch(Turns, "committed", commit)


def replies_by_key_and_step(patch: Patch) -> None:
    """Large replies are found by their call's key and their step's number: another life of the session has the same ones."""
    committed = Turns.committed

    def name(session: str, ident: str, step: int) -> bytes:
        return f"{session} {ident} {step}".encode()

    def commit(self: Turns, pending: Pending, revision: int) -> None:
        committed(self, pending, revision)
        if not pending.session.dropped and is_large(pending.reply):
            step = pending.step
            self._large.add(pending.session.shard, name(step.session, step.key.id, pending.body.step), pending.reply)

    def repeat(self: Turns, step: Step, kept: records.Kept) -> None:
        found = self._large.get(name(step.session, kept.id, kept.step)) if kept.reply is None else None
        self.answer(step, self._kept(kept) if found is None else Answer(found, kept.step, kept=True))

    patch(Turns, "committed", commit)
    patch(Turns, "_repeat", repeat)


def alarms_stay(patch: Patch) -> None:
    """The commit of an alarm's step leaves its entry in the record, and somebody else is to take it out."""
    real = alarms.after

    def after(body: records.Body | None, **more: Any) -> tuple[records.Alarm, ...]:
        rung, found = more["rung"], real(body, **more)
        return found if rung is None else (*found, replace(rung, next_us=more["now_us"] + SECOND_US))

    patch(alarms, "after", after)


def alarms_apart(patch: Patch) -> None:
    """When a session's alarm is due is written in a transaction of its own, after the step's, by whoever lives to do it."""
    transaction, committed = groups._transaction, Turns.committed

    def without(group: Sequence[Pending]) -> Txn:
        found = transaction(group)
        return replace_txn(found, writes=tuple(write for write in found.writes if "/alarms/" not in write.key))

    def commit(self: Turns, pending: Pending, revision: int) -> None:
        committed(self, pending, revision)
        if pending.alarm is not None:
            self._out.append(Start(self._reminded(Txn((), (pending.alarm,))), "alarm"))

    patch(groups, "_transaction", without)
    patch(Turns, "committed", commit)


def alarms_expire(patch: Patch) -> None:
    """A session with an alarm to run expires like any other."""
    patch(alarms, "onto", lambda body, found: replace(body, alarms=found))


ASLEEP = Shape(ttl=2.0, removal_wait=0.5, starts=False, calls=6, replicas=(2, 0, 1), rescales=0.4, alarms=0.5)
"""Sessions whose alarms are due later than they would expire, in a function that is stopped now and then."""
WAKING = Shape(replicas=(None,), calls=6, stills=0.1, alarms=0.9, dies=1.0, bad=0.2)
SECOND_US = 1_000_000

LIVES = Shape(
    shards=1, sessions=2, calls=24, large=1.0, reuses=0.7, own_keys=1.0, streams=0.0, ends=0.5, deletes=1.0, bad=0.0, stalls=0.15,
    resets=0.3, replicas=(1,), dies=0.0, stills=0.0, crashes=0.0, gives_up=0.0,
)  # fmt: skip
"""Short lives of one session under the same keys, whose outcomes are read while somebody deletes it."""

CONTROLS = [
    Control("a failed compare means no", failed_compare_means_no, frozenset({"false-again"})),
    Control("a new key for each try", a_new_key_for_each_try, frozenset({"twice"})),
    Control("refused for want of a session, and kept", refused_and_kept, frozenset({"applied-later"})),
    Control("nothing is removed", nothing_is_removed, frozenset({"kept-for-ever"})),
    Control("gateways' keys by their own clocks", keys_by_any_clock, frozenset({"false-refusal"})),
    Control("the reference is the median", reference_is_the_median, frozenset({"false-refusal"}), MOVING),
    Control("alarms that stay", alarms_stay, frozenset({"twice", "fork"})),
    Control("alarms' keys in a transaction of their own", alarms_apart, frozenset({"alarm-lost"}), WAKING),
    Control("alarms that expire", alarms_expire, frozenset({"alarm-lost"}), ASLEEP),
    Control("large replies by key and step", replies_by_key_and_step, frozenset({"reply-differs"}), LIVES),
]
