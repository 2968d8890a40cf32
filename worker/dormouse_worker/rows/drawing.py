"""Random calls of a model for the experiment about its rows (`independence`).

Rows that depend on each other need not do so for every input: a threshold is passed by one row and not by another, a range is set by the
largest one. So each *manner* draws rows that differ from one another in another way. A model refuses what is no valid input for it (an id
beyond its vocabulary, a length that its windows do not divide): then smaller ids, other sizes and zeros as states are tried.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from dormouse_core.tensors import DATATYPES, bf16_from_fp32

MANNERS = ("normal", "unit", "magnitudes", "signs", "peaks", "special")
"""normal: around 0. unit: from 0 to 1. magnitudes: each row of another one, 0 among them. signs: a row is positive or negative throughout.
peaks: one element of some rows is far above the rest. special: rows with a NaN or infinity in them."""
QUIET = "quiet"
"""Beside them: near 0, where a recurrent model goes its own way rather than follow its inputs."""
SCALES = (1.0, 1e3, 1e-3, 0.0, 30.0, 0.2)
PEAKS = (0.0, 50.0, -50.0, 1e4)
SIZES = (5, 16, 64, 512, 256, 1, 160, 2, 224)
"""For dimensions that vary, in the order in which they are tried: usual windows and pictures among them."""
RANGES = ((-6, 120), (0, 120), (0, 12), (0, 2), (0, 1))
"""Of integers, likewise: ids, most of all."""
SCALARS = (0, 1, 2, 16_000, 8_000)
"""And of one integer that all rows share: a switch, a rate."""
REALS = (0, 1, -1, 0.5, 2, 10, -10, 100, -100, 255, 1e3, -1e3, 1e6, -1e6, 1e30, -1e30, 1e-30, math.nan, math.inf, -math.inf)
WHOLES = (0, 1, 2, -1, -100, 100, 127, 128, 255, -128, 1000, 32_000, 32_767, -32_768, 65_535)
"""What means something to models: padding, marks, the ends of a range. No larger ones: they may be sizes."""
TEXTS = (b"a", b"7", b"-3.5", b"", "\u00e9t\u00e9".encode(), b"some longer text", b"0")


@dataclass(frozen=True, slots=True)
class Port:
    """An input. `shape`: sizes, the name of one that varies, or None. `axis`: the batch's; None: all rows share it."""

    name: str
    datatype: str
    shape: tuple[int | str | None, ...]
    axis: int | None
    state: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """What is tried for a model that is not known: an index into each table. `still`: states are zeros. `scalar`: the one integer
    that all rows share; None: any of SCALARS."""

    size: int = SIZES[0]
    low: int = RANGES[0][0]
    high: int = RANGES[0][1]
    still: bool = False
    scalar: int | None = None


def choices(ports: Sequence[Port]) -> list[Choice]:
    """What is worth trying, the best first."""
    whole = any(DATATYPES[port.datatype].dtype.kind in "iu" and port.datatype != "BF16" for port in ports)
    states = any(port.state for port in ports)
    return [
        Choice(size, low, high, still)
        for size in (SIZES if _varies(ports) else SIZES[:1])
        for still in ((False, True) if states else (False,))
        for low, high in (RANGES if whole else RANGES[:1])
    ]


def others(ports: Sequence[Port], tried: Choice) -> list[Choice]:
    """What is tried beside the choice that the model took: sizes and switches, by which it may go another way."""
    found = [replace(tried, size=size) for size in (3, 24)] if _varies(ports) else []
    if any(_is_scalar(port) for port in ports):
        found += [replace(tried, size=size, scalar=scalar) for scalar in SCALARS for size in (SIZES if _varies(ports) else (tried.size,))]
    return found


def _varies(ports: Sequence[Port]) -> bool:
    return any(not isinstance(size, int) for port in ports for axis, size in enumerate(port.shape) if axis != port.axis)


def _is_scalar(port: Port) -> bool:
    return port.axis is None and not port.state and not port.shape and DATATYPES[port.datatype].dtype.kind in "iu"


