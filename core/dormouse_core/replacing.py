"""Whose workers are replaced now, where an installation's new image, or what else its workers are started with, changes those of all.

Each function replaces one worker after the other: the next one starts before the last one goes, and nobody is missing. But ten thousand
functions that are awake would each begin at once, and their new workers take the processors from who serves, from the store and from the
operator. So few functions do it at a time, on each node and in all, in the order in which they asked; and an image that does not start, and
so never ends a function's turn, harms that few in each `REPLACE_TURN_SECONDS`.

Who sleeps is not asked: it wakes as what it is to be.
"""

from collections.abc import Callable

from dormouse_core.limits import REPLACE_TURN_SECONDS, REPLACED, REPLACED_A_NODE


class Replacing:
    """A state machine without I/O. `nodes`: how many are known, 0 where none is; `now`: monotonic."""

    def __init__(self) -> None:
        self._running: dict[str, float] = {}  # uid -> since when
        self._waiting: dict[str, None] = {}  # uids, in their order

    def ask(self, uid: str, nodes: int, now: float) -> bool:
        """Whether this function's workers may be replaced now. If not, `look` says when."""
        if uid in self._running:
            return True
        if self._waiting or len(self._running) >= most(nodes):
            self._waiting[uid] = None
            return False
        self._running[uid] = now
        return True

    def look(self, replaced: Callable[[str], bool], nodes: int, now: float) -> list[str]:
        """The functions whose turn has come. `replaced(uid)`: all of its workers are as they are to be, or it is gone."""
        self._running = {uid: at for uid, at in self._running.items() if now - at < REPLACE_TURN_SECONDS and not replaced(uid)}
        turns = list(self._waiting)[: max(most(nodes) - len(self._running), 0)]
        for uid in turns:
            del self._waiting[uid]
            self._running[uid] = now
        return turns


def most(nodes: int) -> int:
    return min(REPLACED, REPLACED_A_NODE * max(nodes, 1))
