"""Which member of etcd is started again with what the chart says now. Pure.

The pods of the chart's etcd run an image of Dormouse before etcd, so every release changes their template. Kubernetes would start all of
them again for it, and with one member every step of every session would wait. So Kubernetes replaces none by itself (`OnDelete`), and the
operator has one go only where something changed that etcd itself has to do with: its image, its configuration, its resources, where it may
run. All else is what the pod has when it starts for another reason.

One after the other, and one that is ready only while every other one is ready, so that the majority is never given away.

One in which etcd does not run may lack what only its pod's template has: our image, which must run first, or the Secret that it is pulled
with. It goes for another template, too, or no upgrade and no rollback would mend what keeps it from starting.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

AWAY_SECONDS = 60.0
"""Of a member that has not been ready for so long the majority has nothing. For a moment one that serves is not ready, too, as where its
disk is slow or another one went."""

_ORDINAL = re.compile(r"\d+$")


@dataclass(frozen=True, slots=True)
class Start:
    """What a member starts with. `digest`: the chart's, of all that matters; '': by a release that did not say it, of which only the rest
    is known. `quota`: etcd's, as text; `resources`: as JSON; `secret`: its certificate's."""

    digest: str
    image: str = ""
    quota: str = ""
    resources: str = ""
    secret: str = ""

    def differs(self, wanted: "Start") -> bool:
        """Whether one that was started with this has to be for `wanted`. What is not known is no difference."""
        if self.digest:
            return self.digest != wanted.digest
        return replace(self, digest=wanted.digest) != wanted


@dataclass(frozen=True, slots=True)
class Wanted:
    """`keeps`: a member's data outlives its pod. `template`: what the pods' template is called now; '': not known."""

    members: int
    start: Start
    keeps: bool
    template: str = ""


@dataclass(frozen=True, slots=True)
class MemberPod:
    """`going`: somebody has asked for its end. `template`: the one that it was made from; '': not known. `runs`: etcd does, now; `ran`: it
    does or did, so there may be data. `away`: for how many seconds it has not been ready."""

    name: str
    uid: str
    ready: bool
    going: bool
    start: Start
    template: str = ""
    runs: bool = True
    ran: bool = True
    away: float = 0.0


def next_member(wanted: Wanted, found: Sequence[MemberPod]) -> MemberPod | None:
    """Who is to go now; None: nobody, or not yet. `found`: all pods of members that there are.

    One that is not ready goes first if it is outdated, and is waited for if it is not. Beside others that are not ready, or are missing, it
    goes once it has been away for long: two that cannot start would wait for each other for ever. What has no disk goes only while all
    others are ready, the last one of all never, except where etcd never ran in it."""
    if not wanted.start.digest or any(pod.going for pod in found):
        return None
    outdated = sorted((pod for pod in found if _outdated(wanted, pod)), key=_ordinal)
    away = wanted.members - sum(pod.ready for pod in found)
    for pod in outdated:
        alone = away == 1 and (wanted.keeps or wanted.members > 1)
        if not pod.ready and (not pod.ran or alone or (wanted.keeps and pod.away >= AWAY_SECONDS)):
            return pod
    if away or (wanted.members == 1 and not wanted.keeps):
        return None
    return outdated[-1] if outdated else None


def _outdated(wanted: Wanted, pod: MemberPod) -> bool:
    if not pod.ready and not pod.runs and wanted.template and pod.template and pod.template != wanted.template:
        return True
    return pod.start.differs(wanted.start)


def _ordinal(pod: MemberPod) -> int:
    found = _ORDINAL.search(pod.name)
    return int(found.group()) if found else 0
