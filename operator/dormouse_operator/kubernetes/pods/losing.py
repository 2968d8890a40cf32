"""Nodes that are lost: what their parts show, what follows from it (`dormouse_core.nodeloss`), and what is done about their pods
(`stranded`).

Workers that report show that their nodes live, and cost nothing. Of a node that none reports from, a few workers are dialled, those that
were ready first: a connection, or its refusal, shows that the node's kernel lives. Also where no container runs yet, or again: a pod has
its address from its network, and that refuses. A pod without an address cannot be asked.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from dormouse_core import addresses
from dormouse_core.nodeloss import NodeLoss, Sign
from dormouse_core.seams import Clock
from dormouse_kit import log

from dormouse_operator.kubernetes.api.http import Api, ApiError, Object, key_of
from dormouse_operator.kubernetes.api.kinds import DEPLOYMENTS, PODS
from dormouse_operator.kubernetes.api.reflecting import Reflector
from dormouse_operator.kubernetes.objects import names
from dormouse_operator.kubernetes.objects.pod import PORT
from dormouse_operator.kubernetes.pods import problems, stranded
from dormouse_operator.view import View

LOOK = 0.5  # seconds between looks
DIAL = 1.0  # seconds between tries of one worker
DIALLED = 3  # workers of a node, at most: of one that is cut off alone the others tell
FORCED = 50  # pods in one look
_CHEAPEST = -1_000_000  # a deletion cost below every hint of the provider's

Answers = Callable[[str], Awaitable[bool]]
"""Whether anything at an address answers, also by refusing: the real one is `dialing.answers`."""


_Dialled = tuple[str, str]
"""A pod's uid and address: it has another address after its network was made anew."""


@dataclass(slots=True)
class _Dial:
    task: asyncio.Task[None]
    answers: bool | None = None


class Losing:
    def __init__(
        self, api: Api, clock: Clock, pods: Reflector, deployments: Reflector, view: View, nodes: NodeLoss, answers: Answers
    ) -> None:
        self._api = api
        self._clock = clock
        self._pods = pods
        self._deployments = deployments
        self._view = view
        self._nodes = nodes
        self._answers = answers
        self._dials: dict[_Dialled, _Dial] = {}
        self._taken: set[str] | None = None  # pods' uids at the last look; None: there was none
        self._again = stranded.Again()
        self._failed = ""

    async def run(self) -> None:
        """Never returns."""
        try:
            while True:
                self.look()
                await self.relieve()
                await self._clock.sleep(LOOK)
        finally:
            for dial in self._dials.values():
                dial.task.cancel()

    def look(self) -> None:
        before = self._nodes.verdict
        known = self._pods.fresh and self._deployments.fresh
        after = self._nodes.look(self._signs() if known else None, self._clock.monotonic())
        for node in sorted(after.lost - before.lost):
            log.warning("a node is lost: nothing on it answers; its workers are replaced", node=node)
        for node in sorted(before.lost - after.lost):
            log.event("a node is no longer taken for lost", node=node)
        if after.doubted - before.doubted:
            log.warning("more than half of the nodes do not answer; nothing on them is replaced", nodes=sorted(after.doubted))

    # ------------------------------------------------------------------------------------------------------------------ signs

    def _signs(self) -> list[Sign]:
        """While the store does not answer no lease ends here: entries stay in the leader's copy until their deletion is told."""
        leased = self._view.leased()
        reporting = self._view.reporting()
        signs = [Sign(node, gateway=True) for node in self._view.gateway_nodes.values()]
        silent: dict[str, list[Object]] = {}
        now_taken = set[str]()
        for pod in self._pods.items.values():
            node, uid = pod["spec"].get("nodeName", ""), pod["metadata"]["uid"]
            if not node or problems.finished(pod):
                continue
            part = stranded.part(pod)
            answers, untaken, taken = None, False, stranded.taken(pod)
            if taken:
                now_taken.add(uid)
            if part in reporting or (taken and self._taken is not None and uid not in self._taken):
                answers = True  # also by its kubelet, which has just taken it, whether or not it was seen before
            elif not taken and "deletionTimestamp" not in pod["metadata"]:
                untaken = True
            # One that ends loses its address before its kubelet says that it has ended.
            elif pod["status"].get("podIP") and "deletionTimestamp" not in pod["metadata"]:
                silent.setdefault(node, []).append(pod)
            signs.append(Sign(node, part, leased=part in leased, answers=answers, untaken=untaken))
        self._taken = now_taken
        living = {sign.node for sign in signs if sign.answers}
        asked = [sorted(found, key=_starting)[:DIALLED] for node, found in silent.items() if node not in living]
        return signs + self._dialled(pod for found in asked for pod in found)

    def _dialled(self, pods: Iterable[Object]) -> list[Sign]:
        wanted = {(pod["metadata"]["uid"], addresses.joined(pod["status"]["podIP"], PORT)): pod for pod in pods}
        for key in self._dials.keys() - wanted.keys():
            self._dials.pop(key).task.cancel()
        for key in wanted.keys() - self._dials.keys():
            self._dials[key] = _Dial(asyncio.create_task(self._keep_dialling(key), name=f"dial {key[1]}"))
        return [Sign(pod["spec"]["nodeName"], answers=self._dials[key].answers, starting=_starting(pod)) for key, pod in wanted.items()]

    async def _keep_dialling(self, key: _Dialled) -> None:
        while True:
            answers = await self._answers(key[1])
            if key in self._dials:
                self._dials[key].answers = answers
            await self._clock.sleep(DIAL if answers else 0.1)

    # ------------------------------------------------------------------------------------------------------------------ pods

    async def relieve(self) -> None:
        """What cannot be done is tried again at the next look."""
        todo = stranded.relief(self._pods.items.values(), self._deployments.items.values(), self._nodes)
        failed = ""
        for shrink in todo.shrunk:
            try:
                await self._shrink(shrink)
            except ApiError as error:
                failed = error.message
        due = self._again.due([place for place, _ in todo.again], self._clock.monotonic())
        forced = [*todo.forced, *(pod for place, pods in todo.again if place in due for pod in pods)]
        for pod in forced[:FORCED]:
            namespace, name = key_of(pod)
            try:
                await self._api.delete(PODS, namespace, name, uid=pod["metadata"]["uid"], force=True)
                log.event("a pod of a lost node is deleted by force", namespace=namespace, pod=name, node=pod["spec"]["nodeName"])
            except ApiError as error:
                failed = error.message
        if failed and failed != self._failed:
            log.event("a pod of a lost node could not be replaced; tried again", error=failed)
        self._failed = failed

    async def _shrink(self, shrink: stranded.Shrink) -> None:
        cost = {"metadata": {"annotations": {names.COST: str(_CHEAPEST)}}}
        for pod in shrink.victims:
            try:
                self._pods.take("MODIFIED", await self._api.patch(PODS, *key_of(pod), cost))
            except ApiError as error:
                if not error.missing:
                    raise
        changes = {"spec": {"replicas": shrink.count}}
        self._deployments.take("MODIFIED", await self._api.patch(DEPLOYMENTS, *key_of(shrink.deployment), changes))


def _starting(pod: Object) -> bool:
    return not stranded.was_ready(pod)
