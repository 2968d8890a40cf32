"""Addresses of IPv6: where parts listen, and how they are written. What listens really answers: `tests/integration/test_families.py`."""

from pathlib import Path

import pytest
from dormouse_core import addresses
from dormouse_core.addresses import Rule, bracketed, joined
from dormouse_gateway.envoy import bootstrap as gateway
from dormouse_kit import families
from dormouse_operator.kubernetes import options
from dormouse_worker.process import bootstrap as worker

LOOPBACK = "00000000000000000000000000000001 01 80 10 80       lo\n"
LINK = "fe80000000000000428d5cfffe0b0000 02 40 20 80     eth0\n"
GLOBAL = "fd000000000000000000000000000011 02 40 00 80     eth0\n"


@pytest.mark.parametrize(
    ("there", "expected"),
    [(LOOPBACK, "0.0.0.0"), (LOOPBACK + LINK, "0.0.0.0"), (LOOPBACK + GLOBAL, "::"), ("", "0.0.0.0"), ("what\n", "0.0.0.0"),
     (None, "0.0.0.0")],
    ids=["none", "an IPv4 cluster's pod", "a pod with IPv6", "empty", "not understood", "a kernel without it"],
)  # fmt: skip
def test_everywhere_is_ipv6_too_where_others_reach_it(there: str | None, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "if_inet6"
    if there is not None:
        file.write_text(there)
    assert families.wildcard("0.0.0.0", file) == expected
    for host in ("127.0.0.1", "::1", "10.0.0.1"):
        assert families.wildcard(host, file) == host, "what was named is meant"


@pytest.mark.parametrize("part", [gateway, worker])
def test_envoy_listens_for_both_families(part: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part, "wildcard", lambda host: "::" if host == "0.0.0.0" else host)
    listening = gateway.listening if part is gateway else worker._address
    assert listening("0.0.0.0:9000") == {"socket_address": {"address": "::", "port_value": 9000, "ipv4_compat": True}}
    assert listening("127.0.0.1:9000") == {"socket_address": {"address": "127.0.0.1", "port_value": 9000}}


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("fd00::17:9000", "[fd00::17]:9000"),
        ("[fd00::17]:9000", "[fd00::17]:9000"),
        ("10.0.0.7:9000", "10.0.0.7:9000"),
        ("host:9000", "host:9000"),
        ("unix:/run/a:b.sock", "unix:/run/a:b.sock"),
        ("", ""),
    ],
)
def test_a_pods_address_gets_the_brackets_that_its_field_does_not_have(given: str, written: str) -> None:
    """`$(POD_IP):9000` of a pod that has IPv6."""
    assert bracketed(given) == written
    assert bracketed(written) == written


def test_the_operator_writes_itself_down_as_agents_can_dial_it() -> None:
    assert options.parse(["--kubernetes", "--listen", "fd00::17:9002"]).listen == "[fd00::17]:9002"


def test_a_worker_is_known_by_its_address_in_brackets() -> None:
    assert joined("fd00::17", 9000) == "[fd00::17]:9000"
    assert addresses.vouched("[fd00::17]:9000", joined("fd00::17", 9000), 0.0) == ""
    assert Rule(pods=True).refusal("[fd00::17]:9000") == ""
    assert "shortest form" in Rule(pods=True).refusal("fd00::17:9000"), "Envoy and gRPC would take it for another"
