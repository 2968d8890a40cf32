"""Credentials that are replaced while they are in use: the service account's token, and the passwords in etcd."""

import base64
import json
import threading
import time
from pathlib import Path

import grpc
import pytest
from dormouse_testing import pages
from dormouse_testing.cluster.callers import Inside
from dormouse_testing.cluster.client import eventually
from dormouse_testing.cluster.functions import OPERATOR, RELEASE, STORE, SYSTEM, Dormouse, counter, echo
from dormouse_testing.cluster.laptops import Tokens, laptop
from dormouse_testing.cluster.operators import handled, without_operator

pytestmark = pytest.mark.usefixtures("unharmed")


@pytest.mark.parametrize(
    ("program", "idle"), [(False, 0), pytest.param(True, 0, marks=pytest.mark.slow), pytest.param(False, 75, marks=pytest.mark.slow)]
)
def test_a_service_accounts_token_that_is_replaced_and_revoked(own: Dormouse, tmp_path: Path, program: bool, idle: int) -> None:
    """5.O4. Twice, in the file or by the program that logs in; the one before is refused from then on. A leader that has been idle since
    handles the next change, too: its watch was opened anew meanwhile, with the new token."""
    with without_operator(own):
        tokens = Tokens(own.cluster, tmp_path / "access", program=program)
        tokens.renew()
        with laptop(own.cluster, tmp_path / "laptop", tokens.kubeconfig) as alone:
            eventually("it leads", lambda: alone.leads, 60)
            handled(own, "first", 20, by=alone)
            for name in ("second", "third"):
                tokens.renew()
                time.sleep(idle)
                handled(own, name, 40, by=alone)
            assert alone.leads
            assert alone.health()[0] == 200


@pytest.mark.slow
def test_certificate_and_passwords_that_are_replaced_under_load_cost_no_call(own: Dormouse) -> None:
    """As they are each year, and here by the page's own commands: the operator issues another, the kubelet brings it, etcd shows it from
    the next handshake on. Who connects then, as a worker that wakes does, takes it; who is connected notices nothing."""
    inside = Inside(own.cluster, SYSTEM, OPERATOR)
    host, _, port = STORE.rpartition(":")
    before, password = inside.python(SHOWN, host, port), inside.python(PASSWORD)
    failed: list[str] = []
    end = threading.Event()

    def step(name: str, session: str) -> None:
        while not end.is_set():
            try:
                own.call(name, 0, session=session, timeout=30)
            except grpc.RpcError as error:
                failed.append(f"{name}: {error.details()}")
            end.wait(0.1)

    loops = [threading.Thread(target=step, args=each) for each in (("steady", "throughout"), ("echo", ""))]
    for each in loops:
        each.start()
    try:
        with own.cluster.shell() as environment:
            pages.run(ROTATE, 0, namespace=SYSTEM, environment=environment)
            eventually("etcd shows the new one", lambda: inside.python(SHOWN, host, port) != before, 180)
            eventually("root's password is another", lambda: inside.python(PASSWORD) != password, 180)
            dates, told = pages.run(ROTATE, 1, namespace=SYSTEM, environment=environment)
            assert "notAfter" in dates
            assert "the store's passwords are being replaced" in told
        own.apply(counter("newcomer", minReplicas=1))
        own.ready("newcomer", 1)
        assert own.call("newcomer", 2, session="new") == 2, "a worker that connects now"
    finally:
        end.set()
        for each in loops:
            each.join()
        own.delete("newcomer")
    assert failed == []


ROTATE = "Rotate certificates and passwords"
PASSWORD = 'print(open("/etc/dormouse/users/operator").read())'
SHOWN = """
    import ssl, sys
    print(ssl.get_server_certificate((sys.argv[1], int(sys.argv[2])), ca_certs="/etc/dormouse/tls/ca.crt"))
"""


@pytest.mark.slow
def test_passwords_that_are_replaced_in_their_secrets(own: Dormouse) -> None:
    """5.O4. The gateways' password, then root's: the kubelet brings the files, each part reads them by itself, nobody is started anew."""
    chosen, inside, place = f"{RELEASE}-etcd-passwords", Inside(own.cluster, SYSTEM, OPERATOR), "/etc/dormouse/users"
    before = {name: base64.b64decode(text).decode() for name, text in own.cluster.get("secret", chosen, SYSTEM)["data"].items()}
    after = {name: f"another-{name}-{time.monotonic_ns()}" for name in before}
    users = {"gateway": "dormouse-gateway/default", "operator": "root"}
    read = f"print(open('{place}/operator').read())"

    def enters(name: str, password: str) -> bool:
        return inside.python(LOG_IN, STORE, users[name], password).strip() == "in"

    for name in users:
        assert enters(name, before[name])
        own.cluster.kubectl("patch", "secret", chosen, "-n", SYSTEM, "--type=merge", "-p", json.dumps({"stringData": {name: after[name]}}))
        if name == "operator":  # as the documents say: in etcd when the file is there
            eventually("the file is there", lambda: inside.python(read).strip() == after["operator"], 150)
            inside.python(SET_PASSWORD, STORE, before[name], after[name])
        eventually(f"{name} has the new one", lambda name=name: enters(name, after[name]), 150)  # type: ignore[misc]
        assert not enters(name, before[name])
    eventually("gateways are in", lambda: own.call("steady", 0, session="throughout") > 0)
    handled(own, "rotated", 60)
    own.apply(echo("routed", minReplicas=1))
    own.ready("routed", 1)
    assert own.call("routed", 3) == 3, "gateways heard of a function that was made afterwards"
    own.delete("routed")


LOG_IN = """
    import asyncio, sys
    from pathlib import Path
    from dormouse_core.seams import StoreError
    from dormouse_kit.etcd import EtcdStore, TlsFiles

    async def ask():
        store = EtcdStore([sys.argv[1]], tls=TlsFiles(Path("/etc/dormouse/tls/ca.crt")), user=sys.argv[2], password=sys.argv[3])
        try:
            await store.get(["/dormouse/default/leader"])
            print("in")
        except StoreError as error:
            print(error)
        await store.close()

    asyncio.run(ask())
"""
SET_PASSWORD = """
    import asyncio, sys
    from pathlib import Path
    from dormouse_kit.etcd import TlsFiles
    from dormouse_kit.etcd.users import Users

    async def change():
        users = Users([sys.argv[1]], sys.argv[2], tls=TlsFiles(Path("/etc/dormouse/tls/ca.crt")))
        await users._as_root("UserChangePassword", name="root", password=sys.argv[3])
        await users.close()

    asyncio.run(change())
"""
