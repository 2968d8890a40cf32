"""Every state that can be reached; or random walks, where there are too many."""

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from dormouse_testing.session_model import commits, ownership, store, turns
from dormouse_testing.session_model.promises import Violation, heard
from dormouse_testing.session_model.rules import Instance
from dormouse_testing.session_model.states import LANDED, State, bag, initial, put, spend


def successors(instance: Instance, state: State) -> Iterator[store.Successor]:
    yield from _clients(instance, state)
    yield from turns.deliveries(instance, state)
    if not instance.rules.entry_before_record and state.budget.stale:
        yield from ownership.early_reads(instance, state)
    if instance.group:
        yield from commits.groups(instance, state)
    for index, txn in enumerate(state.txns):
        if txn.kind == "handoff":
            yield from ownership.handoff_lands(instance, state, index, txn)
        elif txn.kind == "removal":
            yield from store.removal_lands(instance, state, index, txn)
        elif txn.status == LANDED:
            yield from commits.learned(instance, state, index, txn)
        else:
            yield from commits.landings(instance, state, index, txn)
    if instance.rules.outcome_read:
        yield from commits.outcomes_read(instance, state)
    yield from ownership.workers(instance, state)
    if state.budget.removal and instance.rules.removal == "bare":
        yield from store.bare_removals(instance, state)
    yield from ownership.leaders(instance, state)


def _clients(instance: Instance, state: State) -> Iterator[store.Successor]:
    for session, (position, sent) in enumerate(state.clients):
        if position >= len(instance.calls[session]):
            continue
        label = f"another copy of s{session} call {position}"
        if instance.alive:
            if (session, position) not in state.network and not _runs(state, session, position):
                yield True, label, state._replace(network=bag((*state.network, (session, position))))
        elif sent < instance.copies:
            after = state._replace(network=bag((*state.network, (session, position))))
            yield True, label, after._replace(clients=put(state.clients, session, (position, sent + 1)))
        if state.budget.give_up and position + 1 < len(instance.calls[session]):
            given_up = heard(instance, state, session, position)
            yield False, f"the client of s{session} gives up on call {position}", spend(given_up, "give_up")


def _runs(state: State, session: int, position: int) -> bool:
    return any(run is not None and run.item.position == position for it in state.workers if (run := it.runs[session]) is not None)


@dataclass
class Found:
    """`violation`: the promise that was broken first, with the `trace` that led there. `stuck`: states from which some call can never be
    answered, searched where `alive`. `whole`: every state was visited."""

    states: int = 0
    whole: bool = True
    violation: str = ""
    text: str = ""
    trace: tuple[str, ...] = ()
    stuck: int = 0


def explore(instance: Instance, limit: int = 4_000_000) -> Found:
    """Breadth first, so a trace is a shortest one. States are remembered by their hash: 64 bits."""
    first = initial(instance)
    parents: dict[int, tuple[int | None, str]] = {hash(first): (None, "")}
    waiting = deque([(first, hash(first))])
    backwards: dict[int, list[int]] = {}
    answered: set[int] = set()
    while waiting:
        state, at = waiting.popleft()
        if _answered(instance, state):
            answered.add(at)
        try:
            for fair, label, following in successors(instance, state):
                clean = store.tidy(instance, following)
                mark = hash(clean)
                if instance.alive and fair:
                    backwards.setdefault(mark, []).append(at)
                if mark not in parents:
                    parents[mark] = (at, label)
                    waiting.append((clean, mark))
        except Violation as found:
            return Found(len(parents), False, found.promise, str(found), _trace(parents, at))
        if len(parents) > limit:
            return Found(len(parents), False)
    result = Found(len(parents))
    if instance.alive:
        stuck = parents.keys() - _reaching(answered, backwards)
        result.stuck = len(stuck)
        if stuck:
            result.trace = _trace(parents, min(stuck, key=lambda mark: len(_trace(parents, mark))))
    return result


def walk(instance: Instance, seed: int, walks: int, length: int = 150) -> Found:
    """Random walks; when every call is answered, what is still on its way arrives."""
    chance = random.Random(seed)
    steps = 0
    for _ in range(walks):
        state, trace, left = initial(instance), [], length
        try:
            while left:
                ways = list(successors(instance, state))
                if not ways:
                    break
                _, label, state = chance.choice(ways)
                state = store.tidy(instance, state)
                trace.append(label)
                steps += 1
                left = min(left - 1, 60) if _answered(instance, state) else left - 1
        except Violation as found:
            return Found(steps, False, found.promise, str(found), tuple(trace))
    return Found(steps, False)


def _answered(instance: Instance, state: State) -> bool:
    return all(position >= len(instance.calls[session]) for session, (position, _) in enumerate(state.clients))


def _trace(parents: dict[int, tuple[int | None, str]], at: int) -> tuple[str, ...]:
    labels: list[str] = []
    mark: int | None = at
    while mark is not None:
        mark, label = parents[mark]
        labels.append(label)
    return tuple(labels[-2::-1])


def _reaching(goal: set[int], backwards: dict[int, list[int]]) -> set[int]:
    """From where fair events alone lead to the goal."""
    found = set(goal)
    waiting = list(goal)
    while waiting:
        for mark in backwards.get(waiting.pop(), ()):
            if mark not in found:
                found.add(mark)
                waiting.append(mark)
    return found
