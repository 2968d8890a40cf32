"""From a ModelInferRequest's bytes to checked arrays.

Whatever a caller can get wrong is found here, before anything runs, and told with the tensor's name, what was found and what is allowed:
a mistake that reached the runtime would fail a whole batch, or worse, be answered.
"""

import hashlib
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from dormouse_core import callkeys, limits, modelnames, wire
from dormouse_core.callkeys import CallKey
from dormouse_core.childcalls import Path
from dormouse_core.errors import InvalidArgument, ResourceExhausted
from dormouse_core.tensors import DATATYPES, decode_contents, decode_raw, encode_raw
from dormouse_proto import inference_pb2
from google.protobuf.message import DecodeError

from dormouse_worker.models.signatures import Signature, TensorSpec, shape_text
from dormouse_worker.transport.asgi import Call

DIGEST_BYTES = 16
_PLANS = 4096
_length = struct.Struct("<Q")
TENSOR_BYTES_MAX = 1 << 31  # elements times size that a shape may claim; the message limit is far below


class Request:
    """A call's decoded content."""

    __slots__ = (
        "alarm", "alone", "call", "call_key", "correlation", "group", "id", "identify", "inputs", "key", "message", "on_begin",
        "outputs", "path", "reply_bytes", "rows", "session", "session_key", "tenant",
    )  # fmt: skip

    def __init__(self) -> None:
        self.call: Call | None = None
        self.id = ""
        self.inputs: dict[str, np.ndarray] = {}
        self.rows = 1
        """Size of the batch dimension; 1 where there is none."""
        self.alone = False
        """Nothing may be joined to it: it has a form that was not in the experiment, or more rows than run together."""
        self.group: tuple[Any, ...] = ()
        """Calls whose groups are equal may be joined into one batch."""
        self.outputs: tuple[int, ...] = ()
        """Indices of the wanted outputs, in the order of the answer."""
        self.reply_bytes = limits.MESSAGE_BYTES_MAX
        """How large the reply may be."""
        self.message: Any = None
        self.correlation: object = None
        """The session's id as the model's control takes it, if it has one."""
        # For a handler's context:
        self.session: str | None = None
        self.tenant = ""
        self.key = ""
        self.alarm: str | None = None
        """The name of the alarm whose step it is."""
        self.on_begin: Callable[[], None] | None = None
        """Called on the loop where a handler's step of it has begun."""
        # For its own calls of other functions:
        self.session_key = ""
        """The session's name in the store; '' where there is none."""
        self.identify: Callable[[], tuple[CallKey, bytes]] | None = None
        """Its own key, and where it has no session the digest of what it asks. May raise InvalidArgument, Unavailable."""
        self.path: Path = ()
        """The functions whose steps wait for it."""
        self.call_key = ""
        """The gateway's name for the call, the same each time that it is sent."""

    @property
    def gone(self) -> bool:
        return self.call is not None and self.call.gone


@dataclass(frozen=True, slots=True)
class _Plan:
    """How to read a tensor of this name, datatype and shape, all of which were found good."""

    datatype: str
    dtype: np.dtype[Any]
    size: int
    """Of its raw contents in bytes, where the bytes need no look of their own; else -1."""
    rows: int | None
    """Of the batch; 0 also where there is no element; None: not batched."""


