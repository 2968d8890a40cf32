"""A full etcd on a cluster: `kubectl delete` of a function needs no room in it."""

from collections.abc import Iterator

import grpc
import pytest
from dormouse_testing import pages
from dormouse_testing.cluster.callers import Inside
from dormouse_testing.cluster.client import Cluster, eventually
from dormouse_testing.cluster.functions import OPERATOR, STORE, SYSTEM, Dormouse, counter, echo, installed

QUOTA = 16 << 20


@pytest.fixture
def kept(alone: Cluster) -> Iterator[Dormouse]:
    """With etcd on a volume."""
    name = f"{SYSTEM}-0"
    alone.volume(name)
    try:
        with installed(alone, "larger", f"etcd.quotaBytes={QUOTA}", "etcd.persistence.enabled=true,etcd.persistence.size=1Gi") as found:
            yield found
    finally:
        alone.kubectl("delete", "pv", name, "--ignore-not-found", "--wait=false")


@pytest.mark.slow
def test_a_larger_quota_ends_it_and_every_session_goes_on(kept: Dormouse) -> None:
    """By the page's own commands."""
    kept.apply(counter("awake", minReplicas=1))
    kept.ready("awake", 1)
    assert kept.call("awake", 1, session="s") == 1
    assert Inside(kept.cluster, SYSTEM, OPERATOR).python(WRITE, STORE, "fill").strip() == "full"
    with pytest.raises(grpc.RpcError) as refused:
        kept.call("awake", 1, session="s", timeout=20)
    assert "the store is full" in str(refused.value.details())
    with kept.cluster.shell() as environment:
        seen, sessions = pages.run("When the store is full", 0, namespace=SYSTEM, environment=environment)
        assert "dormouse_store_full 1.0" in seen
        assert "awake" in sessions
        pages.run("When the store is full", 1, namespace=SYSTEM, environment=environment)
    eventually("its step is taken", lambda: _taken(kept), 120)


def _taken(dormouse: Dormouse) -> bool:
    """The second step of the session: the first was acknowledged, the refused one was not."""
    try:
        return dormouse.call("awake", 1, session="s", key="second", timeout=20) == 2
    except grpc.RpcError:
        return False


@pytest.fixture
def dormouse(alone: Cluster) -> Iterator[Dormouse]:
    with installed(alone, "full-store", f"etcd.quotaBytes={QUOTA}") as found:
        yield found


@pytest.mark.slow
def test_functions_are_deleted_while_the_store_is_full(dormouse: Dormouse) -> None:
    """Awake and asleep: object, pods and everything that is stored of them go while it is full, what is awake answers, nothing of the
    installation is started anew; once there is room a function of the same name begins where it begins."""
    names = ("awake", "asleep")
    dormouse.apply(counter("awake", minReplicas=1), counter("asleep"), echo("steady", minReplicas=1))
    for name in names:
        dormouse.phase(name, "Ready", "Asleep")
        assert [dormouse.call(name, 1, session="s") for _ in range(2)] == [1, 2]
    dormouse.ready("steady", 1)
    dormouse.asleep("asleep")
    uids = [dormouse.cluster.get("ifn", name, dormouse.space)["metadata"]["uid"] for name in names]
    inside = Inside(dormouse.cluster, SYSTEM, OPERATOR)
    before = dormouse.restarts()

    def left() -> list[str]:
        return [key for key in dormouse.stored() if any(uid in key for uid in uids)]

    assert left()
    assert inside.python(WRITE, STORE, "fill").strip() == "full"
    with pytest.raises(grpc.RpcError) as refused:
        dormouse.call("awake", 1, session="s", timeout=20)
    assert "the store is full" in str(refused.value.details())

    dormouse.cluster.kubectl("delete", "ifn", *names, "-n", dormouse.space, "--timeout=20s")
    eventually("no pod is left", lambda: not any(dormouse.pods(name) for name in names), 60)
    eventually("nothing of them is stored", lambda: not left(), 60)
    assert inside.python(WRITE, STORE, "try").strip() == "full", "it was full all the time"
    assert dormouse.call("steady", 3) == 3
    assert dormouse.restarts() == before

    assert inside.python(WRITE, STORE, "empty").strip() == "emptied"
    eventually("it has room", lambda: inside.python(WRITE, STORE, "try").strip() == "room", 60)
    dormouse.apply(counter("awake", minReplicas=1))
    dormouse.ready("awake", 1)
    assert dormouse.call("awake", 1, session="s") == 1


WRITE = """
    import asyncio, sys
    from pathlib import Path
    from dormouse_core.seams import Delete, Full, Put, Txn
    from dormouse_kit.etcd import EtcdStore, TlsFiles

    async def write(store, key, size):
        try:
            await store.txn(Txn((), (Put(key, b"x" * size),)))
            return True
        except Full:
            return False

    async def main(endpoint, what):
        store = EtcdStore(
            [endpoint], tls=TlsFiles(Path("/etc/dormouse/tls/ca.crt")), user="root", password=Path("/etc/dormouse/users/operator")
        )
        if what == "fill":  # with keys, so that nothing but deleting them makes room; until it stays full
            number = refused = 0
            while refused < 30:
                if await write(store, f"/filling/{number}", 128 << 10):
                    number += 1
                else:
                    refused += 1
                    await asyncio.sleep(0.1)
            print("full")
        elif what == "empty":
            await store.txn(Txn((), (Delete("/filling/", prefix=True),)), timeout=20)
            print("emptied")
        else:
            print("room" if await write(store, "/filling/last", 1) else "full")
        await store.close()

    asyncio.run(main(*sys.argv[1:]))
"""
