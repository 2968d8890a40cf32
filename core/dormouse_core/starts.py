"""Whose turn it is to start a worker, where many want to at once.

A worker that starts imports its libraries and loads its model with all the processor time that it finds. Two hundred that start together
on a few nodes take it from everybody who serves, from the store and from the operator, whose lease then ends. So starts are bounded, on
each node and in all, and the rest waits:

* Functions whose callers wait, or that work already, come first, and have more room: proofs, and workers in reserve, can wait.
* But one place for each node, and one in eight in all, is for those that nobody calls and that have waited for `START_TURN_SECONDS`,
  before all others: beside functions that are called all the time there would never be a turn for a proof.
* Among equals whoever asked first comes first, with one worker each before anybody gets more.
* Which node a worker will run on is the scheduler's choice. A start is allowed while the nodes that are known have room for it together.
* A worker starts from its order until it serves. One that has taken `START_TURN_SECONDS` has had its turn: an image that is pulled for
  long, or a model that is fetched, keeps nobody waiting. Nor does one that failed, that no node has room for, or whose node is lost: it
  loads nothing.

A state machine without I/O: it is told what was seen, and says whose turn has come.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from dormouse_core.limits import START_ORDER_SECONDS, START_TURN_SECONDS, STARTS, STARTS_A_NODE, STARTS_A_NODE_CALLED
from dormouse_core.seams import Instance

NODE_SECONDS = 600.0
"""For which a node without a worker is known still."""

Key = tuple[str, str]
"""A function's uid and a revision; or a uid and an instance's name."""


@dataclass(frozen=True, slots=True)
class Order:
    """`more` workers beside those that run. `called`: callers wait for them, or are served."""

    key: Key
    more: int
    called: bool
    since: float
    asked: float
    """Monotonic: first, and last."""


@dataclass(frozen=True, slots=True)
class Room:
    """How many more may start for those who are called, and for others; how many start now; how many may for others that have waited long,
    before those who are called."""

    called: int
    others: int
    starting: int
    late: int = 0


def room(starting: Mapping[str, int], nodes: Collection[str]) -> Room:
    """`starting`: by node; "": it has none yet. `nodes`: that are known, none: there is one machine."""
    known = sorted(set(nodes) | {node for node in starting if node})
    total = sum(starting.values())

    def free(each: int) -> int:
        places = sum(max(each - starting.get(node, 0), 0) for node in known) if known else each
        most = STARTS * each // STARTS_A_NODE_CALLED  # in all, too, others leave half to who is called
        return max(min(places - starting.get("", 0), each * max(len(known), 1) - total, most - total), 0)

    return Room(free(STARTS_A_NODE_CALLED), free(STARTS_A_NODE), total)


def turns(orders: Iterable[Order], found: Room, now: float) -> dict[Key, int]:
    """How many of each order may start now."""
    granted: Counter[Key] = Counter()
    waiting = sorted((each for each in orders if each.more > 0), key=lambda each: (each.since, each.key))
    called = [each for each in waiting if each.called]
    others = [each for each in waiting if not each.called]
    late = [each for each in others if _late(each.since, now)]
    for mine, places in ((late, found.late), (called, found.called), (others, found.others)):
        left = places - granted.total()
        for most in (1, None):  # one each, and then the rest
            for order in mine:
                count = min(order.more - granted[order.key], left, order.more if most is None else most)
                if count > 0:
                    granted[order.key] += count
                    left -= count
    return dict(granted)


def _late(since: float, now: float) -> bool:
    return now - since >= START_TURN_SECONDS


class Starts:
    """What this leader has seen start, and who waits. `now`: monotonic."""

    def __init__(self) -> None:
        self._orders: dict[Key, Order] = {}
        self._since: dict[Key, float] = {}  # starting instances
        self._starting: Counter[str] = Counter()  # by node
        self._begun: Counter[Key] = Counter()  # that may start and were not seen yet
        self._uncalled: set[Key] = set()  # revisions that were granted a start while nobody called them
        self._others = 0  # instances of theirs that start
        self._nodes: dict[str, float] = {}  # -> when it last had an instance
        self._said: dict[str, str] = {}  # uid -> as `waits`

    def look(self, instances: Sequence[Instance] | None, serving: Collection[Key], now: float) -> list[str]:
        """The uids of those who wait and may go on. `instances` None: not known, so it is as it was. `serving`: uid and instance of every
        worker that is registered: it has loaded its model."""
        if instances is not None:
            self._see(instances, serving, now)
        self._orders = {key: order for key, order in self._orders.items() if now - order.asked < START_ORDER_SECONDS}
        return sorted({uid for uid, _ in turns(self._orders.values(), self.room(), now)})

    def _see(self, instances: Sequence[Instance], serving: Collection[Key], now: float) -> None:
        since, starting, others = dict[Key, float](), Counter[str](), Counter[Key]()
        for each in instances:
            if each.node:
                self._nodes[each.node] = now
            key = each.uid, each.name
            if each.stopping or each.exited or each.unplaced or each.lost or key in serving:
                continue
            since[key] = self._since.get(key, now)
            if now - since[key] < START_TURN_SECONDS:
                starting[each.node] += 1
                others[each.uid, each.revision] += 1
        self._since, self._starting = since, starting
        self._uncalled &= others.keys() | self._begun.keys() | self._orders.keys()
        self._others = sum(others[key] for key in self._uncalled)
        self._nodes = {node: at for node, at in self._nodes.items() if now - at < NODE_SECONDS}

    @property
    def nodes(self) -> int:
        """How many are known; 0: none, as on one machine."""
        return len(self._nodes)

    def room(self) -> Room:
        starting = Counter(self._starting)
        starting[""] += self._begun.total()
        found = room(starting, self._nodes.keys())
        others = self._others + sum(self._begun[key] for key in self._uncalled)
        nodes = max(len(self._nodes.keys() | {node for node in self._starting if node}), 1)
        kept = min(nodes, STARTS // STARTS_A_NODE_CALLED)  # in all, too, one place of as many as a node has
        return replace(found, late=max(min(kept - others, found.called), 0))

    def ask(self, uid: str, revision: str, more: int, *, called: bool, now: float) -> int:
        """How many of `more` workers of the revision may start now. They count as starting until `seen`."""
        key = uid, revision
        before = self._orders.get(key)
        since = now if before is None or (called and not before.called) else before.since
        self._orders[key] = Order(key, more, called, since, now)
        found = self.room()
        free = found.called if called else found.late if _late(since, now) and not found.others else found.others
        granted = turns(self._orders.values(), found, now).get(key, 0) if free else 0  # mostly there is none, and thousands may ask
        if granted == more:
            del self._orders[key]
        else:
            self._orders[key] = replace(self._orders[key], more=more - granted)
            self._said.setdefault(uid, f"it waits for its turn to start; workers that are starting: {found.starting + granted}")
        if granted:
            self._begun[key] += granted
            (self._uncalled.discard if called else self._uncalled.add)(key)
        return granted

    def seen(self, uid: str, revision: str) -> None:
        """What was granted stands in what is looked at from now on, or was not ordered."""
        self._begun.pop((uid, revision), None)

    def only(self, uid: str, revisions: Collection[str]) -> None:
        """The function asks for no others any more."""
        for key in [key for key in self._orders if key[0] == uid and key[1] not in revisions]:
            del self._orders[key]
        if not any(key[0] == uid for key in self._orders):
            self._said.pop(uid, None)

    def waits(self, uid: str) -> str:
        """What is told of a function that waits, half a sentence; '': it does not. It stays the same for as long as it waits: each change
        would be written into its status."""
        return self._said.get(uid, "")
