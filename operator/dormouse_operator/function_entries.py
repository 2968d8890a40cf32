"""Apply, scale, delete: what people ask of the registry, on one machine. (In a cluster the API server takes manifests.)

Each is read, decide, write-if-unchanged: two people who apply at once get one after the other, never a mixture.
"""

from collections.abc import Awaitable, Callable
from uuid import uuid4

import msgspec
from dormouse_core import editions, entries, retaining, transactions
from dormouse_core import spec as specs
from dormouse_core.errors import Aborted, DataLoss, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from dormouse_core.keys import Keys, function_of, number
from dormouse_core.limits import REPLICAS_MAX
from dormouse_core.seams import Clock, CreatedIs, Full, Item, ModIs, Put, Store, StoreError, Txn
from dormouse_core.spec import InferenceFunction, Metadata
from dormouse_kit import log
from dormouse_proto import state_pb2

ATTEMPTS = 5

Change = Callable[[state_pb2.FunctionEntry | None], state_pb2.FunctionEntry | None]
Content = Callable[[specs.FunctionSpec], Awaitable[str]]


async def unknown(spec: specs.FunctionSpec) -> str:
    """Of a model that only its worker can reach."""
    return ""


class FunctionEntries:
    """Writes of `functions/`. All raise DormouseError; a write whose outcome is not known is UNAVAILABLE, and asking again is safe."""

    def __init__(self, store: Store, keys: Keys, clock: Clock, leader_new: int, content: Content = unknown) -> None:
        """`content(spec)`: the digest of what lies at its model's place now; empty: not known here."""
        self._store = store
        self._keys = keys
        self._clock = clock
        self._leader_new = leader_new
        self._content = content
        self.ending: set[str] = set()
        """The uids of functions whose deletion was asked for while the store was full and took no mark: this leader knows them alone."""

    async def apply(self, manifest: str, *, refresh: bool = False) -> tuple[state_pb2.FunctionEntry, str, int]:
        """The entry, `created` | `configured` | `refreshed` | `unchanged`, and the revision at which the store has it.

        `refreshed`: the spec is as it was, and the content is read again as a new revision: it is another, it was refused, or `refresh`
        asks for it.
        """
        wanted = specs.parse_manifest(manifest)
        content = await self._content(wanted.spec)
        outcome = "unchanged"

        def change(entry: state_pb2.FunctionEntry | None) -> state_pb2.FunctionEntry | None:
            nonlocal outcome
            if entry is None:
                outcome = "created"
                return self._new(wanted, content)
            _refuse_deleting(entry)
            old = manifest_of(entry)
            new = wanted
            if new.spec.replicas is None and old.spec.replicas is not None:
                # Who scaled by hand keeps it until they say `auto`; a manifest without the field says nothing about it.
                new = msgspec.structs.replace(new, spec=msgspec.structs.replace(new.spec, replicas=old.spec.replicas))
            specs.validate_update(old, new)
            same = specs.spec_to_json(new.spec) == entry.spec
            edition = editions.edition(entry, lambda e: specs.revision_of(new.spec, e), content, asked=refresh, retry=same)
            if same:
                if edition == entry.edition:
                    return wanted_again(entry) if entry.restored else None
                outcome = "refreshed"
            else:
                outcome = "configured"
            return with_spec(entry, new.spec, edition)

        entry, revision = await self._change(wanted.metadata.namespace, wanted.metadata.name, change)
        return entry, outcome, revision

    async def scale(self, namespace: str, name: str, replicas: int | None) -> tuple[state_pb2.FunctionEntry, int]:
        if replicas is not None and not 0 <= replicas <= REPLICAS_MAX:
            raise InvalidArgument(f"replicas: {replicas} found, 0 to {REPLICAS_MAX} or auto is allowed")

        def change(entry: state_pb2.FunctionEntry | None) -> state_pb2.FunctionEntry | None:
            if entry is None:
                raise NotFound(f"no function {namespace}/{name}")
            _refuse_deleting(entry)
            spec = specs.spec_from_json(entry.spec)
            if spec.replicas == replicas:
                return None
            return with_spec(entry, msgspec.structs.replace(spec, replicas=replicas), entry.edition)

        return await self._change(namespace, name, change)

    async def delete(self, namespace: str, name: str) -> int:
        """Marks it; the leader stops its workers and removes its map, its data and at last its name."""

        def change(entry: state_pb2.FunctionEntry | None) -> state_pb2.FunctionEntry | None:
            if entry is None:
                raise NotFound(f"no function {namespace}/{name}")
            if entry.deleting:
                return None
            after = marked(entry)
            after.restored = False  # somebody says that it is not wanted
            return after

        _, revision = await self._change(namespace, name, change)
        return revision

    async def mark(self) -> bool:
        """Leaves the mark that every function has its entry. False: not known to be there; ask again."""
        mark = Txn((CreatedIs(self._keys.leader, self._leader_new),), (Put(self._keys.written, b""),))
        try:
            return (await self._store.txn(mark)).succeeded
        except StoreError:
            return False

    async def _change(self, namespace: str, name: str, change: Change) -> tuple[state_pb2.FunctionEntry, int]:
        key, retained = self._keys.function(namespace, name), self._keys.retained(namespace, name)
        try:
            for _ in range(ATTEMPTS):
                _, items = await self._store.get([key, retained])
                item = items.get(key)
                before = None if item is None else entries.parse(state_pb2.FunctionEntry, item)
                if before is not None and before.uid in self.ending:
                    before.deleting = True
                after = change(before)
                if after is None:
                    assert before is not None
                    assert item is not None
                    return before, item.mod_revision
                if item is None and retained in items:
                    after.store_id = retaining.adopted(items[retained], f"{namespace}/{name}", after.shards, after.tenant)
                value = after.SerializeToString()
                try:
                    if item is None:
                        if retained in items and not await self._prepare(after, items[retained]):
                            continue
                        result = await self._store.txn(self._register(after, value, items.get(retained)))
                        if result.succeeded and retained in items:
                            log.event("kept sessions are adopted", function=f"{namespace}/{name}", uid=after.uid, store_id=after.store_id)
                    else:
                        result = await self._store.txn(self._put(key, item, value))
                except Full as error:
                    _, items = await self._store.get([key])
                    if key in items and items[key].value == value:
                        return after, items[key].mod_revision  # it was written all the same
                    if _mod(items.get(key)) != _mod(item):
                        continue  # by somebody: it may have been written, and then changed
                    if not after.deleting:
                        raise Unavailable(f"{namespace}/{name} is not changed: the store is full ({error}); deletions are taken") from error
                    # The mark would be a write; what follows it are deletions, which a full store takes, and which make room.
                    self.ending.add(after.uid)
                    return after, 0
                if result.succeeded:
                    return after, result.revision
        except entries.Unreadable as error:
            raise DataLoss(f"{namespace}/{name} cannot be changed: {error}") from error
        except StoreError as error:
            raise Unavailable(f"the store does not answer, so whether {namespace}/{name} was changed is not known: {error}") from error
        raise Aborted(f"{namespace}/{name} is being changed by others at the same time, or this operator no longer leads: ask again")

    def _put(self, key: str, item: Item, value: bytes) -> Txn:
        return Txn((CreatedIs(self._keys.leader, self._leader_new), ModIs(key, item.mod_revision)), (Put(key, value),))

    def _register(self, entry: state_pb2.FunctionEntry, value: bytes, retained: Item | None) -> Txn:
        return transactions.begin(self._keys, function_of(entry), value, retained_mod=_mod(retained), leader_new=self._leader_new)

    async def _prepare(self, entry: state_pb2.FunctionEntry, retained: Item) -> bool:
        """Entries that name nobody for the shards of the sessions that `entry` adopts. False: somebody else was faster."""
        function, mod = function_of(entry), retained.mod_revision
        there, floors = [
            {number(item.key.removeprefix(prefix)) for item in (await self._store.list(prefix, keys_only=True)).items}
            for prefix in (self._keys.shards(function), self._keys.floors(function))
        ]
        shards = [shard for shard in range(entry.shards) if shard in floors and shard not in there]
        for at in range(0, len(shards), transactions.MAX_SHARDS):
            part = shards[at : at + transactions.MAX_SHARDS]
            txn = transactions.prepare(self._keys, function, part, retained_mod=mod, leader_new=self._leader_new)
            if not (await self._store.txn(txn)).succeeded:
                return False
        return True

    def _new(self, wanted: InferenceFunction, content: str) -> state_pb2.FunctionEntry:
        entry = state_pb2.FunctionEntry(
            namespace=wanted.metadata.namespace,
            name=wanted.metadata.name,
            uid=str(uuid4()),
            shards=wanted.spec.sessions.shards if wanted.spec.sessions else 0,
            created_us=int(self._clock.now() * 1_000_000),
        )
        return with_spec(entry, wanted.spec, content)


