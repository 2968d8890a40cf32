"""A spec as bytes, and the digests that name what it says.

Canonical JSON: keys sorted, no spaces, defaults filled in, durations in their one text. Two specs that mean the same are the same bytes, so
"unchanged" can be told without opinions about formatting.

The *revision* is a digest of what runs: of the edition of its content, and of the JSON without what no worker goes by (`run`) and the
fields that have their default. The latter matters in an upgrade: a release that adds a field must not give every function a new revision,
which would restart every worker.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import msgspec

from dormouse_core.spec.durations import Duration
from dormouse_core.spec.objects import FunctionSpec

DIGEST_CHARACTERS = 12
SCALING_FIELDS = frozenset({"replicas", "minReplicas", "maxReplicas", "askedReplicas", "scaleMetric", "scaleTarget", "scaleToZeroAfter"})

T = TypeVar("T")


def decode_hook(expected: type, value: Any) -> Any:
    if expected is Duration and isinstance(value, str):
        return Duration(value)
    raise NotImplementedError(f"no {expected.__name__} can be read from {value!r}")


def encode_hook(value: Any) -> Any:
    if isinstance(value, Duration):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} has no JSON form")


def to_builtins(value: Any) -> Any:
    """`value` as dicts, lists, strings and numbers, field names in camel case, defaults filled in. A field that is None is left out."""
    return without_none(msgspec.to_builtins(value, enc_hook=encode_hook))


def without_none(data: Any) -> Any:
    """Absent and null are the same to the API server, which drops nulls; here too."""
    if isinstance(data, dict):
        return {key: without_none(item) for key, item in data.items() if item is not None}
    if isinstance(data, list):
        return [without_none(item) for item in data]
    return data


def to_json(value: Any) -> bytes:
    """Canonical JSON of a spec or of any other of these types."""
    return msgspec.json.encode(to_builtins(value), order="deterministic")


def from_json(text: bytes | str, expected: type[T]) -> T:
    """What `to_json` wrote. Unknown fields are skipped: a newer part may have written them. ValueError (msgspec's): anything else."""
    return msgspec.json.decode(text, type=expected, dec_hook=decode_hook)


def spec_to_json(spec: FunctionSpec) -> bytes:
    return to_json(spec)


def spec_from_json(text: bytes | str) -> FunctionSpec:
    return from_json(text, FunctionSpec)


def revision_of(spec: FunctionSpec, edition: str = "") -> str:
    """Twelve hex characters that change when what runs changes, and not when it scales. `edition`: of the model's content, where that is
    known or was asked to be read again (`dormouse_core.editions`)."""
    told = _told(run(spec))
    return _digest([told, edition] if edition else told)


def run(spec: FunctionSpec) -> FunctionSpec:
    """`spec` as its workers know it: what only scales, and what becomes of the sessions at the end, at their defaults."""
    defaults = {f.name: _default(f) for f in msgspec.structs.fields(FunctionSpec) if f.encode_name in SCALING_FIELDS}
    sessions = spec.sessions and msgspec.structs.replace(spec.sessions, reclaim_policy="Delete")
    return msgspec.structs.replace(spec, **defaults, sessions=sessions)


def _default(field: msgspec.structs.FieldInfo) -> Any:
    return field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default


def _told(value: Any) -> Any:
    """What `value` says beyond its types' defaults."""
    if isinstance(value, msgspec.Struct):
        told = {}
        for f in msgspec.structs.fields(value):
            item = getattr(value, f.name)
            if item != _default(f):
                told[f.encode_name] = _told(item)
        return told
    if isinstance(value, list):
        return [_told(item) for item in value]
    return to_builtins(value)


def state_version_of(states: Iterable[tuple[str, str, Sequence[int]]]) -> str:
    """The name of a layout of states: (name, datatype, declared shape) each, in any order. Twelve hex characters."""
    return _digest(sorted([name, datatype, list(shape)] for name, datatype, shape in states))


def _digest(data: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(data, order="deterministic")).hexdigest()[:DIGEST_CHARACTERS]
