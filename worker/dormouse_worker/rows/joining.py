"""Whether rows of several calls run together in one run of a model, and why: decided once, when a revision's model is loaded first.

The rule is that batching is invisible: a call is answered as the model answers it alone. So rows are joined only where an experiment has
shown them to be independent (`independence`) and the graph says nothing else (`mixing`, `deciding`). A number that the user wrote
(maxBatchSize) is their word for the case in which no experiment could be made; it is not believed against one.

The result is kept with the proof of the revision, under a key that says what was looked at: a wake does not repeat it, another file under
the same uri, another manifest or another runtime does.
"""

import contextlib
import hashlib
import json
import pathlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from dormouse_core import limits
from dormouse_core import spec as specs
from dormouse_kit import log
from dormouse_proto import state_pb2

from dormouse_worker.models.signatures import Signature
from dormouse_worker.process import memorylimit
from dormouse_worker.rows import deciding, mixing
from dormouse_worker.rows.drawing import Port
from dormouse_worker.rows.graphs import Graph
from dormouse_worker.rows.independence import Late, Mixed, Out, Run, Shown, Unknown, Verdict, experiment
from dormouse_worker.rows.layouts import Layout, Tensor, assumed, from_manifest, layouts

VERSION = 2
"""Of the experiment: one that is better than this one is made again."""
PATIENCE = 3
"""How many times its processor time the experiment may take on a busy machine."""
SMALL_BYTES = 8 << 20
"""Runs that take less are not counted: the first one of any model takes some."""
ROOM = 0.5
"""Of the memory that is left, for a run."""
ALONE = "Every call runs alone: "


class Model:
    """What is known of a loaded model. `dims`: its declared dimensions, of every input and output; None: no shape. `run`, `stop`: as
    `runtimes.onnx` has them."""

    def __init__(
        self,
        signature: Signature,
        dims: dict[str, tuple[int | str | None, ...] | None],
        graph: Graph | None,
        run: Callable[[dict[str, np.ndarray]], list[np.ndarray]],
        stop: Callable[[], None],
    ) -> None:
        self.signature = signature
        self.dims = dims
        self.graph = graph
        self.run = run
        self.stop = stop

    def tensors(self, specs_: Sequence[Any]) -> list[Tensor]:
        return [Tensor(spec.name, self.dims[spec.name]) for spec in specs_ if not getattr(spec, "optional", False)]


def decide(model: Model, wanted: specs.Batching, key: str, known: state_pb2.Batching | None = None) -> state_pb2.Batching:
    """`known`: what was found when the revision was proved. ModelInvalid: `wanted.axes` does not fit the model."""
    if known is not None and known.key == key:
        return known
    began = time.monotonic()
    found = _decide(model, wanted)
    found.key = key
    log.event("batching", rows=found.rows, reason=found.reason, why=found.message, seconds=round(time.monotonic() - began, 3))
    return found


def key_of(path: pathlib.Path, graph: Graph | None, wanted: specs.Batching, states: Sequence[Any], runtime: str) -> str:
    """Digests of the model's file and of what the manifest says of its rows, the runtime's version. Of weights beside the file, sizes."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    for name in sorted(graph.files if graph is not None else ()):
        beside = path.parent / name
        digest.update(f"{name} {beside.stat().st_size if beside.exists() else 0}\n".encode())
    words = json.dumps([wanted.max_batch_size, wanted.axes, [[s.input, s.output, list(s.shape), s.batch_axis] for s in states]])
    return f"{VERSION} {digest.hexdigest()} {hashlib.sha256(words.encode()).hexdigest()[:12]} {runtime}"


def _decide(model: Model, wanted: specs.Batching) -> state_pb2.Batching:
    signature = model.signature
    most = wanted.max_batch_size
    if most == 1:
        return _alone("Declared", "batching.maxBatchSize is 1.")
    if wanted.axes is not None and not wanted.axes:
        return _alone("Declared", "batching.axes names no input.")
    inputs, outputs = model.tensors(signature.inputs), model.tensors(signature.outputs)
    fixed = next((state for state in signature.states if state.batch_axis is None), None)
    if fixed is not None:
        return _alone("NoBatch", f'the state "{fixed.input}" has no batch axis: the model takes one session at a time.')
    controls = {control.name: model.dims[control.name] for control in signature.controls}
    if any(not dims or isinstance(dims[0], int) for dims in controls.values()):
        return _alone("NoBatch", "a sequence control has no batch axis: the model takes one session at a time.")
    if wanted.axes is not None:
        tried = [from_manifest(wanted.axes, inputs, outputs)]
    else:
        tried = layouts(inputs, outputs, _names(model) or ([None] if controls else []))
    if not tried:
        without = next((tensor.name for tensor in inputs if tensor.dims is None), None)
        if without is not None:
            return _unproved(model, most, [], f'the input "{without}" has no declared shape.')
        return _alone("NoBatch", "no first dimension varies in every output.")
    return _tried(model, tried, most)


def _tried(model: Model, tried: Sequence[Layout], most: int | None) -> state_pb2.Batching:
    """The first layout that holds; else what is wrong with the first one."""
    rows = most or limits.BATCH_SIZE
    # Of processor time: what is found is kept, and must not follow from who else ran on the machine.
    until = (time.thread_time() + limits.BATCHING_SECONDS, time.monotonic() + PATIENCE * limits.BATCHING_SECONDS)
    failed: list[Mixed | Unknown] = []
    for layout in tried:
        verdict = _verdict(model, layout, rows, until)
        if isinstance(verdict, Shown):
            axes = dict(zip((t.name for t in model.signature.outputs), verdict.axes, strict=False))
            off = f"by at most {verdict.difference:.2g} of an output's largest value" if verdict.difference else "in nothing"
            message = f"Up to {rows} rows of several calls run together: in an experiment they differed {off} from the same rows alone."
            return state_pb2.Batching(rows=rows, axes={**layout.inputs, **axes}, reason="Independent", message=message)
        failed.append(verdict)
    refuted = next((verdict for verdict in failed if isinstance(verdict, Mixed)), None)
    if refuted is None or isinstance(failed[0], Unknown):
        return _unproved(model, most, tried, f"{failed[0].message}.")
    if most is not None:
        return _alone("Contradicted", f"{refuted.message}; batching.maxBatchSize is {most}, which is not followed.")
    return _alone("Dependent", f"{refuted.message}.")


def _names(model: Model) -> list[int | str | None]:
    """What the states' batch dimensions are called."""
    places = [(model.dims[state.input] or (), state.batch_axis) for state in model.signature.states]
    return [dims[axis] if axis is not None and axis < len(dims) else None for dims, axis in places]