def _mod(item: Item | None) -> int:
    return 0 if item is None else item.mod_revision


def manifest_of(entry: state_pb2.FunctionEntry) -> InferenceFunction:
    """The object as it was applied, defaults filled in; labels and annotations are not kept on one machine."""
    return InferenceFunction(metadata=Metadata(name=entry.name, namespace=entry.namespace), spec=specs.spec_from_json(entry.spec))


def with_spec(before: state_pb2.FunctionEntry, spec: specs.FunctionSpec, edition: str = "") -> state_pb2.FunctionEntry:
    """A copy of `before` that says `spec` in `edition`: one generation later, without the problem of another revision, and with the spec of
    the one that was proved, so that it can be started until the new one is."""
    entry = wanted_again(before)
    entry.spec = specs.spec_to_json(spec)
    entry.edition = edition
    entry.revision = specs.revision_of(spec, edition)
    entry.generation += 1
    if entry.revision != before.revision:
        entry.ClearField("problem")
        if before.proved_revision == before.revision:
            entry.proved_spec = before.spec
        if entry.proved_revision == entry.revision:
            entry.ClearField("proved_spec")
    return entry


def marked(entry: state_pb2.FunctionEntry) -> state_pb2.FunctionEntry:
    """As one that is being deleted."""
    found = state_pb2.FunctionEntry()
    found.CopyFrom(entry)
    found.deleting = True
    return found


def wanted_again(entry: state_pb2.FunctionEntry) -> state_pb2.FunctionEntry:
    """As one that somebody applied since it was restored."""
    found = state_pb2.FunctionEntry()
    found.CopyFrom(entry)
    found.restored = False
    return found


def _refuse_deleting(entry: state_pb2.FunctionEntry) -> None:
    if entry.deleting:
        raise FailedPrecondition(f"{entry.namespace}/{entry.name} is being deleted; its name can be used again when that is done")
