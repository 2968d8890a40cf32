"""From a worker's spec file to something that runs: the model fetched, loaded, checked against the spec, and its runner."""

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from dormouse_core import limits, records
from dormouse_core import spec as specs
from dormouse_core.errors import Internal
from dormouse_core.keys import Function
from dormouse_core.sessions import arrays
from dormouse_core.tensors import as_array, zeros
from dormouse_core.workerfile import WorkerFile
from dormouse_proto import state_pb2
from google.protobuf.json_format import ParseDict

from dormouse_worker import fetching
from dormouse_worker.batches.batching import Batcher
from dormouse_worker.batches.replies import Encoder
from dormouse_worker.batches.work import ENDING
from dormouse_worker.fetching.reading import ContentReading
from dormouse_worker.fetching.written import Written
from dormouse_worker.models.refusals import ModelInvalid
from dormouse_worker.models.signatures import Signature, StateSpec
from dormouse_worker.process import cpus
from dormouse_worker.serving.service import Engine
from dormouse_worker.sessions import StateInfo

if TYPE_CHECKING:
    from dormouse_worker.runtimes.python import HandlerRunner

NO_LIMIT = 1 << 30


@dataclass(frozen=True)
class Loaded:
    """A function that is ready to run."""

    function: Function
    names: tuple[str, ...]
    signature: Signature
    engine: Engine
    states: tuple[StateInfo, ...]
    state_version: str
    max_concurrency: int
    hang: float
    """How long a step may hold the interpreter, in seconds."""
    delay_us: int = 0
    idle_us: int = 0
    content: str = ""
    """Digest of the model's files (`dormouse_kit.contents`); empty: it has none."""
    seal: str = ""
    files: dict[str, str] = field(default_factory=dict)
    """The digest of each file of a model's folder; none where they were not read, because they have the seal of the proof."""
    handler: "HandlerRunner | None" = None
    """The engine, where it is a handler: its steps may call functions."""


def from_file(file: WorkerFile) -> Loaded:
    """ModelInvalid, ModelUnavailable: why it cannot be served."""
    spec = file.spec
    function = file.function
    path = fetching.fetch(spec.model.uri, spec.model.sha256, file.model_root) if spec.model is not None else None
    reading = ContentReading(path, file) if path is not None else None
    step_limit = spec.timeouts.step.seconds
    sessions = spec.sessions
    handler = None
    engine: Engine
    missing: Sequence[str | None]
    if spec.runtime == "onnx":
        if path is None:
            raise ModelInvalid("spec.model: missing; the onnx runtime needs a model")
        delay = spec.batching.max_queue_delay.seconds
        declared = sessions.states if sessions is not None else ()
        controls = sessions.controls if sessions is not None else None
        private = spec.model is not None and fetching.private(spec.model.uri, path)
        try:
            engine, signature = _onnx(path, declared, spec.batching, function.name, delay, step_limit, controls, file.batching, private)
        except ModelInvalid:
            if reading is not None:
                reading.unchanged("while it was loaded")
            raise
        firsts = [initial(state, found, path) for state, found in zip(declared, signature.states, strict=True)]
        content = reading.digest() if reading is not None else ""
        missing = [state.when_missing for state in declared]
    else:
        from dormouse_worker.runtimes.python import HandlerRunner, PythonRuntime  # a user's code comes with it: only where asked for

        # What the folder was before the handler's own code ran, which may write to it.
        content = reading.digest() if reading is not None else ""
        if path is not None and reading is not None and path.is_dir():
            Written(path, reading.names).watch()
        runtime = PythonRuntime(spec.handler or "", path, function=function, revision=file.revision, stateful=sessions is not None)
        if reading is not None:
            reading.unchanged("while the handler was set up; what came with it is not for it to write")
        signature = runtime.signature
        engine = handler = HandlerRunner(runtime, Encoder(function.name, signature), threads=cpus.available(), step_limit=step_limit)
        firsts = [state.first() for state in runtime.declaration.states]
        missing = [state.when_missing for state in runtime.declaration.states]
    states = tuple(
        StateInfo(s.input, s.input, s.output, s.datatype, own_shape(s), s.batch_axis, first, fills=when_missing == "initial")
        for s, first, when_missing in zip(signature.states, firsts, missing, strict=True)
    )
    check_size(states)
    return Loaded(
        function=function,
        names=(function.name, function.label),
        signature=signature,
        engine=engine,
        states=states,
        state_version=_version(sessions, signature),
        max_concurrency=spec.max_concurrency,
        hang=spec.timeouts.hang.seconds if spec.timeouts.hang is not None else step_limit + ENDING,
        delay_us=spec.batching.max_queue_delay.microseconds,
        idle_us=sessions.ttl.microseconds if sessions is not None else 0,
        content=content,
        seal=reading.seal if reading is not None else "",
        files=reading.files if reading is not None and path is not None and path.is_dir() else {},
        handler=handler,
    )


