"""Where the API server is and how it knows us: in a pod, from a kubeconfig, and from a token's file that is replaced."""

import base64
import os
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from dormouse_core.errors import FailedPrecondition
from dormouse_operator.kubernetes.api import access
from dormouse_operator.kubernetes.api.access import Access, Token, find, kubeconfig

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
def test_in_a_pod_the_service_account_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, server: str) -> None:
    in_pod(tmp_path, monkeypatch)
    found = find({"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": "6443"})
    assert (found.server, found.ca, found.token.read(), found.insecure) == (server, PEM.encode(), "pod-token", False)


def test_a_kubeconfig_that_is_named_goes_before_the_pods_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_pod(tmp_path, monkeypatch)
    found = find({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBECONFIG": str(written(tmp_path))})
    assert (found.server, found.token.read()) == ("https://api:6443", "t")


def test_of_several_kubeconfigs_the_first_that_is_there_is_used(tmp_path: Path) -> None:
    names = ["", str(tmp_path / "none"), str(written(tmp_path)), str(written(tmp_path, {"token": "other"}, name="second"))]
    assert find({"KUBECONFIG": os.pathsep.join(names)}).token.read() == "t"


def test_a_token_without_a_cluster_is_no_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_pod(tmp_path, monkeypatch)
    with pytest.raises(FailedPrecondition, match="this is no pod"):
        find({"KUBERNETES_SERVICE_HOST": "", "HOME": str(tmp_path), "KUBECONFIG": ""})
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(FailedPrecondition, match="this is no pod"):
        find({})


@pytest.mark.parametrize("environment", [{"KUBECONFIG": "/nowhere"}, {"KUBECONFIG": ""}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, {}])
def test_without_either_it_is_said_what_was_looked_for(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "SERVICE_ACCOUNT", tmp_path / "no-account")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FailedPrecondition, match="no pod with a service account, and KUBECONFIG names no file"):
        find(environment)


def test_the_home_folders_kubeconfig_is_the_last_resort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "SERVICE_ACCOUNT", tmp_path / "no-account")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".kube").mkdir()
    written(tmp_path / ".kube")
    assert find({}).server == "https://api:6443"


# ------------------------------------------------------------------------------------------------------------------ a kubeconfig


def test_certificates_stand_in_the_file_or_beside_it(tmp_path: Path) -> None:
    (tmp_path / "k.pem").write_text("KEY")
    user = {"client-certificate-data": base64.b64encode(b"CERT").decode(), "client-key": "k.pem"}
    found = kubeconfig(written(tmp_path, user, {"certificate-authority-data": base64.b64encode(b"CA").decode()}))
    assert (found.ca, found.cert, found.key, found.token.read()) == (b"CA", b"CERT", b"KEY", "")


def test_a_tokens_file_lies_beside_the_kubeconfig_and_goes_before_a_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from the file\n")
    assert kubeconfig(written(tmp_path, {"token": "t", "tokenFile": "token"})).token.read() == "from the file"


@pytest.mark.parametrize(
    ("user", "more", "text"),
    [
        ({"exec": {"command": "aws"}}, {}, "the user u logs in through a program"),
        ({"auth-provider": {"name": "gcp"}}, {}, "the user u logs in through a program"),
        (None, {"current-context": "gone"}, "contexts has no 'gone'"),
        (None, {"current-context": None}, "contexts has no"),
        (None, {"users": []}, "users has no 'u'"),
        (None, {"clusters": None}, "clusters has no 'c'"),
        (None, {"current-context": "there"}, "'cluster'"),
        (None, {"clusters": [{"name": "c", "cluster": {}}]}, "'server'"),
        (None, {"users": [{"name": "u", "user": None}]}, "no kubeconfig"),
        (None, {"contexts": "many"}, "no kubeconfig"),
        ({"client-certificate": "none.pem"}, {}, "none.pem"),
        ({"client-certificate-data": "abc"}, {}, "no kubeconfig"),
    ],
)
def test_one_that_cannot_be_used_says_which_and_why(tmp_path: Path, user: Any, more: Any, text: str) -> None:
    path = written(tmp_path, user, **more)
    with pytest.raises(FailedPrecondition) as refused:
        kubeconfig(path)
    assert str(path) in refused.value.message
    assert text in refused.value.message


@pytest.mark.parametrize("text", ["", "[1, 2]", "a: [", "\t"])
def test_what_is_no_kubeconfig_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(FailedPrecondition, match=str(path)):
        kubeconfig(path)


def test_a_server_is_verified_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    assert kubeconfig(written(tmp_path)).context().verify_mode is ssl.CERT_REQUIRED
    lax = kubeconfig(written(tmp_path, None, {"insecure-skip-tls-verify": True})).context()
    assert (lax.verify_mode, lax.check_hostname) == (ssl.CERT_NONE, False)


def made(folder: Path, name: str) -> tuple[bytes, bytes]:
    """A certificate that signs itself, and its key."""
    cert, key = folder / f"{name}.crt", folder / f"{name}.key"
    words = ["-x509", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-days", "2", "-out", cert, "-keyout", key]
    subprocess.run(["openssl", "req", *words], check=True, capture_output=True)
    return cert.read_bytes(), key.read_bytes()


def test_the_authority_of_the_cluster_is_trusted_and_no_other(tmp_path: Path) -> None:
    ca, _ = made(tmp_path, "authority")
    trusted = [dict(pair[0] for pair in each["subject"]) for each in Access("https://api", ca=ca).context().get_ca_certs()]
    assert trusted == [{"commonName": "authority"}]
    assert Access("https://api").context().verify_mode is ssl.CERT_REQUIRED, "without one, what the system trusts"


def test_who_has_a_certificate_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cert, key = made(tmp_path, "user")
    shown: list[str] = []
    load = ssl.SSLContext.load_cert_chain
    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", lambda self, file: (shown.append(Path(file).read_text()), load(self, file))[1])
    Access("https://api", cert=cert, key=key).context()
    assert shown == [(cert + b"\n" + key).decode()]
    Access("https://api").context()
    assert len(shown) == 1, "who has none shows none"


# ------------------------------------------------------------------------------------------------------------------ a token


def test_a_token_that_is_replaced_under_a_running_process_is_read_anew(tmp_path: Path) -> None:
    """As the kubelet does it: another file in its place."""
    path = tmp_path / "token"
    path.write_text("first")
    token = Token(path=path)
    assert token.read() == "first"
    (tmp_path / "next").write_text("second\n")
    (tmp_path / "next").replace(path)
    assert token.read() == "second"


def test_while_it_is_not_there_the_last_one_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first")
    token = Token(path=path)
    token.read()
    path.unlink()
    assert token.read() == "first"
    path.write_text("second, longer")
    assert token.read() == "second, longer"


def test_a_tokens_file_is_read_once_for_each_time_that_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for with each request."""
    path, reads, read_text = tmp_path / "token", list[Path](), Path.read_text
    path.write_text("first")
    token = Token(path=path)
    monkeypatch.setattr(Path, "read_text", lambda self, *more: (reads.append(self), read_text(self, *more))[1])
    assert [token.read() for _ in range(3)] == ["first"] * 3
    assert reads == [path]


def test_access_without_a_token_has_none() -> None:
    assert Access("https://api").token.read() == ""
