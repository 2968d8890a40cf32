"""The store's space: drops its history in time, gives free space back, and heals it when it is full.

Runs in every operator process, from its start to its end, because a full store refuses leases: nobody can be elected then, and a healing
that waited for a leader would wait for ever. What is done when is `dormouse_core.storage`'s; doing it twice, or in two processes at once,
does no harm.
"""

from collections.abc import Callable, Sequence

from dormouse_core.seams import Clock, MemberSeen, StoreError, StoreMembers
from dormouse_core.storage import Compact, CountFree, Defragment, Disarm, Step, Storage, Used
from dormouse_kit import log

from dormouse_operator import metrics

RETRY_SECONDS = 1.0


class Space:
    """`quota`: etcd's, in bytes, where its members do not say it. `shared`: by namespaces, none of which may fill it. `looked`: told what
    each look found."""

    def __init__(
        self,
        members: StoreMembers,
        clock: Clock,
        quota: int,
        *,
        shared: bool = True,
        looked: Callable[[Sequence[MemberSeen]], None] = lambda members: None,
    ) -> None:
        self._shared = shared
        self._looked = looked
        self._members = members
        self._clock = clock
        self._storage = Storage(quota)
        self._said = ""
        self.defragmented = 0  # times that this process did it

    @property
    def used(self) -> Used | None:
        """None: not known."""
        return self._storage.used(self._clock.monotonic())

    @property
    def shared(self) -> int | None:
        """The quota in bytes, where namespaces have shares of it; None: they have none, or it is not known yet."""
        return (self._storage.found or None) if self._shared else None

    async def run(self, leading: Callable[[], bool]) -> None:
        """Never returns. `leading`: whether this process leads now."""
        while True:
            try:
                pause = await self._once(leading())
            except StoreError as error:
                self._say("the store's space cannot be checked", str(error))
                pause = RETRY_SECONDS
            except Exception as error:  # an error of ours must not end the one thing that heals a full store
                log.warning("checking the store's space failed; tried again", error=repr(error))
                pause = RETRY_SECONDS
            await self._clock.sleep(pause)

    async def _once(self, leading: bool) -> float:
        members, missing = await self._members.look()
        self._looked(members)
        step = self._storage.look(self._clock.monotonic(), members, missing, leading=leading)
        full = any(member.full for member in members)
        used = self.used.fraction if self.used else None
        metrics.store(used, {member.endpoint: (member.size, member.used) for member in members}, full=full)
        if full:
            if step.action is None:
                self._say("the store is full", step.why)
        elif self._said and members:
            self._said = ""
            log.event("the store has room")
        await self._apply(step)
        return step.again

    async def _apply(self, step: Step) -> None:
        storage, members, began = self._storage, self._members, self._clock.monotonic()
        match step.action:
            case Compact(revision):
                await members.compact(revision)
                storage.compacted(self._clock.monotonic(), revision)
                metrics.COMPACTIONS.inc()
            case CountFree():
                storage.counted(self._clock.monotonic(), done=await members.count_free())
            case Defragment(endpoint, member):
                log.event("defragmenting", endpoint=endpoint, reason=step.why)
                try:
                    await members.defragment(endpoint)
                except StoreError:
                    storage.defragmented(self._clock.monotonic(), member, self._clock.monotonic() - began, done=False)
                    raise
                seconds = self._clock.monotonic() - began
                storage.defragmented(self._clock.monotonic(), member, seconds)
                metrics.DEFRAGMENTED.inc(seconds)
                self.defragmented += 1
                log.event("defragmented", endpoint=endpoint, seconds=round(seconds, 3))
            case Disarm():
                await members.disarm()
                storage.disarmed(self._clock.monotonic())
                log.event("cleared the store's alarm (NOSPACE)", reason=step.why)

    def _say(self, text: str, reason: str) -> None:
        """Once for each reason: a full store is looked at several times a second. Figures in it change."""
        said = text + "".join(c for c in reason if not c.isdigit())
        if said != self._said:
            self._said = said
            log.warning(text, reason=reason)
