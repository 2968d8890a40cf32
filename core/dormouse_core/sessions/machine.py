"""Which shards are this worker's: follows the map, reads entries, empties memories, refuses what belongs elsewhere; and what a worker's
sessions are told and asked, as a whole.

One shard's state is `ownership`'s; this feeds it what the watch and the reads saw, and acts on what came out (rules *fence*, *handoff* and
*again*).
"""

from collections.abc import Mapping, Sequence

from dormouse_proto import state_pb2

from dormouse_core import entries
from dormouse_core.backoff import Backoff
from dormouse_core.clocks import TimeReading
from dormouse_core.entries import T
from dormouse_core.errors import Again
from dormouse_core.keys import Function, Keys
from dormouse_core.seams import Clock, Item, StoreError
from dormouse_core.sessions.boundary import SessionSettings, StateInfo, Step
from dormouse_core.sessions.census import Census
from dormouse_core.sessions.commands import Acquired, Changed, Get, GetAll, Outbox, Plan, Say, Start, Wait, Wake
from dormouse_core.sessions.memory import Shard
from dormouse_core.sessions.moves import Mover
from dormouse_core.sessions.names import shard_of
from dormouse_core.sessions.ownership import HOLDING, MINE, Event, Status
from dormouse_core.sessions.turns import Turns

RETRY_SECONDS = 0.2
OLDER = Backoff(0.002, RETRY_SECONDS)
READ_ALL_FROM = 8  # so many entries and more are read as one range


