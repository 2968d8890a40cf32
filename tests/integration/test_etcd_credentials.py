"""Certificates and passwords of a real etcd, replaced while it is used: no call fails, and what was before is worth nothing afterwards."""

import asyncio
import base64
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from dormouse_core import passwords
from dormouse_core.certificates import DAY
from dormouse_core.keys import Keys
from dormouse_core.limits import CREDENTIAL_SPREAD_SECONDS
from dormouse_core.seams import Put, StoreError, Txn
from dormouse_kit.etcd import EtcdStore, TlsFiles
from dormouse_kit.etcd.users import ROOT, Users
from dormouse_operator import store_users
from dormouse_operator.kubernetes.api.kinds import SECRETS
from dormouse_operator.kubernetes.objects.rotating import Rotating
from dormouse_operator.kubernetes.options import Options
from dormouse_operator.kubernetes.secret_options import Certificates, Passwords, Wanted
from dormouse_operator.kubernetes.secrets import signing
from dormouse_operator.kubernetes.secrets.keeping import Keeper
from dormouse_operator.kubernetes.secrets.objects import RENEW
from dormouse_testing.etcd_server import EtcdServer
from dormouse_testing.memory_api import MemoryApi

WANTED = Wanted(
    namespace="system",
    certificates=Certificates(secret="tls", authority="authority", hosts=("127.0.0.1", "localhost")),
    passwords=Passwords(secret="users"),
)
KEYS = Keys("default")
SPREAD = CREDENTIAL_SPREAD_SECONDS + 1  # an annotation has whole seconds


class Clock:
    """The keeper's; etcd and OpenSSL have the machine's."""

    def __init__(self, now: float) -> None:
        self.time = now

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@dataclass
class World:
    """`operator`, `server`, `clients`: what each has of the Secrets by now."""

    folder: Path
    clock: Clock
    api: MemoryApi = field(default_factory=MemoryApi)

    def __post_init__(self) -> None:
        self.operator, self.server, self.clients = (self.folder / name for name in ("operator", "server", "clients"))
        self.keeper = Keeper(self.api, self.clock, WANTED, self.operator)

    def text(self, name: str, key: str) -> str:
        return base64.b64decode(self.api.objects["secrets", "system", name]["data"][key]).decode()

    def ask(self, name: str) -> None:
        found = self.api.objects["secrets", "system", name]
        metadata = {**found["metadata"], "annotations": {**found["metadata"]["annotations"], RENEW: f"{time.time()}"}}
        self.api.put(SECRETS, {**found, "metadata": metadata})

    def mount(self, where: Path, name: str) -> None:
        """As the kubelet does, later than the Secret was written."""
        where.mkdir(exist_ok=True)
        for key in self.api.objects["secrets", "system", name]["data"]:
            new = where / f".{key}"
            new.write_text(self.text(name, key))
            new.rename(where / key)

    async def look(self, later: float = 0.0) -> None:
        self.clock.time += later
        assert await self.keeper.look()


@dataclass
class Calls:
    """Through a connection that stays, and through a new one for each call."""

    make: Callable[[], EtcdStore]
    made: int = 0
    until: int = 0
    failed: list[str] = field(default_factory=list)
    enough: asyncio.Event = field(default_factory=asyncio.Event)

    @contextlib.asynccontextmanager
    async def going_on(self) -> AsyncIterator["Calls"]:
        tasks = [asyncio.create_task(work()) for work in (self._stay, self._come, self._come)]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def more(self, count: int = 30) -> None:
        """Until so many new connections were made, or one failed."""
        self.made, self.until = 0, count
        self.enough.clear()
        async with asyncio.timeout(30):
            await self.enough.wait()

    async def _stay(self) -> None:
        store = self.make()
        try:
            while True:
                await self._call(store)
        finally:
            await store.close()

    async def _come(self) -> None:
        while True:
            store = self.make()
            try:
                await self._call(store)
                self.made += 1
            finally:
                await store.close()
            if self.made >= self.until or self.failed:
                self.enough.set()

    async def _call(self, store: EtcdStore) -> None:
        try:
            await store.txn(Txn((), (Put(f"{KEYS.gateways}a", b"1"),)), timeout=3)
        except (StoreError, OSError) as error:
            self.failed.append(str(error))
        await asyncio.sleep(0.005)


# -------------------------------------------------------------------------------------------------------------- certificates


@pytest.fixture
async def secured(tmp_path: Path, own_server: Callable[..., EtcdServer]) -> tuple[World, Calls, EtcdServer]:
    """With a certificate that was made 244 days ago."""
    world = World(tmp_path, Clock(time.time() - 244 * DAY))
    await world.look()
    world.mount(world.server, "tls")
    world.mount(world.clients, "tls")
    server = own_server("--cert-file", f"{world.server}/tls.crt", "--key-file", f"{world.server}/tls.key", tls=True)
    return world, Calls(lambda: EtcdStore([server.endpoint], tls=TlsFiles(world.clients / "ca.crt"))), server


