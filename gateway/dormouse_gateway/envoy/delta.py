"""One Envoy's view of the snapshot: the delta xDS protocol as a state machine without I/O.

https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#incremental-xds, and what was seen of Envoy itself:

* Even an empty wildcard subscription must be answered, and a name that does not exist with "removed"; else Envoy does
  not become ready.
* One bad resource can take the good ones of its response down with it, and Envoy does not ask for them again. After a
  NACK of several, each is sent again in a response of its own; the culprit is then the one whose own response is
  refused. It is kept in `problems` and not sent again in that version; Envoy goes on with its last good one.
* An Envoy that reconnects says which versions it has; it is sent only what differs.

Make before break: a resource goes out when what it needs is accepted, in the version needed; a cluster is removed
when the scope that may name it is gone or has been accepted in a version that does not.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from dormouse_gateway.envoy.resources import CLUSTER, ENDPOINTS, SCOPE, TYPES, Name, Resource
from dormouse_gateway.envoy.snapshot import Snapshot

CHUNK = 256  # resources a response: a NACK makes at most so many responses of one


@dataclass(frozen=True, slots=True)
class Ask:
    """A DeltaDiscoveryRequest: a subscription, an ACK, a NACK, or several of them at once."""

    type_url: str
    nonce: str = ""
    error: str = ""
    subscribe: tuple[str, ...] = ()
    unsubscribe: tuple[str, ...] = ()
    initial: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """A DeltaDiscoveryResponse."""

    type_url: str
    nonce: str
    resources: tuple[Resource, ...] = ()
    removed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Problem:
    """What Envoy said of a resource that it refused."""

    version: str
    message: str


@dataclass(slots=True)
class _Subscription:
    wildcard: bool
    names: set[str] = field(default_factory=set)
    owed: set[str] = field(default_factory=set)  # names that must be answered, with "removed" if they do not exist
    silent: bool = True  # nothing was answered yet
    sent: dict[str, str] = field(default_factory=dict)  # name -> version last sent
    acked: dict[str, str] = field(default_factory=dict)  # name -> version that Envoy has
    alone: set[str] = field(default_factory=set)  # to be sent in a response of its own


def label(type_url: str, name: str) -> str:
    """The function (namespace/name) whose resource this is."""
    return name if type_url == SCOPE else name.rpartition("/")[0]


class DeltaStream:
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._subscriptions: dict[str, _Subscription] = {}
        self._in_flight: dict[str, Answer] = {}
        self._nonce = 0
        self.problems: dict[Name, Problem] = {}
        self.acks = 0
        self.nacks = 0

    def receive(self, ask: Ask) -> None:
        sub = self._subscriptions.get(ask.type_url)
        if sub is None:
            sub = _Subscription(wildcard=not ask.subscribe or "*" in ask.subscribe)
            self._subscriptions[ask.type_url] = sub
            sub.sent.update(ask.initial)
            sub.acked.update(ask.initial)
            again: tuple[str, ...] = ()
        else:
            again = ask.subscribe  # subscribing once more asks for the resource once more
        answer = self._in_flight.pop(ask.nonce, None)
        if answer is not None and ask.error:
            self._refused(sub, answer, ask.error)
        elif answer is not None:
            self._accepted(sub, answer)
        for name in ask.unsubscribe:
            for kept in (sub.names, sub.owed, sub.alone):
                kept.discard(name)
            sub.sent.pop(name, None)
            sub.acked.pop(name, None)
            self.problems.pop((ask.type_url, name), None)
        for name in ask.subscribe:
            if name == "*":
                sub.wildcard = True
                continue
            sub.names.add(name)
            sub.owed.add(name)
        for name in again:
            sub.sent.pop(name, None)

    def _accepted(self, sub: _Subscription, answer: Answer) -> None:
        self.acks += 1
        for each in answer.resources:
            sub.acked[each.name] = each.version
            problem = self.problems.get((each.type_url, each.name))
            if problem is not None and problem.version != each.version:
                del self.problems[(each.type_url, each.name)]
        for name in answer.removed:
            if name not in sub.sent:  # not sent anew in the meantime
                sub.acked.pop(name, None)
            self.problems.pop((answer.type_url, name), None)

    def _refused(self, sub: _Subscription, answer: Answer, error: str) -> None:
        self.nacks += 1
        if len(answer.resources) == 1:
            culprit = answer.resources[0]
            self.problems[(culprit.type_url, culprit.name)] = Problem(culprit.version, error)
            return
        for each in answer.resources:
            if sub.sent.get(each.name) == each.version:
                del sub.sent[each.name]
                sub.alone.add(each.name)

    def answers(self) -> list[Answer]:
        """What is to be said now. Call again after each `receive` and each change of the snapshot."""
        if not self._snapshot.complete:
            return []
        out: list[Answer] = []
        for type_url in TYPES:
            if type_url in self._subscriptions:
                out += self._additions(type_url, self._subscriptions[type_url])
        for type_url in reversed(TYPES):
            if type_url in self._subscriptions:
                out += self._removals(type_url, self._subscriptions[type_url])
        return out

    def _additions(self, type_url: str, sub: _Subscription) -> list[Answer]:
        have = self._snapshot.resources[type_url]
        names = have.keys() if sub.wildcard else sub.names & have.keys()
        new = [have[name] for name in names if sub.sent.get(name) != have[name].version and self._may_send(have[name])]
        together = [each for each in new if each.name not in sub.alone]
        groups = [together[i : i + CHUNK] for i in range(0, len(together), CHUNK)]
        groups += [[each] for each in new if each.name in sub.alone]
        if not groups and sub.silent and sub.wildcard:
            groups = [[]]
        out = []
        for group in groups:
            sub.silent = False
            for each in group:
                sub.sent[each.name] = each.version
                sub.alone.discard(each.name)
                sub.owed.discard(each.name)
            out.append(self._answer(type_url, tuple(group)))
        return out

    def _removals(self, type_url: str, sub: _Subscription) -> list[Answer]:
        have = self._snapshot.resources[type_url]
        gone = {name for name in sub.sent if name not in have and self._may_remove(type_url, name)}
        gone |= {name for name in sub.owed if name not in have}
        sub.owed -= gone
        for name in gone:
            sub.sent.pop(name, None)
        return [self._answer(type_url, (), tuple(sorted(gone)))] if gone else []

    def _answer(self, type_url: str, resources: tuple[Resource, ...], removed: tuple[str, ...] = ()) -> Answer:
        self._nonce += 1
        answer = Answer(type_url, str(self._nonce), resources, removed)
        self._in_flight[answer.nonce] = answer
        return answer

    def _acked(self, type_url: str, name: str) -> str | None:
        sub = self._subscriptions.get(type_url)
        return None if sub is None else sub.acked.get(name)

    def _may_send(self, each: Resource) -> bool:
        return all(self._acked(*name) == version for name, version in each.needs)

    def _may_remove(self, type_url: str, name: str) -> bool:
        if type_url != CLUSTER:
            return True
        scope = label(type_url, name)
        accepted = self._acked(SCOPE, scope)
        if accepted is None:
            return True
        wanted = self._snapshot.resources[SCOPE].get(scope)
        return wanted is not None and accepted == wanted.version and all(need != (CLUSTER, name) for need, _ in wanted.needs)

    def refused(self) -> dict[str, str]:
        """What Envoy holds against a function, by its label; only where the refused version is still the wanted one."""
        out: dict[str, str] = {}
        for (type_url, name), problem in self.problems.items():
            wanted = self._snapshot.resources[type_url].get(name)
            if wanted is not None and wanted.version == problem.version:
                kind = {CLUSTER: "cluster", ENDPOINTS: "endpoints", SCOPE: "route"}[type_url]
                out[label(type_url, name)] = f"Envoy refused the function's {kind}: {problem.message}"
        return out
