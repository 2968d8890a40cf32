"""The Secrets of the chart's etcd: made, taken over, replaced; and the files that the operator reads."""

import asyncio
import base64
import json
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
from dormouse_core import passwords
from dormouse_core.certificates import DAY
from dormouse_core.errors import FailedPrecondition
from dormouse_core.limits import AUTHORITY_TRUSTED_DAYS, CREDENTIAL_SPREAD_SECONDS
from dormouse_operator.kubernetes import secret_options
from dormouse_operator.kubernetes.api.http import ApiError, Object
from dormouse_operator.kubernetes.api.kinds import PODS, SECRETS
from dormouse_operator.kubernetes.secret_options import Certificates, Passwords, Wanted
from dormouse_operator.kubernetes.secrets import signing
from dormouse_operator.kubernetes.secrets.issuing import SINCE
from dormouse_operator.kubernetes.secrets.keeping import CHANGED, Keeper
from dormouse_operator.kubernetes.secrets.objects import RENEW
from dormouse_testing.memory_api import MemoryApi

NOW = 1_800_000_000.0
HOSTS = ("localhost", "127.0.0.1", "etcd-0.system.svc")
TLS, AUTHORITY, USERS = "d-etcd-tls", "d-etcd-authority", "d-etcd-passwords"
WANTED = Wanted(
    namespace="system",
    certificates=Certificates(secret=TLS, authority=AUTHORITY, before="d-etcd-server", hosts=HOSTS),
    passwords=Passwords(secret=USERS, before="d-etcd-users"),
    labels={"dormouse.dev/part": "etcd"},
)


class Clock:
    def __init__(self) -> None:
        self.time = NOW

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds
        await asyncio.sleep(0)


class World:
    def __init__(self, folder: Path, wanted: Wanted = WANTED) -> None:
        self.api, self.clock, self.folder = MemoryApi(), Clock(), folder
        self.wanted = wanted
        self.keeper = self.another()

    def another(self, folder: str = "") -> Keeper:
        return Keeper(self.api, self.clock, self.wanted, self.folder / folder)

    def texts(self, name: str) -> dict[str, str]:
        found = self.api.objects["secrets", "system", name]
        return {key: base64.b64decode(text).decode() for key, text in found["data"].items()}

    def put(self, name: str, texts: dict[str, str], **annotations: str) -> Object:
        data = {key: base64.b64encode(text.encode()).decode() for key, text in texts.items()}
        return self.api.put(SECRETS, {"metadata": {"name": name, "namespace": "system", "annotations": annotations}, "data": data})

    def ask(self, name: str, value: str = "now") -> None:
        found = self.api.objects["secrets", "system", name]
        self.api.put(
            SECRETS, {**found, "metadata": {**found["metadata"], "annotations": {**found["metadata"]["annotations"], RENEW: value}}}
        )

    def names(self) -> set[str]:
        return {name for plural, _, name in self.api.objects if plural == "secrets"}

    def file(self, path: str) -> str:
        return (self.folder / path).read_text()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_all_is_made_once_and_a_second_look_or_process_writes_nothing(world: World) -> None:
    assert await world.keeper.look()
    assert world.names() == {TLS, AUTHORITY, USERS}
    written = list(world.api.written)
    other = world.another("other")
    assert await world.keeper.look()
    assert await other.look()
    assert world.api.written == written
    tls, users = world.texts(TLS), world.texts(USERS)
    assert set(tls) == {"ca.crt", "tls.crt", "tls.key"}, "the authority's key is where nobody mounts it"
    assert world.texts(AUTHORITY)["ca.crt"] == tls["ca.crt"]
    assert signing.hosts_of(tls["tls.crt"]) == set(HOSTS)
    assert len(set(users.values())) == len(users) == 3
    for where in ("", "other/"):
        assert world.file(f"{where}tls/ca.crt") == tls["ca.crt"]
        assert {key: world.file(f"{where}users/{key}") for key in passwords.KEYS} == users
    assert (world.folder / "users" / "operator").stat().st_mode & 0o077 == 0
    for name in world.names():
        labels = world.api.objects["secrets", "system", name]["metadata"]["labels"]
        assert "app.kubernetes.io/instance" not in labels, "Argo CD would prune it"


