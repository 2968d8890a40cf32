"""Which address a worker's entry may give. Pure.

An entry is written with its function's store user, so what stands in it is a claim: gateways and the leader would connect to wherever it
points, from behind the policies that keep everybody else away. What no worker can have is refused here; whether a pod has it, the leader
knows (`vouched`). A loop over what is not refused is ended by `HOPS`.
"""

import ipaddress
import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dormouse_core import headernames

UNIX = "unix:"
PATH_BYTES = 107  # of a Unix socket
BY_ENVOY, BY_RELAY = "envoy", "relay"
"""Metadata of every call that a gateway sends to a worker: who sent it. No gateway takes such a call from outside: it has been in one."""
CAME_BACK = f"the call came back to a gateway ({headernames.HOPS}): the address of a worker of its function is a gateway's"
WAIT_SECONDS = 5.0  # a kubelet tells its pod's address about when it starts the container

_IP = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse(text: str, key: str) -> tuple[str, int]:
    """IP and port of `text`. ValueError names `key`: Envoy resolves no host names here, and an override header must match byte for byte."""
    host, _, port = text.rpartition(":")
    try:
        ipaddress.ip_address(host.strip("[]"))
        number = int(port)
    except ValueError:
        raise ValueError(f"{key}: {text!r} found, IP:port is allowed") from None
    if not 0 < number < 65536:
        raise ValueError(f"{key}: port {number} found, 1 to 65535 are allowed")
    return host.strip("[]"), number


def joined(host: str, port: int | str) -> str:
    """As clients and Envoy write it: a host of IPv6 in brackets. The field of a pod's address has none."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def bracketed(text: str) -> str:
    """`text` of IP:port, HOST:port or unix:PATH, with brackets where it lacks them."""
    host, separator, port = text.rpartition(":")
    return joined(host, port) if separator and not text.startswith(UNIX) else text


@dataclass(frozen=True, slots=True)
class Rule:
    """`own`: where parts of Dormouse listen that are no workers, IP:port or unix:PATH each (others are compared with nothing); what listens
    at 0.0.0.0 listens on the loopback, too. `pods`: workers are pods, so that nothing of the own machine is one. `sockets`: they may be at
    unix:PATH."""

    own: frozenset[str] = frozenset()
    pods: bool = False
    sockets: bool = False

    def refusal(self, text: str, more: Iterable[str] = ()) -> str:
        """Why nobody connects to `text` as to a worker; empty: nothing speaks against it. `more`: further own addresses."""
        if self.sockets and text.startswith(UNIX):
            return self._socket_refusal(text, more)
        try:
            host, port = parse(text, "address")
        except ValueError as wrong:
            return str(wrong)
        ip = ipaddress.ip_address(host)
        if text != joined(str(ip), port) or "%" in host:
            return f"address: {text!r} found, IP:port in its shortest form is allowed"
        if kind := self._kind(ip):
            return f"address: {text} is {kind}, which no worker may have"
        if any(_covers(each, ip, port) for each in (*self.own, *more)):
            return f"address: {text} is {_OURS}"
        return ""

    def _socket_refusal(self, text: str, more: Iterable[str]) -> str:
        path = text.removeprefix(UNIX)
        if not path.startswith("/") or "," in path or not path.isprintable() or len(path.encode()) > PATH_BYTES:
            return f"address: {text!r} found, {UNIX} and an absolute path without a comma of at most {PATH_BYTES} bytes is allowed"
        if _plain(path) in {_plain(each.removeprefix(UNIX)) for each in (*self.own, *more) if each.startswith(UNIX)}:
            return f"address: {text} is {_OURS}"
        return ""

    def _kind(self, ip: _IP) -> str:
        if ip.is_unspecified:
            return "the unspecified address"
        if ip.is_multicast or ip == ipaddress.ip_address("255.255.255.255"):
            return "a multicast or broadcast address"
        if ip.is_link_local:
            return "a link-local address, where clouds give out their machines' credentials"
        if ip.is_loopback:
            return "a loopback address" if self.pods else ""
        if isinstance(ip, ipaddress.IPv6Address) and (ip.ipv4_mapped or ip.sixtofour or any(ip in each for each in _IPV4)):
            return "an IPv4 address written as IPv6"
        return ""


_OURS = "a gateway's, the operator's or the store's, not a worker's"
_IPV4 = tuple(ipaddress.IPv6Network(text) for text in ("::/96", "64:ff9b::/96", "2001::/32"))


def _plain(path: str) -> str:
    return posixpath.normpath("/" + path.lstrip("/"))


def _covers(own: str, ip: _IP, port: int) -> bool:
    try:
        host, number = parse(own, "own")
    except ValueError:
        return False  # a host's name or a socket: compared by nobody
    mine = ipaddress.ip_address(host)
    return number == port and (mine == ip or (mine.is_unspecified and ip.is_loopback))


def came_back(metadata: Mapping[str, str]) -> bool:
    """For a relay, which its own Envoy may send what it could not send to a worker."""
    return metadata.get(headernames.HOPS, BY_ENVOY) != BY_ENVOY


def vouched(address: str, held: str | None, waited: float) -> str | None:
    """What an entry's `address` is worth where its pod has the address `held` ('': none yet; None: there is no such pod), `waited` seconds
    after the entry was first seen. Empty: it is believed. None: not yet, nobody connects and nothing is said. Else why it is refused."""
    if held is None:
        return "its function has no pod of the name in the entry"
    if not held:
        return None if waited < WAIT_SECONDS else f"its pod has had no address for {WAIT_SECONDS:.0f} s"
    return "" if address == held else f"{address} is not its pod's address, which is {held}"
