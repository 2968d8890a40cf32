"""Which nodes are lost, by what Dormouse itself sees of them: leases, control streams, and whether a port answers. Pure.

Kubernetes calls a silent node NotReady after most of a minute, and leaves its pods in place for five more: until then they count as running
and nobody orders others. What Dormouse knows is known in seconds, and a mistake is harmless: a worker that lives on, unheard, has no lease,
and the fence lets it commit nothing.

* A node of which anything answers is not lost: a worker that reports, a port that opens or refuses (the node's kernel lives). Nor is one
  with a gateway that has a lease. So a worker that ended, or starts again in its place, is no loss of its node.
* A worker's own lease spares that worker alone: whoever has a function's credentials may write entries for its workers, and is not to keep
  those of others on a lost node from being replaced.
* A node is suspected when one of its workers, which was ready when its kubelet last spoke, has not answered for `NODE_SILENT_SECONDS`; or
  for `NODE_UNTAKEN_SECONDS` one that was not ready yet has not, or its kubelet has not taken a pod that it was given.
* Suspects that are more than half of the nodes that are known say something of who looks, not of them: none of them is lost. The node of
  who looks is one that is known, and never suspected.
* A lost node is lost until a part of it is heard, or nothing was seen of it for `NODE_FORGOTTEN_SECONDS`; by then Kubernetes knows, too.
* What was not asked, or has not answered yet, is not known, and loses nobody.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from dormouse_core.limits import NODE_FORGOTTEN_SECONDS, NODE_SILENT_SECONDS, NODE_UNTAKEN_SECONDS

Part = tuple[str, str]
"""Of a worker: its function's uid and its instance."""


@dataclass(frozen=True, slots=True)
class Sign:
    """What one part shows of its node now."""

    node: str
    part: Part = ("", "")
    leased: bool = False
    """A worker's entry is in the store: it was alive a lease's length ago."""
    gateway: bool = False
    """The same of a gateway."""
    answers: bool | None = None
    """Its stream reports, or its port answers or refuses; False: it was dialled and is silent; None: not known."""
    starting: bool = False
    """A worker that was not ready when its kubelet last spoke. The network of its pod may be a moment behind its address."""
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
        self._untaken: dict[str, float] = {}  # the same of what is given longer
        self._lost: dict[str, float] = {}  # -> when something of it was last seen
        self._leased: frozenset[Part] = frozenset()
        self.verdict = Verdict(frozenset())

    @property
    def lost(self) -> frozenset[str]:
        return self.verdict.lost

    def strands(self, node: str, part: Part) -> bool:
        """Whether a worker is lost with its node."""
        return node in self.verdict.lost and part not in self._leased

    def look(self, signs: Iterable[Sign] | None, now: float) -> Verdict:
        """`signs` None: the cluster's list of pods is not known now; what was concluded stays."""
        if signs is None:
            self._silent.clear()
            self._untaken.clear()
            return self.verdict
        signs = [sign for sign in signs if sign.node]
        known = {sign.node for sign in signs} | {self._own} - {""}
        answering = {sign.node for sign in signs if sign.answers} | {self._own}
        alive = {sign.node for sign in signs if sign.gateway} | answering
        self._leased = frozenset(sign.part for sign in signs if sign.leased)
        self._silent = _since(self._silent, {sign.node for sign in signs if sign.answers is False and not sign.starting} - answering, now)
        slow = {sign.node for sign in signs if sign.untaken or (sign.answers is False and sign.starting)}
        self._untaken = _since(self._untaken, slow - answering, now)
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