async def test_a_client_and_a_member_take_what_is_made(world: World) -> None:
    """OpenSSL's judgement, both ways, on its own clock."""
    world.clock.time = time.time()
    await world.keeper.look()
    tls = world.texts(TLS)
    chain = world.folder / "chain.pem"
    chain.write_text(tls["tls.crt"] + tls["tls.key"])
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(chain)
    server.load_verify_locations(cadata=tls["ca.crt"])
    server.verify_mode = ssl.CERT_REQUIRED
    server.verify_flags |= ssl.VERIFY_X509_STRICT
    client = ssl.create_default_context(cadata=tls["ca.crt"])
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    client.load_cert_chain(chain)
    shake(client, server, "etcd-0.system.svc")
    shake(client, server, "127.0.0.1")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake(client, server, "etcd-9.system.svc")


def shake(client: ssl.SSLContext, server: ssl.SSLContext, host: str) -> None:
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(down, up, server_hostname=host), server.wrap_bio(up, down, server_side=True)]
    done: set[int] = set()
    for _ in range(8):
        for number, end in enumerate(ends):
            if number not in done:
                try:
                    end.do_handshake()
                    done.add(number)
                except ssl.SSLWantReadError:
                    pass
    assert done == {0, 1}


async def test_what_an_earlier_release_made_is_taken_over_and_then_removed(world: World) -> None:
    """Its authority's key was not kept: the certificate goes on until everybody trusts another. Helm can go back to what is not there."""
    made = signing.make_authority("old", 3650, NOW - 300 * DAY)
    old = signing.issue(made, "old", HOSTS, 3650, NOW - 300 * DAY)
    world.put("d-etcd-server", {"ca.crt": made.certificate, "tls.crt": old.certificate, "tls.key": old.key})
    world.put("d-etcd-users", {"operator": "root's", "gateway": "gateways'"})
    await world.keeper.first()
    assert world.names() == {TLS, AUTHORITY, USERS}
    tls = world.texts(TLS)
    assert tls["tls.crt"] == old.certificate
    assert tls["ca.crt"] == made.certificate + world.texts(AUTHORITY)["ca.crt"]
    assert world.texts(USERS) == {"operator": "root's", "gateway": "gateways'", "workers": "root's"}, (
        "functions' passwords stay as they are"
    )
    world.clock.time += AUTHORITY_TRUSTED_DAYS * DAY
    assert await world.keeper.look()
    assert signing.issuer_of(world.texts(TLS)["tls.crt"], [world.texts(AUTHORITY)["ca.crt"]]), "the authority whose key is there issues now"
    assert made.certificate in world.texts(TLS)["ca.crt"], "and the one before is trusted for a day"
    world.clock.time += DAY
    assert await world.keeper.look()
    assert world.texts(TLS)["ca.crt"] == world.texts(AUTHORITY)["ca.crt"]


async def test_a_copy_that_could_not_be_written_costs_nothing(world: World) -> None:
    world.put("d-etcd-users", {"operator": "root's", "gateway": "gateways'"})
    create = world.api.create

    async def refuse(kind: Any, manifest: Object) -> Object:
        if manifest["metadata"]["name"] == USERS:
            raise ApiError(403, "Forbidden", "no")
        return await create(kind, manifest)

    world.api.create = refuse  # type: ignore[method-assign]
    assert not await world.keeper.look(adopting=True)
    assert "d-etcd-users" in world.names()
    world.api.create = create  # type: ignore[method-assign]
    await world.keeper.first()
    assert world.texts(USERS)["operator"] == "root's"


async def test_a_rollback_finds_what_it_brings_back_left_alone_and_the_next_upgrade_takes_it_over_again(world: World) -> None:
    """This release's operator runs on for a while beside pods that mount them."""
    await world.keeper.first()
    before = {"d-etcd-users": {"operator": "r", "gateway": "g"}, "d-etcd-server": world.texts(TLS)}
    for name, texts in before.items():
        world.put(name, texts)
    assert await world.keeper.look()
    assert {name: world.texts(name) for name in before} == before
    await world.another().first()
    assert world.names() == {TLS, AUTHORITY, USERS}
    assert world.texts(USERS) == {"operator": "r", "gateway": "g", "workers": "r"}, "what etcd's data agree with"


async def test_a_year_passes_and_the_certificate_is_replaced_by_the_same_authority_at_once(world: World) -> None:
    await world.keeper.look()
    before = world.texts(TLS)
    world.clock.time += 244 * DAY
    assert await world.keeper.look()
    after = world.texts(TLS)
    assert after["tls.crt"] != before["tls.crt"]
    assert after["ca.crt"] == before["ca.crt"], "nobody has to hear of it"


