"""A ModelInferRequest from arrays, and arrays from its answer: what a client sends, and a step that calls another function."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from dormouse_proto import inference_pb2
from numpy.typing import NDArray

from dormouse_core.tensors import DATATYPES, decode_raw, encode_raw

_BY_DTYPE = {d.dtype: name for name, d in DATATYPES.items() if name not in ("BF16", "BYTES")}


@dataclass(frozen=True, slots=True)
class Input:
    """A tensor whose datatype NumPy's dtype does not say: BF16 (uint16 bit patterns) and BYTES."""

    array: NDArray[Any]
    datatype: str


def request(function: str, inputs: Mapping[str, Any], outputs: Sequence[str] = ()) -> inference_pb2.ModelInferRequest:
    """`outputs`: the ones that are wanted; none: all. ValueError: an input that no datatype of the protocol holds."""
    made = inference_pb2.ModelInferRequest(model_name=function)
    for name, given in inputs.items():
        array, datatype = (given.array, given.datatype) if isinstance(given, Input) else (np.asarray(given), "")
        datatype = datatype or _datatype(name, array)
        made.inputs.add(name=name, datatype=datatype, shape=array.shape)
        made.raw_input_contents.append(encode_raw(array, datatype))
    for name in outputs:
        made.outputs.add(name=name)
    return made


def outputs(response: inference_pb2.ModelInferResponse) -> dict[str, NDArray[Any]]:
    return {
        out.name: decode_raw(out.datatype, list(out.shape), raw, out.name)
        for out, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }


def _datatype(name: str, array: NDArray[Any]) -> str:
    if array.dtype.kind in "OSU":
        return "BYTES"
    try:
        return _BY_DTYPE[array.dtype.newbyteorder("<")]
    except KeyError:
        raise ValueError(f"input {name}: no datatype of the protocol holds NumPy's {array.dtype}") from None
