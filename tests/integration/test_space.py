"""A real etcd with a small quota: history does not fill it; full all the same, it heals by itself, also where nobody can lead."""

import asyncio
import contextlib
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
from dormouse_core import storage
from dormouse_core.seams import Delete, Full, MemberSeen, ModIs, Put, StoreError, Txn
from dormouse_kit.clock import SystemClock
from dormouse_kit.election import Election
from dormouse_kit.etcd import EtcdMembers, EtcdStore
from dormouse_operator.space import Space
from dormouse_testing.etcd_server import EtcdServer

MIB = 1024 * 1024
QUOTA = 16 * MIB
OPTIONS = ("--quota-backend-bytes", str(QUOTA))

Own = Callable[..., EtcdServer]


@contextlib.asynccontextmanager
async def looked_after(*servers: EtcdServer, leading: bool) -> AsyncIterator[tuple[EtcdStore, EtcdMembers, Space]]:
    """One process's loop beside a client of the same etcd."""
    endpoints = [server.endpoint for server in servers]
    store, members = EtcdStore(endpoints), EtcdMembers(endpoints)
    space = Space(members, SystemClock(), QUOTA)
    running = asyncio.create_task(space.run(lambda: leading))
    try:
        yield store, members, space
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await store.close()
        await members.close()


async def put(store: EtcdStore, key: str, size: int) -> None:
    """Waits for a disk that is slow, and for a member that copies its file."""
    await store.txn(Txn((), (Put(key, b"x" * size),)), timeout=30)


async def steps(store: EtcdStore, seconds: float) -> None:
    """64 KiB, 50 times a second."""
    began = time.monotonic()
    for count in range(int(50 * seconds)):
        await put(store, "/one-session", 64 * 1024)
        await asyncio.sleep(max(0.0, began + count / 50 - time.monotonic()))


async def fill(store: EtcdStore, prefix: str, size: int = 64 * 1024) -> int:
    """Until etcd refuses: how many keys it took. The one that it refused may be there too (`Full`)."""
    count = 0
    with contextlib.suppress(Full):
        while True:
            await put(store, f"{prefix}{count}", size)
            count += 1
    return count


async def fill_with_keys(store: EtcdStore, prefix: str, seconds: float) -> int:
    """Until etcd refuses for `seconds`, in which whoever looks after it has made all the room that there is. The first refusal may leave
    some: a file is full of more than keys."""
    count, until = 0, 0.0
    while not until or time.monotonic() < until:
        try:
            await put(store, f"{prefix}{count}", 64 * 1024)
            count, until = count + 1, 0.0
        except Full:
            until = until or time.monotonic() + seconds
            await asyncio.sleep(0.05)
    return count


