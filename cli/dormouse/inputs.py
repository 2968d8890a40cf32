"""`--input NAME=VALUE` of `dormouse call`: JSON, or ``@file.npy``, in the datatype that the function declares."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from dormouse_core.errors import InvalidArgument
from dormouse_core.tensors import DATATYPES, bf16_from_fp32

from dormouse.client import Input


def parse(text: str, declared: dict[str, str]) -> tuple[str, Input]:
    """`declared`: input name -> datatype, from the function's metadata. InvalidArgument: the value is none of its datatype."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InvalidArgument(f'--input: "{text}" found, NAME=JSON or NAME=@file.npy is allowed')
    if name not in declared:
        raise InvalidArgument(f"--input {name}: the function has no such input, it has {', '.join(declared) or 'none'}")
    datatype = declared[name]
    if value.startswith("@"):
        return name, Input(_load(name, Path(value[1:]), datatype), datatype)
    try:
        data = json.loads(value)
    except ValueError as error:
        allowed = f"""'{name}=[["text"]]'""" if datatype == "BYTES" else f"'{name}=[[1, 2]]'"
        raise InvalidArgument(f"--input {name}: {value[:40]!r} found, JSON is allowed, such as {allowed} ({error})") from None
    return name, Input(_convert(name, data, datatype), datatype)


def _load(name: str, path: Path, datatype: str) -> np.ndarray[Any, Any]:
    try:
        array: np.ndarray[Any, Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"--input {name}: {path} cannot be read as .npy: {error}") from None
    if datatype == "BYTES":
        return _bytes(name, array.tolist())
    wanted = DATATYPES[datatype].dtype
    if array.dtype != wanted:
        raise InvalidArgument(f"--input {name}: {path} holds {array.dtype}, {datatype} ({wanted}) is allowed")
    return array


def _convert(name: str, data: Any, datatype: str) -> np.ndarray[Any, Any]:
    if datatype == "BYTES":
        return _bytes(name, data)
    try:
        plain = np.array(data)
    except (ValueError, OverflowError):
        plain = np.array("")
    if plain.dtype.kind not in "biuf":
        raise InvalidArgument(f"--input {name}: a number, or lists of numbers that are all of one length, are allowed for {datatype}")
    if datatype == "BF16":
        return bf16_from_fp32(plain.astype(np.float32))
    with np.errstate(invalid="ignore", over="ignore"):
        array = plain.astype(DATATYPES[datatype].dtype)
    # Floats are rounded to the datatype, as any client does; whole numbers and booleans must be what was written.
    if array.dtype.kind != "f" and np.any(array.astype(plain.dtype) != plain):
        raise InvalidArgument(f"--input {name}: a value found that {datatype} does not hold")
    return array


def _bytes(name: str, data: Any) -> np.ndarray[Any, Any]:
    array = np.array(data, dtype=object)
    flat = array.reshape(-1)
    for at, element in enumerate(flat):
        if isinstance(element, str):
            flat[at] = element.encode()
        elif not isinstance(element, bytes):
            raise InvalidArgument(f"--input {name}: {element!r} found at element {at}, text is allowed")
    return flat.reshape(array.shape)