class Decoder:
    """Decodes requests for one function, called by any of `names`."""

    def __init__(self, signature: Signature, names: tuple[str, ...]) -> None:
        self._signature = signature
        self._names = (*names, "")
        self._plans: dict[tuple[str, str, tuple[int, ...]], _Plan] = {}
        self._specs = signature.by_name
        self._required = frozenset(tensor.name for tensor in signature.inputs if not tensor.optional)
        self._all = tuple(range(len(signature.outputs)))
        self._indices = {tensor.name: index for index, tensor in enumerate(signature.outputs)}
        self._states = frozenset(state.input for state in signature.states)
        self._controls = frozenset(control.name for control in signature.controls)
        self._uniform = all(
            t.ranked and t.axis == 0 and not t.optional and -1 not in t.shape[1:] and t.datatype != "BYTES" for t in signature.inputs
        )
        """Every two calls may be joined, whatever they carry."""

    def decode(self, data: bytes) -> Request:
        wire.check(data)
        try:
            message = inference_pb2.ModelInferRequest.FromString(data)
        except DecodeError as error:
            raise InvalidArgument(f"message: not a ModelInferRequest: {error}") from None
        request = Request()
        request.message = message
        request.id = message.id
        if message.model_name not in self._names and not self._means(message.model_name):
            raise InvalidArgument(f"model_name: {message.model_name!r} found, this function is {self._names[0]!r}")
        if message.model_version not in ("", "1"):
            raise InvalidArgument(f"model_version: {message.model_version!r} found, '' and '1' are allowed")
        callkeys.reserved(message.parameters)
        self._inputs(request, message)
        request.outputs = self._outputs(message) if message.outputs else self._all
        return request

    def _means(self, model: str) -> bool:
        """Whether the gateway would lead `model` here."""
        namespace, name = modelnames.parse(model) or ("", "")
        return name != "" and (f"{namespace}/{name}" if namespace else name) in self._names

    def _inputs(self, request: Request, message: Any) -> None:
        raws = message.raw_input_contents
        tensors = message.inputs
        if raws and len(raws) != len(tensors):
            raise InvalidArgument(f"raw_input_contents: {len(raws)} entries found, one for each of the {len(tensors)} inputs is expected")
        inputs = request.inputs
        plans = self._plans
        rows: int | None = None
        alone = not self._signature.max_batch
        for index, tensor in enumerate(tensors):
            name = tensor.name
            shape = tuple(tensor.shape)
            plan = plans.get((name, tensor.datatype, shape))
            if plan is None:
                plan = self._plan(name, tensor.datatype, shape)
            if name in inputs:
                raise InvalidArgument(f"inputs: {name!r} is given twice")
            if tensor.parameters and "shared_memory_region" in tensor.parameters:
                raise InvalidArgument(f"inputs[{name!r}].parameters: shared memory is not supported")
            if not raws:
                inputs[name] = decode_contents(plan.datatype, shape, tensor.contents, name)
            elif tensor.HasField("contents") and tensor.contents.ByteSize():
                raise InvalidArgument(f"inputs[{name!r}].contents: typed contents beside raw_input_contents; a request uses one of the two")
            elif len(raws[index]) == plan.size:
                inputs[name] = np.ndarray(shape, plan.dtype, raws[index])
            else:
                inputs[name] = decode_raw(plan.datatype, shape, raws[index], name)
            if plan.rows is not None:
                alone = alone or not plan.rows or (rows is not None and rows != plan.rows)
                rows = max(rows or 0, plan.rows)
        if len(inputs) != len(self._specs):
            missing = self._required - inputs.keys()
            if missing:
                raise InvalidArgument(f"inputs: {', '.join(repr(name) for name in sorted(missing))} missing")
        if len(inputs) != len(self._required):
            alone = True  # with an input that may be left out, and was in the experiment
        if rows is not None and rows > (1 if self._states else self._signature.max_batch):
            alone = True
        request.rows = rows or 1
        request.alone = alone
        if not (alone or self._uniform):
            request.group = self._group(inputs)

    def _plan(self, name: str, datatype: str, shape: tuple[int, ...]) -> "_Plan":
        """Checks what a tensor says of itself. The same is said by most calls: what passed is kept."""
        spec = self._specs.get(name)
        if spec is None:
            raise InvalidArgument(self._unknown(name))
        if datatype != spec.datatype:
            raise InvalidArgument(f"inputs[{name!r}].datatype: {datatype!r} found, {spec.datatype} is expected")
        check_shape(spec, shape)
        kind = DATATYPES[datatype]
        if not kind.itemsize and math.prod(shape) > limits.MESSAGE_ELEMENTS:
            raise ResourceExhausted(
                f"inputs[{name!r}]: {math.prod(shape)} elements of BYTES found, up to {limits.MESSAGE_ELEMENTS} are allowed"
            )
        # A BOOL's bytes and the elements of BYTES must be looked at one by one.
        size = math.prod(shape) * kind.itemsize if kind.itemsize and datatype != "BOOL" else -1
        # An input without a declared shape need not have the axis.
        rows = None if spec.axis is None else shape[spec.axis] if math.prod(shape) and spec.axis < len(shape) else 0
        plan = _Plan(datatype, kind.dtype, size, rows)
        if len(self._plans) >= _PLANS:
            self._plans.clear()
        self._plans[name, datatype, shape] = plan
        return plan

    def _group(self, inputs: dict[str, np.ndarray]) -> tuple[Any, ...]:
        """Which inputs are there, their shapes beyond the batch, and the whole value of those that are not batched."""
        parts: list[Any] = []
        for spec in self._signature.inputs:
            array = inputs.get(spec.name)
            if array is None:
                parts.append(None)
            elif spec.axis is not None:
                parts.append(array.shape[: spec.axis] + array.shape[spec.axis + 1 :])
            else:
                parts.append((array.shape, encode_raw(array, spec.datatype)))
        return tuple(parts)

    def _outputs(self, message: Any) -> tuple[int, ...]:
        wanted: list[int] = []
        for output in message.outputs:
            index = self._indices.get(output.name)
            if index is None:
                raise InvalidArgument(f"outputs: {output.name!r} is not an output; allowed are {', '.join(self._indices)}")
            if index in wanted:
                raise InvalidArgument(f"outputs: {output.name!r} is asked for twice")
            for parameter in ("classification", "shared_memory_region"):
                if parameter in output.parameters:
                    raise InvalidArgument(f"outputs[{output.name!r}].parameters: {parameter} is not supported")
            wanted.append(index)
        return tuple(wanted)

    def _unknown(self, name: str) -> str:
        allowed = ", ".join(self._specs) or "none"
        if name in self._states:
            return f"inputs: {name!r} is a state of the session, which a caller does not send; allowed are {allowed}"
        if name in self._controls:
            return f"inputs: {name!r} is a sequence control, which a caller does not send; allowed are {allowed}"
        return f"inputs: {name!r} is not an input; allowed are {allowed}"


