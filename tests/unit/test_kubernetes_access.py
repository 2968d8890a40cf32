"""Where the API server is and how it knows us: in a pod, from kubeconfigs as people have them, and when what they give is replaced."""

import asyncio
import base64
import json
import os
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from dormouse_core.errors import FailedPrecondition
from dormouse_operator.kubernetes.api import access
from dormouse_operator.kubernetes.api.access import REFUSED, RENEW, Access, find, kubeconfig
from dormouse_operator.kubernetes.api.http import _Connections
from kubernetes.aio.client.rest import RESTClientObject

PEM = "-----BEGIN CERTIFICATE-----"


def written(folder: Path, user: Any = None, cluster: Any = None, name: str = "config", **more: Any) -> Path:
    """A kubeconfig."""
    data = {
        "current-context": "here",
        "contexts": [{"name": "there", "context": {}}, {"name": "here", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://api:6443/", **(cluster or {})}}],
        "users": [{"name": "u", "user": {"token": "t"} if user is None else user}],
        **more,
    }
    path = folder / name
    path.write_text(yaml.safe_dump(data))
    return path


def in_pod(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "token").write_text("pod-token\n")
    (folder / "ca.crt").write_text(PEM)
    monkeypatch.setattr(access, "SERVICE_ACCOUNT", folder)


# ------------------------------------------------------------------------------------------------------------------ found


@pytest.mark.parametrize(("host", "server"), [("10.0.0.1", "https://10.0.0.1:6443"), ("fd00::1", "https://[fd00::1]:6443")])
async def test_in_a_pod_the_service_account_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, server: str) -> None:
    in_pod(tmp_path, monkeypatch)
    found = await find({"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": "6443"})
    configuration = found.configuration
    assert (found.server, configuration.ssl_ca_cert, configuration.verify_ssl) == (server, str(tmp_path / "ca.crt"), True)
    assert found.authorization == "bearer pod-token"
    assert (await find({"KUBERNETES_SERVICE_HOST": host})).server == server.replace("6443", "443")


async def test_a_kubeconfig_that_is_named_goes_before_the_pods_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_pod(tmp_path, monkeypatch)
    found = await find({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBECONFIG": str(written(tmp_path))})
    assert (found.server, found.authorization) == ("https://api:6443", "Bearer t")


async def test_of_several_kubeconfigs_the_first_that_names_a_context_decides(tmp_path: Path) -> None:
    """As kubectl does: another would be another cluster."""
    bare = tmp_path / "bare"
    bare.write_text(yaml.safe_dump({"users": [{"name": "u", "user": {"token": "of the first"}}]}))
    second = written(tmp_path, {"token": "other"}, {"server": "https://second"}, name="second", **{"current-context": "there"})
    names = ["", str(tmp_path / "none"), str(bare), str(written(tmp_path)), str(second)]
    found = await find({"KUBECONFIG": os.pathsep.join(names)})
    assert (found.server, found.authorization) == ("https://api:6443", "Bearer of the first"), (
        "and entries are the first file's that has them"
    )


async def test_negative_control_left_to_the_library_the_last_ones_context_would_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "_context", lambda paths: None)
    cluster = {"clusters": [{"name": "other", "cluster": {"server": "https://second"}}]}
    contexts = {"contexts": [{"name": "second", "context": {"cluster": "other", "user": "u"}}], "current-context": "second"}
    second = written(tmp_path, name="second", **cluster, **contexts)
    assert (await find({"KUBECONFIG": f"{written(tmp_path)}:{second}"})).server == "https://second"


async def test_a_token_without_a_cluster_is_no_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_pod(tmp_path, monkeypatch)
    with pytest.raises(FailedPrecondition, match="this is no pod"):
        await find({"KUBERNETES_SERVICE_HOST": "", "HOME": str(tmp_path), "KUBECONFIG": ""})
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(FailedPrecondition, match="this is no pod"):
        await find({})


@pytest.mark.parametrize("environment", [{"KUBECONFIG": "/nowhere"}, {"KUBECONFIG": ""}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, {}])
async def test_without_either_it_is_said_what_was_looked_for(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "SERVICE_ACCOUNT", tmp_path / "no-account")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FailedPrecondition, match="no pod with a service account, and KUBECONFIG names no file"):
        await find(environment)


async def test_the_home_folders_kubeconfig_is_the_last_resort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "SERVICE_ACCOUNT", tmp_path / "no-account")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".kube").mkdir()
    written(tmp_path / ".kube")
    assert (await find({})).server == "https://api:6443"


