"""What a pod's status says of the worker in it: whether it runs or can be expected to, and if not, why, in a sentence for callers.

The kubelet's texts alternate while it tries again (`ErrImagePull`, then `ImagePullBackOff`) and name what is new at each try (a pod, a
number of seconds). A sentence that changes each time would be written each time, so the texts are cut down to what stays.

A pod that nobody has room for may get a node in a minute or two where nodes are added on demand: its callers are held for that long before
it counts as a problem.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from dormouse_core.errors import Code, tellable
from dormouse_core.plain import plain
from dormouse_proto import state_pb2

from dormouse_operator.kubernetes.api.http import Object
from dormouse_operator.kubernetes.objects.budgets import homeless
from dormouse_operator.kubernetes.objects.object_entries import seconds
from dormouse_operator.kubernetes.objects.pod import CONTAINER

UNSCHEDULABLE = 120.0  # seconds for which a node may be waited for
MUTE_ENDS = 3  # ends without a reason that are taken as accidents before they are called a problem
LOST = 30.0  # seconds after its grace period for which a pod's end is waited for: its node is gone

OOM_KILLED = "OOMKilled"
QUOTA = "QuotaExceeded"
_IMAGE = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError", "RegistryUnavailable"}
)
_CONTAINER = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "StartError", "ContainerCannotRun"})
_MOUNTS = frozenset({"FailedMount", "FailedAttachVolume", "FailedMapVolume"})
_UNHEARD = ("failed to sync", "no relationship found", "not registered")
"""The kubelet cannot ask the API server for a Secret or ConfigMap, or is not let yet: whether it is missing is not known."""
_MOUNTED = frozenset({"Pulling", "Pulled", "Created", "Started"})  # to these the kubelet comes when every volume is mounted
_LENGTH = 500  # characters
_QUOTA = ("requested", "limited")
_SUFFIXES = {
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate(["n", "u", "m", "", "k", "M", "G", "T", "P", "E"], -3)},
    **{f"{suffix}i": Decimal(1024) ** power for power, suffix in enumerate("KMGTPE", 1)},
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """`exited`: it does not run now, and nobody knows when it will. `waiting`: what a pod that is no problem yet waits for."""

    exited: bool = False
    problem: state_pb2.Problem | None = None
    waiting: str = ""


def finished(pod: Object) -> bool:
    """It will never run again, and its ReplicaSet has replaced it: evicted, or its node was shut down."""
    return pod.get("status", {}).get("phase") in ("Failed", "Succeeded")


def lost(pod: Object, now: float) -> bool:
    """It should have ended long ago (deletionTimestamp includes its grace period): its node does not answer. Whatever runs there has no
    lease and can commit nothing."""
    ends = pod["metadata"].get("deletionTimestamp")
    return ends is not None and now > seconds(ends) + LOST


def judge(pod: Object, now: float) -> Verdict:
    """`now`: wall time."""
    status = pod.get("status", {})
    container: Mapping[str, Any] = next((c for c in status.get("containerStatuses") or () if c["name"] == CONTAINER), {})
    state = container.get("state", {})
    ends = container.get("restartCount", 0) + 1  # counted when it is started again, not when it ends
    if "waiting" in state:
        found = _waiting(pod, state["waiting"], container, ends)
        if found is not None:
            return found
    if "terminated" in state:
        return Verdict(exited=True, problem=_ended(state["terminated"], ends))
    if not container:
        return _unscheduled(status, now)
    return Verdict()


def starved(pod: Object) -> float:
    """When the kernel last ended its worker's container for want of memory, in seconds since the epoch; 0: it has not, as far as the status
    says. It says it of the latest end alone."""
    for container in pod.get("status", {}).get("containerStatuses") or ():
        for state in (container.get("state", {}), container.get("lastState", {})):
            ended = state.get("terminated", {})
            if container["name"] == CONTAINER and ended.get("reason") == OOM_KILLED and ended.get("finishedAt"):
                return seconds(ended["finishedAt"])
    return 0.0


def _waiting(pod: Object, waiting: Mapping[str, Any], container: Mapping[str, Any], ends: int) -> Verdict | None:
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    if reason in _IMAGE:
        image = next(c["image"] for c in pod["spec"]["containers"] if c["name"] == CONTAINER)
        text = f"the image {image} cannot be pulled: {_image_detail(message) or reason}"
        return Verdict(exited=True, problem=unavailable("ImageUnavailable", text))
    if reason in _CONTAINER:
        return Verdict(exited=True, problem=unavailable("WorkerFailed", f"the worker's container cannot be made: {message or reason}"))
    if reason == "CrashLoopBackOff":
        last = container.get("lastState", {}).get("terminated", {})
        return Verdict(exited=True, problem=_ended(last, ends))
    return None


def _image_detail(message: str) -> str:
    """The registry's own words, which both of the kubelet's texts have at their end."""
    _, found, detail = message.rpartition("ErrImagePull: ")
    text = detail if found else message
    return re.sub(r'^Back-off pulling image "[^"]*":?\s*', "", text).strip()


def _ended(ended: Mapping[str, Any], times: int) -> state_pb2.Problem | None:
    """`ended`: a container's `terminated`; `times`: how often it has ended by now."""
    told = _told(ended.get("message", ""))
    if told is not None:
        return told
    if times < MUTE_ENDS:
        return None
    if ended.get("reason") == OOM_KILLED:
        text = "it used more memory than its limit; raise spec.workers.resources.limits.memory"
        return unavailable("WorkerFailed", f"the worker was killed again and again: {text}", mute=True)
    text = f"the worker ended with exit code {ended.get('exitCode', '?')} {MUTE_ENDS} times or more and gave no reason"
    return unavailable("WorkerFailed", text, mute=True)


