"""Rules that span fields, and what may not change: each written once, as a row.

The API server evaluates a rule's CEL text, one machine its predicate. Both see the node at `at` (its object, or the old and the new one); a
test evaluates the two side by side. A rule without CEL is one that CEL cannot say within the API server's budget (sums over products, a
field of two types); it is checked where Dormouse reads the object, and becomes a condition in a cluster.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import Struct

from dormouse_core import limits
from dormouse_core.spec.objects import InferenceFunction, Initial, SessionsSpec, StateSpec, Volume
from dormouse_core.spec.validation import shown

OWN_PREFIX = "dormouse.dev/"


@dataclass(frozen=True, slots=True)
class Rule:
    """`at`: the node, such as "spec.sessions.states[]". `field`: within the node, the field that is at fault; "": the node itself.

    `holds` takes the node, or for a transition (`changes`) the old and the new one. `found` says what was found; without it the field is
    shown.
    """

    at: str
    field: str
    cel: str
    holds: Callable[..., bool]
    allowed: str
    found: Callable[[Any], str] | None = None
    changes: bool = False


def _varies(state: StateSpec) -> bool:
    return any(size < 0 for axis, size in enumerate(state.shape) if axis != state.batch_axis)


def _initial_fits(state: StateSpec) -> bool:
    """An explicit first shape has the declared rank and sizes, its batch axis counted as 1."""
    if not isinstance(state.initial, Initial) or state.initial.shape is None:
        return True
    if len(state.initial.shape) != len(state.shape):
        return False
    return all(
        size == 1 if axis == state.batch_axis else declared in (-1, size)
        for axis, (size, declared) in enumerate(zip(state.initial.shape, state.shape, strict=True))
    )


def state_elements(shape: Sequence[int], batch_axis: int | None) -> int:
    """Elements of one session's state of this declared shape; a dimension that varies counts as 1, so this is the least it can be."""
    return math.prod(1 if size < 0 or axis == batch_axis else size for axis, size in enumerate(shape))


def state_bytes(states: Sequence[tuple[Sequence[int], int | None, int]]) -> int:
    """The least bytes of a session: (declared shape, batch axis or None, bytes an element) of each state.

    At creation datatypes are not known: 1 byte an element then refuses only what no datatype makes fit. The worker, which has
    loaded the model, asks again with the true sizes.
    """
    return sum(state_elements(shape, batch_axis) * itemsize for shape, batch_axis, itemsize in states)


def _least_bytes(sessions: SessionsSpec) -> int:
    return state_bytes([(state.shape, state.batch_axis, 1) for state in sessions.states])


def _sources(volume: Volume) -> int:
    return sum(source is not None for source in (volume.persistent_volume_claim, volume.secret, volume.config_map, volume.empty_dir))


def _own(names: dict[str, str]) -> str:
    return ", ".join(shown(name) for name in names if name.startswith(OWN_PREFIX))


