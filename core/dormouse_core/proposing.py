"""Which of a model's tensors are state: a proposal for the manifest of a model that says nothing about it.

An ONNX file names inputs and outputs; that `h0` comes back as `hn` is a habit of exporters, not a fact in the file. A wrong pair would be
answered for a long time before anybody noticed. So a pair is proposed only where the names agree once the words for "before" and "after"
are taken away, one input and one output are left under that stem, and datatype, rank and fixed sizes agree. What is merely likely comes
back as a doubt, with its reason, for a person to decide.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dormouse_core.spec import Controls
from dormouse_core.tensors import DATATYPES

BEFORE = frozenset({"in", "input", "inputs", "prev", "previous", "past", "old", "init", "initial"})
AFTER = frozenset({"out", "output", "outputs", "next", "new", "present", "updated", "final", "r"})
VAGUE = frozenset({"", "ids", "id", "mask", "data", "audio", "image", "tensor", "signal", "wav", "features", "length", "lengths", "len"})
"""Stems that say nothing about memory: `input_ids` and `output_ids` are no state."""
STATEFUL = re.compile(r"state|cache|hidden|memory|mems?\b|past|present|buffer|context|lstm|gru|rnn|^[hc]x?_?0?$", re.IGNORECASE)
ENDING = "the output has the input's name with the ending of a next value"
WORDS = "input and output have one name but for the words for before and after"
CONTROLS = {"start": "start", "end": "end", "ready": "ready", "corrid": "correlation_id"}
FLAGS = frozenset({"FP32", "INT32", "BOOL"})
IDS = frozenset({"UINT64", "INT64", "UINT32", "INT32", "BYTES"})


@dataclass(frozen=True, slots=True)
class Value:
    """An input or output as the model declares it. A dimension is a size, a name ("batch"), or None."""

    name: str
    datatype: str
    dims: tuple[int | str | None, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self.dims)


@dataclass(frozen=True, slots=True)
class Pair:
    """A state. `initial`: a first shape, where zeros of the declared one have no size. `why`: two sentences for a person."""

    input: Value
    output: Value
    batch_axis: int | None
    initial: tuple[int, ...] | None
    why: str

    @property
    def growth(self) -> int:
        """Bytes by which a row's state grows with each place of the dimension that begins empty; 0: it has none, or that is not known."""
        kind = DATATYPES.get(self.input.datatype)
        if self.initial is None or self.initial.count(0) != 1 or kind is None:
            return 0
        return math.prod(size or 1 for size in self.initial) * (kind.itemsize or 0)


@dataclass(frozen=True, slots=True)
class Proposal:
    pairs: tuple[Pair, ...]
    controls: Controls | None
    doubts: tuple[str, ...]


def propose(inputs: Sequence[Value], outputs: Sequence[Value]) -> Proposal:
    """Inputs that must be given, in the model's order; outputs likewise."""
    inputs, outputs = [_unnamed(value) for value in inputs], [_unnamed(value) for value in outputs]
    controls, controlled = _controls(inputs)
    left = [value for value in inputs if value.name not in controlled]
    found: list[tuple[Value, Value, str]] = []
    doubts: list[str] = []
    before, after = _by_stem(left, BEFORE), _by_stem(outputs, AFTER)
    exact = _exact(left, outputs)
    for value in left:
        stem = stem_of(value.name, BEFORE)
        named = exact.get(value.name)
        candidates = [named] if named is not None else after.get(stem, [])
        rivals = [value] if named is not None else before.get(stem, [])
        candidates = [output for output in candidates if output.name != value.name]
        if not candidates:
            continue
        if stem in VAGUE or stem.isdigit():
            if STATEFUL.search(value.name):
                doubts.append(_doubt(value, candidates, "the names say too little"))
            continue
        if len(candidates) > 1 or len(rivals) > 1:
            doubts.append(_doubt(value, candidates, "more than one tensor has this name"))
        elif not _agree(value, candidates[0]):
            doubts.append(_doubt(value, candidates, f"{_told(value)} in and {_told(candidates[0])} out"))
        else:
            found.append((value, candidates[0], ENDING if named is not None else WORDS))
    taken_in, taken_out = {pair[0].name for pair in found}, {pair[1].name for pair in found}
    doubted = " ".join(doubts)
    for value in left:
        if value.name in taken_in or repr(value.name) in doubted or not STATEFUL.search(value.name):
            continue
        likely = [output for output in outputs if output.name not in taken_out and output.name != value.name and _agree(value, output)]
        if likely:
            doubts.append(_doubt(value, likely, "the names differ"))
        else:
            doubts.append(f"{value.name!r} sounds like a state, but no output of its datatype and rank is left")
    batch = _batch_name([v for v in left if v.name not in taken_in], [o for o in outputs if o.name not in taken_out])
    return Proposal(tuple(_pair(value, output, named, batch) for value, output, named in found), controls, tuple(doubts))


