"""What a function takes and gives: tensors' names, datatypes and shapes, as the runtime found them in the model or the handler.

Everything else asks here: the codec (what is allowed), the batcher (what may be joined), metadata calls, the sessions (which states).
State tensors are apart: callers neither send nor get them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from dormouse_proto import state_pb2

from dormouse_worker.controls import ControlSpec


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor as declared. -1: a dimension that varies."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False
    batched: bool = False
    """The first dimension is the batch: rows of several calls may be joined along it."""


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
    """Rows that may run together; 0: calls run one by one."""
    controls: tuple[ControlSpec, ...] = ()
    """Inputs that the worker fills: callers do not send them."""
    decoupled: bool = False
    """A call has any number of responses: ModelStreamInfer alone."""
    by_name: dict[str, TensorSpec] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.by_name.update((tensor.name, tensor) for tensor in self.inputs)

    def metadata(self, state_version: str) -> state_pb2.ModelMetadata:
        """What is kept in the store, and answers metadata calls while the function sleeps."""
        return state_pb2.ModelMetadata(
            platform=self.platform,
            inputs=_messages(self.inputs),
            outputs=_messages(self.outputs),
            states=[state_pb2.TensorMetadata(name=s.input, datatype=s.datatype, shape=s.shape) for s in self.states],
            max_batch_size=self.max_batch,
            state_version=state_version,
            decoupled=self.decoupled,
        )


def _messages(tensors: Sequence[TensorSpec]) -> list[state_pb2.TensorMetadata]:
    return [state_pb2.TensorMetadata(name=t.name, datatype=t.datatype, shape=t.shape, optional=t.optional) for t in tensors]


def shape_text(shape: Sequence[int]) -> str:
    return "[" + ",".join(str(size) for size in shape) + "]"