RULES: Sequence[Rule] = (
    Rule(
        "spec",
        "model",
        "self.runtime != 'onnx' || has(self.model)",
        lambda spec: spec.runtime != "onnx" or spec.model is not None,
        "the runtime onnx requires a model",
    ),
    Rule(
        "spec",
        "handler",
        "self.runtime != 'onnx' || !has(self.handler)",
        lambda spec: spec.runtime != "onnx" or spec.handler is None,
        "only the runtime python takes a handler",
    ),
    Rule(
        "spec",
        "handler",
        "self.runtime != 'python' || has(self.handler)",
        lambda spec: spec.runtime != "python" or spec.handler is not None,
        'the runtime python requires a handler, as "module:Class"',
    ),
    Rule(
        "spec",
        "sessions.states",
        "self.runtime != 'onnx' || !has(self.sessions) || self.sessions.states.size() > 0",
        lambda spec: spec.runtime != "onnx" or spec.sessions is None or bool(spec.sessions.states),
        "a stateful function of the runtime onnx names at least one state",
    ),
    Rule(
        "spec",
        "sessions.states",
        "self.runtime != 'python' || !has(self.sessions) || self.sessions.states.size() == 0",
        lambda spec: spec.runtime != "python" or spec.sessions is None or not spec.sessions.states,
        "none is allowed: a Python handler declares its states in its code (states = [State(...)])",
    ),
    Rule(
        "spec",
        "minReplicas",
        "self.minReplicas <= self.maxReplicas",
        lambda spec: spec.min_replicas <= spec.max_replicas,
        "at most maxReplicas is allowed",
        lambda spec: f"{spec.min_replicas} (maxReplicas {spec.max_replicas})",
    ),
    Rule(
        "spec",
        "scaleMetric",
        "self.scaleMetric != 'sessions' || has(self.sessions)",
        lambda spec: spec.scale_metric != "sessions" or spec.sessions is not None,
        "a function without sessions scales by concurrency or rps",
    ),
    Rule(
        "spec.model",
        "uri",
        "!self.uri.matches('/\\\\.\\\\.(/|$)')",
        lambda model: ".." not in model.uri.split("/"),
        'a path without ".." is allowed',
    ),
    Rule(
        "spec.sessions",
        "durability",
        "self.durability == 'Committed'",
        lambda sessions: sessions.durability == "Committed",
        "Committed is allowed: Buffered and Memory are not in this release",
    ),
    Rule(
        "spec.sessions",
        "controls",
        "!has(self.controls)",
        lambda sessions: sessions.controls is None,
        "not in this release: Triton's sequence controls",
    ),
    Rule(
        "spec.sessions",
        "states",
        "self.states.all(s, self.states.exists_one(t, t.output == s.output))",
        lambda sessions: len({state.output for state in sessions.states}) == len(sessions.states),
        "each output is allowed once",
        lambda sessions: f"the output {_repeated([state.output for state in sessions.states])} more than once",
    ),
    Rule(
        "spec.sessions",
        "states",
        "",
        lambda sessions: _least_bytes(sessions) <= limits.STATE_BYTES,
        f"at most {limits.STATE_BYTES} bytes are allowed, for a record in the store",
        lambda sessions: f"a session of at least {_least_bytes(sessions)} bytes (at one byte an element)",
    ),
    Rule(
        "spec.sessions.states[]",
        "batchAxis",
        "self.batchAxis < self.shape.size()",
        lambda state: state.batch_axis < len(state.shape),
        "an axis of shape is allowed",
        lambda state: f"{state.batch_axis} (shape has {len(state.shape)} dimensions)",
    ),
    Rule(
        "spec.sessions.states[]",
        "shape",
        "self.batchAxis >= self.shape.size() || self.shape[self.batchAxis] == -1 || self.shape[self.batchAxis] == 1",
        lambda state: state.batch_axis >= len(state.shape) or state.shape[state.batch_axis] in (-1, 1),
        "-1 or 1 is allowed at batchAxis",
        lambda state: f"{state.shape[state.batch_axis]} at axis {state.batch_axis}",
    ),
    Rule(
        "spec.sessions.states[]",
        "initial",
        "",
        lambda state: state.initial != "zeros" or not _varies(state),
        "a shape with dimensions that vary needs {shape: [...]} or {file: x.npy}: zeros of which size?",
    ),
    Rule(
        "spec.sessions.states[]",
        "initial",
        "",
        lambda state: not isinstance(state.initial, Initial) or (state.initial.shape is None) != (state.initial.file is None),
        "exactly one of shape and file is allowed",
        lambda state: "neither" if state.initial.shape is None else "both",
    ),
    Rule(
        "spec.sessions.states[]",
        "initial.shape",
        "",
        _initial_fits,
        "the sizes of shape are allowed, with 1 at batchAxis",
        lambda state: f"{state.initial.shape} (shape is {state.shape})",
    ),
    Rule(
        "spec.sessions.states[]",
        "initial.file",
        "",
        lambda state: not isinstance(state.initial, Initial) or state.initial.file is None or _inside(state.initial.file),
        'a path of a .npy file beside the model, without ".." is allowed',
        lambda state: shown(state.initial.file),
    ),
    Rule(
        "spec.workers",
        "labels",
        f"self.labels.all(k, !k.startsWith('{OWN_PREFIX}'))",
        lambda workers: not _own(workers.labels),
        f"no name under {OWN_PREFIX} is allowed",
        lambda workers: _own(workers.labels),
    ),
    Rule(
        "spec.workers",
        "annotations",
        f"self.annotations.all(k, !k.startsWith('{OWN_PREFIX}'))",
        lambda workers: not _own(workers.annotations),
        f"no name under {OWN_PREFIX} is allowed",
        lambda workers: _own(workers.annotations),
    ),
    Rule(
        "spec.workers.env[]",
        "valueFrom",
        "!has(self.valueFrom) || self.value == ''",
        lambda variable: variable.value_from is None or variable.value == "",
        "either value or valueFrom is allowed",
        lambda variable: "both",
    ),
    Rule(
        "spec.workers.volumes[]",
        "",
        "[has(self.persistentVolumeClaim), has(self.secret), has(self.configMap), has(self.emptyDir)].filter(x, x).size() == 1",
        lambda volume: _sources(volume) == 1,
        "exactly one of persistentVolumeClaim, secret, configMap and emptyDir is allowed",
        lambda volume: f"{_sources(volume)} sources",
    ),
    # ------------------------------------------------------------------------------------------------------------ what may not change
    Rule(
        "spec",
        "runtime",
        "self.runtime == oldSelf.runtime",
        lambda old, new: old.runtime == new.runtime,
        "does not change: make another function",
        changes=True,
    ),
    Rule(
        "spec",
        "sessions",
        "has(self.sessions) == has(oldSelf.sessions)",
        lambda old, new: (old.sessions is None) == (new.sessions is None),
        "a function does not become stateful or stateless: make another function",
        changes=True,
    ),
    Rule(
        "spec.sessions",
        "durability",
        "self.durability == oldSelf.durability",
        lambda old, new: old.durability == new.durability,
        "does not change: make another function",
        changes=True,
    ),
    Rule(
        "spec.sessions",
        "shards",
        "self.shards == oldSelf.shards",
        lambda old, new: old.shards == new.shards,
        "does not change: make another function",
        changes=True,
    ),
)