async def until(true: Callable[[], object], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 - it is a state of etcd's
            await asyncio.sleep(0.02)


async def shrinks(members: EtcdMembers, size: int) -> None:
    """The one member's file becomes smaller than `size` bytes: with the healing, or by what gives free space back."""
    async with asyncio.timeout(2 * storage.STEADY_SECONDS + storage.SPACING_SECONDS + 20):
        while (await members.look())[0][0].size >= size:  # noqa: ASYNC110 - it is a state of etcd's
            await asyncio.sleep(0.1)


async def heals(store: EtcdStore, seconds: float = 60.0) -> None:
    """A write is taken again."""
    async with asyncio.timeout(seconds):
        while True:
            with contextlib.suppress(Full):
                await put(store, "/healed", 1)
                return
            await asyncio.sleep(0.05)


async def test_one_busy_session_never_fills_the_store(own_server: Own) -> None:
    """6.O4: it was full after 4 s and stayed so."""
    server = own_server(*OPTIONS)
    async with looked_after(server, leading=True) as (store, members, space):
        await steps(store, 6)
        (member,), _ = await members.look()
        assert member.size < QUOTA
        assert space.used is not None
        assert space.used.fraction < 0.6


async def test_negative_control_without_looking_at_what_is_written_it_is_full(own_server: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    """6.O4, as it was."""
    monkeypatch.setattr(storage, "COMPACT_FRACTION", 1e9)
    monkeypatch.setattr(storage, "PRESSED_SECONDS", 0.0)
    monkeypatch.setattr(storage.Storage, "_full", lambda *_, **__: storage.Step(None, "", 1.0))
    async with looked_after(own_server(*OPTIONS), leading=True) as (store, _, _):
        with pytest.raises(Full):
            await steps(store, 20)


async def test_a_full_store_heals_where_nobody_leads(own_server: Own) -> None:
    """6.O4: a lease is refused while it is full, so nobody can be elected: a process that does not lead makes room."""
    server = own_server(*OPTIONS)
    store = EtcdStore([server.endpoint])
    lease = await store.grant(30)
    await store.txn(Txn((), (Put("/worker", b"w", lease), Put("/shard", b"1"))))
    count = await fill(store, "/sessions/")
    with pytest.raises(Full):
        await store.grant(3)
    assert await store.keep_alive(lease) == 30, "who is registered stays so"
    assert {item.key for item in (await store.list("/sessions/")).items} >= {f"/sessions/{number}" for number in range(count)}, "readable"
    assert not any(part.succeeded for part in [await store.txn(Txn((ModIs("/shard", 1),), ()))])
    async with looked_after(server, leading=False) as (_, members, _):
        await fill_with_keys(store, "/more/", storage.PATIENCE_SECONDS + 2)  # nothing to drop
        for number in range(count // 2):
            await store.txn(Txn((), (Delete(f"/sessions/{number}"),)))
        await heals(store)
        await shrinks(members, int(0.7 * QUOTA))  # the space comes back
        election = Election(store, SystemClock(), "/leader", b"me")
        async with asyncio.timeout(20):
            await election.campaign()
        await election.resign()
    assert (await store.get(["/worker"]))[1]["/worker"].lease == lease
    await store.close()


@pytest.mark.parametrize("counting", [True, False])
async def test_a_store_that_keys_fill_is_not_copied_for_nothing(own_server: Own, monkeypatch: pytest.MonkeyPatch, counting: bool) -> None:
    """Its member answers nothing meanwhile. Negative control: without an etcd that is made to count what is free it is tried."""

    async def unknown(self: EtcdMembers) -> bool:
        return False

    in_vain: list[str] = []
    defragment = EtcdMembers.defragment

    async def noted(self: EtcdMembers, endpoint: str) -> None:
        await defragment(self, endpoint)
        (member,), _ = await self.look()
        in_vain.extend([endpoint] if member.size >= storage.ROOM_FRACTION * QUOTA else [])

    monkeypatch.setattr(EtcdMembers, "defragment", noted)
    if not counting:
        monkeypatch.setattr(EtcdMembers, "count_free", unknown)
    async with looked_after(own_server(*OPTIONS), leading=True) as (store, members, space):
        await until(lambda: space.used is not None)
        await fill_with_keys(store, "/sessions/", storage.FULL_SECONDS + 1)  # after a copy it rests for as long as that
        if not counting:
            await until(lambda: in_vain)
        assert (not in_vain) == counting
        await store.txn(Txn((), (Delete("/sessions/", prefix=True),)), timeout=20)
        await heals(store)
        await shrinks(members, 1 * MIB)  # the keys are gone


async def test_two_processes_heal_it_at_once(own_server: Own) -> None:
    server = own_server(*OPTIONS)
    async with looked_after(server, leading=True) as (store, _, _), looked_after(server, leading=False), looked_after(server, leading=True):
        for _ in range(3):
            await fill(store, "/same", 200 * 1024)
            await store.txn(Txn((), (Delete("/same", prefix=True),)))
            await heals(store)


async def test_free_space_comes_back_member_by_member(etcd_cluster: list[EtcdServer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "STEADY_SECONDS", 1.0)
    monkeypatch.setattr(storage, "COMPACT_SECONDS", 2.0)
    monkeypatch.setattr(storage, "SPACING_SECONDS", 0.5)
    order: list[str] = []
    early: list[storage.Step] = []
    defragment, look = EtcdMembers.defragment, storage.Storage.look

    async def noted(self: EtcdMembers, endpoint: str) -> None:
        await defragment(self, endpoint)
        order.append(endpoint)

    def looked(self: storage.Storage, now: float, members: Sequence[MemberSeen], missing: Sequence[str], *, leading: bool) -> storage.Step:
        step = look(self, now, members, missing, leading=leading)
        if isinstance(step.action, storage.Defragment):
            leads = {member.endpoint for member in members if member.leads}
            early.extend([step] if step.action.endpoint in leads and len(order) < 2 else [])
        return step

    monkeypatch.setattr(EtcdMembers, "defragment", noted)
    monkeypatch.setattr(storage.Storage, "look", looked)
    async with looked_after(*etcd_cluster, leading=True) as (store, members, _):
        for number in range(100):
            await put(store, f"/sessions/{number}", 64 * 1024)
        await store.txn(Txn((), (Delete("/sessions/", prefix=True),)))
        async with asyncio.timeout(90):
            while len(order) < 3:
                await put(store, "/beat", 1)  # a member counts what is free with its next write
                await asyncio.sleep(0.1)
        seen, missing = await members.look()
        assert missing == []
        assert max(member.size for member in seen) < 2 * MIB
        assert sorted(order) == sorted(server.endpoint for server in etcd_cluster)
        assert not early, "the one that leads etcd's cluster comes last"


@pytest.mark.slow
async def test_nothing_is_defragmented_while_a_member_is_away(etcd_cluster: list[EtcdServer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "STEADY_SECONDS", 0.2)
    monkeypatch.setattr(storage, "SPACING_SECONDS", 0.5)
    monkeypatch.setattr(storage, "COMPACT_SECONDS", 0.5)
    async with looked_after(*etcd_cluster, leading=True) as (store, members, _):
        for number in range(100):
            await put(store, f"/sessions/{number}", 64 * 1024)
        etcd_cluster[0].kill()
        while len((await members.look())[1]) != 1:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        async with asyncio.timeout(20):
            while True:  # the member that was killed may have led etcd
                with contextlib.suppress(StoreError):
                    await store.txn(Txn((), (Delete("/sessions/", prefix=True),)))
                    break
                await asyncio.sleep(0.1)
        await asyncio.sleep(3)
        seen, _ = await members.look()
        assert min(member.size for member in seen) > 6 * MIB
        etcd_cluster[0].start()
        async with asyncio.timeout(20):
            while max(member.size for member in (await members.look())[0]) > 4 * MIB:  # noqa: ASYNC110
                await asyncio.sleep(0.1)


@pytest.mark.parametrize("path", ["/health?exclude=NOSPACE", "/health?serializable=true&exclude=NOSPACE"])
async def test_probes_do_not_end_a_full_etcd(own_server: Own, path: str) -> None:
    """The chart's; without `exclude` the answer is 503, so a kubelet would start it again for ever."""

    def status(path: str) -> int:
        try:
            with urllib.request.urlopen(f"http://{server.endpoint}{path}", timeout=30) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as error:
            return error.code

    server = own_server("--quota-backend-bytes", str(4 * MIB))
    store = EtcdStore([server.endpoint])
    await fill(store, "/sessions/", 1 * MIB)
    await store.close()
    assert await asyncio.to_thread(status, path) == 200
    assert await asyncio.to_thread(status, path.replace("exclude=NOSPACE", "")) == 503, "negative control"


async def test_negative_control_an_etcd_that_drops_nothing_by_itself_is_full(own_server: Own) -> None:
    store = EtcdStore([own_server(*OPTIONS).endpoint])
    with pytest.raises(Full):
        await steps(store, 6)
    await store.close()


async def test_etcd_drops_history_by_itself_where_nobody_does(own_server: Own) -> None:
    """The backstop, with nobody who looks after it; what the defaults of `dormouse up` and the chart hold for is in their documentation."""
    server = own_server(*OPTIONS, "--auto-compaction-mode=periodic", "--auto-compaction-retention=1s")
    store = EtcdStore([server.endpoint])
    try:
        await steps(store, 6)
    except StoreError as error:
        pytest.fail(str(error))
    finally:
        await store.close()
