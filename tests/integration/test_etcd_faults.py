"""The store's client when etcd is killed, frozen, unreachable, full, guarded or several."""

import asyncio
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
from dormouse_core.seams import Compacted, Event, Full, ModIs, Put, Store, StoreError, Txn
from dormouse_kit.clock import SystemClock
from dormouse_kit.election import Election
from dormouse_kit.etcd import EtcdStore, TlsFiles, connections, watching
from dormouse_testing.etcd_server import EtcdServer
from dormouse_testing.ports import free_port
from dormouse_testing.proxy import Proxy
from dormouse_testing.workers import metric_of
from dormouse_worker.process.jsonstore import JsonStore

KEY = "/dormouse/faults/a"
ASKED = r'grpc_server_started_total{grpc_method="Authenticate".*}'


def put(value: bytes, revision: int | None = None, key: str = KEY) -> Txn:
    return Txn(() if revision is None else (ModIs(key, revision),), (Put(key, value),))


@asynccontextmanager
async def client(*endpoints: str) -> AsyncIterator[EtcdStore]:
    store = EtcdStore(endpoints)
    try:
        yield store
    finally:
        await store.close()


async def follow(store: Store, seen: list[bytes], stands: asyncio.Event) -> None:
    """A watch until it ends."""
    async with aclosing(store.watch("/dormouse/", 0)) as batches:
        async for batch in batches:
            stands.set()
            seen.extend(event.item.value for event in batch.events if event.item)


async def standing(store: Store, seen: list[bytes]) -> asyncio.Task[None]:
    """A watch that stands, begun again for as long as the connection is one that was just lost."""
    async with asyncio.timeout(20):
        while True:
            stands = asyncio.Event()
            task, stood = asyncio.create_task(follow(store, seen, stands)), asyncio.create_task(stands.wait())
            await asyncio.wait({task, stood}, return_when=asyncio.FIRST_COMPLETED)
            stood.cancel()
            if stands.is_set():
                return task
            with pytest.raises(StoreError):
                await task


async def value_of(store: Store) -> tuple[bytes, int]:
    """Reads until the store answers."""
    async with asyncio.timeout(20):
        while True:
            try:
                item = (await store.get([KEY]))[1].get(KEY)
            except StoreError:
                await asyncio.sleep(0.05)
            else:
                return (item.value, item.mod_revision) if item else (b"", 0)


async def until(store: Store, value: bytes, revision: int) -> None:
    """The key gets `value` at or after `revision`."""
    async with asyncio.timeout(20), aclosing(store.watch(KEY, revision)) as batches:
        async for batch in batches:
            if any(event.item and event.item.value == value for event in batch.events):
                return


async def test_killed_under_a_transaction_the_outcome_is_unknown_and_the_client_heals(own_etcd: EtcdServer) -> None:
    async with client(own_etcd.endpoint) as store:
        await store.txn(put(b"before"))
        own_etcd.freeze()
        sending = asyncio.create_task(store.txn(put(b"lost")))
        await asyncio.sleep(0.2)
        own_etcd.kill()
        with pytest.raises(StoreError) as caught:
            await sending
        assert not caught.value.definite
        own_etcd.start()
        assert (await value_of(store))[0] == b"before"  # it was never read from the socket
        assert (await store.txn(put(b"after"))).succeeded


async def test_a_watch_says_when_etcd_came_back_without_its_data(own_etcd: EtcdServer) -> None:
    """One without a volume whose pod was replaced: it counts from one again, and a watch from later on would be silent for long."""
    async with client(own_etcd.endpoint) as store:
        for _ in range(5):
            await store.txn(put(b"before"))
        revision, _ = await store.get([KEY])
        own_etcd.kill()
        shutil.rmtree(own_etcd.folder / "data")
        own_etcd.start()
        assert await value_of(store) == (b"", 0)
        with pytest.raises(Compacted):
            await until(store, b"after", revision + 1)
        now, _ = await store.get([KEY])
        watching_on = asyncio.create_task(until(store, b"after", now + 1))
        await store.txn(put(b"after"))
        await watching_on


