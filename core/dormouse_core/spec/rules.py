"""Rules that span fields, and what may not change: each written once, as a row.

The API server evaluates a rule's CEL text, one machine its predicate. Both see the node at `at` (its object, or the old and the new one); a
test evaluates the two side by side. A rule without CEL is one that CEL cannot say within the API server's budget (sums over products, a
field of two types); it is checked where Dormouse reads the object, and becomes a condition in a cluster.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dormouse_core import limits, modeluris
from dormouse_core.spec import environments, mounts
from dormouse_core.spec.objects import DNS_LABEL, Controls, Initial, SessionsSpec, StateSpec, Volume
from dormouse_core.spec.sizes import state_bytes
from dormouse_core.spec.validation import shown

OWN_PREFIX = "dormouse.dev/"


@dataclass(frozen=True, slots=True)
class Rule:
    """`at`: the node, such as "spec.sessions.states[]"; "": the whole object. `field`: the field in it that is at fault; "": all of it.

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


def _batches(state: StateSpec) -> bool:
    axis = state.batch_axis
    return axis is None or (axis < len(state.shape) and state.shape[axis] in (-1, 1))


def _control_names(controls: Controls) -> list[str]:
    return [name for name in (controls.start, controls.end, controls.ready, controls.correlation_id) if name is not None]


def _names_of_inputs(sessions: SessionsSpec) -> list[str]:
    controls = _control_names(sessions.controls) if sessions.controls is not None else []
    return [*controls, *(state.input for state in sessions.states)]


def _varies(state: StateSpec) -> bool:
    """Whether zeros have no size. Not asked of a state whose batch axis is wrong: that fault is told already."""
    return _batches(state) and any(size < 0 for axis, size in enumerate(state.shape) if axis != state.batch_axis)


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


def _least_bytes(sessions: SessionsSpec) -> int:
    return state_bytes([(state.shape, state.batch_axis, 1) for state in sessions.states])


def _product(shape: Sequence[int]) -> int:
    return math.prod(1 if size < 0 else size for size in shape)


# CEL has no fold, so a product over at most so many dimensions is written out; of doubles, which do not overflow.
_PRODUCT = " * ".join(
    f"(self.shape.size() > {axis} && self.shape[{axis}] >= 0 ? double(self.shape[{axis}]) : 1.0)"
    for axis in range(limits.TENSOR_DIMENSIONS)
)


def _sources(volume: Volume) -> int:
    return sum(source is not None for source in (volume.persistent_volume_claim, volume.secret, volume.config_map, volume.empty_dir))


def _is_label(name: str) -> bool:
    return re.fullmatch(DNS_LABEL, name, re.ASCII) is not None


def _own(names: dict[str, str]) -> str:
    return ", ".join(shown(name) for name in names if name.startswith(OWN_PREFIX))


def _repeated(names: list[str]) -> str:
    return next(shown(name) for name in names if names.count(name) > 1)


def _inside(path: str) -> bool:
    return path.endswith(".npy") and not path.startswith("/") and ".." not in path.split("/") and not set(path) & {"\\", "\0"}


def _quoted(pattern: str) -> str:
    """A text of CEL."""
    return "'" + pattern.replace("\\", "\\\\") + "'"