async def test_what_is_asked_for_by_an_annotation_is_done_once(world: World) -> None:
    await world.keeper.look()
    before = world.texts(TLS)["tls.crt"]
    world.ask(TLS)
    assert await world.keeper.look()
    once = world.texts(TLS)["tls.crt"]
    assert await world.keeper.look()
    assert before != once == world.texts(TLS)["tls.crt"]
    world.ask(TLS, "again")
    assert await world.keeper.look()
    assert world.texts(TLS)["tls.crt"] != once


async def test_several_members_are_waited_for_until_each_has_read_the_new_authority(tmp_path: Path) -> None:
    certificates = Certificates(secret=TLS, authority=AUTHORITY, hosts=HOSTS, members="part=etcd")
    world = World(tmp_path, Wanted(namespace="system", certificates=certificates, passwords=WANTED.passwords))

    def start(name: str, at: str | None) -> None:
        state = {"running": {"startedAt": at}} if at else {"waiting": {}}
        metadata = {"name": name, "namespace": "system", "labels": {"part": "etcd"}}
        world.api.put(PODS, {"metadata": metadata, "status": {"containerStatuses": [{"state": state}]}})

    start("one", "2027-01-15T07:00:00Z")
    start("two", "2027-01-15T07:00:00Z")
    await world.keeper.look()
    world.ask(AUTHORITY)
    assert await world.keeper.look()
    world.ask(TLS)
    before = world.texts(TLS)["tls.crt"]

    async def same() -> bool:
        world.clock.time += CREDENTIAL_SPREAD_SECONDS
        assert await world.keeper.look()
        return world.texts(TLS)["tls.crt"] == before

    assert await same()
    assert await same()
    start("one", "2027-01-15T09:00:00Z")
    assert await same(), "the other has not"
    start("two", None)
    assert await same(), "it may be starting with what was there before"
    start("two", "2027-01-15T09:00:00Z")
    assert not await same()


async def test_passwords_are_valid_beside_those_before_until_everybody_has_read_them(world: World) -> None:
    await world.keeper.look()
    before = world.texts(USERS)
    world.ask(USERS)
    assert await world.keeper.look()
    both = world.texts(USERS)
    assert both["workers"] == before["workers"]
    for key in passwords.USERS:
        new, old = passwords.lines(both[key])
        assert old == before[key] != new
        assert world.file(f"users/{key}") == both[key]
    assert not world.keeper.settling, "not before everybody has had the time"
    world.clock.time += CREDENTIAL_SPREAD_SECONDS
    assert await world.keeper.look()
    assert world.keeper.settling == {key: passwords.lines(both[key])[0] for key in passwords.USERS}
    assert world.texts(USERS) == both, "only who has set them in etcd forgets those before"
    await world.keeper.settled()
    assert {key: world.texts(USERS)[key] for key in passwords.USERS} == {key: passwords.lines(both[key])[0] for key in passwords.USERS}
    assert await world.keeper.look()
    assert not world.keeper.settling
    world.clock.time += 366 * DAY
    assert await world.keeper.look()
    assert len(passwords.lines(world.texts(USERS)["operator"])) == 2, "a year later by itself"


async def test_a_secret_that_is_deleted_is_made_again_as_it_was(world: World) -> None:
    """etcd's data know its passwords."""
    await world.keeper.look()
    before = {name: world.texts(name) for name in (TLS, USERS, AUTHORITY)}
    for name in before:
        del world.api.objects["secrets", "system", name]
    assert await world.keeper.look()
    assert {name: world.texts(name) for name in before} == before


async def test_no_answer_is_not_an_absence(world: World) -> None:
    await world.keeper.look()
    before = dict(world.api.objects)
    world.api.refuse = ApiError(500, "", "later")
    assert not await world.keeper.look()
    world.api.refuse = None
    assert world.api.objects == before


async def test_of_two_processes_one_writes_and_both_agree(world: World) -> None:
    other = world.another("other")
    while not all(await asyncio.gather(world.keeper.look(), other.look())):
        pass
    for path in ("tls/ca.crt", "users/operator", "users/gateway", "users/workers"):
        assert world.file(path) == world.file(f"other/{path}")


