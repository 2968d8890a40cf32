"""How many workers of which revision should run, whether a revision is proved, what its problem is, and how a function ends.

* A revision is proved by the first worker that loaded its model and said what the model is. Until then one worker is tried, whatever the
  demand, and the revision that was proved before goes on serving: it scales, sleeps and is woken as if nothing had been applied.
* Once it is proved, as many as are wanted are started; the old ones go when the new ones are ready, or at once when nobody is wanted. Where
  new ones find no place, old ones go one for each that is ready, and make it; where there is no place even for the first,
  `dormouse_core.giving`.
* Of revisions that were superseded before they served, or while they did, nobody is started any more: who is not ready goes at once. So
  changes that come faster than workers start leave no more workers than two revisions have.
* A revision with a problem is tried again by its provider, at growing intervals; a proved function with a problem does not sleep, because
  its callers are refused without being held and nothing would wake it again.
* What a worker finds out while it serves, that calls of some form must run alone, is kept with the proof and told to the other workers.
* An instance on a lost node counts for nothing, and another is ordered beside it; where nobody is to run, it is stopped with the others.
* A deleted function loses its workers first, then its map, then its data, then its name: never the other way, or a live worker would write
  into what was just removed.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from dormouse_proto import state_pb2

from dormouse_core import limits, separate
from dormouse_core.autoscaling import Decision, Workers
from dormouse_core.errors import Code
from dormouse_core.giving import Way
from dormouse_core.observations import FunctionSeen, WorkerSeen
from dormouse_core.seams import Instance


@dataclass(frozen=True, slots=True)
class Scale:
    """`count` workers of `revision` should run; `victims`: whom to stop first."""

    revision: str
    count: int
    victims: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Prove:
    """Write the model's metadata: this revision is proved, and it has no problem."""

    metadata: state_pb2.ModelMetadata
    reason: str


@dataclass(frozen=True, slots=True)
class Separate:
    """Write that calls of more forms run alone, as a worker of the proved revision has found."""

    batching: state_pb2.Batching
    worker: str
    forms: tuple[str, ...]
    """What is new, half a sentence each."""


@dataclass(frozen=True, slots=True)
class Report:
    """Write why the function cannot be served."""

    problem: state_pb2.Problem
    reason: str


@dataclass(frozen=True, slots=True)
class Purge:
    """No worker is left: remove the map, then the data, then the entry."""

    reason: str


@dataclass(frozen=True, slots=True)
class Forsake:
    """Forget how to start the proved revision: what it was proved with is not there any more, and none of its workers is left."""

    reason: str


FREE = Way()
"""Nothing is to be given up."""

Step = Scale | Prove | Separate | Report | Forsake | Purge


def count(seen: FunctionSeen) -> Workers:
    """The serving revision's workers, for the autoscaler: an instance without a worker that serves is starting, or starting again.

    A worker that is registered and that the provider does not have does not count: nobody ordered it, and "as many as there are", asked of
    the provider while it is not heard, would be one more each time.
    """
    revision = seen.serving_revision
    there = None if seen.instances is None else {instance.name for instance in seen.instances}
    ready = sum(w.serving and (there is None or w.instance in there) for w in seen.of(revision))
    return Workers(ready=ready, starting=len(_not_serving(seen, revision)))


def coming(seen: FunctionSeen, drains: Mapping[str, float], now: float, way: Way = FREE) -> bool:
    """A worker that could be given shards may register soon: a drain can wait for it. One between two tries may take a minute, and one for
    which the namespace has no room as long as another of the function ends comes when that is gone.

    `drains`: workers, and when each was first seen to drain, monotonic. The store says so before the provider does, and only then does
    the provider have another in its place: until `SUCCESSOR_SECONDS` have passed it is not known that none comes.
    """
    revisions = {seen.entry.revision, seen.serving_revision}
    ending = any(i.stopping for i in seen.instances or ())
    for instance in (i for revision in revisions for i in _not_serving(seen, revision)):
        if not instance.exited and not (ending and (instance.room == "namespace" or (instance.room and way.most is not None))):
            return True
    running = {i.name for revision in revisions for i in _running(seen, revision)}
    return any(w.instance in running and now - drains[w.name] < limits.SUCCESSOR_SECONDS for w in seen.workers.values() if w.name in drains)