RULES: Sequence[Rule] = (
    Rule(
        "",
        "metadata.name",
        f"self.metadata.name.size() <= {limits.FUNCTION_NAME_CHARACTERS} && self.metadata.name.matches('{DNS_LABEL}')",
        lambda function: len(function.metadata.name) <= limits.FUNCTION_NAME_CHARACTERS and _is_label(function.metadata.name),
        f"a DNS label of at most {limits.FUNCTION_NAME_CHARACTERS} characters is allowed: a-z, 0-9 and -",
    ),
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
        "self.runtime != 'onnx' || !has(self.sessions) || (has(self.sessions.states) && self.sessions.states.size() > 0)",
        lambda spec: spec.runtime != "onnx" or spec.sessions is None or bool(spec.sessions.states),
        "a stateful function of the runtime onnx names at least one state",
    ),
    Rule(
        "spec",
        "sessions.states",
        "self.runtime != 'python' || !has(self.sessions) || !has(self.sessions.states) || self.sessions.states.size() == 0",
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
        "spec.model",
        "uri",
        f"self.uri.matches({_quoted(modeluris.SHAPE)})",
        lambda model: modeluris.valid(model.uri),
        "https://host/path of one file, without a user or password, s3://bucket/path, gs://bucket/path, "
        "hf://owner/repository[@revision]/path, pvc://claim/path, configmap://name/key, configmap://name or file://path is allowed",
        lambda model: shown(modeluris.without_password(model.uri)),
    ),
    Rule(
        "spec.sessions",
        "durability",
        "self.durability == 'Committed'",
        lambda sessions: sessions.durability == "Committed",
        "Committed is allowed: Buffered and Memory are not in this release",
    ),
    Rule(
        "spec",
        "sessions.controls",
        "self.runtime != 'python' || !has(self.sessions) || !has(self.sessions.controls)",
        lambda spec: spec.runtime != "python" or spec.sessions is None or spec.sessions.controls is None,
        "none is allowed: a Python handler is told the same by its context (ctx.start, ctx.end, ctx.session)",
    ),
    Rule(
        "spec.sessions",
        "controls",
        "",
        lambda sessions: len(set(_names_of_inputs(sessions))) == len(_names_of_inputs(sessions)),
        "each input is allowed once, as a control or as a state",
        lambda sessions: f"the input {_repeated(_names_of_inputs(sessions))} more than once",
    ),
    Rule(
        "spec.sessions",
        "states",
        "!has(self.states) || self.states.all(s, self.states.exists_one(t, t.output == s.output))",
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
        "shape",
        f"{_PRODUCT} <= {limits.STATE_BYTES}.0",
        lambda state: _product(state.shape) <= limits.STATE_BYTES,
        f"at most {limits.STATE_BYTES} elements are allowed, for a record in the store",
        lambda state: f"{_product(state.shape)} elements",
    ),
    Rule(
        "spec.sessions.states[]",
        "batchAxis",
        "!has(self.batchAxis) || self.batchAxis < self.shape.size()",
        lambda state: state.batch_axis is None or state.batch_axis < len(state.shape),
        "an axis of shape is allowed",
        lambda state: f"{state.batch_axis} (shape has {len(state.shape)} dimensions)",
    ),
    Rule(
        "spec.sessions.states[]",
        "shape",
        "!has(self.batchAxis) || self.batchAxis >= self.shape.size() || self.shape[self.batchAxis] in [-1, 1]",
        lambda state: state.batch_axis is None or state.batch_axis >= len(state.shape) or _batches(state),
        "-1 or 1 is allowed at batchAxis",
        lambda state: f"{state.shape[state.batch_axis]} at axis {state.batch_axis}",
    ),
    Rule(
        "spec.sessions.states[]",
        "initial",
        "",
        lambda state: state.initial != "zeros" or not _varies(state),
        "a shape with dimensions that vary needs {shape: [...]} or {file: x.npy}",
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
        f"!has(self.labels) || self.labels.all(k, !k.startsWith('{OWN_PREFIX}'))",
        lambda workers: not _own(workers.labels),
        f"no name under {OWN_PREFIX} is allowed",
        lambda workers: _own(workers.labels),
    ),
    Rule(
        "spec.workers",
        "annotations",
        f"!has(self.annotations) || self.annotations.all(k, !k.startsWith('{OWN_PREFIX}'))",
        lambda workers: not _own(workers.annotations),
        f"no name under {OWN_PREFIX} is allowed",
        lambda workers: _own(workers.annotations),
    ),
    Rule(
        "spec.workers.env[]",
        "name",
        environments.CEL,
        lambda variable: not environments.taken(variable.name),
        environments.ALLOWED,
    ),
    Rule(
        "spec.workers.env[]",
        "valueFrom",
        "!has(self.valueFrom) || !has(self.value) || self.value == ''",
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
    Rule(
        "spec.workers.volumes[]",
        "name",
        f"!self.name.startsWith('{mounts.OWN}')",
        lambda volume: not volume.name.startswith(mounts.OWN),
        mounts.ALLOWED_NAME,
    ),
    Rule(
        "spec.workers.volumes[]",
        "mountPath",
        f"!self.mountPath.matches({_quoted(mounts.TAKEN)})",
        lambda volume: not mounts.taken(volume.mount_path),
        mounts.ALLOWED,
        lambda volume: shown(volume.mount_path),
    ),
    # ------------------------------------------------------------------------------------------------------------ what may not change
    Rule(
        "spec",
        "runtime",
        "self.runtime == oldSelf.runtime",
        lambda old, new: old.runtime == new.runtime,
        "cannot be changed: make another function",
        changes=True,
    ),
    Rule(
        "spec",
        "sessions",
        "has(self.sessions) == has(oldSelf.sessions)",
        lambda old, new: (old.sessions is None) == (new.sessions is None),
        "a function cannot become stateful or stateless: make another function",
        changes=True,
    ),
    Rule(
        "spec.sessions",
        "durability",
        "self.durability == oldSelf.durability",
        lambda old, new: old.durability == new.durability,
        "cannot be changed: make another function",
        changes=True,
    ),
    Rule(
        "spec.sessions",
        "shards",
        "self.shards == oldSelf.shards",
        lambda old, new: old.shards == new.shards,
        "cannot be changed: make another function",
        changes=True,
    ),
)
