"""Which of several installations serves what all of them would take for theirs. Pure.

Two operators that keep the same objects each put the other's work back, for ever. So do two that take each other's objects for their own,
whatever namespaces they serve: they know them by a label with the installation's name, and watch the whole cluster. Each installation with
such rights has a claim, an object of the whole cluster that no tenant can make; of claims that collide the oldest holds, by the API
server's time. The younger installation touches nothing until the older claim has gone, however dead its operator may be: what would be made
in its place are other pods and another store, and its sessions would be lost.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Claim:
    """`installation`: its name; empty: not known. `everywhere`: it serves all namespaces. `since`: when it was made, as the API server
    writes times (they sort as text)."""

    name: str
    installation: str
    everywhere: bool
    since: str = ""

    def collides(self, other: "Claim") -> bool:
        named_alike = self.installation != "" and self.installation == other.installation
        return self.name != other.name and (named_alike or (self.everywhere and other.everywhere))


def elder(own: Claim, found: Iterable[Claim]) -> Claim | None:
    """Of a complete list, the oldest claim that collides with `own` and is older; None: this installation serves. One whose own is not in
    the list is younger than all."""
    order = sorted(found, key=lambda claim: (claim.since, claim.name))
    return next((claim for claim in order[: _place(own, order)] if own.collides(claim)), None)


def younger(own: Claim, found: Iterable[Claim]) -> list[Claim]:
    """Those that keep out for `own`, if it serves."""
    order = sorted(found, key=lambda claim: (claim.since, claim.name))
    if elder(own, order) is not None:
        return []
    return [claim for claim in order[_place(own, order) :] if own.collides(claim)]


def _place(own: Claim, order: list[Claim]) -> int:
    return next((index for index, claim in enumerate(order) if claim.name == own.name), len(order))