def draining(seen: FunctionSeen, drains: Mapping[str, float], now: float) -> dict[str, float]:
    """`drains` as of now."""
    return {w.name: drains.get(w.name, now) for w in seen.workers.values() if w.draining}


def _not_serving(seen: FunctionSeen, revision: str) -> list[Instance]:
    """A draining worker's instance is leaving, whether or not its provider has said so yet; what keeps sessions elsewhere never
    serves."""
    others = {w.instance for w in seen.of(revision) if w.serving or w.draining or w.elsewhere}
    return [i for i in _running(seen, revision) if i.name not in others]


def unknown(seen: FunctionSeen) -> tuple[str, ...]:
    """Why nothing may be taken away now, as far as this function's own parts go."""
    found = [f"worker {w.name} has a lease but is not heard" for w in seen.workers.values() if w.report is None and not w.gone]
    if seen.instances is None:
        found.append("the provider does not answer")
    return tuple(found)


def live(seen: FunctionSeen, decision: Decision, way: Way = FREE) -> list[Step]:
    """The next steps of a function's life. `decision` is the autoscaler's; `way`: what is to be given up for want of room."""
    if seen.entry.deleting:
        return _end(seen)
    steps = _judge(seen)
    if seen.instances is not None:
        steps += _scale(seen, decision, way)
    return steps


def wanted_of_target(seen: FunctionSeen, decision: Decision) -> tuple[int, str]:
    """How many workers of the target revision, and why."""
    if decision.wanted == 0 and decision.fixed:
        return 0, decision.reason
    if not seen.proved:
        return 1, f"revision {seen.entry.revision[:8]} has to be proved by one worker"
    if decision.wanted == 0 and seen.entry.HasField("problem"):
        return 1, f"tried until its problem is gone: {seen.entry.problem.reason}"
    return decision.wanted, decision.reason


def _judge(seen: FunctionSeen) -> list[Step]:
    target = [w for w in seen.of_target() if w.heard_ready]
    for worker in target:
        assert worker.report is not None
        if not seen.proved or seen.entry.HasField("problem"):
            return [Prove(_with_forms(seen, worker.report.metadata), f"worker {worker.name} loaded the model")]
    if target and not any(_agrees(seen, worker) for worker in target):
        worker = target[0]
        assert worker.report is not None
        why = f"worker {worker.name} found a model or runtime that differs from the proved one"
        return [Prove(_with_forms(seen, worker.report.metadata), why)]
    if (news := _separate(seen)) is not None:
        return [news]
    if target or seen.instances is None:
        return []
    for outdated in seen.outdated:
        if outdated.revision == seen.entry.revision:
            same = seen.entry.HasField("problem") and seen.entry.problem == outdated
            return [] if same else [Report(outdated, outdated.message)]
    for instance in sorted(seen.instances, key=lambda i: i.name):
        if instance.revision == seen.entry.revision and instance.exited and instance.problem is not None:
            problem = state_pb2.Problem()
            problem.CopyFrom(instance.problem)
            problem.revision = seen.entry.revision
            if not seen.entry.HasField("problem") or seen.entry.problem != problem:
                return [Report(problem, f"instance {instance.name} ended: {problem.message}")]
            break
    return _forsake(seen)


def _forsake(seen: FunctionSeen) -> list[Step]:
    """Callers are not held for a revision that cannot come any more while the wanted one has a problem: they are told that problem. A model
    that was proved and is FAILED_PRECONDITION now was proved with other bytes."""
    if not (seen.entry.HasField("problem") and seen.entry.proved_spec) or any(w.serving for w in seen.of(seen.serving_revision)):
        return []
    for instance in seen.instances or ():
        problem = instance.problem if instance.exited and instance.revision == seen.serving_revision else None
        if problem is not None and problem.code == Code.FAILED_PRECONDITION:
            return [Forsake(f"instance {instance.name} ended: {problem.message}")]
    return []