def draw(ports: Sequence[Port], rows: int, first: int, manner: str, choice: Choice, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A call's inputs of so many rows. `first`: how many rows were drawn before, so that the next ones differ in kind too."""
    feeds = {}
    for port in ports:
        shape = [rows if axis == port.axis else _size(size, choice) for axis, size in enumerate(port.shape)]
        if port.state and choice.still:
            feeds[port.name] = _cast(np.zeros(shape), port.datatype)
        else:
            feeds[port.name] = np.ascontiguousarray(_values(port, shape, first, manner, choice, rng)).reshape(shape)
    return feeds


def strange(ports: Sequence[Port], feeds: Mapping[str, np.ndarray], rng: np.random.Generator) -> Iterator[dict[str, np.ndarray]]:
    """Calls like `feeds`, of which all inputs of one kind have the same value throughout, or in one element."""
    kinds: dict[str, tuple[Any, ...]] = {"f": REALS, "i": WHOLES, "b": (False, True), "O": (*TEXTS, b"[PAD]", 1000 * b"x")}
    for kind, values in kinds.items():
        mine = [port for port in ports if port.axis is not None and feeds[port.name].size and _kind(port.datatype) == kind]
        for value in values if mine else ():
            whole, one = dict(feeds), dict(feeds)
            for port in mine:
                array = feeds[port.name]
                if kind != "i" or np.iinfo(array.dtype).min <= value <= np.iinfo(array.dtype).max:
                    with np.errstate(all="ignore"):
                        item = value if kind == "O" else _cast(np.full(1, value), port.datatype)[0]
                    whole[port.name] = np.full(array.shape, item, array.dtype)
                    one[port.name] = array.copy()
                    one[port.name].reshape(-1)[rng.integers(array.size)] = item
            yield whole
            yield one


def _kind(datatype: str) -> str:
    return "f" if datatype == "BF16" else "O" if datatype == "BYTES" else DATATYPES[datatype].dtype.kind.replace("u", "i")


def join(ports: Sequence[Port], calls: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The rows of several calls as one; what they share is the first's."""
    return {
        port.name: calls[0][port.name] if port.axis is None else np.concatenate([call[port.name] for call in calls], axis=port.axis)
        for port in ports
    }


def _size(size: int | str | None, choice: Choice) -> int:
    return max(size, 1) if isinstance(size, int) else choice.size


def _values(port: Port, shape: list[int], first: int, manner: str, choice: Choice, rng: np.random.Generator) -> np.ndarray:
    kind = DATATYPES[port.datatype]
    if port.datatype == "BYTES":
        texts = np.empty(len(TEXTS), object)
        texts[:] = TEXTS
        drawn: np.ndarray = texts[rng.integers(len(TEXTS), size=math.prod(shape))]
        return drawn.reshape(shape)
    count = shape[port.axis] if port.axis is not None else 1
    column = [1] * len(shape)
    if port.axis is not None:
        column[port.axis] = count
    numbers = np.arange(first, first + count)
    if port.datatype == "BOOL":
        alternating = (numbers % 2).reshape(column) * np.ones(shape)
        return np.asarray(alternating if manner == "signs" else rng.integers(2, size=shape), bool)
    if kind.dtype.kind in "iu" and port.datatype != "BF16":
        if _is_scalar(port):
            one = choice.scalar if choice.scalar is not None else rng.choice(SCALARS[: max(1, min(len(SCALARS), choice.high))])
            return np.array(one).astype(kind.dtype)
        return _whole(shape, column, numbers, manner, choice, kind.dtype, rng)
    return _cast(_real(shape, column, numbers, manner, rng), port.datatype)


def _whole(
    shape: list[int], column: list[int], numbers: np.ndarray, manner: str, choice: Choice, dtype: Any, rng: np.random.Generator
) -> np.ndarray:
    low = max(choice.low, 0) if dtype.kind == "u" else choice.low
    high = min(choice.high, np.iinfo(dtype).max)
    found = rng.integers(low, high, size=shape)
    if manner == "magnitudes":
        found = found // np.array([1, 4, 16, 1 << 30])[numbers % 4].reshape(column)
        found = np.where(found < 0, max(low, -1), found)
    elif manner == "signs":
        found = np.where((numbers % 2 > 0).reshape(column), found, np.minimum(found, max(low, 0)))
    elif manner == "peaks":
        found = np.where((numbers % 3 == 1).reshape(column), high - 1, found)
    cast: np.ndarray = found.astype(dtype)
    return cast


def _real(shape: list[int], column: list[int], numbers: np.ndarray, manner: str, rng: np.random.Generator) -> np.ndarray:
    found = rng.standard_normal(shape)
    if manner == "unit":
        return rng.random(shape)
    if manner == QUIET:
        return 0.1 * found
    if manner == "magnitudes":
        scaled: np.ndarray = found * np.array(SCALES)[numbers % len(SCALES)].reshape(column)
        return scaled
    if manner == "signs":
        return np.abs(found) * np.where(numbers % 2, 3.0, -3.0).reshape(column)
    if manner in ("peaks", "special") and found.size:
        peaks = {number: PEAKS[number % 4] for number in numbers} if manner == "peaks" else {0: np.nan, 5: np.inf}
        axis = next((axis for axis, size in enumerate(column) if size != 1), 0)
        rows = np.moveaxis(found, axis, 0).reshape(len(numbers), -1) if found.ndim else found.reshape(1, 1)
        for row, number in zip(rows, numbers, strict=True):
            row[rng.integers(row.size)] += peaks.get(number, 0.0)
        whole = rows.reshape(np.moveaxis(found, axis, 0).shape) if found.ndim else rows.reshape(())
        return np.moveaxis(whole, 0, axis) if found.ndim else whole
    return found


def _cast(values: np.ndarray, datatype: str) -> np.ndarray:
    if datatype == "BF16":
        return bf16_from_fp32(values.astype(np.float32))
    if datatype == "BYTES":
        return np.full(values.shape, b"", object)
    return np.asarray(values).astype(DATATYPES[datatype].dtype)
