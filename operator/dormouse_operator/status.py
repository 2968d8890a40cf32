"""What `dormouse get` shows of a function. The phase is for eyes; conditions are what logic reads, each one sentence.

What is Ready and what is Serving: `dormouse_core.readiness`.
"""

from collections.abc import Mapping

from dormouse_core import lifecycle, readiness, separate, starving
from dormouse_core.autoscaling import Decision
from dormouse_core.observations import FunctionSeen
from dormouse_core.plain import plain
from dormouse_core.spec import spec_from_json
from dormouse_proto import control_pb2

from dormouse_operator.counting import Figures


class Times:
    """Since when a condition has had its status, and since when a function sleeps, as far as this leader has seen."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, str], tuple[str, int]] = {}

    def since(self, uid: str, what: str, value: str, now_us: int) -> int:
        known = self._since.get((uid, what))
        if known is None or known[0] != value:
            known = (value, now_us)
            self._since[uid, what] = known
        return known[1]

    def forget(self, uid: str) -> None:
        for key in [k for k in self._since if k[0] == uid]:
            del self._since[key]


def status(
    seen: FunctionSeen,
    decision: Decision,
    times: Times,
    now_us: int,
    figures: Figures | None = None,
    *,
    owners: bool = False,
    waits: str = "",
) -> control_pb2.FunctionStatus:
    """`waits`: what a worker that should start waits for, where it may not yet."""
    entry = seen.entry
    wanted, why = lifecycle.wanted_of_target(seen, decision)
    serving = sorted(w.name for w in seen.workers.values() if w.serving)
    ready = sorted(w.name for w in seen.of_target() if w.serving) if seen.proved else serving
    phase = readiness.phase(seen, decision.wanted if entry.HasField("problem") and entry.proved_spec else wanted)
    conditions = [
        _condition("Ready", readiness.ready(seen, phase)),
        _condition("Serving", readiness.serving(seen, phase, decision.wanted)),
        _model_ready(seen),
        _rolled_out(seen, wanted),
    ]
    conditions += _batching(seen)
    if (starved := starving.word(seen.starved)) is not None:
        conditions.append(_condition("OutOfMemory", starved))
    for condition in conditions:
        condition.message = plain(condition.message, keep="\n")
        condition.since_us = times.since(entry.uid, condition.type, condition.status + condition.reason, now_us)
    asleep_since = times.since(entry.uid, "asleep", str(phase == "Asleep"), now_us)
    return control_pb2.FunctionStatus(
        namespace=entry.namespace,
        name=entry.name,
        uid=entry.uid,
        generation=entry.generation,
        revision=seen.served_revision,
        wanted_revision=entry.revision,
        phase=phase,
        replicas=wanted,
        ready_replicas=len(ready),
        sessions=figures.sessions if figures else sum(w.report.sessions for w in seen.workers.values() if w.report is not None),
        hibernated_bytes=figures.hibernated if figures else 0,
        sessions_known=figures is not None,
        asleep_since_us=asleep_since if phase == "Asleep" else 0,
        conditions=conditions,
        reason=f"{why}; {waits}" if waits else why,
        autoscaled=spec_from_json(entry.spec).replicas is None,
        workers=ready,
        owners=_owners(seen) if owners else {},
        calls={w.name: w.report.calls for w in seen.workers.values() if w.report is not None},
    )


def _condition(kind: str, word: readiness.Word) -> control_pb2.Condition:
    return control_pb2.Condition(type=kind, status=word.status, reason=word.reason, message=word.message)


def _model_ready(seen: FunctionSeen) -> control_pb2.Condition:
    revision = seen.entry.revision[:8]
    if seen.entry.HasField("problem"):
        return control_pb2.Condition(type="ModelReady", status="False", reason=seen.entry.problem.reason, message=readiness.problem(seen))
    if seen.proved:
        return control_pb2.Condition(type="ModelReady", status="True", reason="Proved", message=f"A worker loaded revision {revision}.")
    return control_pb2.Condition(
        type="ModelReady", status="Unknown", reason="Verifying", message=f"No worker loaded revision {revision} yet."
    )


def _batching(seen: FunctionSeen) -> list[control_pb2.Condition]:
    """Whether calls run together, and why; nothing of a handler, which takes one call at a time."""
    found = seen.entry.metadata.batching
    if not seen.proved or not found.reason:
        return []
    status = "True" if found.rows else "False"
    reason = separate.REASON if found.alone else found.reason
    return [control_pb2.Condition(type="Batching", status=status, reason=reason, message=separate.message(found))]


def _rolled_out(seen: FunctionSeen, wanted: int) -> control_pb2.Condition:
    old = [w for w in seen.workers.values() if w.revision != seen.entry.revision]
    if not seen.proved and not old:
        message = f"No worker loaded revision {seen.entry.revision[:8]} yet."
        return control_pb2.Condition(type="RolledOut", status="False", reason="Progressing", message=message)
    if not old:
        return control_pb2.Condition(type="RolledOut", status="True", reason="RolledOut", message="No worker of an older revision is left.")
    new = sum(w.serving for w in seen.of_target())
    ready = f"Workers of revision {seen.entry.revision[:8]} ready: {new} of {max(wanted, 1)}."
    message = f"{ready} Until then workers of an older revision serve: {len(old)}."
    return control_pb2.Condition(type="RolledOut", status="False", reason="Progressing", message=message)


def _owners(seen: FunctionSeen) -> Mapping[int, str]:
    return {shard: s.owner for shard, s in sorted(seen.shards.items()) if s.owner in seen.workers and not seen.workers[s.owner].gone}