def _verdict(model: Model, layout: Layout, most: int, until: tuple[float, float]) -> Verdict:
    signature = model.signature
    given = [tensor for tensor in signature.inputs if not tensor.optional]
    without = next((tensor.name for tensor in given if not tensor.ranked), None)
    if without is not None:
        return Unknown(f'the input "{without}" has no declared shape')
    ports = [Port(t.name, t.datatype, model.dims[t.name] or t.shape, layout.inputs.get(t.name)) for t in given]
    for state in signature.states:
        declared = model.dims[state.input] or state.shape
        shape = tuple(own if own != -1 else size for own, size in zip(state.shape, declared, strict=True))
        ports.append(Port(state.input, state.datatype, shape, state.batch_axis, state=True))
    ports += [Port(c.name, c.datatype, (None, 1)[: c.rank], 0) for c in signature.controls]
    outs = [Out(t.name, t.datatype, layout.outputs.get(t.name)) for t in signature.outputs]
    outs += [Out(s.output, s.datatype, s.batch_axis, state=True) for s in signature.states]
    with _bounded(model, until) as run:
        verdict = experiment(run, ports, outs, most)
    if isinstance(verdict, Shown) and model.graph is not None:
        axes = {port.name: port.axis for port in ports if port.axis is not None}
        said = mixing.look(model.graph, axes) or deciding.look(model.graph, axes)
        if said is not None:
            return Mixed(f"{said}, though no experiment showed it")
    return verdict


class _Appetite:
    """What runs take of memory for each byte of input, so that a run of many rows is not what ends the worker."""

    def __init__(self) -> None:
        self._each = 0.0
        self._largest = 0

    def check(self, feeds: dict[str, np.ndarray]) -> None:
        """Late: it would take too much."""
        wanted = self._each * _size(feeds)
        if wanted > SMALL_BYTES and wanted > memorylimit.room() * ROOM:
            raise Late("runs of several rows take more memory than the worker has")

    def measured(self, feeds: dict[str, np.ndarray], run: Run) -> list[np.ndarray]:
        """Runs of more input than any before are; memory that was taken once is not given back."""
        if _size(feeds) <= self._largest:
            return run(feeds)
        self._largest = _size(feeds)
        memorylimit.peak(forget=True)
        before = memorylimit.resident()
        found = run(feeds)
        taken = memorylimit.peak() - before
        if taken > SMALL_BYTES:
            self._each = max(self._each, taken / self._largest)
        return found


def _size(feeds: dict[str, np.ndarray]) -> int:
    return max(1, sum(array.nbytes for array in feeds.values()))


@contextlib.contextmanager
def _bounded(model: Model, until: tuple[float, float]) -> Iterator[Run]:
    """The model's run, which ends when the experiment's time is over: one that is under way by then stops at its next operator. `until`:
    of this thread's processor time, and of the clock."""
    late = threading.Event()
    appetite = _Appetite()

    def over() -> None:
        late.set()
        model.stop()

    def run(feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        if late.is_set() or time.thread_time() >= until[0]:
            raise Late
        appetite.check(feeds)
        try:
            return appetite.measured(feeds, model.run)
        except Exception:
            if late.is_set():
                raise Late from None
            raise

    timer = threading.Timer(max(0.0, until[1] - time.monotonic()), over)
    timer.daemon = True
    timer.start()
    try:
        yield run
    finally:
        timer.cancel()
        timer.join()


def _unproved(model: Model, most: int | None, tried: Sequence[Layout], why: str) -> state_pb2.Batching:
    """No experiment: the user's word, if there is one and it can be followed."""
    if most is None or not tried:
        return _alone("NotShown", f"no experiment could be made: {why}")
    layout = tried[0]
    axes = assumed(layout, model.tensors(model.signature.outputs))
    message = f"Up to {most} rows of several calls run together, because batching.maxBatchSize says so; no experiment could be made: {why}"
    return state_pb2.Batching(rows=most, axes={**layout.inputs, **axes}, reason="Declared", message=message)


def _alone(reason: str, why: str) -> state_pb2.Batching:
    return state_pb2.Batching(rows=0, reason=reason, message=ALONE + why)
