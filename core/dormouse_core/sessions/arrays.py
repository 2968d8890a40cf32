"""A session's tensors between memory (NumPy) and the record (protobuf)."""

from collections.abc import Sequence

import numpy as np
from dormouse_proto import state_pb2

from dormouse_core.errors import DataLoss, FailedPrecondition, Internal, InvalidArgument
from dormouse_core.sessions.boundary import StateInfo, States
from dormouse_core.tensors import decode_raw, encode_raw, size_of


def encode(infos: Sequence[StateInfo], states: States) -> list[state_pb2.Tensor]:
    """Internal: the model or handler returned no such state, or one of another type or shape."""
    tensors = []
    for info in infos:
        array = states.get(info.input)
        if array is None:
            raise Internal(f'state "{info.name}": the step returned none')
        shape = array.shape
        if shape != info.shape and not fits(info.shape, shape):
            raise Internal(f'state "{info.name}": shape {list(shape)} found, {list(info.shape)} is required')
        data = encode_raw(array, info.datatype, info.name)
        tensors.append(state_pb2.Tensor(name=info.input, datatype=info.datatype, shape=shape, data=data))
    return tensors


def decode(infos: Sequence[StateInfo], tensors: Sequence[state_pb2.Tensor]) -> States:
    """A state that the record lacks begins at its first value where it is declared so; one that the function does not have is left out.
    DataLoss: the tensors do not parse. FailedPrecondition: they are not this function's, though their version says so."""
    found = {tensor.name: tensor for tensor in tensors}
    states: States = {}
    for info in infos:
        tensor = found.get(info.input)
        if tensor is None and info.fills:
            states[info.input] = info.initial
            continue
        if tensor is None or tensor.datatype != info.datatype or not fits(info.shape, tensor.shape):
            wanted = f"{info.datatype} {list(info.shape)}"
            if tensor is None:
                text = f"the session's record lacks it; {wanted} is required (whenMissing: initial lets it begin at its first value)"
            else:
                text = f"{tensor.datatype} {list(tensor.shape)} found in the session's record, {wanted} is required"
            raise FailedPrecondition(f'state "{info.name}": {text}')
        try:
            states[info.input] = decode_raw(tensor.datatype, tuple(tensor.shape), tensor.data, info.name)
        except InvalidArgument as error:
            raise DataLoss(f"the session's record does not parse: {error}") from error
    return states


def unlike(infos: Sequence[StateInfo], tensors: Sequence[state_pb2.Tensor]) -> bool:
    """Whether a revision with these states, which reads these tensors, would write others: more of them, or fewer."""
    return {info.input for info in infos} != {tensor.name for tensor in tensors}


def fits(wanted: Sequence[int], shape: Sequence[int]) -> bool:
    return len(wanted) == len(shape) and all(size in (-1, found) for size, found in zip(wanted, shape, strict=True))


def bytes_of(states: States) -> int:
    return sum(array.nbytes if array.dtype != np.object_ else size_of(array, "BYTES") for array in states.values())


def fixed_bytes(infos: Sequence[StateInfo]) -> int | None:
    """What one session's tensors take, where every shape is fixed; None: not known before a step ran."""
    total = 0
    for info in infos:
        if -1 in info.shape or info.datatype == "BYTES":
            return None
        total += size_of(info.initial, info.datatype)
    return total
