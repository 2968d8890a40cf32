"""Whether a function that is not in the store is known not to exist. Pure.

An entry is written by the leader, from objects that are elsewhere. A store that came back without its data lacks what exists until the
leader has written it again, and NOT_FOUND is final for clients. So the leader leaves a mark in the store once every object that it knows of
has its entry there or was refused (one that waits for its name was not), and only where the mark is a function that is not there does not
exist. It goes with the data.

A store that was restored to an earlier state brings an earlier mark back. A gateway that noticed that (`histories`) believes the mark again
when it is of a term of leadership that began since: the former leader's key, which may have come back too, is gone within its lease.
"""

from dataclasses import dataclass

from dormouse_core.limits import LEASE_SECONDS

DOUBT = 2.0 * LEASE_SECONDS
"""Seconds within which a leader's key that was restored has run out."""
UNKNOWN = "whether function {label} exists is not known: the operator has not written all functions into the store yet"


@dataclass(slots=True)
class Absences:
    """What one gateway knows of the mark. Times are monotonic seconds."""

    until: float | None = None  # the store was restored: no mark of before then counts, and none at all until then

    def rewound(self, now: float) -> None:
        """The store's history is another one."""
        self.until = now + DOUBT

    def known(self, mark: int, leader: int, now: float) -> bool:
        """Of one linearizable read that lacks the function. `mark`: the mark's mod_revision, 0: it is not there. `leader`: the
        create_revision of the leader's key, 0: nobody leads."""
        if not mark:
            return False
        if self.until is not None:
            if now < self.until or not 0 < leader < mark:
                return False
            self.until = None
        return True
