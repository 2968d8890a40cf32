"""An InferenceFunction's status: what the leader sees of a function, as its object says it.

Conditions keep the time of their last transition across restarts of the operator, because it is read from the object itself. A status that
says the same is not written; a number that changes with every call (live sessions) alone is written seldom.

Every condition is one sentence. The same sentence is the Event's and the log's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dormouse_core.plain import plain
from dormouse_proto import control_pb2

from dormouse_operator.kubernetes.api.http import Object
from dormouse_operator.kubernetes.objects import names
from dormouse_operator.kubernetes.objects.object_entries import timestamp
from dormouse_operator.kubernetes.settings import ClusterSettings

RETRYING = "Retrying"
"""The reason of what could not be done just now: it says nothing of the spec."""
UNSTEADY = frozenset({"sessions", "hibernatedBytes"})
_BAD_WHEN_TRUE = frozenset({"NameTaken", "OutOfMemory"})
_PASSES = frozenset({"Progressing", "Verifying", "WaitsForTurn"})  # reasons of what is under way


@dataclass(frozen=True, slots=True)
class Said:
    """A condition. `status`: True, False or Unknown."""

    type: str
    status: str
    reason: str
    message: str

    @property
    def bad(self) -> bool:
        """Somebody should look. A model whose calls run alone is none of that, unless its manifest says otherwise."""
        if self.type == "Batching":
            return self.reason == "Contradicted"
        return self.status == ("True" if self.type in _BAD_WHEN_TRUE else "False") and self.reason not in _PASSES


def build_status(
    found: Object, told: control_pb2.FunctionStatus | None, said: Sequence[Said], settings: ClusterSettings, now: float, generation: int
) -> Object:
    """The whole status; a field that is None is absent. `told`: what the leader sees; None: the registry has no such function (yet).
    `said`: conditions of the object itself, which come first. `now`: wall time. `generation`: the one that `told` and `said` are about,
    which is not the object's where the operator has not looked at that yet."""
    live: Mapping[str, Any] = found.get("status") or {}
    conditions = [*said, *_of_function(told, said)]
    metadata = found["metadata"]
    status: Object = {
        "phase": _phase(told, said),
        "replicas": told.replicas if told is not None else 0,
        "selector": ",".join(f"{name}={value}" for name, value in sorted(names.selector(metadata["uid"]).items())),
        "readyReplicas": told.ready_replicas if told is not None else 0,
        "sessions": told.sessions if told is not None else 0,
        "hibernatedBytes": told.hibernated_bytes if told is not None else 0,
        "asleepSince": _asleep_since(live, told),
        "revision": told.revision if told is not None else live.get("revision", ""),
        "wantedRevision": told.wanted_revision if told is not None else live.get("wantedRevision", ""),
        "url": f"grpc://{metadata['name']}.{metadata['namespace']}.svc.{settings.cluster_domain}:{settings.gateway_port}",
        "observedGeneration": generation,
    }
    before = {c["type"]: c for c in live.get("conditions") or ()}
    status["conditions"] = [_condition(s, before.get(s.type), generation, now) for s in conditions]
    return status


def _of_function(told: control_pb2.FunctionStatus | None, said: Sequence[Said]) -> list[Said]:
    """What the leader says; but a spec that is refused, or not in the cluster, is not ready, whatever serves."""
    refused = _refused(said)
    if told is None:
        first = next((s for s in said if s.bad), None)
        if first is None:
            return [Said("Ready", "Unknown", "Verifying", "The operator has not looked at it yet.")]
        return [Said("Ready", "False", first.reason, first.message)]
    conditions = [Said(c.type, c.status, c.reason, c.message) for c in told.conditions]
    if refused is None:
        return conditions
    return [Said("Ready", "False", refused.reason, refused.message) if c.type == "Ready" else c for c in conditions]


def _refused(said: Sequence[Said]) -> Said | None:
    """Why the spec that was applied is not what the leader speaks of, or not in the cluster."""
    return next((s for s in said if s.type in ("Accepted", "Applied") and s.bad and s.reason != RETRYING), None)


def _phase(told: control_pb2.FunctionStatus | None, said: Sequence[Said]) -> str:
    if told is None:
        return "Failed" if any(s.bad for s in said) else "Verifying"
    return "Serving" if told.phase == "Ready" and _refused(said) is not None else told.phase


def _asleep_since(live: Mapping[str, Any], told: control_pb2.FunctionStatus | None) -> str | None:
    if told is None or not told.asleep_since_us:
        return None
    known = live.get("asleepSince") if live.get("phase") == told.phase else None
    return known or timestamp(told.asleep_since_us / 1e6)


def _condition(said: Said, before: Mapping[str, Any] | None, generation: int, now: float) -> Object:
    kept = before is not None and before.get("status") == said.status and before.get("lastTransitionTime")
    return {
        "type": said.type,
        "status": said.status,
        "reason": said.reason,
        "message": plain(said.message, keep="\n"),
        "lastTransitionTime": kept or timestamp(now),
        "observedGeneration": generation,
    }


def differs(found: Object, wanted: Object, *, steadily: bool = False) -> bool:
    """Whether the object's status says something else. `steadily`: in more than the numbers that always change."""
    live: Mapping[str, Any] = found.get("status") or {}
    return any(live.get(name) != value for name, value in wanted.items() if not (steadily and name in UNSTEADY))


def news(found: Object, wanted: Object) -> list[Said]:
    """The conditions of `wanted` that are news to who knows the object: a new reason, or a first word that is bad. Each sentence once."""
    before = {c["type"]: c for c in (found.get("status") or {}).get("conditions") or ()}
    found_news: dict[str, Said] = {}
    for condition in wanted["conditions"]:
        said = Said(condition["type"], condition["status"], condition["reason"], condition["message"])
        known = before.get(said.type)
        if known is None:
            told = said.bad or said.type == "Ready"
        else:
            told = (known.get("status"), known.get("reason")) != (said.status, said.reason)
        if told:
            found_news.setdefault(said.message, said)
    return list(found_news.values())
