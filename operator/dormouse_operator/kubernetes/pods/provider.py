"""The provider of a cluster: a Deployment for each revision of a function, its pods as instances.

Everything is known from watches, so looking costs nothing and waking is one request: the Deployment is there already, with no replicas. A
replica that has no pod yet is an instance too, named after its place: it was ordered, and whoever counts must not order it again.

Level-triggered: `apply` says how many replicas there should be, and writes only where there are others. Whom to lose when there should be
fewer is a hint to the ReplicaSet, by the pods' deletion cost; a wrong choice is an ordinary handoff.
"""

from collections.abc import Callable, Iterable, Sequence

from dormouse_core import addresses
from dormouse_core.errors import Unavailable
from dormouse_core.keys import Function
from dormouse_core.nodeloss import NodeLoss
from dormouse_core.seams import Clock, Instance, Wanted
from dormouse_proto import state_pb2

from dormouse_operator.kubernetes.api.http import Api, ApiError, Object
from dormouse_operator.kubernetes.api.kinds import DEPLOYMENTS, PODS
from dormouse_operator.kubernetes.api.reflecting import Key, Reflector
from dormouse_operator.kubernetes.objects import names
from dormouse_operator.kubernetes.objects.budgets import homeless
from dormouse_operator.kubernetes.objects.editing import with_content
from dormouse_operator.kubernetes.objects.object_entries import seconds
from dormouse_operator.kubernetes.objects.pod import CONTAINER, PORT
from dormouse_operator.kubernetes.objects.replacements import being_replaced
from dormouse_operator.kubernetes.pods import problems, stranded
from dormouse_operator.kubernetes.pods.problems import Verdict

LONGEST_HINT = 100  # pods that are given a deletion cost in one order
ROOM = 10.0
"""Seconds after a pod of a function ended in which the cluster's refusal of another is not believed: it may be of before, for want of the
room that the ending one had. Its Deployment is touched meanwhile (`tending`)."""


