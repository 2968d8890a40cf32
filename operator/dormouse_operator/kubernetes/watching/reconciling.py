"""One object's round, from whatever state it is in: read it, keep its function in the registry, keep what it consists of in the cluster,
say how it is.

Level-triggered: a round looks at what is there and at what should be, never at what happened. News only says that a round is worth while.
An object that cannot be read, or that cannot be applied, is told so in its own conditions; its round ends there and nobody else's does.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from dormouse_core import spec as specs
from dormouse_core.backoff import Backoff
from dormouse_core.errors import Aborted, Code, DataLoss, DormouseError, FailedPrecondition, InvalidArgument, Unavailable
from dormouse_core.policies import NotAllowed
from dormouse_core.retaining import OtherTenant
from dormouse_core.seams import Clock, StoreError
from dormouse_kit import log
from dormouse_proto import control_pb2, state_pb2

from dormouse_operator.kubernetes.api.http import ApiError, Object
from dormouse_operator.kubernetes.api.known import Key, Objects
from dormouse_operator.kubernetes.objects.applying import Applier, NotApplied
from dormouse_operator.kubernetes.objects.credentials import Credentials
from dormouse_operator.kubernetes.objects.object_entries import NameInUse, ObjectEntries, edition_of
from dormouse_operator.kubernetes.telling.statuses import RETRYING, Said
from dormouse_operator.kubernetes.telling.teller import Teller
from dormouse_operator.mirror import Mirror

AGAIN = Backoff(0.5, 5.0)  # before a round that failed is begun anew
TOGETHER = 8  # rounds at a time
IN_USE = "NameInUse"
REFUSALS = {InvalidArgument: "Invalid", DataLoss: "Unreadable", FailedPrecondition: "ChangeRefused"}

Entries = Callable[[str], state_pb2.FunctionEntry | None]
Statuses = Callable[[str], control_pb2.FunctionStatus | None]


@dataclass(slots=True)
class _Known:
    """What earlier rounds of one uid found; a round that finds the same has nothing to do."""

    generation: tuple[int, str] = (-1, "")
    """And the edition, which an annotation asks for: annotations count no generation."""
    accepted: Said | None = None
    elsewhere: bool = False
    """What `accepted` refuses may be put right elsewhere than in the object, without our being told: looked at again by `retry`."""
    judged_generation: int = -1
    """The object's generation that `accepted` is about. A status says no more than that of what it is about."""
    entered: int = 0
    """The generation of the registry's entry that says that object: what the leader sees of an earlier one is not about it."""
    tried: tuple[str, bytes, bytes] | None = None
    """The revision and the spec that was applied, or that cannot be, and the proved revision's where that is another: trying again is for
    when something changed, or for now and then (`retry`)."""
    not_applied: NotApplied | None = None
    judged: str = ""
    """The revision that `not_applied` is about."""


@dataclass(slots=True)
class _Round:
    task: asyncio.Task[None] | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)


