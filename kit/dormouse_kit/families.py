"""Which addresses "all of them" are: 0.0.0.0 stands for every address of the machine, of either family, as it does for gRPC and etcd.

A pod of an IPv6-only or a dual-stack cluster has an IPv6 address that others reach; a pod of an IPv4 cluster has link-local ones at most,
and some kernels have no IPv6 at all. So the IPv6 wildcard, which takes IPv4's connections too, is used where such an address is there.
"""

from pathlib import Path

EVERYWHERE = "0.0.0.0"
_GLOBAL = "00"
"""The scope in `/proc/net/if_inet6` of an address that others can reach: not the host's own (10), not the link's (20)."""


def wildcard(host: str, interfaces: Path = Path("/proc/net/if_inet6")) -> str:
    """`host`; for 0.0.0.0 `::` where the machine has an IPv6 address that others reach. Who binds it leaves IPV6_V6ONLY off."""
    if host != EVERYWHERE:
        return host
    try:
        scopes = [line.split()[3] for line in interfaces.read_text().splitlines()]
    except (OSError, IndexError):
        return host
    return "::" if _GLOBAL in scopes else host
