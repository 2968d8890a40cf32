"""How far arrays are from each other, as the experiment and the trials of forms count it."""

import numpy as np
from dormouse_core import limits
from dormouse_core.tensors import bf16_to_fp32


def difference(alone: np.ndarray, part: np.ndarray, datatype: str, floor: float = 0.0) -> float:
    """How far `part` is from `alone`, relative to the largest finite magnitude in `alone`, or `floor` if that is more; 0: equal.

    Infinity: one has a number where the other has none, or elements that are no floating-point numbers differ at all.
    """
    if same(alone, part):
        return 0.0
    if not rounds(datatype):
        return np.inf
    a, b = (wide(array, datatype) for array in (alone, part))
    numbers = np.isfinite(a)
    if not np.array_equal(numbers, np.isfinite(b)) or not np.array_equal(a[~numbers], b[~numbers], equal_nan=True):
        return np.inf
    off = float(np.max(np.abs(a[numbers] - b[numbers]), initial=0.0))
    largest = max(float(np.max(np.abs(a[numbers]), initial=0.0)), floor)
    if not off:
        return 0.0
    return off / largest if largest else np.inf


def magnitude(array: np.ndarray, datatype: str) -> float:
    """The largest finite one; 0 where nothing is rounded."""
    if not rounds(datatype):
        return 0.0
    numbers = wide(array, datatype)
    return float(np.max(np.abs(numbers[np.isfinite(numbers)]), initial=0.0))


def rounds(datatype: str) -> bool:
    return datatype in limits.BATCHING_TOLERANCES


def wide(array: np.ndarray, datatype: str) -> np.ndarray:
    return (bf16_to_fp32(array) if datatype == "BF16" else array).astype(np.float64)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype == b.dtype != object and a.shape == b.shape and a.tobytes() == b.tobytes():
        return True  # nearly always, and many times faster
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f" and b.dtype.kind == "f"))


def apart(a: np.ndarray, b: np.ndarray, datatype: str, scale: np.ndarray | None = None) -> float:
    """How far their elements are from each other, each relative to itself, or to its place in `scale` (as `wide` gives it)."""
    if same(a, b):
        return 0.0
    if not rounds(datatype):
        return np.inf
    a, b = wide(a, datatype), wide(b, datatype)
    numbers = np.isfinite(a)
    if not np.array_equal(numbers, np.isfinite(b)) or not np.array_equal(a[~numbers], b[~numbers], equal_nan=True):
        return np.inf
    off = np.where(numbers, np.abs(np.where(numbers, a, 0) - np.where(numbers, b, 0)), 0)
    if not off.any():
        return 0.0
    sizes = np.broadcast_to(np.maximum(np.abs(a), np.abs(b)) if scale is None else scale, off.shape)
    where = off > 0
    with np.errstate(divide="ignore"):
        return float(np.max(off[where] / sizes[where]))