async def test_no_acknowledged_write_is_lost_or_doubled_over_kills(own_etcd: EtcdServer) -> None:
    """A counter that goes up by one, each outcome resolved by reading (rule *read-outcome*), over three SIGKILLs."""
    stop = asyncio.Event()
    counted = 0
    unknown = 0

    async def count(store: EtcdStore) -> None:
        nonlocal counted, unknown
        value, revision = await value_of(store)
        while not stop.is_set():
            following = b"%d" % (counted + 1)
            try:
                # Longer than a busy machine stands still: who gives up on an etcd that lives may be overtaken by its own write.
                result = await store.txn(put(following, revision), timeout=30)
            except StoreError as error:
                unknown += not error.definite
                value, revision = await value_of(store)
                counted += value == following
                continue
            assert result.succeeded
            counted, revision = counted + 1, result.revision

    async with client(own_etcd.endpoint) as store:
        counting = asyncio.create_task(count(store))
        async with asyncio.timeout(120):
            for kills in range(4):
                while counted < 15 * (kills + 1):
                    assert not counting.done(), counting.exception()
                    await asyncio.sleep(0.02)
                if kills < 3:
                    await asyncio.to_thread(own_etcd.kill)
                    await asyncio.to_thread(own_etcd.start)
        stop.set()
        await counting
        assert (await value_of(store))[0] == b"%d" % counted
        events = 0
        async with asyncio.timeout(10), aclosing(store.watch(KEY, 1)) as batches:
            async for batch in batches:
                events += len(batch.events)
                if events >= counted:
                    break
        assert events == counted, "one change of the key for each count"


async def test_what_was_never_sent_is_definite(tmp_path: Path) -> None:
    async with client(f"127.0.0.1:{free_port()}") as store:
        began = time.monotonic()
        with pytest.raises(StoreError, match="no etcd endpoint could be reached") as caught:
            await store.txn(put(b""), timeout=0.5)
        assert caught.value.definite
        assert time.monotonic() - began < 15, "as long as was asked for, not as long as a process waits for its store"


async def test_a_store_that_comes_up_later_is_found(own_etcd: EtcdServer) -> None:
    own_etcd.kill()
    async with client(own_etcd.endpoint) as store:
        reading = asyncio.create_task(value_of(store))
        await asyncio.sleep(0.5)
        await asyncio.to_thread(own_etcd.start)
        assert await reading == (b"", 0)


async def test_frozen_the_watch_ends_and_the_write_is_unknown(own_etcd: EtcdServer) -> None:
    async with client(own_etcd.endpoint) as store:
        revision = (await store.txn(put(b"before"))).revision
        stands = asyncio.Event()
        watching_task = asyncio.create_task(follow(store, [], stands))
        await stands.wait()
        own_etcd.freeze()
        began = time.monotonic()
        with pytest.raises(StoreError) as caught:
            await store.txn(put(b"late", revision), timeout=0.5)
        assert not caught.value.definite
        with pytest.raises(StoreError):
            await watching_task
        assert time.monotonic() - began < 0.9 * watching.LOST_AFTER, "by the probe, long before its own silence would have ended it"
        own_etcd.thaw()
        value, _ = await value_of(store)
        assert value in (b"before", b"late"), "unknown is the truth: etcd may read the transaction before it reads that nobody waits for it"


async def test_a_lease_over_a_short_freeze(own_etcd: EtcdServer) -> None:
    async with client(own_etcd.endpoint) as store:
        lease = await store.grant(30)
        own_etcd.freeze()
        with pytest.raises(StoreError):
            await store.keep_alive(lease)
        own_etcd.thaw()
        async with asyncio.timeout(20):
            while True:
                try:
                    assert await store.keep_alive(lease) == 30
                    break
                except StoreError:
                    await asyncio.sleep(0.05)


async def test_a_cancelled_caller_gets_its_cancellation(own_etcd: EtcdServer) -> None:
    async with client(own_etcd.endpoint) as store:
        await store.txn(put(b""))
        own_etcd.freeze()
        sending = asyncio.create_task(store.txn(put(b"")))
        await asyncio.sleep(0.1)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        own_etcd.thaw()
        await value_of(store)


