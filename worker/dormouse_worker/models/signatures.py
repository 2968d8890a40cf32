"""What a function takes and gives: tensors' names, datatypes and shapes, as the runtime found them in the model or the handler.

Everything else asks here: the codec (what is allowed), the batcher (what may be joined), metadata calls, the sessions (which states).
State tensors are apart: callers neither send nor get them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dormouse_proto import state_pb2

from dormouse_worker.models.controls import ControlSpec


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor as declared. -1: a dimension that varies."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False
    axis: int | None = None
    """The dimension along which rows of several calls may be joined; None: there is none."""
    ranked: bool = True
    """False: the model declares no shape, and takes any. `shape` is () then."""

    @property
    def leads(self) -> bool:
        """The first dimension is the batch if any is, as Triton's clients know it."""
        return self.axis == 0 or (self.axis is None and self.shape[:1] != (-1,))


@dataclass(frozen=True, slots=True)
class StateSpec:
    """A tensor that stays with a session: the model reads it as `input` and returns the next one as `output`."""

    input: str
    output: str
    datatype: str
    shape: tuple[int, ...]
    batch_axis: int | None = None


@dataclass(frozen=True, slots=True)
class Signature:
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[StateSpec, ...] = ()
    max_batch: int = 0
    """Rows of several calls that may run together; 0: calls run one by one. One call may have more."""
    controls: tuple[ControlSpec, ...] = ()
    """Inputs that the worker fills: callers do not send them."""
    decoupled: bool = False
    """A call has any number of responses: ModelStreamInfer alone."""
    batching: state_pb2.Batching | None = None
    """Why `max_batch` is what it is; None: it is not asked (a handler)."""
    by_name: dict[str, TensorSpec] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.by_name.update((tensor.name, tensor) for tensor in self.inputs)

    def joined(self, batching: state_pb2.Batching) -> "Signature":
        """The same with the axes along which rows may be joined."""
        axes = dict(batching.axes) if batching.rows else {}

        def placed(tensors: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
            return tuple(replace(tensor, axis=axes.get(tensor.name)) for tensor in tensors)

        return replace(self, inputs=placed(self.inputs), outputs=placed(self.outputs), max_batch=batching.rows, batching=batching)

    def metadata(self, state_version: str) -> state_pb2.ModelMetadata:
        """What is kept in the store, and answers metadata calls while the function sleeps."""
        return state_pb2.ModelMetadata(
            platform=self.platform,
            inputs=_messages(self.inputs),
            outputs=_messages(self.outputs),
            states=[state_pb2.TensorMetadata(name=s.input, datatype=s.datatype, shape=s.shape) for s in self.states],
            # Triton's clients cut their calls to it and leave the first dimension out of what they declare: 0 where rows lie elsewhere.
            max_batch_size=self.max_batch if all(tensor.leads for tensor in (*self.inputs, *self.outputs)) else 0,
            state_version=state_version,
            decoupled=self.decoupled,
            batching=self.batching,
        )


def _messages(tensors: Sequence[TensorSpec]) -> list[state_pb2.TensorMetadata]:
    return [state_pb2.TensorMetadata(name=t.name, datatype=t.datatype, shape=t.shape, optional=t.optional) for t in tensors]


def shape_text(shape: Sequence[int]) -> str:
    return "[" + ",".join(str(size) for size in shape) + "]"
