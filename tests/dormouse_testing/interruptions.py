"""Every interruption of the session machine's plans: two workers' machines, one etcd in memory, callers that send again.

Nothing here is random and nothing waits. What can happen next is a list (a plan is told what it waited for, a model has run, a watch shows
what has changed, somebody interferes); the usual thing is its first, and a history is named by where it departed from that. `explore` plays
every history with up to so many departures, each from the beginning.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from dormouse_core import lifetimes, records, steps
from dormouse_core.callkeys import CallKey
from dormouse_core.errors import Again, Unavailable
from dormouse_core.keys import Function, Keys
from dormouse_core.seams import Delete, Full, Put, StoreError, Txn, Unreached
from dormouse_core.sessions import arrays
from dormouse_core.sessions.boundary import Answer, Ran, SessionSettings, StateInfo, Step
from dormouse_core.sessions.commands import Acquired, Get, GetAll, Plan, Quiet, Run, Soon, Start, Tell, Transact, Wait, Waited, Wake
from dormouse_core.sessions.machine import Machine
from dormouse_core.sessions.names import session_key
from dormouse_proto import state_pb2

from dormouse_testing.clock import ManualClock, Trusted
from dormouse_testing.memory_etcd import MemoryEtcd

KEYS = Keys("i")
F = Function("ns", "count", "u")
STATES = [StateInfo("sum", "sum", "sum", "INT64", (1,), None, np.zeros(1, np.int64))]
WORKERS = ("w-1", "w-2")
TRIES = 8
LONGEST = 1_500  # things that happen in one history
OUTCOMES = ("ok", "reply lost", "request lost", "late", "refused", "unreached", "full", "full, and applied")


class Broken(AssertionError):
    """A promise is broken; the text is the history."""


@dataclass
class Call:
    """Adds 10 ** `digit` to its session: each digit of the sum is a call, and says how often it counted."""

    session: str
    digit: int
    start: bool = False
    key: CallKey = field(init=False)
    tries: int = 0
    after: frozenset[int] = frozenset()  # digits of the session that were acknowledged before it was sent first
    sums: list[int] = field(default_factory=list)
    ended: str = ""  # "acknowledged", "not run" or "unknown"
    step: Step | None = None  # its last copy


@dataclass(eq=False)
class Item:
    """Something that can happen next. `time`: only when nothing else can."""

    label: str
    happen: Callable[[], None]
    time: float = 0.0


class History:
    """One history. `departures`: at which choice another option than the first is taken, and which."""

    def __init__(self, calls: Sequence[Call], departures: dict[int, int], *, record: bytes = b"", moves: bool = False) -> None:
        self.lines: list[str] = []
        self.options: list[int] = []  # at each choice, how many there were
        self.departures = departures
        self.clock = ManualClock()
        self.etcd = MemoryEtcd(self.clock)
        self.items: list[Item] = []
        self.parked: list[tuple[str, Any, Plan[None]]] = []
        self.interfered: set[str] = set()
        self.calls = calls
        self.untold: list[Step] = []  # submitted and not answered
        time = Trusted(self.clock)
        self.machines = {name: Machine(F, SessionSettings(1, "v1"), STATES, self.clock, time, worker=name, keys=KEYS) for name in WORKERS}
        self.seen = dict.fromkeys(WORKERS, 0)
        for name in WORKERS:
            self.write(Put(KEYS.worker(F, name), b""))
        self.write(Put(KEYS.shard(F, 0), state_pb2.ShardEntry(owner="w-1", epoch=1).SerializeToString()))
        self.record = record
        if record:
            self.write(Put(KEYS.state(F, 0, session_key("", calls[0].session)), record))
        self.unreadable = bool(record) and records.readable(record) is None
        self.before = 0 if self.unreadable or not record else self.sum_of(calls[0].session)
        if moves:
            self.plan_move()
        for name in WORKERS:
            self.list_map(name)
        for call in calls:
            call.key = CallKey(int(self.clock.now() * 1e6) + call.digit, f"g-{call.digit}")
            self.items.append(Item(f"{call.session}.{call.digit} is sent", partial(self.send, call)))

    def write(self, *writes: Put | Delete) -> None:
        self.etcd.txn(Txn((), writes))

    def say(self, line: str) -> None:
        self.lines.append(line)

    # ----------------------------------------------------------------------------------------------------------------- choices

    def choose(self, options: int) -> int:
        at = len(self.options)
        self.options.append(options)
        return self.departures.get(at, 0)

    def play(self) -> None:
        while any(not call.ended for call in self.calls) or any(not item.time for item in self.items):
            if len(self.lines) > LONGEST:
                raise self.broken("it does not end")
            self.watch()
            ready = [item for item in self.items if not item.time] or sorted(self.items, key=lambda item: item.time)[:1]
            if not ready:
                raise self.broken("nothing can happen any more")
            interference = [Item(name, act) for name, act in self.interference() if name not in self.interfered]
            able = [*ready, *interference]
            item = able[self.choose(len(able))]
            self.say(item.label)
            if item in interference:
                self.interfered.add(item.label)
            else:
                self.items.remove(item)
                self.clock.advance(max(0.0, item.time - self.clock.monotonic()))
            item.happen()
            self.check_bytes()
        self.check()

    def watch(self) -> None:
        for name in WORKERS:
            label = f"{name} sees what has changed"
            changed = self.etcd.events(KEYS.map(F), self.seen[name] + 1)
            if changed and not any(item.label == label for item in self.items):
                self.items.append(Item(label, partial(self.show, name)))

    # ------------------------------------------------------------------------------------------------------------- interference

    def interference(self) -> Iterator[tuple[str, Callable[[], None]]]:
        yield "the leader plans to move the shard", self.plan_move
        yield "the leader takes the plan back", lambda: self.write(Delete(KEYS.move(F, 0)))
        yield "the shard is given to the other", self.fail_over
        yield "the first worker's lease ends", partial(self.leave, "w-1")
        yield "idle sessions leave memory", self.evict
        yield "the first call's caller goes away", self.cancel

    def plan_move(self) -> None:
        target = next(name for name in WORKERS if name != self.owner()[0])
        self.write(Put(KEYS.move(F, 0), state_pb2.Move(target=target).SerializeToString()))

    def fail_over(self) -> None:
        owner, epoch = self.owner()
        target = next(name for name in WORKERS if name != owner)
        self.write(Put(KEYS.shard(F, 0), state_pb2.ShardEntry(owner=target, epoch=epoch + 1).SerializeToString()))

    def leave(self, name: str) -> None:
        self.machines[name].leave(Again.NOT_MINE)
        self.act(name)
        if self.owner()[0] == name:
            self.fail_over()
        self.write(Delete(KEYS.worker(F, name)))

    def evict(self) -> None:
        for name, machine in self.machines.items():
            machine.turns.evict(machine.shards[0], float("inf"))
            self.act(name)

    def cancel(self) -> None:
        step = self.calls[0].step
        if step is not None and not self.calls[0].ended:
            step.cancelled = True
            self.calls[0].ended = "unknown"

    def owner(self) -> tuple[str, int]:
        item = self.etcd.item(KEYS.shard(F, 0))
        assert item is not None
        entry = state_pb2.ShardEntry.FromString(item.value)
        return entry.owner, entry.epoch

    # ----------------------------------------------------------------------------------------------------------------- callers

    def send(self, call: Call) -> None:
        if call.ended:
            return
        call.tries += 1
        if call.tries == 1:
            call.after = frozenset(one.digit for one in self.calls if one.session == call.session and one.ended == "acknowledged")
        name, rev = self.owner()[0], self.etcd.revision
        digest = b"%d" % call.digit
        step = Step(session_key("", call.session), call.key, digest, call.start, False, True, call, lambda answer: None, rev=rev)
        step.answer = partial(self.answered, call, step)
        self.untold.append(step)
        call.step = step
        self.machines[name].submit(step)
        self.act(name)

    def answered(self, call: Call, step: Step, answer: Answer) -> None:
        self.say(f"  {call.session}.{call.digit}: {answer.reply if answer.error is None else answer.error.message}")
        if step not in self.untold:
            raise self.broken("answered twice")
        self.untold.remove(step)
        if answer.reply is not None:
            call.ended = "acknowledged"
            call.sums.append(int(answer.reply))
        elif isinstance(answer.error, Unavailable) and answer.error.again is not None and call.tries < TRIES:
            self.items.append(Item(f"{call.session}.{call.digit} is sent again", partial(self.send, call)))
        elif isinstance(answer.error, Unavailable) and answer.error.again is None and "is not known" in answer.error.message:
            call.ended = "unknown"
        else:
            call.ended = "not run"

    # ---------------------------------------------------------------------------------------------------------------- machines

    def list_map(self, name: str) -> None:
        revision, items = self.etcd.get([KEYS.shard(F, 0), KEYS.move(F, 0)])
        found = [{0: items[key]} if key in items else {} for key in (KEYS.shard(F, 0), KEYS.move(F, 0))]
        self.machines[name].listed(revision, *found)
        self.seen[name] = revision
        self.act(name)

    def show(self, name: str) -> None:
        machine = self.machines[name]
        for event in self.etcd.events(KEYS.map(F), self.seen[name] + 1):
            (machine.shard_changed if event.key == KEYS.shard(F, 0) else machine.move_changed)(0, event.item, event.mod_revision)
        self.seen[name] = self.etcd.revision
        machine.heard(self.etcd.revision)
        self.act(name)

    def act(self, name: str) -> None:
        out = self.machines[name].out
        while out:
            match out.popleft():
                case Tell(step, answer):
                    step.answer(answer)
                case Run() as run:
                    self.items.append(Item(f"{name} has run {run.step.call.session}.{run.step.call.digit}", partial(self.run, name, run)))
                case Start(plan, what):
                    self.go_on(name, what, plan, None)
                case Soon():
                    self.items.append(Item(f"a turn of {name} ends", partial(self.turn, name)))
                case Acquired():
                    self.count(name)
                case Wake():
                    parked, self.parked = self.parked, []
                    for whose, what, plan in parked:
                        self.items.append(Item(f"{what} goes on", partial(self.go_on, whose, what, plan, None)))

    def count(self, name: str) -> None:
        """What the sweeper does, at once."""
        census, shard = self.machines[name].census, self.machines[name].shards[0]
        listing = self.etcd.range(KEYS.states(F))
        tally = census.tally()
        for item in listing.items:
            tally.add(lifetimes.broken(len(item.value)) if records.readable(item.value) is None else records.glance(item.value))
        census.ceiling = listing.count
        census.install(shard, tally, listing.revision)
        census.check()

    def turn(self, name: str) -> None:
        self.machines[name].soon()
        self.act(name)

    def run(self, name: str, run: Run) -> None:
        total = run.states["sum"] + 10**run.step.call.digit
        self.machines[name].ran(run, Ran(b"%d" % total[0], {"sum": total}))
        self.act(name)

    def go_on(self, name: str, what: str, plan: Plan[None], told: Any) -> None:
        """The plan is told what came of it, and waits for the next thing."""
        try:
            wanted = plan.throw(told) if isinstance(told, StoreError) else plan.send(told)
        except StopIteration:
            self.act(name)
            return
        self.act(name)
        self.wait(name, what, plan, wanted)

    def wait(self, name: str, what: str, plan: Plan[None], wanted: Waited) -> None:
        label = f"{name}'s {what}: {type(wanted).__name__}"
        go_on = partial(self.go_on, name, what, plan)
        match wanted:
            case Wait(seconds):
                self.items.append(Item(label, partial(go_on, None), self.clock.monotonic() + seconds))
            case Quiet():
                self.parked.append((name, what, plan))
            case Get(keys):
                self.items.append(Item(label, partial(self.read, lambda: self.etcd.get(keys), go_on)))
            case GetAll(prefix):
                self.items.append(Item(label, partial(self.read, lambda: self.etcd.range(prefix), go_on)))
            case Transact(txn, _):
                self.items.append(Item(label, partial(self.transact, txn, go_on)))

    def read(self, read: Callable[[], Any], go_on: Callable[[Any], None]) -> None:
        if self.choose(2):
            self.say("  the read fails")
            go_on(StoreError("no answer"))
        else:
            go_on(read())

    def transact(self, txn: Txn, go_on: Callable[[Any], None]) -> None:
        outcome = OUTCOMES[self.choose(len(OUTCOMES))]
        self.say(f"  {outcome}")
        match outcome:
            case "ok":
                go_on(self.etcd.txn(txn))
            case "reply lost":
                self.etcd.txn(txn)
                go_on(StoreError("no answer"))
            case "request lost":
                go_on(StoreError("no answer"))
            case "late":
                self.items.append(Item("a late transaction lands", partial(self.etcd.txn, txn), self.clock.monotonic() + 3.0))
                go_on(StoreError("no answer"))
            case "refused":
                go_on(StoreError("no", definite=True))
            case "unreached":
                go_on(Unreached("nobody answers"))
            case "full" | "full, and applied":
                if outcome != "full":
                    self.etcd.txn(txn)
                go_on(Full("full"))

    # ----------------------------------------------------------------------------------------------------------------- promises

    def check(self) -> None:
        if not all(step.cancelled for step in self.untold):
            raise self.broken("a step was not answered")
        if not self.items:
            for name, machine in self.machines.items():
                if machine.turns.open or machine.turns.groups.busy or machine.shards[0].running or machine.shards[0].moving:
                    raise self.broken(f"nothing is left to happen, and {name} waits for something")
        for item in self.items:  # what was late lands at the very last
            if "late" in item.label:
                item.happen()
        for session in {call.session for call in self.calls}:
            calls = [call for call in self.calls if call.session == session]
            stored = self.sum_of(session)
            if session == self.calls[0].session and stored % 10**9 < 10**8 <= self.before:
                raise self.broken(f"{session} lost what it had: {stored}")
            for call in calls:
                counted = stored // 10**call.digit % 10
                if counted > 1 or (call.ended == "acknowledged" and counted == 0) or (call.ended == "not run" and counted):
                    raise self.broken(f"{session}.{call.digit} was {call.ended}, and is {counted} times in {stored}")
                for total in call.sums:
                    missing = [digit for digit in {*call.after, call.digit} if not total // 10**digit % 10]
                    if missing:
                        raise self.broken(f"{session}.{call.digit} was answered {total}, without {missing}")
            sums = sorted((total for call in calls for total in call.sums), key=lambda total: str(total).count("1"))
            for less, more in itertools.pairwise(sums):
                if any(less // 10**call.digit % 10 > more // 10**call.digit % 10 for call in calls):
                    raise self.broken(f"{session} was forked: {less} and {more}")

    def check_bytes(self) -> None:
        """What cannot be read is where it was, or in quarantine, at every moment."""
        if self.unreadable:
            kept = [*self.etcd.range(KEYS.states(F)).items, *self.etcd.range(KEYS.quarantines(F)).items]
            if not any(item.value == self.record for item in kept):
                raise self.broken("the bytes that could not be read are gone")

    def sum_of(self, session: str) -> int:
        item = self.etcd.item(KEYS.state(F, 0, session_key("", session)))
        if item is None or records.readable(item.value) is None:
            return 0
        (tensor,) = records.decode(item.value).tensors
        return int(np.frombuffer(tensor.data, np.int64)[0])

    def broken(self, why: str) -> Broken:
        return Broken("\n".join([why, f"departures: {self.departures}", *self.lines]))


def written() -> bytes:
    """The record of a session that has lived before: its sum is 10 ** 8."""
    step = Step("", CallKey(1, "g-8"), b"", False, False, True, None, lambda answer: None)
    now_us = int(ManualClock().now() * 1e6)
    body = steps.advance(None, None, 0, step, True, b"", now_us, int(1e6 * SessionSettings(1, "v1").ttl), "v1", b"w-0/0")
    return records.encode(body, arrays.encode(STATES, {"sum": np.array([10**8])}), b"w-0/0")


Scene = Callable[[dict[int, int]], History]


def explore(scene: Scene, depth: int) -> int:
    """Plays every history with up to `depth` departures; returns how many. Broken: one that breaks a promise."""
    played = 0
    todo: list[dict[int, int]] = [{}]
    while todo:
        departures = todo.pop()
        history = scene(departures)
        try:
            history.play()
        except Broken:
            raise
        except BaseException as error:
            error.add_note("\n".join([f"departures: {departures}", *history.lines]))
            raise
        played += 1
        if len(departures) < depth:
            first = max(departures, default=-1) + 1
            todo += [{**departures, at: option} for at in range(first, len(history.options)) for option in range(1, history.options[at])]
    return played