def check_shape(spec: TensorSpec, shape: tuple[int, ...]) -> None:
    declared = spec.shape if spec.ranked else (-1,) * len(shape)
    if len(shape) != len(declared):
        raise InvalidArgument(
            f"inputs[{spec.name!r}].shape: {shape_text(shape)} found, rank {len(declared)} is expected: {shape_text(declared)}"
        )
    for size, allowed in zip(shape, declared, strict=True):
        if size < 0 or (allowed != -1 and size != allowed):
            raise InvalidArgument(f"inputs[{spec.name!r}].shape: {shape_text(shape)} found, {shape_text(declared)} is expected")
    if math.prod(shape) * (DATATYPES[spec.datatype].itemsize or 4) > TENSOR_BYTES_MAX:
        raise InvalidArgument(f"inputs[{spec.name!r}].shape: {shape_text(shape)} found, which is more than {TENSOR_BYTES_MAX} bytes")


class Digester:
    """Digests of requests to one function: of what a call asks for, not of how it is written (rule *same-request*).

    Inputs by name with datatype, shape and bytes, parameters sorted, the wanted outputs; never `id`, the call's own key, compression, wire
    order, or whether contents were typed or raw. Every part is preceded by its length, so that no two different requests are written alike.
    """

    def __init__(self, function: str, signature: Signature) -> None:
        self._base = hashlib.blake2b(_part(function.encode()), digest_size=DIGEST_BYTES)
        self._datatypes = {tensor.name: tensor.datatype for tensor in signature.inputs}
        self._heads: dict[tuple[str, tuple[int, ...]], bytes] = {}

    def digest(self, request: Request) -> bytes:
        message = request.message
        hasher = self._base.copy()
        inputs = request.inputs
        for name in inputs if len(inputs) == 1 else sorted(inputs):
            array = inputs[name]
            datatype = self._datatypes[name]
            hasher.update(self._heads.get((name, array.shape)) or self._head(name, datatype, array.shape))
            # Fixed sizes follow from datatype and shape; the elements of BYTES carry their lengths.
            hasher.update(encode_raw(array, datatype) if datatype == "BYTES" else array.data)
        parts = [b"parameters"]
        _parameters(parts, message.parameters)
        for tensor in message.inputs if len(inputs) == 1 else sorted(message.inputs, key=lambda t: t.name):
            if tensor.parameters:
                parts.append(_part(tensor.name.encode()))
                _parameters(parts, tensor.parameters)
        parts.append(b"outputs")
        parts += [_part(output.name.encode()) for output in message.outputs]
        hasher.update(b"".join(parts))
        return hasher.digest()

    def _head(self, name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
        if len(self._heads) >= _PLANS:
            self._heads.clear()
        sizes = struct.pack(f"<{len(shape)}q", *shape)
        head = self._heads[name, shape] = b"input" + _part(name.encode()) + _part(datatype.encode()) + _part(sizes)
        return head


def _parameters(parts: list[bytes], parameters: Any) -> None:
    for name in sorted(parameters):
        if name == callkeys.PARAMETER:
            continue  # it names the call; metadata may do that instead
        parts += (_part(name.encode()), _part(parameters[name].SerializeToString(deterministic=True)))


def _part(data: bytes) -> bytes:
    return _length.pack(len(data)) + data