class KubernetesProvider:
    """`refused(uid, revision)`: why a Deployment cannot even be made; `missing(uid)` is called when it should be there and is not.
    `nodes`: which are lost; what is ordered in place of the pods there comes beside them (`stranded`)."""

    def __init__(
        self,
        api: Api,
        clock: Clock,
        pods: Reflector,
        deployments: Reflector,
        refused: Callable[[str, str], state_pb2.Problem | None],
        missing: Callable[[str], None],
        nodes: NodeLoss | None = None,
    ) -> None:
        self._api = api
        self._clock = clock
        self._pods = pods
        self._deployments = deployments
        self._refused = refused
        self._missing = missing
        self._nodes = nodes or NodeLoss()
        self._asked: dict[tuple[str, str], Wanted] = {}  # (uid, revision) -> of a Deployment that is not there
        self._mounts: dict[str, state_pb2.Problem] = {}  # pod's uid -> why its container is not made
        self._ended: dict[str, float] = {}  # function's uid -> when the last of its pods was gone, monotonic
        self._freed: dict[str, float] = {}  # namespace -> the same of all its functions, wall time

    # ------------------------------------------------------------------------------------------------------------------ looking

    async def observe(self) -> Sequence[Instance] | None:
        if not (self._pods.fresh and self._deployments.fresh):
            return None
        now = self._clock.now()
        found: list[Instance] = []
        counts: dict[tuple[str, str], int] = {}
        ending: set[str] = set()  # whose pods end, or will be made to where there is no room for others
        for pod in self._pods.items.values():
            if problems.finished(pod) or problems.lost(pod, now):
                continue
            instance = self._instance(pod, now)
            found.append(instance)
            if instance.stopping or instance.lost:
                ending.add(instance.uid)
            if not instance.stopping:
                place = (instance.uid, instance.revision)
                counts[place] = counts.get(place, 0) + 1
        limit = self._clock.monotonic() - ROOM
        self._ended = {uid: at for uid, at in self._ended.items() if at > limit}
        for deployment in self._deployments.items.values():
            found += self._unmade(deployment, counts, ending | self._ended.keys())
        for wanted in self._asked.values():
            found += self._unapplied(wanted)
        return found

    def waiting(self, uid: str) -> str:
        """What the first of a function's pods waits for that has no place to run, or the next one, where an earlier one keeps its place
        until that serves; '': nothing."""
        now = self._clock.now()
        sentences = (self._verdict(pod, now).waiting for pod in self._pods.items.values() if _label(pod, names.UID) == uid)
        return next((sentence for sentence in sentences if sentence), self._successor(uid))

    def _successor(self, uid: str) -> str:
        """Why a worker that is to be replaced, as by an installation's new image, has no successor; '': it has one, or needs none."""
        for deployment in self._deployments.items.values():
            if _label(deployment, names.UID) == uid and being_replaced(deployment) and (refusal := problems.refused(deployment)):
                return f"its workers serve on until the next one, by which they are replaced, can be made: {refusal.message}"
        return ""

    def vouch(self, function: Function, entry: state_pb2.WorkerEntry, waited: float) -> str | None:
        """Whether the pod that a worker's entry names is its function's and has the entry's address: as `addresses.vouched`."""
        pod = self._pods.items.get((function.namespace, entry.instance))
        if pod is None and not self._pods.fresh:
            return None
        if pod is None or _label(pod, names.UID) != function.uid:
            return addresses.vouched(entry.address, None, waited)
        ip = pod["status"].get("podIP", "")
        return addresses.vouched(entry.address, addresses.joined(ip, PORT) if ip else "", waited)

    def failing(self, pod: Object) -> bool:
        return self._verdict(pod, self._clock.now()).problem is not None

    def _instance(self, pod: Object, now: float) -> Instance:
        verdict = self._verdict(pod, now)
        metadata = pod["metadata"]
        return Instance(
            name=metadata["name"],
            function=f"{metadata['namespace']}/{_label(pod, names.FUNCTION)}",
            uid=_label(pod, names.UID),
            revision=_label(pod, names.REVISION),
            started=seconds(metadata["creationTimestamp"]),
            stopping="deletionTimestamp" in metadata,
            exited=verdict.exited,
            problem=verdict.problem,
            unplaced=homeless(pod),
            room="node" if problems.lacks_room(pod) else "",
            node=pod.get("spec", {}).get("nodeName", ""),
            lost=stranded.lost(pod, self._nodes),
            starved=problems.starved(pod),
        )

    def _verdict(self, pod: Object, now: float) -> Verdict:
        mount = self._mounts.get(pod["metadata"]["uid"])
        if mount is not None and problems.starting(pod):
            return Verdict(exited=True, problem=mount)
        return problems.judge(pod, now)

    def _unmade(self, deployment: Object, counts: dict[tuple[str, str], int], ending: set[str]) -> Iterable[Instance]:
        """Replicas that have no pod: ordered, or refused by the cluster. What a function's own ending pod (`ending`: uids) keeps out is no
        problem of it: it will come."""
        metadata = deployment["metadata"]
        if "deletionTimestamp" in metadata:
            return
        place = (_label(deployment, names.UID), _label(deployment, names.REVISION))
        lacking = int(deployment["spec"]["replicas"]) - counts.get(place, 0)
        if lacking <= 0:
            return
        refusal = problems.refused(deployment)
        problem = None if place[0] in ending else refusal
        for index in range(lacking):
            yield Instance(
                name=f"{metadata['name']}/{index}",
                function=f"{metadata['namespace']}/{_label(deployment, names.FUNCTION)}",
                uid=place[0],
                revision=place[1],
                started=seconds(metadata["creationTimestamp"]),
                exited=problem is not None,
                problem=problem,
                unplaced=refusal is not None,
                room="namespace" if refusal is not None and problems.lacks_quota(refusal) else "",
                limit=problems.quota(refusal)["limited"] if refusal is not None else "",
            )

    def _unapplied(self, wanted: Wanted) -> Iterable[Instance]:
        entry, problem = wanted.function, self._refused(wanted.function.uid, wanted.revision)
        for index in range(wanted.count):
            name = f"{names.deployment(entry.name, wanted.revision)}/{index}"
            yield Instance(
                name, f"{entry.namespace}/{entry.name}", entry.uid, wanted.revision, 0.0, exited=problem is not None, problem=problem
            )

    # ------------------------------------------------------------------------------------------------------------------ ordering

    async def apply(self, wanted: Wanted) -> None:
        entry, place = wanted.function, (wanted.function.uid, wanted.revision)
        deployment = self._find(*place)
        if deployment is None:
            self._order(wanted, place)
            return
        self._asked.pop(place, None)
        left = stranded.beside(self._pods.items.values(), place, self._nodes)
        replicas = wanted.count + (len(left.kept) if wanted.count else 0)
        victims = (*(pod["metadata"]["name"] for pod in left.over), *wanted.victims)
        try:
            if wanted.count == 0 and (entry.deleting or not entry.revision):
                # Deleted, or unknown to the registry. Its owner took it along, or it was orphaned: then nobody else would.
                metadata = deployment["metadata"]
                await self._api.delete(DEPLOYMENTS, metadata["namespace"], metadata["name"], uid=metadata["uid"])
            elif deployment["spec"]["replicas"] != replicas:
                await self._scale(deployment, replicas, victims)
        except ApiError as error:
            raise Unavailable(f"the cluster refuses to scale {entry.namespace}/{entry.name} to {wanted.count}: {error.message}") from error

    def forget(self, uid: str) -> None:
        """Nothing that was asked of its missing Deployments is asked any more."""
        for place in [p for p in self._asked if p[0] == uid]:
            del self._asked[place]

    def pods_changed(self, key: Key, before: Object | None, after: Object | None) -> None:
        """To be called at every change of a pod: what was said of one that is gone is forgotten."""
        if after is None and before is not None:
            self._mounts.pop(before["metadata"]["uid"], None)
            self._ended[_label(before, names.UID)] = self._clock.monotonic()
            self._freed[key[0]] = self._clock.now()

    def freed(self, namespace: str) -> float:
        """When the last pod of a function was gone in this namespace, wall time; 0: none was, as far as this leader has seen."""
        return self._freed.get(namespace, 0.0)

    def deployments_changed(self, key: Key, before: Object | None, after: Object | None) -> None:
        if after is not None:
            self._asked.pop((_label(after, names.UID), _label(after, names.REVISION)), None)

    def mount_failed(self, pod: Object, problem: state_pb2.Problem | None) -> None:
        """What a pod's events say of its volumes, which its status does not."""
        uid = pod["metadata"]["uid"]
        if problem is None:
            self._mounts.pop(uid, None)
        else:
            self._mounts[uid] = problem

    def _find(self, uid: str, revision: str) -> Object | None:
        for deployment in self._deployments.items.values():
            if (_label(deployment, names.UID), _label(deployment, names.REVISION)) == (uid, revision):
                return None if "deletionTimestamp" in deployment["metadata"] else deployment
        return None

    def _order(self, wanted: Wanted, place: tuple[str, str]) -> None:
        """There is no Deployment: what belongs to a function is made by its reconciler, which is told."""
        entry = wanted.function
        startable = {entry.revision, entry.proved_revision if entry.proved_spec else entry.revision}
        for asked in [each for each in self._asked if each[0] == place[0] and each[1] not in startable]:
            del self._asked[asked]
        if not wanted.count:
            self._asked.pop(place, None)
        elif wanted.revision not in startable:
            raise Unavailable(f"revision {wanted.revision} is no longer the function's: no worker of it can be started")
        else:
            self._asked[place] = wanted
            self._missing(place[0])

    async def _scale(self, deployment: Object, replicas: int, victims: Sequence[str]) -> None:
        metadata = deployment["metadata"]
        surplus = int(deployment["spec"]["replicas"]) - replicas
        if surplus > 0 and replicas:
            await self._mark(metadata["namespace"], victims[: min(surplus, LONGEST_HINT)])
        changes = {"spec": {"replicas": replicas}}
        written = await self._api.patch(DEPLOYMENTS, metadata["namespace"], metadata["name"], changes)
        self._deployments.take("MODIFIED", written)

    async def _mark(self, namespace: str, victims: Sequence[str]) -> None:
        """A negative cost: the ReplicaSet takes these first among pods that are ready alike. One that is gone is no trouble."""
        for order, name in enumerate(victims):
            pod = self._pods.items.get((namespace, name))
            if pod is None:
                continue
            cost = {"metadata": {"annotations": {names.COST: str(order - LONGEST_HINT - 1)}}}
            try:
                self._pods.take("MODIFIED", await self._api.patch(PODS, namespace, name, cost))
            except ApiError as error:
                if not error.missing:
                    raise


def _label(found: Object, name: str) -> str:
    return str(found["metadata"].get("labels", {}).get(name, ""))


def trim_pod(pod: Object) -> Object:
    """What is read of a pod: a cluster may have thousands."""
    metadata, spec, status = pod["metadata"], pod.get("spec", {}), pod.get("status", {})
    kept = {name: metadata[name] for name in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp") if name in metadata}
    kept |= {name: metadata[name] for name in ("labels", "deletionTimestamp") if name in metadata}
    image = [{"name": c["name"], "image": c.get("image", "")} for c in spec.get("containers", ()) if c["name"] == CONTAINER]
    return {
        "metadata": kept,
        "spec": {"nodeName": spec.get("nodeName", ""), "containers": image},
        "status": {name: status[name] for name in ("phase", "podIP", "startTime", "conditions", "containerStatuses") if name in status},
    }


def trim(found: Object) -> Object:
    found["metadata"].pop("managedFields", None)
    return with_content(found, found)


def trim_to_metadata(found: Object) -> Object:
    """Of objects of which nothing is asked but whether they are there and as they were applied."""
    return with_content(found, {"metadata": trim(found)["metadata"], "spec": {}, "status": {}})
