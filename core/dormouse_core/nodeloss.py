"""Which nodes are lost, by what Dormouse itself sees of them: leases, control streams, and whether a port answers. Pure.

Kubernetes calls a silent node NotReady after most of a minute, and leaves its pods in place for five more: until then they count as running
and nobody orders others. What Dormouse knows is known in seconds, and a mistake is harmless: a worker that lives on, unheard, has no lease,
and the fence lets it commit nothing.

* A node with any part that has a lease, or that answers (also by refusing a connection: its kernel lives), is not lost. So a worker that
  ended, or starts again in its place, is no loss of its node.
* A node is suspected when one of its workers, which was ready when its kubelet last spoke, has not answered for `NODE_SILENT_SECONDS`, or
  its kubelet has not taken a pod that it was given for `NODE_UNTAKEN_SECONDS`.
* Suspects that are more than half of the nodes that are known say something of who looks, not of them: none of them is lost. The node of
  who looks is one that is known, and never suspected.
* A lost node is lost until a part of it is heard, or nothing was seen of it for `NODE_FORGOTTEN_SECONDS`; by then Kubernetes knows, too.
* What was not asked, or has not answered yet, is not known, and loses nobody.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from dormouse_core.limits import NODE_FORGOTTEN_SECONDS, NODE_SILENT_SECONDS, NODE_UNTAKEN_SECONDS


@dataclass(frozen=True, slots=True)
class Sign:
    """What one part shows of its node now."""

    node: str
    leased: bool = False
    """Its entry is in the store: it was alive a lease's length ago."""
    answers: bool | None = None
    """Its stream reports, or its port answers or refuses; False: a worker that was ready and is silent; None: not known."""
    untaken: bool = False
    """A pod that was given to this node, of which its kubelet has said nothing yet."""


@dataclass(frozen=True, slots=True)
class Verdict:
    lost: frozenset[str]
    doubted: frozenset[str] = frozenset()
    """Suspects that are too many to be believed."""


class NodeLoss:
    """What this leader has seen of nodes. `own`: the node that it runs on; '': not known. `now`: monotonic seconds."""

    def __init__(self, own: str = "") -> None:
        self._own = own
        self._silent: dict[str, float] = {}  # node -> since when nothing of it answers and something should
        self._untaken: dict[str, float] = {}
        self._lost: dict[str, float] = {}  # -> when something of it was last seen
        self.verdict = Verdict(frozenset())

    @property
    def lost(self) -> frozenset[str]:
        return self.verdict.lost

    def look(self, signs: Iterable[Sign] | None, now: float) -> Verdict:
        """`signs` None: the cluster's list of pods is not known now; what was concluded stays."""
        if signs is None:
            self._silent.clear()
            self._untaken.clear()
            return self.verdict
        signs = [sign for sign in signs if sign.node]
        known = {sign.node for sign in signs} | {self._own} - {""}
        answering = {sign.node for sign in signs if sign.answers} | {self._own}
        alive = {sign.node for sign in signs if sign.leased} | answering
        self._silent = _since(self._silent, {sign.node for sign in signs if sign.answers is False} - answering, now)
        self._untaken = _since(self._untaken, {sign.node for sign in signs if sign.untaken} - answering, now)
        suspects = {node for node, since in self._silent.items() if now - since >= NODE_SILENT_SECONDS}
        suspects |= {node for node, since in self._untaken.items() if now - since >= NODE_UNTAKEN_SECONDS}
        lost = {node: now if node in known else at for node, at in self._lost.items() if node not in alive}
        lost = {node: at for node, at in lost.items() if now - at < NODE_FORGOTTEN_SECONDS}
        suspects -= alive | lost.keys()
        if 2 * len(suspects | lost.keys()) > len(known | lost.keys()):
            self._lost = lost
            self.verdict = Verdict(frozenset(lost), frozenset(suspects))
        else:
            self._lost = lost | dict.fromkeys(suspects, now)
            self.verdict = Verdict(frozenset(self._lost))
        return self.verdict


def _since(before: dict[str, float], nodes: set[str], now: float) -> dict[str, float]:
    return {node: before.get(node, now) for node in nodes}
