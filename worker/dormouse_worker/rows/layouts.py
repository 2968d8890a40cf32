"""On which axis of a model's tensors the rows of a call may lie: what is proposed to the experiment, the likeliest first.

No model says which dimension is its batch. The first is, by habit, where every output leads with one that varies; in a sequence-first model
it is time, and the batch is the second, under a name that the outputs share. A manifest may say it (`batching.axes`), and a state's axis is
always said (`batchAxis`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dormouse_core.limits import TENSOR_DIMENSIONS

from dormouse_worker.models.refusals import ModelInvalid

Dims = tuple[int | str | None, ...]
MOST = 4
"""Layouts that are tried; each may take a part of the experiment's time."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output of a model; None in `dims`: a size without a name. `dims` None: no shape is declared."""

    name: str
    dims: Dims | None


@dataclass(frozen=True, slots=True)
class Layout:
    """Axes by tensors' names. Of an output that is not named here the axis is found by experiment."""

    inputs: Mapping[str, int]
    outputs: Mapping[str, int]


def layouts(inputs: Sequence[Tensor], outputs: Sequence[Tensor], states: Sequence[int | str | None]) -> list[Layout]:
    """`inputs`, `outputs`: public ones that are always there. `states`: the names of the states' batch dimensions. Empty: there is no
    batch axis."""
    ranked = [tensor for tensor in outputs if tensor.dims is not None]
    if any(all(isinstance(size, int) for size in tensor.dims or ()) for tensor in ranked):
        return []  # an output of one size, whatever comes in
    found: list[Layout] = []
    names = [str(size) for tensor in ranked for size in tensor.dims or () if isinstance(size, str) and size]
    said = {str(size) for size in states if isinstance(size, str) and size}
    named = [name for name in dict.fromkeys(names) if all((tensor.dims or ()).count(name) == 1 for tensor in ranked)]
    for name in sorted(named, key=lambda name: (name not in said, _place(ranked[0], name))):
        _add(found, _named(inputs, ranked, name))
    if all(_leads(tensor) for tensor in ranked):
        symbols = {(tensor.dims or ("",))[0] or "" for tensor in ranked}
        if len(symbols) <= 1:
            symbol = symbols.pop() if symbols else ""
            # Exporters name the batch on one side only now and then.
            _add(found, _leading(inputs, ranked, {str(symbol), ""} if symbol else None))
        _add(found, _leading(inputs, ranked, None))
    if not inputs and states:
        found.append(Layout({}, {}))  # only the worker's own inputs
    return found[:MOST]


def from_manifest(axes: Mapping[str, int], inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Layout:
    """ModelInvalid: `spec.batching.axes` names what the model does not have, or an axis that cannot be its batch."""
    known = {tensor.name: tensor for tensor in (*inputs, *outputs)}
    for name, axis in axes.items():
        where = f"spec.batching.axes[{name!r}]"
        tensor = known.get(name)
        if tensor is None:
            raise ModelInvalid(f"{where}: the model has no public input or output of this name; it has {', '.join(known)}")
        rank = TENSOR_DIMENSIONS if tensor.dims is None else len(tensor.dims)
        if axis >= rank:
            raise ModelInvalid(f"{where}: {axis} found, the model's {name!r} has {rank} dimensions")
        if tensor.dims is not None and isinstance(tensor.dims[axis], int):
            raise ModelInvalid(f"{where}: {axis} found, where the model's {name!r} has the fixed size {tensor.dims[axis]}")
    public = {tensor.name for tensor in inputs}
    return Layout({n: a for n, a in axes.items() if n in public}, {n: a for n, a in axes.items() if n not in public})


def assumed(layout: Layout, outputs: Sequence[Tensor]) -> dict[str, int]:
    """The axes of outputs that no experiment found: where they are said, else the inputs' where it can be that, else the first."""
    axes = list(layout.inputs.values())
    usual = max(set(axes), key=axes.count) if axes else 0
    found = {}
    for tensor in outputs:
        fits = tensor.dims is None or (usual < len(tensor.dims) and not isinstance(tensor.dims[usual], int))
        found[tensor.name] = layout.outputs.get(tensor.name, usual if fits else 0)
    return found


def _add(found: list[Layout], layout: Layout) -> None:
    if layout.inputs and all(layout.inputs != known.inputs for known in found):
        found.append(layout)


def _place(tensor: Tensor, name: str) -> int:
    return (tensor.dims or ()).index(name)


def _named(inputs: Sequence[Tensor], outputs: Sequence[Tensor], name: str) -> Layout:
    def axes(tensors: Sequence[Tensor]) -> dict[str, int]:
        return {tensor.name: tensor.dims.index(name) for tensor in tensors if tensor.dims is not None and tensor.dims.count(name) == 1}

    return Layout(axes(inputs), axes(outputs))


def _leads(tensor: Tensor) -> bool:
    return bool(tensor.dims) and not isinstance((tensor.dims or (1,))[0], int)


def _leading(inputs: Sequence[Tensor], outputs: Sequence[Tensor], names: set[str] | None) -> Layout:
    """`names`: of the first dimension; None: any."""
    fitting = [tensor for tensor in inputs if _leads(tensor) and (names is None or ((tensor.dims or ("",))[0] or "") in names)]
    return Layout({tensor.name: 0 for tensor in fitting}, {tensor.name: 0 for tensor in outputs if tensor.dims is not None})
