"""Whether the store still has the history that this process knows. Pure.

A store that was restored from a copy, or came back without its data, counts revisions from an earlier one. Whatever was remembered of it
(fences, bases, copies of prefixes, how far a watch came) is then of a history that is gone, and comparisons by revision mean nothing: what
only ever rises would wait for ever. Three things betray it:

- a linearizable answer whose revision is lower than one that was known before the question was sent (answers may overtake each other);
- another cluster's id;
- a key that this process wrote, whose mod_revision is lower now: revisions of a key only rise. This one still tells when others have
  written so much since that the store's revision is past the one that was known.
"""

from dataclasses import dataclass


@dataclass(slots=True)
class History:
    """What one client knows of it. `revision`: the newest that was seen; 0: nothing was."""

    revision: int = 0
    cluster: int = 0
    written: tuple[str, int] | None = None  # a key of this process's, and the mod_revision that it gave it last

    def seen(self, revision: int) -> None:
        """By a watch: complete up to here, at least."""
        self.revision = max(self.revision, revision)

    def wrote(self, key: str, revision: int) -> None:
        """A transaction that put `key` was applied at `revision`."""
        self.written = (key, revision)

    def answered(self, cluster: int, revision: int, known: int) -> str:
        """A linearizable answer. `known`: `self.revision` when the question was sent. Why its history is another one, or ''; then this
        begins again with it."""
        if self.cluster and cluster != self.cluster:
            return self._begin(cluster, revision, f"its cluster ID is {cluster:x}, before it was {self.cluster:x}")
        if revision < known:
            return self._begin(cluster, revision, f"its revision is {revision}, before it was {known}")
        self.cluster = cluster
        self.seen(revision)
        return ""

    def found(self, mod: int, cluster: int, revision: int) -> str:
        """The mod_revision of `written`'s key now; 0: it is absent, which says nothing. As `answered`."""
        if self.written is None or not 0 < mod < self.written[1]:
            return ""
        key, before = self.written
        return self._begin(cluster, revision, f"{key} has revision {mod}, but it was written with {before}")

    def _begin(self, cluster: int, revision: int, why: str) -> str:
        self.cluster, self.revision, self.written = cluster, revision, None
        return f"the store was restored or replaced: {why}"