def _unnamed(value: Value) -> Value:
    """torch.onnx.export, given axes without names (`dynamic_axes={"h0": [1]}`), calls each after its tensor (`h0_dynamic_axes_1`). So the
    batch has one name on its way in and another on its way out, and would be taken for a dimension that grows. The names say nothing."""
    made = f"{value.name}_dynamic_axes_"
    return replace(value, dims=tuple(None if isinstance(dim, str) and dim.startswith(made) else dim for dim in value.dims))


def stem_of(name: str, words: frozenset[str]) -> str:
    """`name` in lower case without the words for "before" (or "after"): past_key_values.0.key and present.0.key are both "0 key"."""
    text = name.lower().replace("past_key_values", "past").replace("present_key_values", "present")
    return " ".join(part for part in re.split(r"[^a-z0-9]+", text) if part and part not in words)


def _exact(inputs: Sequence[Value], outputs: Sequence[Value]) -> dict[str, Value]:
    """The habits without a separator: state and stateN, h and hn, h0 and hn, c_0 and c_n."""
    names = {output.name: output for output in outputs}
    found = {}
    for value in inputs:
        base = re.sub(r"_?0$", "", value.name)
        endings = ("N", "n", "_n", "_N", "Out", "Next", "New", "1")
        matches = [names[base + ending] for ending in endings if base + ending in names and base + ending != value.name]
        if len(matches) == 1:
            found[value.name] = matches[0]
    taken = [output.name for output in found.values()]
    return {name: output for name, output in found.items() if taken.count(output.name) == 1}


def _by_stem(values: Sequence[Value], words: frozenset[str]) -> dict[str, list[Value]]:
    stems: dict[str, list[Value]] = {}
    for value in values:
        stems.setdefault(stem_of(value.name, words), []).append(value)
    return stems


def _agree(value: Value, output: Value) -> bool:
    fits = zip(value.shape, output.shape, strict=False)
    return (
        value.datatype == output.datatype
        and len(value.shape) == len(output.shape)
        and all(-1 in pair or pair[0] == pair[1] for pair in fits)
    )


def _pair(value: Value, output: Value, named: str, batch: str | None) -> Pair:
    """`named`: how the names agree. `batch`: what the rows of a call are named; "" where the model has no names; None: it does not
    batch."""
    shape = value.shape
    axis: int | None = None
    because = "no axis is the batch: " + ("the call has none" if batch is None else "none varies and keeps its name")
    if batch:
        axis = next((index for index, size in enumerate(value.dims) if size == batch), None)
        if axis is not None:
            because = f'axis {axis} is the batch: it is called "{batch}", as the first of what callers send and get'
    if axis is None and batch is not None:
        # Exporters forget names, or give the state's batch one of its own; a dimension that grows has another name on its way out.
        steady = [i for i, size in enumerate(value.dims) if not isinstance(size, int) and (not size or size == output.dims[i])]
        axis = steady[0] if len(steady) == 1 or any(not value.dims[i] for i in steady) else None
        if axis is not None:
            because = f"axis {axis} is the batch: it is the {'only' if len(steady) == 1 else 'first'} one that varies and keeps its name"
    initial = None
    if any(size == -1 for index, size in enumerate(shape) if index != axis):
        # A dimension that has another name on its way out grows: it begins empty. One of the same name keeps the size that it begins with.
        initial = tuple(
            1 if index == axis else size if size != -1 else int(value.dims[index] == output.dims[index] and value.dims[index] is not None)
            for index, size in enumerate(shape)
        )
    return Pair(value, output, axis, initial, f"{named}; {because}")


def _batch_name(inputs: Sequence[Value], outputs: Sequence[Value]) -> str | None:
    """The name of the dimension that callers' inputs and all outputs lead with."""
    leads = {output.dims[0] if output.dims else 1 for output in outputs}
    if len(leads) != 1:
        return None
    lead = leads.pop()
    if isinstance(lead, int) or not any(value.dims and not isinstance(value.dims[0], int) for value in inputs):
        return None
    return lead or ""


def _controls(inputs: Sequence[Value]) -> tuple[Controls | None, set[str]]:
    """Triton's sequence controls by their names in its documentation; with another type or shape they are something else."""
    fields: dict[str, str] = {}
    for value in inputs:
        field = CONTROLS.get(value.name.lower())
        allowed = IDS if field == "correlation_id" else FLAGS
        if field and value.datatype in allowed and len(value.dims) in (1, 2) and all(size in (-1, 1) for size in value.shape):
            fields[field] = value.name
    return (Controls(**fields), set(fields.values())) if fields else (None, set())


def _told(value: Value) -> str:
    return f"{value.datatype} {list(value.shape)}"


def _doubt(value: Value, candidates: Sequence[Value], why: str) -> str:
    return f"{value.name!r} with {' or '.join(repr(output.name) for output in candidates)}: {why}"
