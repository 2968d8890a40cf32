"""ONNX models in ONNX Runtime.

Which dimension is the batch is not written in a model: `joining` finds out, with this runtime, whether calls may run together. Until then
the signature says that they do not.

NumPy has no bfloat16, so models with it go through OrtValues whose bits are copied.
"""

import contextlib
import ctypes
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from dormouse_core import spec as specs
from dormouse_core.tensors import as_array, from_onnx, zeros
from dormouse_proto import state_pb2

from dormouse_worker.models.controls import FLAGS, IDS, ControlSpec
from dormouse_worker.models.refusals import InvalidElement, ModelInvalid
from dormouse_worker.models.signatures import Signature, StateSpec, TensorSpec, shape_text
from dormouse_worker.rows import graphs, joining
from dormouse_worker.runtimes import weights

_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16
_OPTIONAL = "optional("


class OnnxRuntime:
    """One loaded model. `run` may be called from any thread, by one at a time."""

    def __init__(self, path: pathlib.Path, states: Sequence[Any], threads: int, controls: Any = None, *, private: bool = False) -> None:
        """`states`, `controls`: of the function's spec. `private`: nobody else can change the files. ModelInvalid with the reason, as ONNX
        Runtime puts it."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # A spinning pool burns the quota that the front and the interpreter need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if path.is_dir():
            found = sorted(path.glob("*.onnx"))
            if len(found) != 1:
                raise ModelInvalid(f"spec.model.uri: {path.name} is a folder with {len(found)} .onnx files, exactly one is expected")
            path = found[0]
        try:
            with contextlib.nullcontext(path) if private else weights.held(path, options) as loaded:
                self._session = onnxruntime.InferenceSession(os.fspath(loaded), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions have no common root but this
            raise ModelInvalid(f"{path.name} does not load: {weights.named(str(error))} (ONNX Runtime {onnxruntime.__version__})") from None
        self.path = path
        self.graph = graphs.read(path)
        self.dims = {value.name: self._dims(value) for value in self._values()}
        self.signature = self._signature(states, controls)
        self._outputs = [t.name for t in self.signature.outputs] + [s.output for s in self.signature.states]
        signature = self.signature
        self._strings = {t.name for t in signature.inputs if t.datatype == "BYTES"}
        self._strings |= {c.name for c in signature.controls if c.datatype == "BYTES"}
        self._strings |= {s.input for s in signature.states if s.datatype == "BYTES"}
        self._text_states = [len(signature.outputs) + index for index, s in enumerate(signature.states) if s.datatype == "BYTES"]
        types = {value.name: value.type for value in self._values()}
        self._bfloat = {name for name, kind in types.items() if "tensor(bfloat16)" in kind}
        self._options: Any = None

    def _values(self) -> list[Any]:
        session = self._session
        return [*session.get_inputs(), *session.get_overridable_initializers(), *session.get_outputs()]

    def _dims(self, value: Any) -> graphs.Shape | None:
        """Sizes and names, None where the model declares no shape. ONNX Runtime says [] of that, and of a scalar; where the file cannot be
        looked at either, the runtime decides at each call."""
        if value.shape:
            return tuple(value.shape)
        if self.graph is None:
            return None
        return self.graph.inputs.get(value.name, ()) if value.name in self.graph.inputs else self.graph.outputs.get(value.name, ())

    def batch(self, wanted: specs.Batching, states: Sequence[Any] = (), known: state_pb2.Batching | None = None) -> None:
        """Finds out, or takes from `known`, whether calls run together, and says so in the signature. ModelInvalid: see `joining`."""
        model = joining.Model(self.signature, self.dims, self.graph, self.run, self.stop)
        key = joining.key_of(self.path, self.graph, wanted, states, f"onnxruntime {onnxruntime.__version__}")
        self.signature = self.signature.joined(joining.decide(model, wanted, key, known))

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Public outputs in the signature's order, then the states' in theirs. Raises ONNX Runtime's exceptions."""
        if self._strings:
            feeds = {name: _strings(name, array) if name in self._strings else array for name, array in feeds.items()}
        self._options = options = onnxruntime.RunOptions()
        options.log_severity_level = 4  # what fails is raised, and told to its caller: not printed as well
        found: list[np.ndarray] = self._run_values(feeds, options) if self._bfloat else self._session.run(self._outputs, feeds, options)
        for index in self._text_states:  # as they come back from a record, so that a session is the same wherever it was
            found[index] = as_array(found[index], "BYTES", found[index].shape)
        return found

    def stop(self) -> None:
        """Asks the run in progress to end at its next operator. From another thread than `run`'s."""
        if self._options is not None:
            self._options.terminate = True

    def _run_values(self, feeds: Mapping[str, np.ndarray], options: Any) -> list[np.ndarray]:
        make = onnxruntime.OrtValue
        values = {
            name: make.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(array), _BFLOAT16)
            if name in self._bfloat
            else make.ortvalue_from_numpy(np.ascontiguousarray(array))
            for name, array in feeds.items()
        }
        found = self._session.run_with_ort_values(self._outputs, values, options)
        return [_bits(value) if name in self._bfloat else value.numpy() for name, value in zip(self._outputs, found, strict=True)]

    def example(self) -> dict[str, np.ndarray]:
        """Zeros for every required input, sizes that vary as 1: to warm up and to measure."""
        feeds = {t.name: zeros(t.datatype, [max(1, size) for size in t.shape]) for t in self.signature.inputs if not t.optional}
        for s in self.signature.states:
            feeds[s.input] = zeros(s.datatype, [max(1, size) for size in s.shape])
        for control in self.signature.controls:
            feeds[control.name] = control.values([b"" if control.datatype == "BYTES" else 0])
        return feeds

    def _signature(self, states: Sequence[Any], controls: Any) -> Signature:
        session = self._session
        required = {value.name: value for value in session.get_inputs()}
        optional = {value.name: value for value in session.get_overridable_initializers()}
        outputs = {value.name: value for value in session.get_outputs()}
        found: list[StateSpec] = []
        for index, state in enumerate(states):
            where = f"spec.sessions.states[{index}]"
            value = required.get(state.input) or optional.get(state.input)
            if value is None:
                raise ModelInvalid(f"{where}.input: the model has no input {state.input!r}; it has {', '.join(required)}")
            result = outputs.get(state.output)
            if result is None:
                raise ModelInvalid(f"{where}.output: the model has no output {state.output!r}; it has {', '.join(outputs)}")
            if value.type != result.type:
                raise ModelInvalid(f"{where}: input {state.input!r} is {value.type}, output {state.output!r} is {result.type}")
            datatype = _datatype(value)
            shape = tuple(state.shape)
            if self.dims[state.input] is not None:
                _check_state(where, shape, _shape(value))
            batch_axis = state.batch_axis if state.batch_axis is not None and shape[state.batch_axis] == -1 else None
            found.append(StateSpec(state.input, state.output, datatype, shape, batch_axis))
        controlled = _controls(controls, required, optional)
        inner_inputs, inner_outputs = {s.input for s in found} | {c.name for c in controlled}, {s.output for s in found}
        callers = [v for v in required.values() if v.name not in inner_inputs and not v.type.startswith(_OPTIONAL)]
        omittable = [v for v in required.values() if v.name not in inner_inputs and v.type.startswith(_OPTIONAL)]
        extras = [v for v in optional.values() if v.name not in inner_inputs]
        inputs = tuple(self._tensor(v, v in omittable or v in extras) for v in (*callers, *omittable, *extras))
        results = tuple(self._tensor(v, False) for v in outputs.values() if v.name not in inner_outputs)
        return Signature("onnxruntime_onnx", inputs, results, tuple(found), 0, tuple(controlled))

    def _tensor(self, value: Any, optional: bool) -> TensorSpec:
        return TensorSpec(value.name, _datatype(value), _shape(value), optional, ranked=self.dims[value.name] is not None)


