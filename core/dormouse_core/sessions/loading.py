"""Reads records, linearizably and behind the fence (rules *fence* and *confirmed-no*).

A session's first step reads its record. Every such read is one transaction that also reads the shard's entry and floor: the record counts
only if the entry is still the one that this worker owns, and a session that is not there counts as absent only then. Sessions whose first
steps arrive together (a function that wakes, a shard that moved) are read together.
"""

from collections.abc import Sequence
from typing import Protocol

from dormouse_core.limits import TXN_OPS
from dormouse_core.seams import Item, StoreError
from dormouse_core.sessions.commands import Get, Outbox, Plan, Start
from dormouse_core.sessions.memory import Session, Shard

SESSIONS_A_READ = TXN_OPS // 3  # each reads up to three keys


class Found(Protocol):
    def entry_read(self, shard: Shard, item: Item | None, revision: int) -> None:
        """A linearizable read of a shard's entry, made by the way."""

    def loaded(self, session: Session, record: Item | None, floor: Item | None) -> None:
        """The session's record and its shard's floor, under the fence that the shard has now; None: there is none."""

    def load_failed(self, session: Session, error: StoreError) -> None: ...


class Loader:
    def __init__(self, found: Found, out: Outbox) -> None:
        self._found = found
        self._out = out
        self._wanted: list[Session] = []

    def want(self, session: Session) -> None:
        if not self._wanted:
            self._out.soon(self._send)
        self._wanted.append(session)

    def _send(self) -> None:
        wanted, self._wanted = self._wanted, []
        for i in range(0, len(wanted), SESSIONS_A_READ):
            self._out.append(Start(self._load(wanted[i : i + SESSIONS_A_READ]), "load"))

    def _load(self, sessions: Sequence[Session]) -> Plan[None]:
        shards = list(dict.fromkeys(session.shard for session in sessions))
        keys = [key for shard in shards for key in (shard.entry_key, shard.floor_key)]
        try:
            revision, items = yield Get([*keys, *(session.state_key for session in sessions)])
        except StoreError as error:
            for session in sessions:
                if not session.dropped:
                    self._found.load_failed(session, error)
            return
        for shard in shards:
            item = items.get(shard.entry_key)
            if item is None or item.mod_revision != shard.own.fence:
                self._found.entry_read(shard, item, revision)  # drops this shard's sessions, unless the read is old news
        for session in sessions:
            if session.dropped:
                continue
            entry = items.get(session.shard.entry_key)
            if entry is None or entry.mod_revision != session.shard.own.fence:
                # Older than the fence: the record may be older than the acquisition, too. Read once more.
                self.want(session)
            else:
                self._found.loaded(session, items.get(session.state_key), items.get(session.shard.floor_key))
