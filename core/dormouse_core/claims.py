"""Which of several installations serves the namespaces that all of them would serve. Pure.

Two operators that keep the same objects each put the other's work back, for ever. Each installation that serves all namespaces has a claim,
an object of the whole cluster that no tenant can make; the oldest claim holds, by the API server's time. The younger installation touches
nothing until the older claim has gone, however dead its operator may be: what would be made in its place are other pods and another store,
and its sessions would be lost.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Claim:
    """`since`: when it was made, as the API server writes times (they sort as text)."""

    name: str
    since: str


def elder(own: str, found: Iterable[Claim]) -> Claim | None:
    """Of a complete list, the oldest claim that is older than the claim `own`; None: this installation serves. One without a claim of its
    own is younger than all."""
    order = sorted(found, key=lambda claim: (claim.since, claim.name))
    first = next(iter(order), None)
    return first if first is not None and first.name != own else None


def younger(own: str, found: Iterable[Claim]) -> list[Claim]:
    """Those that keep out for the claim `own`."""
    order = sorted(found, key=lambda claim: (claim.since, claim.name))
    return order[1:] if order and order[0].name == own else []
