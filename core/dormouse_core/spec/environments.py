"""The environment of a function's workers: which variables it may set, and what of `spec.workers` has no effect on one machine."""

import re

from dormouse_core.spec.objects import FunctionSpec, Workers

LOG_LEVEL = "DORMOUSE_LOG_LEVEL"
RESERVED = ("PYTHONHOME",)
PREFIX = "DORMOUSE_"
CEL = f"!(self.name in {list(RESERVED)} || (self.name.startsWith('{PREFIX}') && self.name != '{LOG_LEVEL}'))"
ALLOWED = f"neither PYTHONHOME nor a name that begins with DORMOUSE_ is allowed, but {LOG_LEVEL}"

_REFERENCE = re.compile(r"\$(?:\$|\(([^)]*)\))")


def taken(name: str) -> bool:
    """The variable is Dormouse's own, or the worker's Python would not start with it."""
    return name in RESERVED or (name.startswith(PREFIX) and name != LOG_LEVEL)


def plain(workers: Workers) -> dict[str, str]:
    """The variables that are given by value: those that one machine has too. As in a pod, $(NAME) stands for one before it in the list,
    what names no such one stays as it is, and $$ is a $."""
    found: dict[str, str] = {}
    for variable in workers.env:
        if variable.value_from is None:
            found[variable.name] = _REFERENCE.sub(lambda match: "$" if match[1] is None else found.get(match[1], match[0]), variable.value)
    return found


def without_effect(spec: FunctionSpec) -> list[str]:
    """What is set of `spec.workers` and has no effect on one machine, as paths of the manifest."""
    workers, default = spec.workers, Workers()
    found = [f"spec.workers.env[{n}].valueFrom ({v.name})" for n, v in enumerate(workers.env) if v.value_from is not None]
    for field, name in zip(workers.__struct_fields__, workers.__struct_encode_fields__, strict=True):
        if field != "env" and getattr(workers, field) != getattr(default, field):
            found.append(f"spec.workers.{name}")
    return found


def told(spec: FunctionSpec) -> str:
    """The same as a sentence; "": all has its effect."""
    found = without_effect(spec)
    return f"no effect on one machine: {', '.join(found)}" if found else ""