def _repeated(names: list[str]) -> str:
    return next(shown(name) for name in names if names.count(name) > 1)


def _inside(path: str) -> bool:
    return path.endswith(".npy") and not path.startswith("/") and ".." not in path.split("/") and "\\" not in path


def _nodes(function: InferenceFunction, at: str) -> Iterator[tuple[str, Any]]:
    """The nodes of `function` that `at` names, each with its path; none where an optional part on the way is absent."""
    found: list[tuple[str, Any]] = [("", function)]
    for step in at.split("."):
        name, listed = step.removesuffix("[]"), step.endswith("[]")
        following: list[tuple[str, Any]] = []
        for path, node in found:
            item = attribute(node, name)
            where = f"{path}.{name}" if path else name
            if listed:
                following += [(f"{where}[{index}]", each) for index, each in enumerate(item)]
            elif item is not None:
                following.append((where, item))
        found = following
    yield from found


def attribute(node: Struct, name: str) -> Any:
    """The value of the field that JSON calls `name`."""
    index = node.__struct_encode_fields__.index(name)
    return getattr(node, node.__struct_fields__[index])


def _value(node: Any, field: str) -> Any:
    for name in field.split(".") if field else ():
        if node is None:
            return None
        node = attribute(node, name)
    return node


def _found(rule: Rule, node: Any) -> str:
    return rule.found(node) if rule.found else shown(_value(node, rule.field)) if _value(node, rule.field) is not None else "nothing"


def broken(function: InferenceFunction) -> list[str]:
    """The message of every rule that `function` breaks."""
    return [
        f"{path}{'.' if rule.field else ''}{rule.field}: {_found(rule, node)} found, {rule.allowed}"
        for rule in RULES
        if not rule.changes
        for path, node in _nodes(function, rule.at)
        if not rule.holds(node)
    ]


def broken_by_change(old: InferenceFunction, new: InferenceFunction) -> list[str]:
    """The message of every rule about changes that going from `old` to `new` breaks."""
    messages = []
    for rule in RULES:
        if not rule.changes:
            continue
        before, after = dict(_nodes(old, rule.at)), dict(_nodes(new, rule.at))
        for path in before.keys() & after.keys():
            if not rule.holds(before[path], after[path]):
                was, now = shown_plain(_value(before[path], rule.field)), shown_plain(_value(after[path], rule.field))
                messages.append(f"{path}.{rule.field}: {now} found where it was {was}, {rule.allowed}")
    return messages


def shown_plain(value: Any) -> str:
    return "nothing" if value is None else "an object" if isinstance(value, Struct) else shown(value)
