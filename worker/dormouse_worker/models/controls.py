"""Triton's sequence controls: inputs of a model that the worker fills, so that models made for its sequence batcher run unchanged.

https://github.com/triton-inference-server/server/blob/main/docs/user_guide/architecture.md#stateful-models names them. START is 1 in the
first step of a session, whether or not the caller marked it; END is 1 in the step that the caller marked as the last; READY tells which
rows of a batch are in use, and a batch here has no others; CORRID is the session's id. A flag is FP32, INT32 or BOOL of shape [N, 1] or
[N], N being the batch, or 1 in a model that takes one session at a time.

A CORRID of numbers takes the ids that are numbers and fit; Triton reads an id as unsigned, so a negative one comes to a UINT64 as the same
64 bits. A CORRID of strings takes every id, numbers in decimal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from dormouse_core.errors import InvalidArgument
from dormouse_core.tensors import DATATYPES

FLAGS = frozenset({"FP32", "INT32", "BOOL"})
IDS = frozenset({"UINT64", "INT64", "UINT32", "INT32", "BYTES"})


class Flagged(Protocol):
    """A step, as far as its controls are concerned."""

    start: bool
    end: bool


@dataclass(frozen=True, slots=True)
class ControlSpec:
    """One control: what it tells (`start`, `end`, `ready` or `id`), and the input that takes it. `rank`: 1 for [N], 2 for [N, 1]."""

    kind: str
    name: str
    datatype: str
    rank: int

    def values(self, values: Sequence[object]) -> np.ndarray:
        """The input for rows with these values."""
        array = np.empty(len(values), DATATYPES[self.datatype].dtype)
        array[:] = values
        return array if self.rank == 1 else array.reshape(-1, 1)

    def flags(self, steps: Sequence[Flagged]) -> np.ndarray:
        """A flag's input for a batch of steps."""
        if self.kind == "ready":
            return self.values([1] * len(steps))
        return self.values([step.start if self.kind == "start" else step.end for step in steps])

    def id(self, session: int | str) -> object:
        """A session's id in this control's datatype. InvalidArgument: it has no such form."""
        if self.datatype == "BYTES":
            return str(session).encode()
        bits = DATATYPES[self.datatype].itemsize * 8
        if isinstance(session, str):
            raise InvalidArgument(f"sequence_id: {session!r} found, the model's {self.name!r} takes numbers ({self.datatype})")
        low, high = (0, 2**bits - 1) if self.datatype.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        number = session % 2**64 if self.datatype == "UINT64" else session
        if not low <= number <= high:
            raise InvalidArgument(f"sequence_id: {session} found, the model's {self.name!r} takes {low} to {high} ({self.datatype})")
        return number