def _agrees(seen: FunctionSeen, worker: WorkerSeen) -> bool:
    """Whether what the worker loaded is what is kept with the proof, as far as it says. Of workers that disagree one is enough: else each
    would be written after the other, for ever."""
    report = worker.report
    return (
        report is None or not report.HasField("metadata") or separate.proved_alike(seen.entry.metadata.batching, report.metadata.batching)
    )


def _with_forms(seen: FunctionSeen, metadata: state_pb2.ModelMetadata) -> state_pb2.ModelMetadata:
    """`metadata` with what is kept of forms: it holds for as long as the experiment is the same, in whichever revision."""
    if not metadata.HasField("batching"):
        return metadata
    found = state_pb2.ModelMetadata()
    found.CopyFrom(metadata)
    found.batching.CopyFrom(separate.joined(seen.entry.metadata.batching, metadata.batching))
    return found


def _separate(seen: FunctionSeen) -> Separate | None:
    kept = seen.entry.metadata.batching
    room = limits.FORMS_KEPT - len(kept.alone)
    for worker in sorted(seen.of(seen.served_revision), key=lambda w: w.name):
        news = separate.unknown(kept, worker.report.metadata.batching)[:room] if worker.report is not None else []
        if news:
            assert worker.report is not None
            batching = separate.joined(kept, worker.report.metadata.batching)
            return Separate(batching, worker.name, tuple(form.why for form in batching.alone[len(kept.alone) :]))
    return None


def uninformed(seen: FunctionSeen) -> list[str]:
    """Workers that do not know of every form that is kept with the proof. They are told until they report it."""
    kept = seen.entry.metadata.batching
    return [w.name for w in seen.workers.values() if w.report is not None and separate.unknown(w.report.metadata.batching, kept)]


def _scale(seen: FunctionSeen, decision: Decision, way: Way) -> list[Step]:
    wanted, why = wanted_of_target(seen, decision)
    target = seen.entry.revision
    steps = _count_to(seen, target, *((0, way.reason) if way.held_back else (wanted, why)), way)
    serving = seen.serving_revision
    if serving != target:
        count, reason = decision.wanted, f"it serves until revision {target[:8]} is proved; {decision.reason}"
        if way.most is not None and way.most < count:
            count, reason = way.most, f"{way.reason}; {decision.reason}"
        steps += _count_to(seen, serving, count, reason, way)
    # What serves and cannot be started again stays until the target is proved, or nobody is to run.
    kept = {target, serving, *((seen.entry.proved_revision,) if wanted else ())}
    return steps + _superseded(seen, kept, wanted if seen.proved else decision.wanted, why, way.superseded)


def _superseded(seen: FunctionSeen, kept: set[str], wanted: int, why: str, most: int | None = None) -> list[Step]:
    """Workers of revisions other than `kept`: they hand over and go, but for those that are ready while the serving revision has fewer than
    `wanted` that are, and of those for `most` where the next one would find no place.

    Where a worker that is to come finds no place, only as many stay as the serving revision lacks: else those that are to go would keep
    those that are to come out for ever.
    """
    serving = seen.serving_revision
    others = {i.revision for i in seen.instances or ()} - kept
    ready = sum(w.serving and not w.cut_off for w in seen.of(serving))
    homeless = any(i.unplaced and not i.stopping for i in seen.instances or () if i.revision in kept)
    lack = max(wanted - ready, 0)
    left = lack if homeless or not lack else wanted
    left = left if most is None else min(left, most)
    steps: list[Step] = []
    for revision in sorted(others, key=lambda each: (-_ready(seen, each), each)):
        keep = min(_ready(seen, revision), left)
        left -= keep
        running = _running(seen, revision)
        if len(running) > keep or (not keep and _left(seen, revision)):
            text = f"revision {serving[:8]} has {ready} of {wanted} workers ready; {why}" if wanted else why
            steps.append(Scale(revision, keep, _victims(seen, running), f"superseded; {text}"))
    return steps


