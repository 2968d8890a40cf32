"""Users of a real etcd: what a function's user reaches, and that a second start writes nothing."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from dormouse_core import storeversions
from dormouse_core.seams import Put, StoreError, Txn
from dormouse_kit.etcd import EtcdMembers, EtcdStore
from dormouse_kit.etcd.connections import Connection, Connections
from dormouse_kit.etcd.users import ROOT, Grant, Users
from dormouse_testing import store_attacks
from dormouse_testing.etcd_server import EtcdServer
from dormouse_worker.process.jsonstore import JsonStore, Refused

PASSWORD = "correct horse"


@pytest.fixture
async def server(own_server: Callable[..., EtcdServer]) -> EtcdServer:
    return own_server("--bcrypt-cost", "4")


@pytest.fixture
async def users(server: EtcdServer) -> AsyncIterator[Users]:
    made = Users([server.endpoint], PASSWORD)
    yield made
    await made.close()


async def test_nobody_gets_in_without_a_password_once_prepared(server: EtcdServer, users: Users) -> None:
    await users.prepare()
    anybody, root = EtcdStore([server.endpoint]), EtcdStore([server.endpoint], user=ROOT, password=PASSWORD)
    with pytest.raises(StoreError, match="user name is empty"):
        await anybody.get(["a"])
    assert (await root.txn(Txn((), (Put("a", b"1"),)))).succeeded
    await anybody.close()
    await root.close()


class Noting(Users):
    """Notes what it asks of etcd."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.asked: list[str] = []

    async def _call(self, connection: Connection, method: str, **fields: Any) -> Any:
        self.asked.append(method)
        return await super()._call(connection, method, **fields)


async def test_a_second_start_writes_nothing(server: EtcdServer, users: Users) -> None:
    again = Noting([server.endpoint], PASSWORD)
    for each in (users, again):
        await each.prepare()
        await each.ensure("one", "pass", [Grant("/a/"), Grant("/b", prefix=False, write=False)])
    await again.close()
    assert again.asked == ["UserGet", "RoleGet"]


async def test_another_password_is_refused(server: EtcdServer, users: Users) -> None:
    await users.prepare()
    stranger = Users([server.endpoint], "wrong")
    with pytest.raises(StoreError, match="invalid user ID or password"):
        await stranger.prepare()
    await stranger.close()


async def test_a_preparation_that_was_cut_short_is_finished(server: EtcdServer, users: Users) -> None:
    """Root was made by a start that died before it turned authentication on, with the password of an installation that is gone."""
    anybody = Connections([server.endpoint])
    await users._call(await anybody.get(5.0), "UserAdd", name=ROOT, password="another's")
    await anybody.close()
    await users.prepare()
    await users.ensure("one", "pass", [Grant("/a/")])


async def test_several_may_prepare_at_once(server: EtcdServer) -> None:
    several = [Users([server.endpoint], PASSWORD) for _ in range(4)]
    await asyncio.gather(*(each.prepare() for each in several))
    for each in several:
        await each.close()


async def test_a_user_reaches_its_own_keys_and_no_others(server: EtcdServer, users: Users) -> None:
    await users.prepare()
    await users.ensure("f/1", "pass", [Grant("/map/a/"), Grant("/seen/", write=False), Grant("/one", prefix=False)])
    store = EtcdStore([server.endpoint], user="f/1", password="pass")
    for key in ("/map/a/x", "/map/a/", "/one"):
        assert (await store.txn(Txn((), (Put(key, b""),)))).succeeded
    assert (await store.list("/seen/")).items == ()
    for key in ("/map/ab", "/map/", "/seen/x", "/one2"):
        with pytest.raises(StoreError, match="permission denied"):
            await store.txn(Txn((), (Put(key, b""),)))
    with pytest.raises(StoreError, match="permission denied"):
        await store.list("/map/")
    await store.close()


async def test_rights_and_password_follow_what_is_asked(server: EtcdServer, users: Users) -> None:
    await users.prepare()
    await users.ensure("one", "old", [Grant("/a/"), Grant("/b/")])
    await users.ensure("one", "new", [Grant("/a/", write=False), Grant("/c/")])
    with pytest.raises(StoreError, match="invalid user ID or password"):
        await EtcdStore([server.endpoint], user="one", password="old").get(["/a/"])
    store = EtcdStore([server.endpoint], user="one", password="new")
    await store.txn(Txn((), (Put("/c/", b""),)))
    for key in ("/a/", "/b/"):
        with pytest.raises(StoreError, match="permission denied"):
            await store.txn(Txn((), (Put(key, b""),)))
    await store.close()


async def test_removed_users_are_gone_and_may_be_removed_again(server: EtcdServer, users: Users) -> None:
    await users.prepare()
    for name in ("f/1", "f/2", "g/1"):
        await users.ensure(name, "pass", [Grant(f"/{name}/")])
    assert sorted(await users.names("f/")) == ["f/1", "f/2"]
    await users.remove("f/1")
    await users.remove("f/1")
    assert await users.names("f/") == ["f/2"]
    with pytest.raises(StoreError, match="invalid user ID or password"):
        await EtcdStore([server.endpoint], user="f/1", password="pass").get(["/f/1/"])