class Reconciler:
    """`entry(uid)`, `status(uid)`: what the leader has of a function; None: nothing (yet). `waiting(uid)`: what its pods wait for;
    `turn(uid)`: what a worker of it waits for that has no pod yet; '': nothing.
    `serves(namespace)`: whether functions there are kept as their objects say; if not, as the registry does.
    `began(uid)` is called when a function's deletion has begun."""

    def __init__(
        self,
        clock: Clock,
        objects: Objects,
        entries: ObjectEntries,
        mirror: Mirror,
        applier: Applier,
        credentials: Credentials,
        teller: Teller,
        *,
        entry: Entries,
        status: Statuses,
        waiting: Callable[[str], str],
        turn: Callable[[str], str],
        serves: Callable[[str], bool],
        began: Callable[[str], None],
    ) -> None:
        self._clock = clock
        self._objects = objects
        self._entries = entries
        self._mirror = mirror
        self._applier = applier
        self._credentials = credentials
        self._teller = teller
        self._entry = entry
        self._status = status
        self._waiting = waiting
        self._turn = turn
        self._serves = serves
        self._began = began
        self._known: dict[str, _Known] = {}
        self._rounds: dict[Key, _Round] = {}
        self._room = asyncio.Semaphore(TOGETHER)
        self._unwritten = ""

    # ------------------------------------------------------------------------------------------------------------------ news

    def nudge(self, key: Key) -> None:
        """Something about this object may have changed."""
        around = self._rounds.setdefault(key, _Round())
        around.news.set()
        if around.task is None:
            around.task = asyncio.create_task(self._run(key, around), name=f"object {key[0]}/{key[1]}")

    def doubt(self, key: Key, uid: str) -> None:
        """What it consists of may have changed in the cluster."""
        known = self._known.get(uid)
        if known is not None:
            known.tried = None
        self.nudge(key)

    def retry(self) -> None:
        """Now and then: what somebody else may have put right meanwhile, without our being told."""
        for key, found in self._objects.items.items():
            known = self._known.get(found["metadata"]["uid"])
            if known is None:
                continue
            if known.elsewhere:
                known.generation = (-1, "")
            if known.elsewhere or (known.not_applied is not None and not known.not_applied.final):
                self.doubt(key, found["metadata"]["uid"])

    def doubt_all(self, entry: state_pb2.FunctionEntry) -> None:
        """Its pods cannot start: also what is not watched."""
        self._applier.doubt(entry)
        self.doubt((entry.namespace, entry.name), entry.uid)

    def refused(self, uid: str, revision: str) -> state_pb2.Problem | None:
        """Why the revision's pods cannot even be described to the cluster: for its callers, while there is no Deployment. None, too, of a
        revision that was not tried yet: what was wrong with the one before it says nothing of it."""
        known = self._known.get(uid)
        error = known.not_applied if known is not None and known.judged == revision else None
        if error is None or error.reason == RETRYING:
            return None
        code = Code.FAILED_PRECONDITION if error.final else Code.UNAVAILABLE
        return state_pb2.Problem(code=int(code), reason=error.reason, message=error.message)

    def judged(self, uid: str) -> bool:
        """The object has an entry in the registry, or was refused. One that waits for its name has none yet, and will."""
        known = self._known.get(uid)
        if known is None or known.accepted is None:
            return False
        return known.judged_generation >= 0 and known.accepted.reason != IN_USE

    async def close(self) -> None:
        tasks = [around.task for around in self._rounds.values() if around.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ------------------------------------------------------------------------------------------------------------------ rounds

    async def _run(self, key: Key, around: _Round) -> None:
        """Until there is no news of it, and nothing left to try again."""
        pauses = AGAIN.pauses()
        try:
            while around.news.is_set():
                around.news.clear()
                async with self._room:
                    settled = await self._guarded(key)
                if settled:
                    pauses = AGAIN.pauses()
                    continue
                try:
                    async with asyncio.timeout(next(pauses)):
                        await around.news.wait()
                except TimeoutError:
                    around.news.set()
        finally:
            around.task = None
            if not around.news.is_set():
                self._rounds.pop(key, None)

    async def _guarded(self, key: Key) -> bool:
        try:
            settled = await self._round(key)
            self._unwritten = ""
            return settled
        except ApiError as error:
            if error.reason != self._unwritten:  # while the server is away every function's is not written, again and again
                self._unwritten = error.reason
                log.event("a function's status could not be written; tried again", function="/".join(key), error=error.message)
        except Exception as error:
            # One object's trouble stays with it: an error of ours in its round is logged, and the round begins anew.
            log.warning("a function could not be reconciled; tried again", function="/".join(key), error=repr(error))
        return False

    async def _round(self, key: Key) -> bool:
        """False: something should be tried again soon."""
        found = self._objects.items.get(key)
        if found is None:
            return True
        uid = found["metadata"]["uid"]
        if not self._serves(key[0]):
            return await self._keep(uid)
        known = self._known.setdefault(uid, _Known())
        settled = await self._accept(found, known)
        entry = self._entry(uid)
        if entry is not None and not entry.deleting:
            settled = await self._apply(entry, known) and settled
        self._objects.doubt(found)
        said = self._said(uid, known)
        told = self._status(uid)
        if known.judged_generation < 0 or (told is not None and told.generation < known.entered):
            return settled  # nothing is known of this generation yet; there is news when there is
        if told is not None or any(each.bad for each in said):
            written = await self._teller.tell(found, told, said, known.judged_generation)
            if written is not None:
                self._objects.take(written)
        return settled

    async def _keep(self, uid: str) -> bool:
        """Of a function that is let be: its entry is as it was, and what it consists of is kept as that says, with credentials and
        certificates that are of now. Its object is neither read nor written, and the applier keeps off what another installation made."""
        entry = self._entry(uid)
        if entry is None or entry.deleting:
            return True
        known = self._known.setdefault(uid, _Known())
        before = known.not_applied
        settled = await self._apply(entry, known)
        error = known.not_applied
        if error is not None and (before is None or before.message != error.message):
            label = f"{entry.namespace}/{entry.name}"
            log.event("a function in a namespace that is not served could not be kept", function=label, error=error.message)
        return settled

    async def _accept(self, found: Object, known: _Known) -> bool:
        """The registry as the object wants it."""
        uid, generation = found["metadata"]["uid"], (found["metadata"].get("generation", 0), edition_of(found))
        if known.generation == generation and (self._entry(uid) is not None or (known.accepted is not None and known.accepted.bad)):
            return True
        known.elsewhere = False
        try:
            wanted = specs.parse_manifest({name: part for name, part in found.items() if name != "status"})
            entry, revision = await self._entries.keep(found, wanted)
        except NameInUse as error:
            known.judged_generation, known.accepted = generation[0], Said("Accepted", "False", IN_USE, error.message)
            return False
        except (Unavailable, Aborted) as error:
            log.event("an object could not be applied yet; tried again", function=found["metadata"]["name"], error=error.message)
            return False
        except (InvalidArgument, FailedPrecondition, DataLoss) as error:
            reason = next(reason for kind, reason in REFUSALS.items() if isinstance(error, kind))
            known.generation, known.accepted = generation, Said("Accepted", "False", reason, _sentence(error.message))
            known.judged_generation, known.elsewhere = generation[0], isinstance(error, DataLoss | OtherTenant)
            return True
        known.generation, known.accepted = generation, Said("Accepted", "True", "Accepted", "The object is valid.")
        known.judged_generation, known.entered = generation[0], entry.generation
        return await self._mirror.wait_for(revision)

    async def _apply(self, entry: state_pb2.FunctionEntry, known: _Known) -> bool:
        wanted = (entry.revision, entry.spec, entry.proved_spec)
        if known.tried == wanted:
            return True
        error = await self._tried(entry)
        known.not_applied, known.judged = error, entry.revision
        if error is not None and error.reason == RETRYING:
            return False
        known.tried = wanted
        return True

    async def _tried(self, entry: state_pb2.FunctionEntry) -> NotApplied | None:
        try:
            await self._credentials.ensure(entry)
            await self._applier.apply(entry)
        except NotApplied as error:
            return error
        except StoreError as error:
            return NotApplied(RETRYING, f"The function's user in the store is not made yet: {error}")
        except InvalidArgument as error:
            return NotApplied("NotAllowed" if isinstance(error, NotAllowed) else "Invalid", _sentence(error.message), final=True)
        return None

    def _said(self, uid: str, known: _Known) -> list[Said]:
        said = [known.accepted] if known.accepted is not None else []
        error = known.not_applied
        if error is not None:
            said.append(Said("Applied", "False", error.reason, error.message))
            if error.reason == "NameTaken":
                said.append(Said("NameTaken", "True", "NameTaken", error.message))
        elif known.tried:
            said.append(Said("Applied", "True", "Applied", "All of the function's own objects are in the cluster."))
        if turn := self._turn(uid):
            said.append(Said("Scheduled", "False", "WaitsForTurn", _sentence(turn)))
        elif waiting := self._waiting(uid):
            said.append(Said("Scheduled", "False", "Waiting", _sentence(waiting)))
        return said

    # ------------------------------------------------------------------------------------------------------------------ what is gone

    async def gone(self, namespace: str, name: str, uid: str) -> None:
        """A complete list has no object of this uid."""
        self._known.pop(uid, None)
        self._teller.forget(uid)
        try:
            if await self._entries.forget(namespace, name, uid):
                log.event("the object is gone: the function is deleted", function=f"{namespace}/{name}", uid=uid)
                self._began(uid)
            entry = self._entry(uid)
            if entry is not None:
                await self._applier.remove(entry)
        except DormouseError as error:
            log.event("a deleted function could not be removed; tried again", function=f"{namespace}/{name}", error=error.message)


def _sentence(text: str) -> str:
    """One line that ends with a full stop, and begins with a capital or with a field's name."""
    line = "; ".join(part.strip() for part in text.splitlines() if part.strip())
    first = line.partition(":")[0]
    return (line if "." in first and " " not in first else line[:1].upper() + line[1:]).rstrip(".") + "."
