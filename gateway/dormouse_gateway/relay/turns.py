"""Calls of one session leave the relay one by one, the oldest first.

Sent all at once, more than eight of them would meet the record's horizon (rule *horizon*), and a `sequence_start` behind a later step would
be refused (rule *late-start*). A call has its turn when nobody of its session is at a worker and no older one waits; it may lose it again
while it waits (rule *one-at-a-time*).
"""

import asyncio
from bisect import insort


class Turn:
    """One call's place. It goes to and fro: waits, departs to a worker, and after a refusal joins again in its old place."""

    __slots__ = ("_at", "_key", "_turns", "flying", "wake")

    def __init__(self, turns: "Turns", key: str, at: tuple[int, int], wake: asyncio.Event) -> None:
        self._turns = turns
        self._key = key
        self._at = at
        self.wake = wake
        self.flying = False

    def at(self) -> tuple[int, int]:
        """By timestamp, then by arrival."""
        return self._at

    def join(self) -> None:
        line = self._turns.lines.setdefault(self._key, [])
        insort(line, self, key=Turn.at)
        self.flying = False
        self._turns.tell(line)

    @property
    def mine(self) -> bool:
        line = self._turns.lines.get(self._key, [])
        return self in line and line[0] is self and self._key not in self._turns.away

    def depart(self) -> None:
        """To a worker. Only while it is this call's turn."""
        assert self.mine
        self._turns.lines[self._key].remove(self)
        self._turns.away.add(self._key)
        self.flying = True

    def leave(self) -> None:
        """Out of the line, from wherever it is: answered, cancelled, or about to join again."""
        line = self._turns.lines.get(self._key, [])
        if self.flying:
            self.flying = False
            self._turns.away.discard(self._key)
        elif self in line:
            line.remove(self)
        if not line:
            self._turns.lines.pop(self._key, None)
        elif self._key not in self._turns.away:
            self._turns.tell(line)


class Turns:
    def __init__(self) -> None:
        self.lines: dict[str, list[Turn]] = {}  # who waits, by session
        self.away: set[str] = set()  # sessions with a call at a worker

    def join(self, key: str, timestamp: int, count: int, wake: asyncio.Event) -> Turn:
        """A new call of session `key`; it waits. `wake` is set when it may be its turn. `count`: rises with every call."""
        turn = Turn(self, key, (timestamp, count), wake)
        turn.join()
        return turn

    def tell(self, line: list[Turn]) -> None:
        line[0].wake.set()
