"""What the operator of a cluster is told at its start: a bad value names its field, and the store's files become workers' settings."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from dormouse_core.policies import Policy
from dormouse_operator.kubernetes.options import Options, parse
from dormouse_operator.kubernetes.settings import ClusterSettings, Defaults

FILE: dict[str, Any] = {
    "namespaces": ["a", "b"], "systemNamespace": "sys", "image": "i", "imagePullPolicy": "Never", "imagePullSecrets": ["s"],
    "claim": "sys-d-operator", "gateway": "g.svc", "gatewayPort": 81, "gatewayCalls": "g-calls.svc:8003",
    "clusterDomain": "c.local", "resources": {"limits": {"cpu": 1}},
    "networkPolicies": False, "removalWait": "90s", "fairShares": False,
    "policy": {"claims": ["models-*"], "imageDigests": True}, "reserved": ["dormouse-*"],
    "defaults": {"nodeSelector": {"pool": "gpu"}, "schedulerName": "batch"}, "modelsSize": "20Gi", "ids": {"fsGroup": 7},
    "ingressFrom": [{"podSelector": {}}], "egressTo": [{"ports": [{"port": 2379}]}],
}  # fmt: skip


def parsed(*words: str, file: Path | None = None, text: str | None = None) -> Options:
    if file is not None:
        file.write_text(json.dumps(FILE) if text is None else text)
    return parse(["--kubernetes", *words, *(["--functions", str(file)] if file is not None else [])])


def refused(capsys: pytest.CaptureFixture[str], *words: str, file: Path | None = None, text: str | None = None) -> str:
    with pytest.raises(SystemExit) as ended:
        parsed(*words, file=file, text=text)
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("selector", "text"),
    [
        ({"matchLabels": {"a.io/b": "c", "d": ""}}, "a.io/b=c,d="),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["b", "c"]}]}, "a in (b,c)"),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}, {"key": "b", "operator": "DoesNotExist"}]}, "a,!b"),
        ({}, ""),
    ],
)
def test_a_selector_of_namespaces_is_what_the_api_server_reads(selector: Any, text: str, tmp_path: Path) -> None:
    found = parsed(file=tmp_path / "f.json", text=json.dumps({"namespaceSelector": selector}))
    assert found.functions.namespace_selector == text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"namespaces": ["a"], "namespaceSelector": {"matchLabels": {"a": "b"}}}, "namespaces and namespaceSelector found"),
        ({"namespaceSelector": {"labels": {}}}, "labels"),
        ({"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}, "values go with In and NotIn"),
        ({"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}}, "values go with In and NotIn"),
        ({"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "Like", "values": ["b"]}]}}, "operator"),
    ],
)
def test_a_selector_that_says_nothing_clear_is_refused(
    settings: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, file=tmp_path / "f.json", text=json.dumps(settings))


def test_nothing_said_is_the_defaults_with_a_store_without_users() -> None:
    found = parsed()
    assert found.store == Options().store
    assert found.functions == ClusterSettings(store_auth=False)


def test_functions_passwords_are_derived_from_a_secret_of_their_own_where_there_is_one(tmp_path: Path) -> None:
    """Without one from root's: while that is replaced, from the newest."""
    root, workers = tmp_path / "operator", tmp_path / "workers"
    root.write_text("new\nold\n")
    words = ("--store-user=root", f"--store-password-file={root}", f"--workers-secret-file={workers}")
    assert parsed(*words).functions.store_secret == b"new"
    workers.write_text("own\n")
    assert parsed(*words).functions.store_secret == b"own"


def test_every_field_of_the_file_becomes_a_setting(tmp_path: Path) -> None:
    found = parsed("--installation", "mine", "--store", "e0:2379", "--store", "e1:2379", file=tmp_path / "f.json")
    assert found.functions == ClusterSettings(
        namespaces=("a", "b"), system_namespace="sys", image="i", image_pull_policy="Never", image_pull_secrets=("s",), gateway="g.svc",
        claim="sys-d-operator", gateway_port=81, gateway_calls="g-calls.svc:8003",
        cluster_domain="c.local", resources={"limits": {"cpu": 1}}, network_policies=False,
        ingress_from=({"podSelector": {}},), egress_to=({"ports": [{"port": 2379}]},),
        installation="mine", store=("e0:2379", "e1:2379"), store_auth=False,
        removal_wait=90.0, fair_shares=False,
        defaults=Defaults(node_selector={"pool": "gpu"}, scheduler_name="batch"), models_size="20Gi", ids={"fsGroup": 7},
        policy=Policy(claims=("models-*",), image_digests=True), reserved=("dormouse-*",),
    )  # fmt: skip
    told = {each.name for each in fields(ClusterSettings) if getattr(found.functions, each.name) != getattr(ClusterSettings(), each.name)}
    assert {each.name for each in fields(ClusterSettings)} - told == {
        "store_ca", "store_cert", "store_key", "store_secret",
        "namespace_selector",  # which does not go with `namespaces`: below
    }  # fmt: skip


