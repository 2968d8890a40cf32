"""Members of the chart's etcd: how one that has no data gets into a cluster, and when one is given a vote. Pure.

Two clusters of one name would be a fork of every session, so a new one is formed by the first member alone, and only where nobody
remembers that there was one. Every other member joins: as a *learner*, which copies everything and has no vote, so that no majority ever
counts on what it does not have yet. A member of which the others know and that has no data was wiped: what it voted for is lost, so its
former self is removed, for good, and it joins under a new id.

Data alone is no ticket: a volume may be that of an earlier cluster, and two such would elect a leader of what was. One with data is started
where the others know it, and where nobody answers, which is every power cut; where others do not know it, it waits.

That there was a cluster of several is remembered outside of their disks, before the first learner is given a vote: until then the first
member is all there is, and afterwards one that is wiped must wait for the others, however long nobody answers.

`plan` says the next step from what was observed; who carries it out looks again afterwards, so it may be cut short anywhere.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class Member:
    """As the cluster knows it. `name` empty: it was added and has never started."""

    id: int
    name: str
    peers: tuple[str, ...]
    learner: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What one member says of its cluster."""

    cluster: str
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Unclear:
    """Whether there is a member is not known: something answers and is not understood, or nothing says that there is nobody."""

    why: str


@dataclass(frozen=True, slots=True)
class Own:
    """Who wrote the log on a member's disk."""

    cluster: str
    id: int


class Do(Enum):
    START = "start with the data that is there"
    FORM = "form a cluster"
    REMOVE = "remove the member that this one was"
    ADD = "join as a learner"
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class Step:
    do: Do
    why: str
    member: int = 0
    """Whom to remove."""


def plan(
    name: str,
    urls: Mapping[str, str],
    found: Sequence[Answer | Unclear],
    *,
    data: bool,
    formed: str,
    own: Own | None = None,
    stranger: bool = False,
) -> Step:
    """The next step of the member `name`. `urls`: of all members that there are to be, the first one first. `found`: at the others, but for
    those where it is known that nobody is. `data`: whether there is a log on its disk. `formed`: the Secret that remembers that there was
    a cluster of several; '': there is none. `own`: who wrote that log; None: it does not say.
    `stranger`: others answered before and did not know it."""
    if data:
        return _with_data(urls[name], [each for each in found if isinstance(each, Answer)], own, stranger)
    answers = [each for each in found if isinstance(each, Answer)]
    if len({answer.cluster for answer in answers}) > 1:
        said = ", ".join(sorted({answer.cluster for answer in answers}))
        return Step(Do.WAIT, f"members of different clusters answer ({said}); one of them must go, with its data")
    if answers:
        mine = [member for answer in answers for member in answer.members if urls[name] in member.peers]
        if mine:
            return Step(Do.REMOVE, "the others know this member, and it has no data", mine[0].id)
        return Step(Do.ADD, "there is a cluster, and this member is not in it")
    if name != next(iter(urls)):
        return Step(Do.WAIT, f"no other member answers, and only {next(iter(urls))} may form a cluster")
    if formed:
        return Step(
            Do.WAIT,
            "there was a cluster of several members, and no other one answers; where that cluster is not wanted any more, delete the "
            f"Secret {formed} and this pod",
        )
    if found:
        return Step(
            Do.WAIT, f"whether another member is there is not known: {'; '.join(each.why for each in found if isinstance(each, Unclear))}"
        )
    return Step(Do.FORM, "no other member answers, and there never was a cluster of several")


def _with_data(url: str, answers: Sequence[Answer], own: Own | None, stranger: bool) -> Step:
    """One of those that answer may know more than the others: it is enough that one knows this member."""
    for answer in answers:
        if own is None or answer.cluster == own.cluster:
            for member in answer.members:
                if url in member.peers or (own is not None and member.id == own.id):
                    return Step(Do.START, "there is data, and the others know this member")
    if answers:
        clusters = ", ".join(sorted({answer.cluster for answer in answers}))
        mine = f"of the cluster {own.cluster}" if own else "another's"
        return Step(
            Do.WAIT,
            f"the cluster that is there ({clusters}) does not know this member; what it has is {mine}: delete its claim and its pod, or, "
            "where that is the one to keep, the other's",
        )
    if stranger:
        return Step(Do.WAIT, "nobody answers now, and the cluster that was there did not know this member")
    return Step(Do.START, "there is data, and no other member answers")


def initial(urls: Mapping[str, str], members: Sequence[Member]) -> str:
    """etcd's `initial-cluster` for one that joins `members`: as many as there are, by their addresses. Who has not started has no name,
    so names are ours; of an address that is not ours any name will do."""
    names = {url: name for name, url in urls.items()}
    words = []
    for member in members:
        known = next((names[url] for url in member.peers if url in names), "")
        words += [f"{known or member.name or f'{member.id:x}'}={url}" for url in member.peers]
    return ",".join(words)


def several(members: Sequence[Member]) -> bool:
    """Whether it must be remembered that there is a cluster of several: one beside the first has a vote, or may be given one."""
    return len(members) > 1


def candidates(members: Sequence[Member]) -> list[Member]:
    """Who may be given a vote, if etcd finds that it has what the leader has."""
    return [member for member in members if member.learner and member.name]


def crowded(nodes: Mapping[str, str]) -> str:
    """Why the loss of one node may end the majority; '': it does not. `nodes`: by pod, '' where it has none yet."""
    there = defaultdict[str, list[str]](list)
    for pod, node in sorted(nodes.items()):
        if node:
            there[node].append(pod)
    told = [f"{' and '.join(pods)} are on {node}" for node, pods in sorted(there.items()) if len(pods) > 1]
    if not told:
        return ""
    return (
        f"etcd's members share a node: {'; '.join(told)}. If it is lost, so is the majority, and no session goes on until it is back. Make "
        "room on another node and delete one of the pods (its volume must be able to follow); a single node is what singleNode=true is for"
    )