def _told(message: str) -> state_pb2.Problem | None:
    """The reason that the worker's supervisor left in its termination message."""
    try:
        data = json.loads(message)
        return state_pb2.Problem(code=int(data["code"]), reason=plain(str(data["reason"])), message=tellable(str(data["message"])))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _unscheduled(status: Mapping[str, Any], now: float) -> Verdict:
    condition = next((c for c in status.get("conditions") or () if c.get("type") == "PodScheduled" and c.get("status") == "False"), None)
    if condition is None:
        return Verdict()
    message = str(condition.get("message", "")) or "no node has room for it"
    claim = re.search(r'persistentvolumeclaim "[^"]*" not found', message)
    if claim:
        return Verdict(exited=True, problem=unavailable("VolumeUnavailable", f"a volume of the worker is missing: {claim[0]}"))
    text = f"no node can run the worker: {message}"
    since = condition.get("lastTransitionTime")
    if since is not None and now - seconds(since) > UNSCHEDULABLE:
        return Verdict(exited=True, problem=unavailable("Unschedulable", text))
    return Verdict(waiting=text)


def lacks_room(pod: Object) -> bool:
    """The scheduler found a node that would do if it had room: nothing else is wrong with the pod, as far as it says."""
    message = next(
        (str(c.get("message", "")) for c in pod.get("status", {}).get("conditions") or () if c.get("type") == "PodScheduled"), ""
    )
    return homeless(pod) and ("Insufficient " in message or "Too many pods" in message)


def refused(deployment: Object) -> state_pb2.Problem | None:
    """Why a Deployment's pods cannot be made: a quota, an admission webhook, a policy."""
    for condition in deployment.get("status", {}).get("conditions") or ():
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            message = str(condition.get("message", ""))
            reason = QUOTA if "exceeded quota" in message else "PodRefused"
            # The server names the pod, and each try has another.
            return unavailable(reason, "the cluster refuses the worker's pod: " + re.sub(r'^pods "[^"]*"', "it", message))
    return None


def quota(refusal: state_pb2.Problem) -> dict[str, str]:
    """What a quota that refuses says is `requested`, and what `limited`: resources of which there is too little."""
    return {part: (found[1] if (found := re.search(rf"\b{part}: ([^\s,]+=[^\s]*?)(?:, |$)", refusal.message)) else "") for part in _QUOTA}


def lacks_quota(refusal: state_pb2.Problem) -> bool:
    """The quota would let the pod in if others went: it does not ask for more than the whole of it."""
    if refusal.reason != QUOTA:
        return False
    requested, limited = (dict(each.split("=", 1) for each in text.split(",") if "=" in each) for text in quota(refusal).values())
    for name in requested.keys() & limited.keys():
        asked, most = _amount(requested[name]), _amount(limited[name])
        if asked is not None and most is not None and asked > most:
            return False
    return True


def _amount(quantity: str) -> Decimal | None:
    """None: not a quantity as the API server writes them."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?(?:[eE][+-]?\d{1,3})?)([numkMGTPE]|[KMGTPE]i)?", quantity)
    return Decimal(found[1]) * _SUFFIXES[found[2] or ""] if found else None


def starting(pod: Object) -> bool:
    """It has a node and its container is being made: what may hold that up stands in its events alone."""
    status = pod.get("status", {})
    if status.get("phase") != "Pending" or "deletionTimestamp" in pod["metadata"] or not pod.get("spec", {}).get("nodeName"):
        return False
    states = [c.get("state", {}).get("waiting", {}).get("reason") for c in status.get("containerStatuses") or () if c["name"] == CONTAINER]
    return not states or states[0] in ("ContainerCreating", "PodInitializing")


def mount_failure(events: list[Object]) -> state_pb2.Problem | None:
    """Of a pod whose container is being made for long: which volume is missing. One that came since is none."""
    told = [e for e in events if e.get("reason") in _MOUNTED or (e.get("type") == "Warning" and e.get("reason") in _MOUNTS)]
    latest = max(told, key=lambda e: (str(e.get("lastTimestamp") or e.get("eventTime") or ""), e["reason"] in _MOUNTED), default=None)
    if latest is None or latest["reason"] in _MOUNTED or any(text in latest.get("message", "") for text in _UNHEARD):
        return None
    return unavailable("VolumeUnavailable", f"a volume of the worker cannot be mounted: {latest.get('message', '')}")


def unavailable(reason: str, message: str, mute: bool = False) -> state_pb2.Problem:
    text = plain(" ".join(message.split()))
    return state_pb2.Problem(
        code=int(Code.UNAVAILABLE), reason=reason, message=text if len(text) <= _LENGTH else f"{text[: _LENGTH - 3]}...", mute=mute
    )