@pytest.mark.parametrize(
    ("name", "texts", "told"),
    [
        (TLS, {"ca.crt": "no certificate", "tls.crt": "x", "tls.key": "x"}, TLS),
        (TLS, {"ca.crt": "", "tls.crt": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "tls.key": "x"}, TLS),
        (AUTHORITY, {"ca.crt": "no certificate", "ca.key": "x"}, AUTHORITY),
    ],
)
async def test_a_secret_that_cannot_be_read_is_told_and_left_alone(
    world: World, name: str, texts: dict[str, str], told: str, events: pytest.LogCaptureFixture
) -> None:
    found = world.put(name, texts)
    assert not await world.keeper.look()
    assert world.api.objects["secrets", "system", name] == found
    assert told in events.text


@pytest.mark.parametrize("told", ["nan", "inf", "-1e400", "soon", "", "9e99"])
async def test_a_date_that_cannot_be_is_written_down_again(world: World, told: str) -> None:
    await world.keeper.look()
    world.ask(AUTHORITY)
    world.ask(USERS)
    assert await world.keeper.look()
    for name, annotation in ((TLS, SINCE), (USERS, CHANGED)):
        found = world.api.objects["secrets", "system", name]
        metadata = {**found["metadata"], "annotations": {**found["metadata"]["annotations"], annotation: told}}
        world.api.put(SECRETS, {**found, "metadata": metadata})
    assert await world.keeper.look()
    for name, annotation in ((TLS, SINCE), (USERS, CHANGED)):
        assert world.api.objects["secrets", "system", name]["metadata"]["annotations"][annotation] == f"{NOW:.0f}"


async def test_whatever_fails_the_next_round_comes(world: World, events: pytest.LogCaptureFixture) -> None:
    get = world.api.get

    async def fail(kind: Any, namespace: str, name: str) -> Object:
        raise KeyError("metadata")

    world.api.get = fail  # type: ignore[method-assign]
    assert not await world.keeper.look()
    assert "KeyError" in events.text
    world.api.get = get  # type: ignore[method-assign]
    assert await world.keeper.look()


async def test_bytes_that_are_no_text_are_told(world: World) -> None:
    world.api.put(SECRETS, {"metadata": {"name": USERS, "namespace": "system"}, "data": {"operator": base64.b64encode(b"\xff").decode()}})
    assert not await world.keeper.look()


async def test_another_authoritys_key_is_refused() -> None:
    one, two = signing.make_authority("a", 1, NOW), signing.make_authority("b", 1, NOW)
    with pytest.raises(FailedPrecondition, match=r"ca\.key: another key found"):
        signing.issue(signing.Pair(one.certificate, two.key), "x", HOSTS, 1, NOW)


@pytest.mark.parametrize("lacking", ["tls.key", "operator"])
async def test_secrets_of_somebody_else_are_read_and_never_written(tmp_path: Path, lacking: str) -> None:
    given = Wanted(namespace="system", certificates=Certificates(secret="theirs"), passwords=Passwords(secret="users", ours=False))
    world = World(tmp_path, given)
    both = {"theirs": {"ca.crt": "CA", "tls.crt": "C", "tls.key": "K"}, "users": {"operator": "o", "gateway": "g"}}
    assert not await world.keeper.look(), "they are not there yet"
    for name, texts in both.items():
        world.put(name, {key: text for key, text in texts.items() if key != lacking})
    assert not await world.keeper.look()
    for name, texts in both.items():
        world.put(name, texts)
    assert await world.keeper.look()
    assert world.file("tls/ca.crt") == "CA"
    assert world.file("users/operator") == "o"
    assert not world.api.written


def test_options_are_read_whole_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "secrets.json"
    file.write_text(json.dumps({"namespace": "s", "certificates": {"secret": "a"}, "passwords": {"secret": "b", "ours": False}}))
    assert secret_options.parse([f"--secrets={file}", "--secrets-folder=x"]).wanted.certificates.secret == "a"
    for words, told in (
        ([], "required"),
        ([f"--secrets={file}"], "go together"),
        (["--secrets=/nowhere", "--secrets-folder=x"], "--secrets: "),
    ):
        with pytest.raises(SystemExit):
            secret_options.parse(words)
        assert told in capsys.readouterr().err
    file.write_text('{"namespace": "s", "certificate": {}}')
    with pytest.raises(SystemExit):
        secret_options.parse([f"--secrets={file}", "--secrets-folder=x"])
    assert "certificate" in capsys.readouterr().err
