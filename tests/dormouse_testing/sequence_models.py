"""ONNX models in the manner of those that Triton tests its implicit state with: INPUT and INPUT_STATE in, OUTPUT and OUTPUT_STATE out, the
sequence controls as inputs. Each says in its answer what it was told.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from dormouse_testing.models import node, write

INT32, INT64, UINT64, FLOAT = TensorProto.INT32, TensorProto.INT64, TensorProto.UINT64, TensorProto.FLOAT


def accumulate(path: Path, flag: int = INT32, corrid: int = UINT64, *, batched: bool = True, flat: bool = False) -> Path:
    """OUTPUT_STATE = START ? INPUT : INPUT_STATE + INPUT; OUTPUT = [state, start, end, ready] (INT64), ID = CORRID. The initial state is
    ignored, as in Triton's own models: whoever starts a sequence is told by START alone.

    `flag`: the type of the flags. `flat`: controls of shape [N] instead of [N, 1].
    """
    rows: list[Any] = ["batch"] if batched else []
    one: list[Any] = [*rows, 1] if not flat else (rows or [1])
    column = np.array([-1, 1] if batched else [1], np.int64)
    nodes = [
        *(node("Cast", [name], [f"{name}_raw"], to=INT64) for name in ("START", "END", "READY")),
        *(node("Reshape", [f"{name}_raw", "column"], [f"{name}_n"]) for name in ("START", "END", "READY")),
        node("Sub", ["one", "START_n"], ["going"]),
        node("Mul", ["INPUT_STATE", "going"], ["kept"]),
        node("Add", ["kept", "INPUT"], ["OUTPUT_STATE"]),
        node("Concat", ["OUTPUT_STATE", "START_n", "END_n", "READY_n"], ["OUTPUT"], axis=len(rows)),
        node("Identity", ["CORRID"], ["ID"]),
    ]
    inputs = [("INPUT", INT64, [*rows, 1]), ("INPUT_STATE", INT64, [*rows, 1])]
    inputs += [(name, flag, one) for name in ("START", "END", "READY")] + [("CORRID", corrid, one)]
    outputs = [("OUTPUT", INT64, [*rows, 4]), ("ID", corrid, one), ("OUTPUT_STATE", INT64, [*rows, 1])]
    return write(path, nodes, inputs, outputs, {"column": column, "one": np.array(1, np.int64)})


def growing(path: Path, kind: int = FLOAT) -> Path:
    """A state of [batch, 32, n, 1] that grows by what comes in along its third axis; SEEN is the shape that the step began with."""
    nodes = [
        node("Shape", ["STATE"], ["shape"]),
        node("Unsqueeze", ["shape", "zero"], ["SEEN"]),
        node("Concat", ["STATE", "INPUT"], ["STATE_NEXT"], axis=2),
    ]
    inputs = [("INPUT", kind, ["batch", 32, "more", 1]), ("STATE", kind, ["batch", 32, "past", 1])]
    outputs = [("SEEN", INT64, [1, 4]), ("STATE_NEXT", kind, ["batch", 32, "total", 1])]
    return write(path, nodes, inputs, outputs, {"zero": np.array([0], np.int64)})


def pairs(path: Path, *, length: int = INT64, channel: int = TensorProto.FLOAT16) -> Path:
    """Two caches whose names are prefixes of one another, outputs in another order than inputs: paired by sort order, they would swap.

    cache_last_channel [batch, 1, 2, 2] grows by x each step; cache_last_channel_len counts steps. y: both, as FP32.
    """
    nodes = [
        node("Cast", ["x"], ["x_channel"], to=channel),
        node("Add", ["cache_last_channel", "x_channel"], ["cache_last_channel_next"]),
        node("Add", ["cache_last_channel_len", "one"], ["cache_last_channel_len_next"]),
        node("Reshape", ["cache_last_channel_next", "flat"], ["channel_flat"]),
        node("Cast", ["channel_flat"], ["channel_y"], to=FLOAT),
        node("Cast", ["cache_last_channel_len_next"], ["length_y"], to=FLOAT),
        node("Concat", ["channel_y", "length_y"], ["y"], axis=1),
    ]
    inputs = [
        ("cache_last_channel_len", length, ["batch", 1]),
        ("x", FLOAT, ["batch", 1, 2, 2]),
        ("cache_last_channel", channel, ["batch", 1, 2, 2]),
    ]
    outputs = [
        ("y", FLOAT, ["batch", 5]),
        ("cache_last_channel_next", channel, ["batch", 1, 2, 2]),
        ("cache_last_channel_len_next", length, ["batch", 1]),
    ]
    one = np.array(1, np.int64 if length == INT64 else np.float32)
    return write(path, nodes, inputs, outputs, {"one": one, "flat": np.array([-1, 4], np.int64)})


def remembering(path: Path, kind: int, shape: Sequence[Any]) -> Path:
    """y is the state that the step found, x becomes the next one: every bit of both goes through the record."""
    nodes = [node("Identity", ["state"], ["y"]), node("Identity", ["x"], ["stateN"])]
    return write(path, nodes, [("x", kind, shape), ("state", kind, shape)], [("y", kind, shape), ("stateN", kind, shape)])
