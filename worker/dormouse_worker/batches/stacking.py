"""Joining calls into one run of a model, and cutting its outputs apart again.

What may be joined is decided by `Request.group` and, in a stateful function, by the states' shapes. Inputs without a batch dimension are
equal within a group, so the first call's stands for all.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from dormouse_core.errors import InvalidArgument

from dormouse_worker.batches.work import States, Work
from dormouse_worker.models.signatures import Signature

ALONE = ("alone",)
"""The group of works of which each runs by itself."""


class UnevenOutput(Exception):
    """An output does not have as many rows as went in: the model does not batch after all."""


class Stacker:
    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        self._axes = {tensor.name: tensor.axis for tensor in signature.inputs if tensor.axis is not None}
        self._places = tuple((tensor.name, tensor.axis or 0) for tensor in signature.outputs)
        self._variable = tuple(s.input for s in signature.states if any(d == -1 for axis, d in enumerate(s.shape) if axis != s.batch_axis))
        self.batches = signature.max_batch > 0

    def group(self, work: Work) -> tuple[Any, ...]:
        """Equal for works that fit into one run; ALONE: no other does."""
        if work.request.alone:
            return ALONE
        if self._variable:
            return (work.request.group, *(work.states[name].shape for name in self._variable))
        return work.request.group

    def stack(self, works: Sequence[Work]) -> dict[str, np.ndarray]:
        first = works[0]
        if len(works) == 1:
            return {**first.request.inputs, **first.states, **self._controls(works)}
        feeds = self._controls(works)
        for name, array in first.request.inputs.items():
            feeds[name] = np.concatenate([w.request.inputs[name] for w in works], axis=self._axes[name]) if name in self._axes else array
        for state in self._signature.states:
            feeds[state.input] = np.concatenate([w.states[state.input] for w in works], axis=state.batch_axis)
        return feeds

    def _controls(self, works: Sequence[Work]) -> dict[str, np.ndarray]:
        return {
            control.name: control.values([work.request.correlation for work in works]) if control.kind == "id" else control.flags(works)
            for control in self._signature.controls
        }

    def check(self, works: Sequence[Work], outputs: Sequence[np.ndarray]) -> None:
        """UnevenOutput: the rows of these outputs are not the works' rows."""
        total = sum([work.request.rows for work in works])
        for array, (name, axis) in zip(outputs, self._places, strict=False):
            if array.shape[axis : axis + 1] != (total,):
                raise UnevenOutput(f"output {name!r} has shape {list(array.shape)} for a batch of {total} rows")

    def states(self, works: Sequence[Work], outputs: Sequence[np.ndarray]) -> list[States]:
        """Each work's next states, from the outputs that follow the public ones. Copies: a view would keep the whole batch's array alive
        for as long as the session lives."""
        specs = self._signature.states
        if not specs:
            return [{} for _ in works]
        if len(works) == 1:
            self._check_alone(works[0], outputs)
            return [{s.input: array for s, array in zip(specs, outputs, strict=True)}]
        cut: list[States] = [{} for _ in works]
        for spec, array in zip(specs, outputs, strict=True):
            axis = spec.batch_axis or 0
            if array.shape[axis] != len(works):
                raise UnevenOutput(f"state {spec.output!r} has shape {list(array.shape)} for {len(works)} sessions")
            before = (slice(None),) * axis
            for index, own in enumerate(cut):
                own[spec.input] = array[(*before, slice(index, index + 1))].copy()
        return cut

    def _check_alone(self, work: Work, outputs: Sequence[np.ndarray]) -> None:
        """InvalidArgument: the step's rows made the states of several sessions out of one's."""
        for spec, array in zip(self._signature.states, outputs, strict=True):
            axis = spec.batch_axis
            if work.request.rows > 1 and axis is not None and array.shape[axis : axis + 1] not in ((), (1,)):
                raise InvalidArgument(
                    f"inputs: {work.request.rows} rows found; of them the model makes {array.shape[axis]} states {spec.output!r}, "
                    "a session has 1"
                )