def _controls(wanted: Any, required: Mapping[str, Any], optional: Mapping[str, Any]) -> list[ControlSpec]:
    """What `spec.sessions.controls` names, found in the model."""
    if wanted is None:
        return []
    named = {
        "start": ("start", wanted.start),
        "end": ("end", wanted.end),
        "ready": ("ready", wanted.ready),
        "id": ("correlationId", wanted.correlation_id),
    }
    controls = []
    for kind, (field, name) in named.items():
        if name is None:
            continue
        where = f"spec.sessions.controls.{field}"
        value = required.get(name) or optional.get(name)
        if value is None:
            raise ModelInvalid(f"{where}: the model has no input {name!r}; it has {', '.join(required)}")
        datatype, shape = _datatype(value), _shape(value)
        allowed = IDS if kind == "id" else FLAGS
        if datatype not in allowed:
            raise ModelInvalid(f"{where}: the model's {name!r} is {datatype}, one of {', '.join(sorted(allowed))} is allowed")
        if len(shape) not in (1, 2) or any(size not in (-1, 1) for size in shape):
            raise ModelInvalid(f"{where}: the model's {name!r} has shape {shape_text(shape)}, [N,1] and [N] are allowed")
        controls.append(ControlSpec(kind, name, datatype, len(shape)))
    return controls


def _datatype(value: Any) -> str:
    datatype = from_onnx(value.type.removeprefix(_OPTIONAL).removesuffix(")") if value.type.startswith(_OPTIONAL) else value.type)
    if datatype is None:
        cure = ""
        if value.type.startswith("seq(map("):  # what a classifier of scikit-learn becomes unless it is told otherwise
            cure = '; of skl2onnx: to_onnx(..., options={"zipmap": False}) gives the probabilities as a tensor'
        raise ModelInvalid(f"the model's {value.name!r} is {value.type}, which the Open Inference Protocol has no datatype for{cure}")
    return datatype


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else -1 for size in value.shape)


def _check_state(where: str, shape: tuple[int, ...], declared: tuple[int, ...]) -> None:
    fits = len(shape) == len(declared) and all(d in (-1, s) or s == -1 for s, d in zip(shape, declared, strict=True))
    if not fits:
        raise ModelInvalid(f"{where}.shape: {shape_text(shape)} found, the model declares {shape_text(declared)}")


def _strings(name: str, array: np.ndarray) -> np.ndarray:
    found = np.empty(array.shape, object)
    flat = found.reshape(-1)
    for index, element in enumerate(array.reshape(-1).tolist()):
        try:
            flat[index] = element.decode() if isinstance(element, bytes) else element
        except UnicodeDecodeError:
            raise InvalidElement(f"inputs[{name!r}]: element {index} is not UTF-8, which an ONNX model's strings are") from None
    return found


def _bits(value: Any) -> np.ndarray:
    shape = value.shape()
    count = int(np.prod(shape))
    pointer = value._ortvalue.data_ptr()
    return np.frombuffer(ctypes.string_at(pointer, 2 * count), np.uint16).reshape(shape)
