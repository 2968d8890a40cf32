"""Which address a worker's entry may give, and what ends a loop over one that it should not have given."""

import pytest
from dormouse_core import headernames
from dormouse_core.addresses import BY_ENVOY, BY_RELAY, Rule, came_back, parse, vouched

PODS = Rule(frozenset({"0.0.0.0:8001", "10.0.0.9:9002", "etcd.example:2379"}), pods=True)
MACHINE = Rule(frozenset({"127.0.0.1:8001", "127.0.0.1:8002", "[::1]:2379", "unix:/run/etcd.sock"}))


@pytest.mark.parametrize("address", ["10.244.1.7:9000", "192.168.7.7:9000", "[fd00::17]:9000", "100.64.3.4:9000", "8.8.8.8:9000"])
def test_what_a_pod_may_have_is_taken(address: str) -> None:
    assert PODS.refusal(address) == ""


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.1:8002", "a loopback address"),
        ("127.7.7.7:9000", "a loopback address"),
        ("[::1]:9000", "a loopback address"),
        ("169.254.169.254:80", "a link-local address"),
        ("[fe80::1]:9000", "a link-local address"),
        ("0.0.0.0:9000", "the unspecified address"),
        ("[::]:9000", "the unspecified address"),
        ("224.0.0.1:9000", "a multicast or broadcast address"),
        ("[ff02::1]:9000", "a multicast or broadcast address"),
        ("255.255.255.255:9000", "a multicast or broadcast address"),
        ("[::ffff:169.254.169.254]:80", "found, IP:port in its shortest form is allowed"),
        ("[::ffff:a9fe:a9fe]:80", "an IPv4 address written as IPv6"),
        ("[64:ff9b::a9fe:a9fe]:80", "an IPv4 address written as IPv6"),
        ("[2002:a9fe:a9fe::]:80", "an IPv4 address written as IPv6"),
        ("[::7f00:1]:80", "an IPv4 address written as IPv6"),
        ("10.0.0.9:9002", "a gateway's, the operator's or the store's"),
        ("[fd00::1%eth0]:9000", "found, IP:port in its shortest form is allowed"),
        ("[fd00:0::1]:9000", "found, IP:port in its shortest form is allowed"),
        ("10.0.0.1:09000", "found, IP:port in its shortest form is allowed"),
        ("10.0.0.1:9_000", "found, IP:port in its shortest form is allowed"),
        ("10.0.0.1: 9000", "found, IP:port in its shortest form is allowed"),
        ("kubernetes.default.svc:443", "found, IP:port is allowed"),
        ("10.0.0.1:0", "1 to 65535 are allowed"),
        ("2130706433:9000", "found, IP:port is allowed"),
        ("unix:/run/dormouse/xds.sock", "found, IP:port is allowed"),
        ("", "found, IP:port is allowed"),
    ],
)
def test_what_no_pod_has_is_refused_with_the_reason(address: str, why: str) -> None:
    assert why in PODS.refusal(address)


def test_on_one_machine_the_loopback_is_the_workers_and_only_own_ports_are_refused() -> None:
    assert MACHINE.refusal("127.0.0.1:9000") == ""
    assert MACHINE.refusal("[::1]:9000") == ""
    for own in ("127.0.0.1:8001", "127.0.0.1:8002", "[::1]:2379"):
        assert "not a worker's" in MACHINE.refusal(own)
    assert "the unspecified address" in MACHINE.refusal("0.0.0.0:8002")  # reaches what listens on the loopback
    assert "written as IPv6" in MACHINE.refusal("[::ffff:7f00:1]:8002")
    assert "not a worker's" in MACHINE.refusal("127.0.0.1:9002", ["127.0.0.1:9002", ""])


def test_who_listens_on_every_address_listens_on_the_loopback() -> None:
    rule = Rule(frozenset({"0.0.0.0:8001"}))
    assert "not a worker's" in rule.refusal("127.0.0.1:8001")
    assert rule.refusal("127.0.0.1:9000") == ""


SOCKETS = Rule(frozenset({"unix:/run/d/relay.sock", "unix:/run/d/etcd:1", "127.0.0.1:8001"}), sockets=True)


def test_where_parts_listen_on_sockets_a_worker_may_and_own_ones_are_refused() -> None:
    assert SOCKETS.refusal("unix:/run/d/w-1.sock") == ""
    assert SOCKETS.refusal("127.0.0.1:9000") == ""
    for own in ("unix:/run/d/relay.sock", "unix:/run/d/../d/./relay.sock", "unix://run/d//relay.sock", "unix:/run/d/etcd:1"):
        assert "not a worker's" in SOCKETS.refusal(own), own
    for path in ("relay.sock", "@relay", "/a,b", "/a\nb", "/" + "x" * 107, ""):
        assert "an absolute path without a comma of at most 107 bytes is allowed" in SOCKETS.refusal(f"unix:{path}")
    assert "not a worker's" in SOCKETS.refusal("unix:/run/e/relay.sock", ["unix:/run/e/relay.sock"])
    assert "IP:port is allowed" in PODS.refusal("unix:/run/d/w-1.sock")


def test_an_own_address_is_parsed_as_before() -> None:
    assert parse("[::1]:9000", "listen") == ("::1", 9000)
    with pytest.raises(ValueError, match="listen: 'host:1' found, IP:port is allowed"):
        parse("host:1", "listen")


def test_a_relay_takes_what_its_envoy_could_not_send_and_nothing_that_a_relay_sent() -> None:
    assert not came_back({})
    assert not came_back({headernames.HOPS: BY_ENVOY})
    assert came_back({headernames.HOPS: BY_RELAY})
    assert came_back({headernames.HOPS: "anything"})


def test_an_entry_is_believed_where_its_pod_has_the_address() -> None:
    assert vouched("10.244.1.7:9000", "10.244.1.7:9000", 0.0) == ""
    assert vouched("10.244.1.8:9000", "10.244.1.7:9000", 0.0) == "10.244.1.8:9000 is not its pod's address, which is 10.244.1.7:9000"
    assert vouched("10.244.1.7:9000", None, 0.0) == "its function has no pod of the name in the entry"


def test_a_pod_without_an_address_vouches_for_nothing_and_is_waited_for() -> None:
    assert vouched("10.244.1.7:9000", "", 0.0) is None
    assert vouched("10.244.1.7:9000", "", 60.0) == "its pod has had no address for 5 s"