@pytest.mark.parametrize("lacks", ["token", "ca.crt"])
async def test_a_service_account_that_is_not_whole_is_refused(lacks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_pod(tmp_path, monkeypatch)
    (tmp_path / lacks).write_text("")
    with pytest.raises(FailedPrecondition, match=str(tmp_path)):
        await find({"KUBERNETES_SERVICE_HOST": "10.0.0.1"})


# ------------------------------------------------------------------------------------------------------------------ a kubeconfig


async def test_certificates_stand_in_the_file_or_beside_it(tmp_path: Path) -> None:
    (tmp_path / "k.pem").write_text("KEY")
    user = {"client-certificate-data": base64.b64encode(b"CERT").decode(), "client-key": "k.pem"}
    found = await kubeconfig(str(written(tmp_path, user, {"certificate-authority-data": base64.b64encode(b"CA").decode()})))
    files = (found.configuration.ssl_ca_cert, found.configuration.cert_file, found.configuration.key_file)
    assert list(map(text, files)) == ["CA", "CERT", "KEY"]
    assert found.authorization == ""


async def test_a_tokens_file_lies_beside_the_kubeconfig_and_may_end_with_a_newline(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from the file\n".replace(" ", "-"))
    assert (await kubeconfig(str(written(tmp_path, {"tokenFile": "token"})))).authorization == "Bearer from-the-file"


async def test_proxies_server_names_and_passwords_are_taken(tmp_path: Path) -> None:
    cluster = {"proxy-url": "http://proxy:3128", "tls-server-name": "kubernetes"}
    found = await kubeconfig(str(written(tmp_path, {"username": "u", "password": "p"}, cluster)))
    assert (found.configuration.proxy, found.configuration.tls_server_name) == ("http://proxy:3128", "kubernetes")
    assert found.authorization == "Basic " + base64.b64encode(b"u:p").decode()


def text(file: Any) -> str:
    return Path(file).read_text()


def plugin(folder: Path, says: str) -> dict[str, Any]:
    """A user who logs in through a program: a shell script."""
    script = folder / "plugin"
    script.write_text(f"#!/bin/sh\necho . >>{folder}/runs\n{says}\n")
    script.chmod(0o755)
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(script), "env": [{"name": "WORD", "value": "w"}]}}


def credential(**status: str) -> str:
    return (
        "cat <<EOF\n" + json.dumps({"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}) + "\nEOF"
    )


def stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))


@pytest.mark.parametrize(("lasts", "runs"), [(60, 2), (3600, 1)])
async def test_a_program_that_logs_in_is_run_again_when_what_it_gave_expires(tmp_path: Path, lasts: int, runs: int) -> None:
    """5 minutes before it does, as the library has it; and at once where the server refuses it."""
    says = credential(token=f"$WORD$(wc -l <{tmp_path}/runs)", expirationTimestamp=stamp(lasts))
    now = [0.0]
    found = await kubeconfig(str(written(tmp_path, plugin(tmp_path, says))))
    found._clock, found._at = lambda: now[0], 0.0
    assert found.authorization == "Bearer w1"
    await found.renew()
    assert found.reads == 0
    now[0] = RENEW
    await found.renew()
    assert found.authorization == f"Bearer w{runs}"
    found.refused()
    now[0] += REFUSED
    await found.renew()
    assert found.authorization == f"Bearer w{runs + 1}"


@pytest.mark.parametrize("says", ["exit 3", "echo no JSON", credential(), "exec false"])
async def test_a_program_that_fails_is_said_and_nobody_goes_on_without_a_name(tmp_path: Path, says: str) -> None:
    path = str(written(tmp_path, plugin(tmp_path, says)))
    with pytest.raises(FailedPrecondition) as refused:
        await kubeconfig(path)
    assert path in refused.value.message
    assert "the user u has no token, no certificate and no program that gives one, or the program failed" in refused.value.message


async def test_a_program_that_does_not_end_is_not_waited_for_nor_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "PLUGIN", 0.3)
    reading = access._Kubeconfigs(str(written(tmp_path, plugin(tmp_path, f"while [ ! -e {tmp_path}/end ]; do sleep 0.1; done"))))
    with pytest.raises(FailedPrecondition, match="took more than"):
        await reading.read(True)
    with pytest.raises(FailedPrecondition, match="has not ended yet"):
        await reading.read(True)
    assert text(tmp_path / "runs") == ".\n"
    (tmp_path / "end").touch()
    assert reading._reading is not None
    await reading._reading


async def test_a_program_that_fails_later_leaves_what_it_gave_before(tmp_path: Path) -> None:
    found = await kubeconfig(str(written(tmp_path, plugin(tmp_path, credential(token="first", expirationTimestamp=stamp(60))))))
    plugin(tmp_path, "exit 1")
    for refused in (False, True):
        found._clock, found._at, found._refused = lambda: RENEW, 0.0, refused
        await found.renew()
        assert text(tmp_path / "runs") == ".\n" * (3 if refused else 2)
        assert found.authorization == "Bearer first"