async def test_a_transaction_whose_reply_is_lost_is_applied_once(etcd_server: EtcdServer) -> None:
    async with Proxy(etcd_server.endpoint) as proxy, client(proxy.endpoint) as store, client(etcd_server.endpoint) as direct:
        before = (await store.txn(put(b"before"))).revision
        proxy.hold("reply")
        sending = asyncio.create_task(store.txn(put(b"once")))
        await until(direct, b"once", before + 1)
        proxy.cut()
        proxy.open()
        with pytest.raises(StoreError) as caught:
            await sending
        assert not caught.value.definite
        await asyncio.sleep(0.3)
        events: list[Event] = []
        async with asyncio.timeout(5), aclosing(direct.watch(KEY, before + 1)) as batches:
            async for batch in batches:
                events.extend(batch.events)
                if events:
                    break
        assert len(events) == 1
        assert (await value_of(direct))[1] == events[0].mod_revision


# ------------------------------------------------------------------------------------------------------------ several endpoints


async def test_the_first_endpoint_dead_at_the_start(etcd_server: EtcdServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "CONNECT_SECONDS", 20.0)  # none waits for an attempt to give up
    async with client(f"127.0.0.1:{free_port()}", etcd_server.endpoint) as store:
        began = time.monotonic()
        assert (await store.txn(put(b"x"))).succeeded
        assert time.monotonic() - began < 10


async def test_the_first_endpoint_silent_at_the_start(etcd_server: EtcdServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "CONNECT_SECONDS", 20.0)  # none waits for an attempt to give up
    async with Proxy(etcd_server.endpoint) as hole:
        hole.hold()
        async with client(hole.endpoint, etcd_server.endpoint) as store:
            began = time.monotonic()
            assert (await store.txn(put(b"x"))).succeeded
            assert time.monotonic() - began < 10