async def test_a_years_certificate_and_its_authority_are_replaced_under_calls_and_none_fails(
    secured: tuple[World, Calls, EtcdServer],
) -> None:
    world, calls, server = secured
    async with calls.going_on():
        await calls.more()
        before = world.text("tls", "tls.crt")
        await world.look(244 * DAY)
        assert world.text("tls", "tls.crt") != before
        world.mount(world.server, "tls")
        await calls.more()
        world.ask("authority")
        await world.look()
        world.ask("tls")
        world.mount(world.clients, "tls")
        await calls.more()
        await world.look(SPREAD)
        assert signing.issuer_of(world.text("tls", "tls.crt"), [world.text("authority", "ca.crt")])
        world.mount(world.server, "tls")
        await calls.more()
    assert calls.failed == []
    shown = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", server.port))
    assert shown == world.text("tls", "tls.crt"), "etcd shows the last one"


async def test_negative_control_an_authority_that_issues_before_it_is_trusted_is_refused(secured: tuple[World, Calls, EtcdServer]) -> None:
    world, calls, _ = secured
    async with calls.going_on():
        await calls.more()
        world.ask("authority")
        await world.look()
        world.ask("tls")
        await world.look(SPREAD)
        world.mount(world.server, "tls")
        await calls.more()
    assert calls.failed


# -------------------------------------------------------------------------------------------------------------- passwords


@pytest.fixture
async def guarded(tmp_path: Path, own_server: Callable[..., EtcdServer]) -> AsyncIterator[tuple[World, Calls, Rotating, EtcdServer]]:
    """With users, a leader who rotates, and gateways that have their password from a mounted file."""
    world = World(tmp_path, Clock(time.time()))
    await world.look()
    world.mount(world.clients, "users")
    server = own_server("--bcrypt-cost", "4")
    files = world.operator / "users"
    options = Options(store=(server.endpoint,), store_user=ROOT, gateway_password_file=f"{files}/gateway")
    users = Users([server.endpoint], files / "operator")
    await store_users.prepare(users, KEYS, options.gateway_password())
    settings = type("Applier", (), {"settings": options.settings_now()})()
    rotating = Rotating(world.clock, options, users, settings, lambda: None, world.keeper)
    user = store_users.gateway_user(KEYS)
    yield world, Calls(lambda: EtcdStore([server.endpoint], user=user, password=world.clients / "gateway")), rotating, server
    await users.close()


async def test_passwords_are_replaced_under_calls_and_none_fails(guarded: tuple[World, Calls, Rotating, EtcdServer]) -> None:
    world, calls, rotating, server = guarded
    before = {key: world.text("users", key) for key in passwords.USERS}
    async with calls.going_on():
        await calls.more()
        world.ask("users")
        await world.look()
        await rotating.look()
        await calls.more()
        world.mount(world.clients, "users")
        await calls.more()
        await world.look(SPREAD)
        await rotating.look()
        await calls.more()
        world.mount(world.clients, "users")
        await calls.more()
    assert calls.failed == []
    names = {passwords.ROOT: ROOT, passwords.GATEWAY: store_users.gateway_user(KEYS)}
    for key, old in before.items():
        now = world.text("users", key)
        assert len(passwords.lines(now)) == 1
        assert now != old
        assert [await enters(server, names[key], word) for word in (old, now)] == [False, True]


async def test_negative_control_without_the_time_to_read_them_gateways_are_shut_out(
    guarded: tuple[World, Calls, Rotating, EtcdServer],
) -> None:
    world, calls, rotating, _ = guarded
    async with calls.going_on():
        await calls.more()
        world.ask("users")
        await world.look()
        await world.look(SPREAD)
        await rotating.look()
        await calls.more()
    assert calls.failed


async def test_a_leader_that_begins_between_the_two_lines_leaves_the_password_that_everybody_has(
    guarded: tuple[World, Calls, Rotating, EtcdServer],
) -> None:
    world, calls, _, server = guarded
    world.ask("users")
    await world.look()
    users = Users([server.endpoint], world.operator / "users" / "operator")
    await store_users.prepare(users, KEYS, (world.operator / "users" / "gateway").read_text())
    await users.close()
    async with calls.going_on():
        await calls.more()
    assert calls.failed == []


async def enters(server: EtcdServer, user: str, password: str) -> bool:
    store = EtcdStore([server.endpoint], user=user, password=password)
    try:
        await store.get([f"{KEYS.gateways}a"])
    except StoreError:
        return False
    finally:
        await store.close()
    return True