async def test_users_made_meanwhile_disturb_no_transaction(server: EtcdServer, users: Users) -> None:
    """Each change of a user makes etcd refuse, once, what is under way; a worker's commit must not fail by another function's creation."""
    await users.prepare()
    await users.ensure("one", "pass", [Grant("/a/")])
    done = asyncio.Event()
    written = 0

    async def work(number: int) -> None:
        nonlocal written
        store = EtcdStore([server.endpoint], user="one", password="pass")
        while not done.is_set():
            assert (await store.txn(Txn((), (Put(f"/a/{number}", b""),)))).succeeded
            written += 1
        await store.close()

    workers = [asyncio.create_task(work(number)) for number in range(8)]
    for number in range(40):
        await users.ensure(f"other{number}", "pass", [Grant("/b/")])
    done.set()
    await asyncio.gather(*workers)
    assert written > 50


async def test_a_password_that_is_replaced_in_its_file(server: EtcdServer, users: Users, tmp_path: Path) -> None:
    """Case 5.O4. Replaced in etcd first: the client that runs is refused, definitely, until its file has the new one; then it goes on, also
    one that has been idle, and its watch and lease with it."""
    await users.prepare()
    await users.ensure("one", "old", [Grant("/one/")])
    file = tmp_path / "password"
    file.write_text("old\n")
    store = EtcdStore([server.endpoint], user="one", password=file)
    assert (await store.txn(Txn((), (Put("/one/a", b"1"),)))).succeeded
    lease = await store.grant(30)
    await users.ensure("one", "new", [Grant("/one/")])
    with pytest.raises(StoreError, match="invalid user ID or password") as caught:
        await store.txn(Txn((), (Put("/one/a", b"2"),)))
    assert caught.value.definite
    file.with_suffix(".new").write_text("new\n")
    file.with_suffix(".new").replace(file)
    assert (await store.txn(Txn((), (Put("/one/a", b"3"),)))).succeeded
    assert await store.keep_alive(lease) == 30
    assert (await store.get(["/one/a"]))[1]["/one/a"].value == b"3"
    file.unlink()  # being replaced: what was read last still does
    assert (await store.txn(Txn((), (Put("/one/a", b"4"),)))).succeeded
    server.kill()
    await asyncio.to_thread(server.start)  # ends every token
    assert (await store.get(["/one/a"], timeout=10))[1]["/one/a"].value == b"4"
    await store.close()


async def test_roots_password_that_is_replaced_in_its_file(server: EtcdServer, tmp_path: Path) -> None:
    """The operator goes on making users."""
    file = tmp_path / "password"
    file.write_text(PASSWORD)
    root = Users([server.endpoint], file)
    await root.prepare()
    await root.ensure("one", "pass", [Grant("/one/")])
    await root._as_root("UserChangePassword", name=ROOT, password="another")  # as somebody with etcdctl does
    file.write_text("another")
    await root.prepare()
    await root.ensure("two", "pass", [Grant("/two/")])
    assert await root.names("t") == ["two"]
    await root.close()


async def test_a_supervisors_few_calls_go_by_the_json_gateway_as_the_functions_user(
    server: EtcdServer, users: Users, tmp_path: Path
) -> None:
    """A token that etcd has forgotten is renewed; another's key stays another's."""
    await users.prepare()
    await users.ensure("one", "pass", [Grant("/a/")])
    (tmp_path / "password").write_text("pass\n")
    mine = EtcdStore([server.endpoint], user="one", password="pass")
    lease = await mine.grant(5)
    assert (await mine.txn(Txn((), (Put("/a/worker", b"1", lease),)))).succeeded
    json = JsonStore({"endpoints": ["127.0.0.1:1", server.endpoint], "user": "one", "passwordFile": str(tmp_path / "password")})
    assert await asyncio.to_thread(json.keep_alive, lease) == 5
    json._token = "forgotten"
    assert await asyncio.to_thread(json.change, "/a/worker", b"2", lease)
    assert not await asyncio.to_thread(json.change, "/a/gone", b"2", lease)
    with pytest.raises(Refused, match="permission denied"):
        await asyncio.to_thread(json.change, "/b", b"2", lease)
    _, items = await mine.get(["/a/worker"])
    assert (items["/a/worker"].value, items["/a/worker"].lease) == (b"2", lease)
    await mine.revoke(lease)
    assert await asyncio.to_thread(json.keep_alive, lease) == 0
    await mine.close()


# ---------------------------------------------------------------------------------------------------------------- who means harm

ALWAYS = {"range_one", "range_prefix", "range_from_its_own_to_the_end", "range_stale_or_counted", "txn_range", "txn_compare", "watch_one",
          "watch_prefix", "put", "put_before", "put_under_anothers_lease", "delete", "delete_all", "txn_put_and_delete", "lease_revoke",
          "defragment", "snapshot", "hash_of_all", "member_add", "grant_itself_all", "take_the_role_of_root", "change_roots_password",
          "list_users", "disable_authentication"}  # fmt: skip
"""Refused by every version that one machine may have; the others by those that tenants may share: tests/cluster/test_store_rights.py."""


@pytest.mark.parametrize("nobody", [False, True], ids=["another-functions-user", "nobody"])
async def test_another_functions_user_and_nobody_get_nothing_that_any_etcd_refuses(server: EtcdServer, nobody: bool) -> None:
    """And where this one gives more, it is one that is refused where tenants share it."""
    found = await store_attacks.succeeded(server.endpoint, nobody=nobody)
    assert found.keys() & ALWAYS == set()
    version = await version_of(server)
    assert storeversions.keeps_apart(version) == (found.keys() <= store_attacks.HARMLESS), (version, found)


async def version_of(server: EtcdServer) -> str:
    members = EtcdMembers([server.endpoint], user=ROOT, password=store_attacks.PASSWORD)
    [seen], _ = await members.look()
    await members.close()
    return seen.version