async def test_a_connection_whose_first_packets_are_dropped_is_tried_again_beside_it(
    etcd_server: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new pod's are, until its address is known to whoever enforces policies: the way is open long before the first attempt gives up."""
    monkeypatch.setattr(connections, "CONNECT_SECONDS", 20.0)
    async with Proxy(etcd_server.endpoint) as hole:
        hole.swallow = 2
        async with client(hole.endpoint) as store:
            began = time.monotonic()
            assert (await store.txn(put(b"x"))).succeeded
            assert time.monotonic() - began < 10
            assert hole.accepted >= 3


async def test_a_black_hole_loses_no_lease_and_moves_watches(etcd_server: EtcdServer) -> None:
    """The endpoint in use stops passing anything, without a reset."""
    async with Proxy(etcd_server.endpoint) as hole, client(hole.endpoint, etcd_server.endpoint) as store:
        election = Election(store, SystemClock(), "/dormouse/faults/leader", b"me")
        await election.campaign()
        stands = asyncio.Event()
        watching_task = asyncio.create_task(follow(store, [], stands))
        await stands.wait()
        began = time.monotonic()
        hole.hold()
        with pytest.raises(StoreError):
            await watching_task
        assert time.monotonic() - began < 0.9 * watching.LOST_AFTER, "by the probe, long before its own silence would have ended it"
        seen: list[bytes] = []
        watching_task = await standing(store, seen)
        await store.txn(put(b"moved"))
        await asyncio.sleep(max(0, began + 5 - time.monotonic()))  # longer than the lease
        assert election.leading
        assert seen == [b"moved"]
        watching_task.cancel()
        await election.resign()


async def test_a_silent_idle_connection_is_found_by_the_probe(etcd_server: EtcdServer) -> None:
    """Nobody calls: only a watch stands, and one endpoint is all there is."""
    async with Proxy(etcd_server.endpoint) as hole, client(hole.endpoint) as store:
        stands = asyncio.Event()
        watching_task = asyncio.create_task(follow(store, [], stands))
        await stands.wait()
        began = time.monotonic()
        hole.hold()
        with pytest.raises(StoreError):
            await watching_task
        assert time.monotonic() - began < 0.9 * watching.LOST_AFTER
        hole.open()
        await value_of(store)
        assert hole.accepted >= 2, "a new connection, not the one that was given up"


# ------------------------------------------------------------------------------------------------------------------- watches


@pytest.mark.parametrize("guarded", [True, False])
async def test_a_stream_whose_channel_is_closed_before_its_headers_were_sent(etcd_server: EtcdServer, guarded: bool) -> None:
    """grpc.aio's own write (the control) hangs then, past the call's deadline: a keepalive or a watch would be silent for ever."""
    async with Proxy(etcd_server.endpoint) as hole:
        hole.hold()
        channel = grpc.aio.insecure_channel(hole.endpoint)
        stream: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream("/etcdserverpb.Lease/LeaseKeepAlive")
        call = stream(timeout=0.5)
        writing = asyncio.ensure_future(connections.write(call, b"") if guarded else call.write(b""))
        await asyncio.sleep(0.1)
        await channel.close()
        done, _ = await asyncio.wait({writing}, timeout=20 if guarded else 1)
        assert bool(done) is guarded
        writing.cancel()


async def test_a_silent_watch_says_that_it_is_alive(etcd_server: EtcdServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "ASK_AFTER", 0.1)
    async with client(etcd_server.endpoint) as store:
        revision = (await store.txn(put(b"x"))).revision
        batches = []
        async with asyncio.timeout(20), aclosing(store.watch("/dormouse/nobody/", revision + 1)) as watch:
            async for batch in watch:
                batches.append(batch)
                if len(batches) == 4:
                    break
        assert all(not batch.events for batch in batches)
        assert {batch.revision for batch in batches} == {revision}, "a sign of life proves no revision"


async def test_a_watch_that_gets_no_sign_of_life_ends(etcd_server: EtcdServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "ASK_AFTER", 0.1)
    monkeypatch.setattr(watching, "LOST_AFTER", 0.4)
    async with Proxy(etcd_server.endpoint) as hole, client(hole.endpoint) as store:
        stands = asyncio.Event()
        watching_task = asyncio.create_task(follow(store, [], stands))
        await stands.wait()
        hole.hold("reply")
        with pytest.raises(StoreError, match="silent"):
            await watching_task


# ------------------------------------------------------------------------------------------------------- full, guarded, TLS


async def test_a_full_store_refuses_and_can_still_be_read(tmp_path: Path, own_server: Callable[..., EtcdServer]) -> None:
    server = own_server("--quota-backend-bytes", "8000000")
    async with client(server.endpoint) as store:
        refused = None
        for number in range(40):
            try:
                await store.txn(put(bytes(1_000_000), key=f"/dormouse/faults/{number % 2}"), timeout=30)
            except Full as error:
                refused = error
                break
        assert refused is not None
        assert "database space exceeded" in str(refused)
        assert not refused.definite
        assert (await store.list("/dormouse/", keys_only=True)).items


async def test_what_a_full_store_refused_may_be_written(own_server: Callable[..., EtcdServer]) -> None:
    """Why `Full` is not definite: what was proposed before the quota was reached is applied, and answered with the same no. Whether some
    were on their way just then is chance: so it is filled up to ten times."""
    for _ in range(10):
        server = own_server("--quota-backend-bytes", str(8 << 20))
        written = await written_though_refused(server.endpoint)
        server.kill()
        if written:
            return
    raise AssertionError("etcd writes nothing that it refuses: then a full store's no could be believed")


async def written_though_refused(endpoint: str) -> int:
    refused: list[str] = []
    async with client(endpoint) as store:

        async def write(who: int) -> None:
            for n in range(100):
                key = f"/dormouse/faults/{who}/{n}"
                try:
                    await store.txn(put(bytes(16 << 10), key=key), timeout=30)
                except Full:
                    refused.append(key)
                    return

        await asyncio.gather(*(write(who) for who in range(64)))
        assert len(refused) == 64
        _, there = await store.get(refused)
        _, later = await store.get(refused)
        assert later.keys() == there.keys(), "nothing is under way any more: a read tells"
    return len(there)


@pytest.mark.parametrize("patience", [None, 0.1])  # the second: the negative control
async def test_an_etcd_that_is_slow_with_passwords_is_waited_for(
    own_server: Callable[..., EtcdServer], monkeypatch: pytest.MonkeyPatch, patience: float | None
) -> None:
    """And asked seldom: attempts beside it would each add to what it waits for."""
    server = own_server("--bcrypt-cost", "13")  # half a second and more
    await asyncio.to_thread(_enable_auth, server)
    if patience is not None:
        monkeypatch.setattr(connections, "AUTHENTICATE_SECONDS", patience)
    store = EtcdStore([server.endpoint], user="worker", password="secret")
    if patience is None:
        began = time.monotonic()
        assert (await store.txn(put(b"mine"), timeout=60)).succeeded
        assert await asked(server) <= 1 + (time.monotonic() - began) / connections.ASKED_SECONDS
    else:
        with pytest.raises(StoreError, match="no etcd endpoint could be reached"):
            await store.txn(put(b"mine"), timeout=3)
    await store.close()


async def asked(server: EtcdServer) -> int:
    """How often etcd was asked for a token."""
    return round(await asyncio.to_thread(metric_of, server.endpoint, ASKED))


async def test_all_calls_that_a_token_was_refused_of_ask_for_one(own_server: Callable[..., EtcdServer]) -> None:
    server = own_server("--bcrypt-cost", "4")
    await asyncio.to_thread(_enable_auth, server)
    store = EtcdStore([server.endpoint], user="worker", password="secret")
    assert (await store.txn(put(b"mine"))).succeeded
    before = await asked(server)
    connection = await store._connections.get(1)
    connection.metadata = (("hasleader", "true"), ("token", "ended.1"))
    assert all(result.succeeded for result in await asyncio.gather(*(store.txn(put(b"%d" % n), timeout=20) for n in range(30))))
    assert await asked(server) == before + 1
    await store.close()


async def test_users_and_their_tokens(own_server: Callable[..., EtcdServer]) -> None:
    own_etcd = own_server("--bcrypt-cost", "4")
    await asyncio.to_thread(_enable_auth, own_etcd)
    wrong = EtcdStore([own_etcd.endpoint], user="worker", password="wrong")
    with pytest.raises(StoreError, match="authentication failed") as caught:
        await wrong.get(["/x"])
    assert caught.value.definite
    await wrong.close()
    store = EtcdStore([own_etcd.endpoint], user="worker", password="secret")
    assert (await store.txn(put(b"mine"))).succeeded
    with pytest.raises(StoreError, match="permission denied") as caught:
        await store.txn(put(b"not mine", key="/other"))
    assert caught.value.definite
    # Simple tokens are in the server's memory: a restart ends them, and so does time.
    connection = await store._connections.get(1)
    connection.metadata = (("hasleader", "true"), ("token", "ended.1"))
    assert (await store.txn(put(b"with a new token"))).succeeded
    connection.metadata = (("hasleader", "true"), ("token", "ended.1"))
    stands = asyncio.Event()
    # A watch with an ended token is ended by etcd; who lists before the next watch, as one must, gets a new token by that.
    with pytest.raises(StoreError, match="invalid auth token"):
        await follow_key(store, stands)
    await store.list("/dormouse/")
    watching_task = asyncio.create_task(follow_key(store, stands))
    async with asyncio.timeout(20):
        await stands.wait()
    watching_task.cancel()
    lease = await store.grant(30)
    connection.metadata = (("hasleader", "true"), ("token", "ended.1"))
    assert await store.keep_alive(lease) == 30
    await store.close()


async def follow_key(store: Store, stands: asyncio.Event) -> None:
    async with aclosing(store.watch(KEY, 0)) as batches:
        async for _ in batches:
            stands.set()


async def test_tls(tmp_path: Path, own_server: Callable[..., EtcdServer]) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make certificates with")
    ca, cert, key = _certificates(openssl, tmp_path)
    server = own_server("--cert-file", str(cert), "--key-file", str(key), "--client-cert-auth", "--trusted-ca-file", str(ca), tls=True)
    store = EtcdStore([f"https://{server.endpoint}"], tls=TlsFiles(ca, cert, key))
    assert (await store.txn(put(b"secret"))).succeeded
    lease = await store.grant(30)
    access = {"endpoints": [f"https://{server.endpoint}"], "ca": str(ca), "cert": str(cert), "key": str(key)}
    assert await asyncio.to_thread(JsonStore(access).keep_alive, lease) == 30, "so does a supervisor"
    await store.close()
    without = EtcdStore([f"https://{server.endpoint}"], tls=TlsFiles(ca))
    with pytest.raises(StoreError):
        await without.get([KEY], timeout=1)
    await without.close()


async def test_certificates_that_are_replaced_in_their_files(tmp_path: Path, own_server: Callable[..., EtcdServer]) -> None:
    """Case 5.O4. Another authority, and everything that it signs: the same client is let in by them from its next connection on."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make certificates with")
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
        _certificates(openssl, folder)
    ca, cert, key = (old / name for name in ("ca", "cert", "key"))
    server = own_server("--cert-file", str(cert), "--key-file", str(key), "--client-cert-auth", "--trusted-ca-file", str(ca), tls=True)
    store = EtcdStore([f"https://{server.endpoint}"], tls=TlsFiles(ca, cert, key))
    assert (await store.txn(put(b"before"))).succeeded
    server.kill()
    before = {name: (old / name).read_bytes() for name in ("ca", "cert", "key")}
    for name in before:
        (new / name).replace(old / name)
    await asyncio.to_thread(server.start)
    await store.get(["any"], timeout=10)  # may be sent again, which a write on the connection that broke may not
    assert (await store.txn(put(b"after"), timeout=10)).succeeded
    for name, text in before.items():  # negative control: the old ones are good for nothing any more
        (new / name).write_bytes(text)
    late = EtcdStore([f"https://{server.endpoint}"], tls=TlsFiles(*(new / name for name in ("ca", "cert", "key"))))
    with pytest.raises(StoreError):
        await late.get([KEY], timeout=1)
    await late.close()
    await store.close()


@pytest.mark.parametrize("endpoint", ["ftp://127.0.0.1:1", "https://127.0.0.1:1"])
def test_endpoints_that_make_no_sense(endpoint: str) -> None:
    with pytest.raises(ValueError, match="endpoints"):
        EtcdStore([endpoint])


def test_no_endpoints() -> None:
    with pytest.raises(ValueError, match="at least one"):
        EtcdStore([])


async def test_closed_is_closed(etcd_server: EtcdServer) -> None:
    store = EtcdStore([etcd_server.endpoint])
    await store.get([KEY])
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await store.get([KEY])
    await store.close()


def _certificates(openssl: str, folder: Path) -> tuple[Path, Path, Path]:
    ca, ca_key, cert, key, request, extension = (folder / name for name in ("ca", "ca.key", "cert", "key", "request", "extension"))
    extension.write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
    common = ["-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    for command in (
        ["req", "-x509", *common, "-keyout", ca_key, "-out", ca, "-days", "2", "-subj", "/CN=test-ca"],
        ["req", *common, "-keyout", key, "-out", request, "-subj", "/CN=test"],
        ["x509", "-req", "-in", request, "-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-days", "2", "-extfile", extension, "-out", cert],
    ):
        subprocess.run([openssl, *map(str, command)], check=True, capture_output=True)
    return ca, cert, key


def _enable_auth(server: EtcdServer) -> None:
    """Through the JSON gateway: auth is not part of the seam."""
    server.post("auth/role/add", {"name": "root"})
    server.post("auth/user/add", {"name": "root", "password": "root"})
    server.post("auth/user/grant", {"user": "root", "role": "root"})
    server.post("auth/role/add", {"name": "worker"})
    permission = {"permType": "READWRITE", "key": server.base64("/dormouse/"), "range_end": server.base64("/dormouse0")}
    server.post("auth/role/grant", {"name": "worker", "perm": permission})
    server.post("auth/user/add", {"name": "worker", "password": "secret"})
    server.post("auth/user/grant", {"user": "worker", "role": "worker"})
    server.post("auth/enable", {})