def check_size(states: Sequence[StateInfo]) -> None:
    """ModelInvalid: every shape is fixed, and a record of these states would be too large. Served, it would refuse every step."""
    fixed = arrays.fixed_bytes(states)
    bound = 0 if fixed is None else records.size_bound(fixed, [state.input for state in states])
    if bound > limits.RECORD_BYTES:
        raise ModelInvalid(
            f"a session's record of up to {bound} bytes found ({fixed} of states, the rest for their names, keys and kept replies), "
            f"at most {limits.RECORD_BYTES} are allowed"
        )


def standalone(path: pathlib.Path, name: str, max_batch: int | None) -> Loaded:
    """One stateless ONNX model without a spec, for measurements."""
    engine, signature = _onnx(path, (), specs.Batching(max_batch_size=max_batch), name, 0.0, 60.0)
    return Loaded(Function("default", name, "standalone"), (name,), signature, engine, (), "", NO_LIMIT, engine.runs.limit + ENDING)


def _onnx(
    path: pathlib.Path,
    states: Sequence[specs.StateSpec],
    batching: specs.Batching,
    name: str,
    delay: float,
    step_limit: float,
    controls: specs.Controls | None = None,
    known: dict[str, Any] | None = None,
    private: bool = False,
) -> tuple[Engine, Signature]:
    from dormouse_worker.runtimes.onnx import OnnxRuntime

    runtime = OnnxRuntime(path, states, cpus.available(), controls, private=private)
    runtime.batch(batching, states, ParseDict(known, state_pb2.Batching(), ignore_unknown_fields=True) if known else None)
    batcher = Batcher(runtime, Encoder(name, runtime.signature), delay=delay, step_limit=step_limit)
    batcher.warm_up(runtime.example())
    return batcher, runtime.signature


def _version(sessions: specs.SessionsSpec | None, signature: Signature) -> str:
    if sessions is None:
        return ""
    return sessions.state_version or specs.state_version_of([(s.input, s.datatype, s.shape) for s in signature.states])


def own_shape(state: StateSpec) -> tuple[int, ...]:
    """One session's tensor: the batch axis counted as 1."""
    return tuple(1 if axis == state.batch_axis else size for axis, size in enumerate(state.shape))


def initial(declared: specs.StateSpec, state: StateSpec, model: pathlib.Path) -> np.ndarray:
    """The tensor with which a session begins."""
    shape = own_shape(state)
    where = f"spec.sessions.states {state.input!r}: initial"
    if declared.initial == "zeros":
        if -1 in shape:
            raise ModelInvalid(f"{where}: 'zeros' found, but the shape {list(shape)} varies; give {{shape: [...]}} or {{file: ...}}")
        return zeros(state.datatype, shape)
    given: Any = declared.initial
    value = _from_file(where, given.file, model) if given.file is not None else zeros(state.datatype, given.shape or ())
    try:
        return np.ascontiguousarray(as_array(value, state.datatype, shape))
    except Internal as error:
        raise ModelInvalid(f"{where}: {error.message}") from None


def _from_file(where: str, name: str, model: pathlib.Path) -> np.ndarray:
    folder = (model if model.is_dir() else model.parent).resolve()
    path = (folder / name).resolve()
    if not path.is_relative_to(folder):
        raise ModelInvalid(f"{where}.file: {name!r} points outside the model's folder")
    try:
        value: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ModelInvalid(f"{where}.file: {name!r} cannot be read: {error}") from None
    return value


__all__ = ["Loaded", "from_file", "standalone"]
