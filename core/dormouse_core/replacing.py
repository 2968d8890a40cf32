"""Whose workers are replaced now, where an installation's new image, or what else its workers are started with, changes those of all.

Each function replaces one worker after the other: the next one starts before the last one goes, and nobody is missing. But ten thousand
functions that are awake would each begin at once, and their new workers take the processors from who serves, from the store and from the
operator. So few functions do it at a time, on each node and in all, in the order in which they asked; and an image that does not start, and
so never ends a function's turn, harms that few in each `REPLACE_TURN_SECONDS`.

* A turn ends when what was to be written for it is written and all of its workers are as they are to be. That they are so before anything
  is written says nothing: with an operator that is behind with writing, turns would end before they began, and others begin beside them.
* Whose turn has come and who does not ask in `REPLACE_BEGIN_SECONDS` loses it: its object cannot be looked at now. It asks again.
* Another leader counts whom it finds being replaced, and lets nobody begin before it knows.
* Who has nothing to lose comes before those who wait: nobody of it has served for long, or an image that does not start is replacing it.

Who sleeps is not asked: it wakes as what it is to be.
"""

from collections.abc import Set
from dataclasses import dataclass
from itertools import chain, islice

from dormouse_core.limits import REPLACE_BEGIN_SECONDS, REPLACE_TURN_SECONDS, REPLACED, REPLACED_A_NODE


@dataclass(slots=True)
class _Turn:
    since: float
    asked: bool = False
    """It was told that it may: something of it may be written at any moment."""
    written: bool = False
    """Nothing of it is left to be written, or its workers were seen being replaced."""

    def over(self, going: bool, now: float) -> bool:
        if not (self.asked or self.written) and now - self.since >= REPLACE_BEGIN_SECONDS:
            return True
        return (self.written and not going) or now - self.since >= REPLACE_TURN_SECONDS


class Replacing:
    """A state machine without I/O. `nodes`: how many are known, 0 where none is; `now`: monotonic."""

    def __init__(self) -> None:
        self._running: dict[str, _Turn] = {}  # by uid
        self._waiting: dict[str, None] = {}  # uids, in their order
        self._first: dict[str, None] = {}  # and those that come before them
        self._known = False  # whom the leader before has begun

    def ask(self, uid: str, nodes: int, now: float, *, first: bool = False) -> bool:
        """Whether this function's workers may be replaced now. If not, `look` says when. `first`: it has nothing to lose."""
        turn = self._running.get(uid)
        if turn is None:
            if not self._known or self._waiting or self._first or len(self._running) >= most(nodes):
                self._wait(uid, first)
                return False
            turn = self._running[uid] = _Turn(now)
        turn.asked = True
        return True

    def _wait(self, uid: str, first: bool) -> None:
        """Who came first once stays there: at the end of those who wait it would be behind where it was before."""
        if first:
            self._waiting.pop(uid, None)
            self._first[uid] = None
        elif uid not in self._first:
            self._waiting[uid] = None

    def written(self, uid: str) -> None:
        """Nothing is left to be written for it: what it asked for is done, or it needs no turn. Of who waits, too, or is gone."""
        self._leave(uid)
        if uid in self._running:
            self._running[uid].written = True

    def look(self, going: Set[str] | None, begun: Set[str], nodes: int, now: float) -> list[str]:
        """The functions whose turn has come. `going`: those that have a worker that is not as it is to be, or not ready; None: not known
        now. `begun`: those of them that have workers of before left, for which the next ones are to come."""
        if going is None:
            return []
        if not self._known:
            self._known = True
            self._running = {uid: _Turn(now, asked=True, written=True) for uid in begun}
        for uid in self._running.keys() & begun:
            self._running[uid].written = True
        self._running = {uid: turn for uid, turn in self._running.items() if not turn.over(uid in going, now)}
        turns = list(islice(chain(self._first, self._waiting), max(most(nodes) - len(self._running), 0)))
        for uid in turns:
            self._leave(uid)
            self._running[uid] = _Turn(now)
        return turns

    def _leave(self, uid: str) -> None:
        self._first.pop(uid, None)
        self._waiting.pop(uid, None)


def most(nodes: int) -> int:
    return min(REPLACED, REPLACED_A_NODE * max(nodes, 1))