@pytest.mark.parametrize(
    ("user", "more", "text"),
    [
        (None, {"current-context": "gone"}, "gone"),
        (None, {"current-context": None}, "no current-context"),
        (None, {"users": []}, "missing or of another form"),
        ({}, {}, "the user u has no token"),
        (None, {"clusters": None}, "clusters"),
        (None, {"current-context": "there"}, "Expected key cluster"),
        (None, {"clusters": [{"name": "c", "cluster": {}}]}, "cluster"),
        (None, {"clusters": [{"name": "c", "cluster": {"insecure-skip-tls-verify": True}}]}, "no server"),
        (None, {"contexts": "many"}, "no kubeconfig"),
        ({"client-certificate": "none.pem"}, {}, "none.pem"),
        ({"client-certificate-data": "abc"}, {}, "no kubeconfig"),
        ({"auth-provider": {"name": "oidc"}}, {}, "oidc"),
    ],
)
async def test_one_that_cannot_be_used_says_which_and_why(tmp_path: Path, user: Any, more: Any, text: str) -> None:
    path = written(tmp_path, user, **more)
    with pytest.raises(FailedPrecondition) as refused:
        await kubeconfig(str(path))
    assert str(path) in refused.value.message
    assert text in refused.value.message


@pytest.mark.parametrize("text", ["", "[1, 2]", "a: [", "\t", "5", "current-context: c"])
async def test_what_is_no_kubeconfig_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(FailedPrecondition, match=str(path)):
        await kubeconfig(str(path))


async def test_a_server_is_verified_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    assert context(await kubeconfig(str(written(tmp_path)))).verify_mode is ssl.CERT_REQUIRED
    lax = context(await kubeconfig(str(written(tmp_path, None, {"insecure-skip-tls-verify": True}))))
    assert (lax.verify_mode, lax.check_hostname) == (ssl.CERT_NONE, False)


def context(found: Access) -> ssl.SSLContext:
    return RESTClientObject(found.configuration).ssl_context


def made(folder: Path, name: str) -> tuple[str, str]:
    """The files of a certificate that signs itself, and of its key."""
    cert, key = folder / f"{name}.crt", folder / f"{name}.key"
    words = ["-x509", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-days", "2", "-out", cert, "-keyout", key]
    subprocess.run(["openssl", "req", *words], check=True, capture_output=True)
    return str(cert), str(key)


async def test_the_authority_of_the_cluster_is_trusted_and_no_other(tmp_path: Path) -> None:
    ca, _ = made(tmp_path, "authority")
    found = context(await kubeconfig(str(written(tmp_path, None, {"certificate-authority": ca}))))
    assert [dict(pair[0] for pair in each["subject"]) for each in found.get_ca_certs()] == [{"commonName": "authority"}]


# ------------------------------------------------------------------------------------------------------------------ read again


async def test_a_token_that_is_replaced_under_a_running_process_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kubelet does it: another file in its place. While none is there the last one goes on, which may still do."""
    in_pod(tmp_path, monkeypatch)
    now = [0.0]
    found = await find({"KUBERNETES_SERVICE_HOST": "10.0.0.1"})
    found._clock, found._at = lambda: now[0], 0.0
    (tmp_path / "next").write_text("second\n")
    (tmp_path / "next").replace(tmp_path / "token")
    await found.renew()
    assert found.authorization == "bearer pod-token", "it is not asked for with each request"
    now[0] = RENEW
    await found.renew()
    assert found.authorization == "bearer second"
    (tmp_path / "token").unlink()
    now[0] = 2 * RENEW
    await found.renew()
    assert found.authorization == "bearer second"
    (tmp_path / "token").write_text("third")
    now[0] = 3 * RENEW
    await found.renew()
    assert found.authorization == "bearer third"


async def test_who_comes_while_it_is_read_goes_on_with_what_there_is(tmp_path: Path) -> None:
    found = await kubeconfig(str(written(tmp_path, plugin(tmp_path, credential(token="t", expirationTimestamp=stamp(60))))))
    found._clock = lambda: time.monotonic() + RENEW
    await asyncio.gather(*(found.renew() for _ in range(5)))
    assert (found.reads, text(tmp_path / "runs")) == (1, ".\n.\n")


async def test_a_certificate_that_is_replaced_is_shown_by_connections_from_then_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cert, key = made(tmp_path, "user")
    shown: list[tuple[str, str]] = []
    real = ssl.SSLContext.load_cert_chain

    def load(self: ssl.SSLContext, certfile: str, keyfile: str) -> None:
        shown.append((certfile, text(certfile)))
        real(self, certfile, keyfile)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", load)
    found = await kubeconfig(str(written(tmp_path, {"client-certificate": cert, "client-key": key})))
    connections = _Connections(found, 1)
    await connections.renew()
    first, found._clock = text(cert), lambda: time.monotonic() + RENEW
    made(tmp_path, "user")
    await connections.renew()
    await connections.renew()
    assert shown == [(cert, first), (cert, text(cert))]
    assert first != text(cert)