def _ready(seen: FunctionSeen, revision: str) -> int:
    """Running instances of a revision whose worker serves."""
    serving = {w.instance for w in seen.of(revision) if w.serving}
    return sum(i.name in serving for i in _running(seen, revision))


def _count_to(seen: FunctionSeen, revision: str, wanted: int, why: str, way: Way = FREE) -> list[Step]:
    running = _running(seen, revision)
    spare = _spare(seen, running, wanted)
    if way.closed and wanted + spare > (placed := sum(not i.room for i in running)):
        wanted, spare, why = placed, 0, f"{way.reason}; {why}"
    if len(running) == wanted + spare and not (running == [] and _left(seen, revision)):
        return []
    more = f"; in place of workers that serve nobody: {spare}" if spare else ""
    return [Scale(revision, wanted + spare, _victims(seen, running), why + more)]


def _spare(seen: FunctionSeen, running: list[Instance], wanted: int) -> int:
    """How many workers run beside those that are wanted, because gateways do not reach as many, or as many keep sessions elsewhere.

    Those that are not reached stay, in case they are reached again, and at most as many as are wanted are added: where gateways reach
    nobody, since they are cut off themselves, one set of new workers is started, and not one after another. So it is with those that keep
    sessions elsewhere, whose successors may do so, too (an older image); they go once enough others serve, or their place is needed.
    """
    names = {instance.name for instance in running}
    workers = [w for w in seen.workers.values() if w.instance in names]
    spare = sum(w.serving and w.cut_off for w in workers)
    if sum(w.serving for w in workers) < wanted and not any(instance.unplaced for instance in running):
        spare += sum(w.elsewhere and not w.draining for w in workers)
    return min(wanted, spare)


def _running(seen: FunctionSeen, revision: str) -> list[Instance]:
    """On a node that is lost none does: others are ordered in their place."""
    return [i for i in seen.instances or () if i.revision == revision and not i.stopping and not i.lost]


def _left(seen: FunctionSeen, revision: str) -> bool:
    """Whether instances on a lost node are left, which nobody has told to stop."""
    return any(i.lost and not i.stopping and i.revision == revision for i in seen.instances or ())


def _victims(seen: FunctionSeen, running: list[Instance]) -> tuple[str, ...]:
    """Cheapest to lose first: failed, then starting, then by what would have to move. What was not heard is dear, not free."""
    by_instance: dict[str, list[WorkerSeen]] = defaultdict(list)
    for worker in seen.workers.values():
        by_instance[worker.instance].append(worker)

    def cost(instance: Instance) -> tuple[int, float, float, float, str]:
        workers = by_instance.get(instance.name, [])
        if instance.exited or (workers and all(w.gone or w.elsewhere for w in workers)):
            return (0, 0, 0, 0, instance.name)
        if workers and all(w.cut_off for w in workers):
            return (1, 0, 0, 0, instance.name)
        if not workers:
            return (1, -instance.started, 0, 0, instance.name)
        reports = [w.report for w in workers if w.report is not None]
        if len(reports) < len(workers):
            return (3, 0, 0, 0, instance.name)
        return (
            2,
            sum(r.state_bytes for r in reports),
            sum(r.sessions for r in reports),
            sum(r.in_flight + r.queued for r in reports),
            instance.name,
        )

    return tuple(i.name for i in sorted(running, key=cost))


def _end(seen: FunctionSeen) -> list[Step]:
    if seen.instances is None:
        return []
    why = "the function is being deleted"
    steps: list[Step] = []
    for revision in sorted({i.revision for i in seen.instances}):
        steps += _count_to(seen, revision, 0, why)
    if not seen.instances and not seen.workers:
        steps.append(Purge(why))
    return steps