def test_tenants_share_a_store_with_users_unless_there_is_one_namespace_or_somebody_says_otherwise(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret")
    user = ("--store-user", "root", "--store-password-file", str(tmp_path / "password"))
    several, one = tmp_path / "several.json", tmp_path / "one.json"
    one.write_text(json.dumps({**FILE, "namespaces": ["a"]}))
    assert parsed(*user).store_shared, "everywhere"
    assert parsed(*user, file=several).store_shared
    assert not parsed(*user, "--functions", str(one)).store_shared
    assert not parsed(*user, "--store-one-tenant", "--functions", str(several)).store_shared
    assert not parsed().store_shared, "without users nobody is kept apart"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"gatewayPort": "81"}, "$.gatewayPort"),
        ({"gatewayPort": None}, "$.gatewayPort"),
        ({"namespaces": "a"}, "$.namespaces"),
        ({"namespaces": [1]}, "$.namespaces[0]"),
        ({"resources": []}, "$.resources"),
        ({"networkPolicies": "yes"}, "$.networkPolicies"),
        ({"ingressFrom": [7]}, "$.ingressFrom[0]"),
        ({"policy": {"claims": "*"}}, "$.policy.claims"),
        ({"policy": {"hostPath": ["*"]}}, "hostPath"),
        ({"gateway_port": 81}, "gateway_port"),
        ({"storeSecret": "x"}, "storeSecret"),
    ],
)
def test_a_bad_value_in_the_file_names_its_field(change: Any, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, file=tmp_path / "f.json", text=json.dumps({**FILE, **change}))
    assert f"--functions: {tmp_path}/f.json: " in said
    assert text in said


@pytest.mark.parametrize("text", ["", "{", "[]", "namespaces: []", '"\\ud800"'])
def test_a_file_that_is_no_such_file_is_named(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"--functions: {tmp_path}/f.json: " in refused(capsys, file=tmp_path / "f.json", text=text)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--metrics", "many"], "--metrics: invalid int value: 'many'"),
        (["--installation", "Mine"], "--installation: 'Mine' found, a DNS label is allowed"),
        (["--installation", "a" * 64], "a DNS label is allowed"),
        (["--installation", "a\n"], "a DNS label is allowed"),
        (["--store-user", "root"], "--store-user and --store-password-file go together"),
        (["--store-password-file", "/x"], "--store-user and --store-password-file go together"),
        (["--store-ca", "/nowhere/ca.crt"], "/nowhere/ca.crt"),
        (["--functions", "/nowhere/f.json"], "/nowhere/f.json"),
        (["--unknown"], "--unknown"),
    ],
)
def test_a_bad_word_on_the_command_line_is_named(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert text in refused(capsys, *words)


def test_a_certificate_that_is_no_text_is_named_and_ends_no_operator_that_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """DER, where PEM is meant. Who looks at the files now and then waits out what cannot be read."""
    path = tmp_path / "ca.crt"
    path.write_text("CA")
    running = parsed("--store-ca", str(path))
    path.write_bytes(b"\x30\x82\xff\xfe")
    assert f"{path}: no text found, PEM is allowed" in refused(capsys, "--store-ca", str(path))
    with pytest.raises(OSError, match="PEM is allowed"):
        running.settings_now()


def test_the_stores_files_are_what_workers_are_given(tmp_path: Path) -> None:
    for name, text in (("ca", "CA"), ("cert", "CERT"), ("key", "KEY"), ("password", "root's\n")):
        (tmp_path / name).write_text(text)
    words = [word for name in ("ca", "cert", "key") for word in (f"--store-{name}", str(tmp_path / name))]
    found = parsed(*words, "--store-user", "root", "--store-password-file", str(tmp_path / "password"))
    said = found.functions
    assert (said.store_ca, said.store_cert, said.store_key, said.store_auth, said.store_secret) == ("CA", "CERT", "KEY", True, b"root's")
    assert said.tls
    assert found.settings_now() == said


def test_a_certificate_that_is_replaced_is_a_setting_that_changes_and_a_password_is_not(tmp_path: Path) -> None:
    """Functions' passwords are derived from the operator's as it was at its start: they change when the next one starts."""
    (tmp_path / "ca").write_text("CA")
    (tmp_path / "password").write_text("one")
    found = parsed("--store-ca", str(tmp_path / "ca"), "--store-user", "root", "--store-password-file", str(tmp_path / "password"))
    (tmp_path / "ca").write_text("CA2")
    (tmp_path / "password").write_text("two")
    now = found.settings_now()
    assert (now.store_ca, now.store_secret) == ("CA2", b"one")


def test_the_gateways_password_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "gateway"
    path.write_text("one\n")
    found = parsed("--gateway-password-file", str(path))
    assert found.gateway_password() == "one"
    path.write_text("two")
    assert found.gateway_password() == "two"
    assert parsed().gateway_password() == ""
