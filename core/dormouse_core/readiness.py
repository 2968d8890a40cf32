"""Whether a function is as it was applied, whether calls are answered, and its phase: three things that differ while a revision is new.

* **Ready** speaks of the spec that was applied. It is true once a worker has loaded that revision and as long as nothing is wrong with it:
  a tool that waits for it (`kubectl wait`, Flux, Argo CD) waits for what was applied, and for nothing older. One that sleeps is ready.
* **Serving** speaks of callers: their calls are answered, or held until a worker is awake, by whichever revision was proved.
* The phase is for eyes. It is Ready only where Ready is true; while workers serve that are not what was applied, it is Serving.
"""

from dataclasses import dataclass

from dormouse_core.observations import FunctionSeen
from dormouse_core.spec import spec_from_json

PHASES = ("Verifying", "Ready", "Serving", "Asleep", "Waking", "Stopped", "Failed", "Deleting")
NOT_SERVED = frozenset({"Deleting", "Stopped", "Failed"})
"""Phases in which no call is answered."""


@dataclass(frozen=True, slots=True)
class Word:
    """What a condition says. `status`: True, False or Unknown."""

    status: str
    reason: str
    message: str


def phase(seen: FunctionSeen, wanted: int) -> str:
    """The first that is true. `wanted`: workers of the revision that is served, or of the target."""
    entry = seen.entry
    if entry.deleting:
        return "Deleting"
    stopped = spec_from_json(entry.spec).replicas == 0
    if wanted and not stopped and _awake(seen):
        return "Ready" if _as_applied(seen) else "Serving"
    if entry.HasField("problem") and not entry.proved_spec:
        return "Failed"
    if stopped:
        return "Stopped"
    if not seen.proved and not entry.HasField("problem"):
        return "Verifying"
    return "Waking" if wanted else "Asleep"


def ready(seen: FunctionSeen, phase: str) -> Word:
    """Of the spec that was applied."""
    target, served = seen.entry.revision[:8], seen.served_revision[:8]
    if phase in NOT_SERVED or (phase == "Verifying" and not served):
        return _not_served(seen, phase)
    if seen.entry.HasField("problem"):
        return Word("False", seen.entry.problem.reason, problem(seen))
    if not seen.proved:
        return Word("False", "Verifying", f"No worker loaded revision {target} yet; revision {served} serves.")
    if phase == "Serving":
        return Word("False", "Progressing", f"No worker of revision {target} is ready; workers of an older one serve.")
    return Word("True", phase, _how(seen, phase))


def serving(seen: FunctionSeen, phase: str, wanted: int) -> Word:
    """Of the calls. `wanted`: workers of the revision that is served."""
    if phase in NOT_SERVED or not seen.served_revision:
        return _not_served(seen, phase)
    how = "Awake" if phase in ("Ready", "Serving") else "Waking" if wanted else "Asleep"
    return Word("True", how, _how(seen, how))


def problem(seen: FunctionSeen) -> str:
    """The applied revision's problem, and which revision serves all the same."""
    served = seen.served_revision
    older = served not in ("", seen.entry.revision)
    message = seen.entry.problem.message
    return f"{message} (revision {seen.entry.revision[:8]}; {served[:8]} serves)" if older else message


def _awake(seen: FunctionSeen) -> int:
    """Workers that serve, of a function of which a revision was proved: one that has just registered may still be found wrong."""
    return sum(w.serving for w in seen.workers.values()) if seen.served_revision else 0


def _as_applied(seen: FunctionSeen) -> bool:
    return seen.proved and not seen.entry.HasField("problem") and any(w.serving for w in seen.of_target())


def _not_served(seen: FunctionSeen, phase: str) -> Word:
    message = {
        "Deleting": "The function is being deleted.",
        "Stopped": "spec.replicas is 0: calls are refused until it is another number, or none.",
        "Failed": f"The function cannot be served: {seen.entry.problem.message}",
    }.get(phase, "A first worker is loading its model.")
    return Word("False", phase, message)


def _how(seen: FunctionSeen, phase: str) -> str:
    if phase == "Asleep":
        return "The function sleeps; the first call wakes it."
    if phase == "Waking":
        return "Workers are starting; calls are held."
    older = seen.served_revision not in ("", seen.entry.revision)
    which = f", of revision {seen.served_revision[:8]}" if older else ""
    return f"Workers that serve it: {_awake(seen)}{which}."