class Machine:
    """Events come in as calls; what is to be done about them is in `out` when the call returns. `worker`: a name that no process had
    before. `time`: what sessions expire by."""

    def __init__(
        self,
        function: Function,
        settings: SessionSettings,
        states: Sequence[StateInfo],
        clock: Clock,
        time: TimeReading,
        *,
        worker: str,
        keys: Keys,
    ) -> None:
        self.out = out = Outbox()
        self.shards = [Shard(n, keys.shard(function, n), keys.floor(function, n)) for n in range(settings.shards)]
        self.census = Census(settings, clock.monotonic, self.owned)
        self.turns = Turns(
            function, settings, states, clock, time, self.census, self.shards, self.entry_read, out, worker=worker, keys=keys
        )
        self.ran = self.turns.ran
        """What came of a `Run`: (run, outcome)."""
        self._mover = Mover(function, clock, keys, self, out, settings.step_limit)
        self._map_revision = 0  # everything up to here was seen of the map
        self._prefix = keys.shards(function)
        self._worker = worker
        self._unread: dict[Shard, None] = {}
        self._older = 0  # reads in a row that left a shard to be read again
        self._left: Again | None = None
        self._lost: list[int] = []
        self._said: set[str] = set()

    def soon(self) -> None:
        """A turn of the loop has ended: what came together is done together."""
        self.out.turn_ended()

    # ------------------------------------------------------------------------------------------------------------- from callers

    def submit(self, step: Step) -> None:
        self.turns.open += 1
        all_shards = self.shards
        shard = all_shards[shard_of(step.session, len(all_shards))]
        status = shard.own.status
        if status is Status.OWNED:
            self.turns.offer(shard, step)
        elif status in HOLDING:
            shard.waiting.append(step)
        elif self._left is None and shard.own.behind(step.rev, self._map_revision):
            # Whoever sent it here has a newer map than our watch: it may be right (rule *newest-map*).
            shard.waiting.append(step)
            shard.own.asked()
            self._read_soon(shard)
        else:
            self._refuse(shard, step)

    def owned(self) -> list[Shard]:
        return [shard for shard in self.shards if shard.own.status in MINE]

    @property
    def settled(self) -> bool:
        """No shard is this worker's, and none is about to be."""
        return not any(shard.own.status in MINE or shard.own.status is Status.READING for shard in self.shards)

    def stop(self) -> None:
        """No step starts any more, anywhere; running ones end. `leave` follows when they have."""
        for shard in self.shards:
            if shard.own.status is Status.OWNED:
                shard.own.moving(Event.MOVE_DUE)

    def leave(self, again: Again) -> None:
        """Owns nothing from now on, whatever the map says."""
        self._left = again
        for shard in self.shards:
            self._after(shard, shard.own.status, shard.own.moving(Event.LEFT))

    def refuse(self, step: Step, again: Again, text: str) -> None:
        """Without a look at whose it is."""
        self.turns.open += 1
        self.turns.refuse(step, again, text)

    def replaced(self, key: str) -> None:
        """Somebody else has written this session's record."""
        shard = self.shards[shard_of(key, len(self.shards))]
        session = shard.sessions.get(key)
        if session is not None:
            self.turns.forget(session)
        self.census.doubt(shard)

    def _refuse(self, shard: Shard, step: Step) -> None:
        if self._left is not None:
            self.turns.refuse(step, self._left, f"worker {self._worker} is leaving")
        else:
            self.turns.refuse(step, Again.NOT_MINE, f"worker {self._worker} does not own shard {shard.number}")

    # ----------------------------------------------------------------------------------------------------------- from the store

    def listed(self, revision: int, shards: Mapping[int, Item], moves: Mapping[int, Item]) -> None:
        """A linearizable read of the function's whole part of the map, by the numbers of shards."""
        self._map_revision = revision  # lower where the store was restored
        for shard in self.shards:
            self._move(shard, moves.get(shard.number), revision)
            self.entry_read(shard, shards.get(shard.number), revision)

    def heard(self, revision: int) -> None:
        """The watch has shown everything up to `revision`."""
        self._map_revision = max(self._map_revision, revision)

    def shard_changed(self, shard: int, item: Item | None, revision: int) -> None:
        if shard < len(self.shards):
            it = self.shards[shard]
            was = it.own.status
            self._after(it, was, it.own.seen(self._mine(self._entry(item)), revision))

    def move_changed(self, shard: int, item: Item | None, revision: int) -> None:
        if shard < len(self.shards):
            self._move(self.shards[shard], item, revision)

    def entry_read(self, shard: Shard, item: Item | None, revision: int) -> None:
        was = shard.own.status
        entry = self._entry(item)
        self._after(shard, was, shard.own.read(self._mine(entry), item.mod_revision if item else 0, entry.epoch if entry else 0, revision))

    def move_read(self, shard: Shard, item: Item | None, revision: int) -> None:
        self._move(shard, item, revision)

    def _mine(self, entry: state_pb2.ShardEntry | None) -> bool:
        return entry is not None and self._left is None and entry.owner == self._worker

    def _entry(self, item: Item | None) -> state_pb2.ShardEntry | None:
        return self._parsed(state_pb2.ShardEntry, item)

    def _parsed(self, kind: type[T], item: Item | None) -> T | None:
        """None also of one that cannot be read: said once, and nobody's until the leader has written another."""
        if item is None:
            return None
        try:
            return entries.parse(kind, item)
        except entries.Unreadable as error:
            if str(error) not in self._said:
                self._said.add(str(error))
                self.out.append(Say("an entry cannot be read", {"error": str(error)}))
            return None

    def _move(self, shard: Shard, item: Item | None, revision: int) -> None:
        if revision <= shard.move_known:
            return
        shard.move_known = revision
        move = self._parsed(state_pb2.Move, item)
        shard.move = (move.target, item.mod_revision) if move and item else None
        if move is None and shard.own.status is Status.STOPPING and self._left is None:
            shard.own.moving(Event.MOVE_GONE)
            self.out.append(Wake(shard))
            self._resumed(shard)
        else:
            self._mover.consider(shard)

    def _after(self, shard: Shard, was: Status, emptied: bool) -> None:
        """Acts on a change of ownership."""
        status = shard.own.status
        if emptied:
            self.turns.empty(shard)
            self.census.forget(shard)
            self.turns.book.forget(shard.number)
        if status is Status.OWNED:
            if was is not Status.OWNED or emptied:
                if was not in MINE or emptied:  # else it was stopped, and goes on
                    self.turns.book.acquired(shard.number)
                self._resumed(shard)
                self.census.acquired()
                self.out.append(Acquired())
        elif status is Status.READING:
            self._read_soon(shard)
        elif status is Status.LOST:
            shard.stopped_us = 0
            waiting, shard.waiting = shard.waiting, []
            for step in waiting:
                self._refuse(shard, step)
            if was in MINE:
                if not self._lost:
                    self.out.soon(self._say_lost)
                self._lost.append(shard.number)
                self.out.append(Changed())

    def _say_lost(self) -> None:
        """One line for all that went in one turn of the loop."""
        lost, self._lost = sorted(self._lost), []
        self.out.append(Say("shards left", {"count": len(lost), "first": lost[0], "last": lost[-1]}, warning=False))

    # ----------------------------------------------------------------------------------------------------------- from the mover

    def stopped(self, shard: Shard) -> None:
        self.out.append(Changed())

    def _resumed(self, shard: Shard) -> None:
        """Owned, newly or again: what waited runs."""
        if shard.stopped_us:
            shard.stopped_us = 0
            self.out.append(Changed())
        for session in list(shard.sessions.values()):
            self.turns.pump(session)
        waiting, shard.waiting = shard.waiting, []
        for step in waiting:
            self.turns.offer(shard, step)
        self._mover.consider(shard)

    def handed_over(self, shard: Shard) -> None:
        self._after(shard, Status.HANDING, True)

    # ------------------------------------------------------------------------------------------------------------------- reading

    def _read_soon(self, shard: Shard) -> None:
        if not self._unread:
            self.out.soon(lambda: self.out.append(Start(self._read(), "read of shard entries")))
        self._unread[shard] = None

    def _read(self) -> Plan[None]:
        if self._older:
            # Read and still not as new as the watch: once, that is a race. Again and again, the store is not the one that the watch knows.
            yield Wait(OLDER.after(self._older))
        unread, self._unread = self._unread, {}
        keys = [shard.entry_key for shard in unread]
        while True:
            try:
                if len(keys) < READ_ALL_FROM:
                    revision, items = yield Get(keys)
                else:
                    listing = yield GetAll(self._prefix)
                    revision, items = listing.revision, {item.key: item for item in listing.items}
                break
            except StoreError as error:
                self.out.append(Say("shard entries cannot be read", {"error": str(error)}))
                yield Wait(RETRY_SECONDS)
        for shard in unread:
            if shard.own.status is Status.READING:
                self.entry_read(shard, items.get(shard.entry_key), revision)
        self._older = self._older + 1 if any(shard.own.status is Status.READING for shard in unread) else 0
