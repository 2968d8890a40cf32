"""What lies in the store of this worker's shards: how many sessions live, what they take, and when the next record is to be removed.

A shard is counted when it is acquired, page by page, while it serves already; from then on each commit, load and removal keeps the count
exact, for nobody else writes there. Where somebody did all the same (the leader deleted a session; a commit found another record than it
expected) the shard is counted again.
"""

from collections.abc import Callable, Sequence

from dormouse_proto import control_pb2

from dormouse_core import admission
from dormouse_core.errors import DormouseError
from dormouse_core.lifetimes import Tally
from dormouse_core.records import Glance
from dormouse_core.sessions.boundary import SessionSettings
from dormouse_core.sessions.memory import Session, Shard

Change = tuple[int, Glance | None, Glance | None]


class Count:
    """One shard's. `tally` None: not counted since it was acquired."""

    __slots__ = ("changes", "recount", "tally")

    def __init__(self) -> None:
        self.tally: Tally | None = None
        self.recount = False  # somebody else has written
        self.changes: list[Change] | None = None  # revision, before, after: what this worker wrote while a scan is under way


class Census:
    def __init__(self, settings: SessionSettings, monotonic: Callable[[], float], owned: Callable[[], Sequence[Shard]]) -> None:
        self._settings = settings
        self._monotonic = monotonic
        self._counts: dict[int, Count] = {}
        self.shards = settings.shards  # of the function
        self.store = admission.Store()
        self.total = self.tally()
        self.counted = True  # of every shard that is owned
        self.ceiling: int | None = None  # of records in the whole function; rises with what begins here
        self.beginning: set[Session] = set()
        self._others: tuple[int, int] | None = None  # sessions and bytes in other workers' shards; None: nobody has said it yet
        self._known = (0, 0)  # of the whole function when it was said
        self._moved = False  # shards came or went since then
        self.owned = owned

    def tally(self) -> Tally:
        return Tally(int(self._settings.ttl * 1e6), int(self._settings.removal_wait * 1e6))

    def of(self, shard: Shard) -> Count:
        count = self._counts.get(shard.number)
        if count is None:
            count = self._counts[shard.number] = Count()
        return count

    # ---------------------------------------------------------------------------------------------------------------- upkeep

    def changed(self, shard: Shard, revision: int, before: Glance | None, after: Glance | None) -> None:
        """This worker wrote or removed a record of `shard`, at `revision`."""
        self.store.wrote((after.size if after else 0) - (before.size if before else 0), self._monotonic())
        if self.ceiling is not None and before is None:
            self.ceiling += 1
        count = self.of(shard)
        if count.changes is not None:
            count.changes.append((revision, before, after))
        if count.tally is None:
            return
        if before is None or after is None or not count.tally.stays(before, after):
            count.tally.change(before, after)
            self.total.change(before, after)
        elif before.size != after.size:
            count.tally.resize(after, after.size - before.size)
            self.total.resize(after, after.size - before.size)

    def install(self, shard: Shard, tally: Tally, revision: int) -> None:
        """`tally` is what a scan at `revision` found; what was written since is added."""
        count = self.of(shard)
        for at, before, after in count.changes or ():
            if at > revision:
                tally.change(before, after)
        self._replace(count, tally)
        count.recount = False

    @property
    def counted_shards(self) -> int:
        """How many shards `total` is of."""
        return sum(count.tally is not None for count in self._counts.values())

    def check(self) -> None:
        """Whether everything that is owned is counted."""
        self.counted = all(self.of(shard).tally is not None for shard in self.owned())

    def acquired(self) -> None:
        """A shard is owned, newly or under a new fence."""
        self.counted = False
        self._moved = True

    def forget(self, shard: Shard) -> None:
        """The shard's fence has changed."""
        self._moved = True
        count = self._counts.pop(shard.number, None)
        if count is not None:
            self._replace(count, None)

    def doubt(self, shard: Shard) -> None:
        """Somebody else has written in `shard`."""
        self.of(shard).recount = True

    def _replace(self, count: Count, tally: Tally | None) -> None:
        if count.tally is not None:
            self.total.include(count.tally, -1)
        count.tally = tally
        if tally is not None:
            self.total.include(tally)

    # -------------------------------------------------------------------------------------------------------------- admission

    def refusal(self, session: Session, now_us: int | None, best_us: int) -> DormouseError | None:
        """Why `session`, which does not live, may not begin. None: it may, and counts until `settled`. `now_us`, `best_us`: as
        `clocks.Reading`."""
        doubted = (0, 0)
        if now_us is None:
            doubted = self.total.outlived(best_us)
        else:
            self.total.advance(now_us)
        others = self._elsewhere()
        found = admission.Found(
            sessions=self.total.live + len(self.beginning),
            bytes=self.total.live_bytes,
            counted=others is not None,
            ceiling=None if self.ceiling is None else self.ceiling + len(self.beginning),
            others_sessions=others[0] if others else 0,
            others_bytes=others[1] if others else 0,
            doubted_sessions=doubted[0],
            doubted_bytes=doubted[1],
        )
        settings = self._settings
        refused = admission.refusal(found, settings.max_count, settings.max_bytes, self.store, self._monotonic())
        if refused is None:
            self.beginning.add(session)
        return refused

    def _elsewhere(self) -> tuple[int, int] | None:
        """Sessions and bytes in other workers' shards; None: not known, or what is this worker's is not."""
        if not self.counted:
            return None
        if len(self.owned()) == self.shards:
            return 0, 0
        if self._others is None or not self._moved:
            return self._others
        return max(0, self._known[0] - self.total.live), max(0, self._known[1] - self.total.live_bytes)

    def stop(self) -> DormouseError | None:
        """Why a session that lives may not go on. None: it may."""
        return admission.stop(self.store, self._monotonic())

    def settled(self, session: Session) -> None:
        """What it wanted to begin is committed, or will not be."""
        self.beginning.discard(session)

    def hear(self, limits: control_pb2.WorkerOrder.Limits) -> None:
        if not limits.others_unknown:
            self._others, self._moved = (limits.others_sessions, limits.others_bytes), False
            self._known = (self.total.live + limits.others_sessions, self.total.live_bytes + limits.others_bytes)
        used = limits.store_used if limits.HasField("store_used") else None
        self.store.hear(used, self._monotonic(), age=limits.store_age, quota=limits.store_quota, over_share=limits.over_share)
