"""Which member of etcd is started again with what the chart says now. Pure.

The pods of the chart's etcd run an image of Dormouse before etcd, so every release changes their template. Kubernetes would start all of
them again for it, and with one member every step of every session would wait. So Kubernetes replaces none by itself (`OnDelete`), and the
operator has one go only where something changed that etcd itself has to do with: its image, its configuration, its resources, where it may
run. All else is what the pod has when it starts for another reason.

One after the other, and only while every other one is ready, so that the majority is never given away.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_ORDINAL = re.compile(r"\d+$")


@dataclass(frozen=True, slots=True)
class Start:
    """What a member starts with. `digest`: the chart's, of all that matters; '': by a release that did not say it, of which only the rest
    is known. `quota`: etcd's, as text; `resources`: as JSON."""

    digest: str
    image: str = ""
    quota: str = ""
    resources: str = ""

    def differs(self, wanted: "Start") -> bool:
        """Whether one that was started with this has to be for `wanted`. What is not known is no difference."""
        if self.digest:
            return self.digest != wanted.digest
        return (self.image, self.quota, self.resources) != (wanted.image, wanted.quota, wanted.resources)


@dataclass(frozen=True, slots=True)
class Wanted:
    """`keeps`: a member's data outlives its pod."""

    members: int
    start: Start
    keeps: bool


@dataclass(frozen=True, slots=True)
class MemberPod:
    """`going`: somebody has asked for its end."""

    name: str
    uid: str
    ready: bool
    going: bool
    start: Start


def next_member(wanted: Wanted, found: Sequence[MemberPod]) -> MemberPod | None:
    """Who is to go now; None: nobody, or not yet. `found`: all pods of members that there are.

    One that is not ready serves nobody: it goes first if it is outdated, as where the image that it was given last cannot be pulled, and
    is waited for if it is not. The last one of all goes only with a disk that stays."""
    here = [pod for pod in found if not pod.going]
    if not wanted.start.digest or len(here) < wanted.members or (wanted.members == 1 and not wanted.keeps):
        return None
    outdated = sorted((pod for pod in here if pod.start.differs(wanted.start)), key=_ordinal)
    waited_for = [pod for pod in here if not pod.ready]
    if waited_for:
        return waited_for[0] if len(waited_for) == 1 and waited_for[0] in outdated else None
    return outdated[-1] if outdated else None


def _ordinal(pod: MemberPod) -> int:
    found = _ORDINAL.search(pod.name)
    return int(found.group()) if found else 0
