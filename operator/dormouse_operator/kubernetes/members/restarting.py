"""Has members of etcd start again, one after the other, where the chart says something else to etcd now (`dormouse_core.outdated`).

Every operator process does it: which one goes is the same for all, is named by its uid, and whether one may be missing is the API server's
to say, by the members' budget. A member that somebody drains meanwhile so counts, too.
"""

import datetime
import json
import re
from collections.abc import Mapping
from typing import Any, Final, NoReturn

from dormouse_core import outdated
from dormouse_core.outdated import MemberPod, Start
from dormouse_core.seams import Clock
from dormouse_kit import log

from dormouse_operator.kubernetes.api.http import Api, ApiError
from dormouse_operator.kubernetes.api.kinds import PODS, STATEFUL_SETS
from dormouse_operator.kubernetes.secret_options import MemberPods

LOOK = 5.0  # seconds
DIGEST: Final = "dormouse.dev/etcd"
REVISION: Final = "controller-revision-hash"
CONTAINER: Final = "etcd"
CERTIFICATE: Final = "server"  # the volume of it
_QUOTA: Final = re.compile(r'quota-backend-bytes"?[=:](\d+)')  # an argument of etcd's, or in the configuration that is written for it


class Restarting:
    def __init__(self, api: Api, clock: Clock, pods: MemberPods, namespace: str) -> None:
        self._api = api
        self._clock = clock
        self._pods = pods
        self._namespace = namespace
        self._said = ""

    async def run(self) -> NoReturn:
        while True:
            try:
                await self.look()
                self._said = ""
            except ApiError as error:
                self._say(error.message)
            except Exception as error:  # an error of ours must not end what is to be looked after
                self._say(repr(error))
            await self._clock.sleep(LOOK)

    async def look(self) -> None:
        """One round. ApiError: nobody goes, or it is not known."""
        try:
            wanted = wanted_of(await self._api.get(STATEFUL_SETS, self._namespace, self._pods.name))
        except ApiError as error:
            if error.missing:
                return
            raise
        if wanted is None:
            return
        listed = await self._api.list(PODS, self._namespace, labels=self._pods.selector)
        names = {f"{self._pods.name}-{number}" for number in range(wanted.members)}  # labels anybody may give to a pod
        now = self._clock.now()
        member = outdated.next_member(wanted, [pod_of(each, now) for each in listed.items if each["metadata"]["name"] in names])
        if member is not None and await self._api.evict(self._namespace, member.name, uid=member.uid):
            log.event("a member of the store starts again with what the chart says now", member=member.name)

    def _say(self, error: str) -> None:
        if error != self._said:
            self._said = error
            log.event("whether a member of the store must start again cannot be looked after now; tried again", error=error)


def wanted_of(stateful_set: Mapping[str, Any]) -> outdated.Wanted | None:
    """None: Kubernetes replaces its pods by itself, as charts of earlier releases have it."""
    spec = stateful_set["spec"]
    if spec.get("updateStrategy", {}).get("type") != "OnDelete":
        return None
    claims = {each["metadata"]["name"] for each in spec.get("volumeClaimTemplates") or ()}
    status = stateful_set.get("status", {})
    current = status.get("observedGeneration", 0) >= stateful_set["metadata"].get("generation", 1)
    return outdated.Wanted(
        spec["replicas"], _start(spec["template"]), "data" in claims, status.get("updateRevision", "") if current else ""
    )


def pod_of(pod: Mapping[str, Any], now: float) -> MemberPod:
    """`now`: wall time."""
    metadata, status = pod["metadata"], pod.get("status", {})
    ready: Mapping[str, Any] = next((each for each in status.get("conditions") or () if each["type"] == "Ready"), {})
    container: Mapping[str, Any] = next((each for each in status.get("containerStatuses") or () if each["name"] == CONTAINER), {})
    state = container.get("state") or {}
    since = ready.get("lastTransitionTime") or metadata.get("creationTimestamp")
    return MemberPod(
        metadata["name"],
        metadata["uid"],
        ready=ready.get("status") == "True",
        going="deletionTimestamp" in metadata,
        start=_start(pod),
        template=(metadata.get("labels") or {}).get(REVISION, ""),
        runs="running" in state,
        ran=bool({"running", "terminated"} & state.keys() or container.get("lastState") or container.get("restartCount")),
        away=now - datetime.datetime.fromisoformat(since).timestamp() if since else 0.0,
    )


def _start(template: Mapping[str, Any]) -> Start:
    spec = template["spec"]
    container: Mapping[str, Any] = next((each for each in spec["containers"] if each["name"] == CONTAINER), {})
    words = [word for each in (*(spec.get("initContainers") or ()), container) for word in each.get("args") or ()]
    secrets = [each["secret"]["secretName"] for each in spec.get("volumes") or () if each["name"] == CERTIFICATE and each.get("secret")]
    quotas = [found.group(1) for word in words if (found := _QUOTA.search(word))]
    return Start(
        (template["metadata"].get("annotations") or {}).get(DIGEST, ""),
        container.get("image", ""),
        quotas[0] if quotas else "",
        json.dumps(container.get("resources") or {}, sort_keys=True),
        secrets[0] if secrets else "",
    )
