"""Members of a simulated etcd as `StoreMembers`: what is written fills their files as it does in etcd, at sizes that cost nothing.

A file has a high-water mark. What is written takes free space first; compaction frees history; a defragmentation gives free space back and
takes `seconds_a_byte` for what is left. At `quota` the alarm is raised, and writes are refused until it is taken back.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from dormouse_core.seams import Clock, Full, MemberSeen, StoreError


@dataclass
class MemoryMembers:
    clock: Clock
    quota: int
    count: int = 1
    says_quota: bool = False
    lazy: bool = False  # as etcd's: what is compacted counts as free with the next write only
    spares: int = 4  # times that a full one can be made to count it
    seconds_a_byte: float = 0.0
    live: dict[str, int] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    full: bool = False
    revision: int = 1
    away: set[str] = field(default_factory=set)
    uncounted: set[str] = field(default_factory=set)  # as etcd's that lag: what is free in their files they do not say
    done: list[str] = field(default_factory=list)  # what was asked for, in its order
    defragmenting: list[tuple[str, float, float]] = field(default_factory=list)  # endpoint, from, until
    _unseen: int = 0
    _history: list[tuple[int, int]] = field(default_factory=list)  # at which revision so many bytes became history

    def __post_init__(self) -> None:
        self.sizes = [0] * self.count

    @property
    def used(self) -> int:
        return sum(self.live.values()) + sum(size for _, size in self._history)

    def put(self, key: str, size: int) -> None:
        """Full: refused."""
        if not self.full and max(self.sizes) + size >= self.quota:
            self.full = True
        if self.full:
            raise Full("etcdserver: mvcc: database space exceeded")
        self.revision += 1
        self._unseen = 0
        if key in self.live:
            self._history.append((self.revision, self.live[key]))
        self.live[key] = size
        self.sizes = [max(mark, self.used) for mark in self.sizes]

    def delete(self, key: str) -> None:
        self.revision += 1
        self._history.append((self.revision, self.live.pop(key)))

    # ------------------------------------------------------------------------------------------------------------- the seam

    async def look(self) -> tuple[Sequence[MemberSeen], Sequence[str]]:
        quota = self.quota if self.says_quota else 0
        members = [
            MemberSeen(self._endpoint(n), n + 1, n == 0, self.revision, self.sizes[n], self._said(n), self.full, quota)
            for n in range(self.count)
            if self._endpoint(n) not in self.away
        ]
        return members, sorted(self.away)

    async def compact(self, revision: int) -> None:
        if len(self.away) * 2 > self.count:
            raise StoreError("no majority")
        assert revision <= self.revision
        self.done.append(f"compact {revision}")
        before = self.used
        self._history = [(at, size) for at, size in self._history if at > revision]
        if self.lazy and self.full:
            self._unseen += before - self.used

    async def count_free(self) -> bool:
        if not self.spares:
            return False
        self.done.append("count")
        self.spares -= 1
        self._unseen = 0
        return True

    async def defragment(self, endpoint: str) -> None:
        at = int(endpoint)
        begun = self.clock.monotonic()
        await self.clock.sleep(self.used * self.seconds_a_byte)
        self.defragmenting.append((endpoint, begun, self.clock.monotonic()))
        self.done.append(f"defragment {endpoint}")
        self.sizes[at] = self.used
        self._unseen = 0

    async def disarm(self) -> None:
        self.done.append("disarm")
        self.full = False

    def _said(self, number: int) -> int:
        return self.sizes[number] if self._endpoint(number) in self.uncounted else self.used + self._unseen

    @staticmethod
    def _endpoint(number: int) -> str:
        return str(number)
