"""What an ONNX file says of itself, beyond what ONNX Runtime's Python API tells: its nodes, and whether an input has a shape at all.

The API gives [] for a scalar and for an input of which nothing is declared, and gives no nodes. The file is protobuf (onnx/onnx,
`onnx/onnx.proto`); a full decoder would copy the weights, which may be gigabytes, to read a few kilobytes beside them. So this walks the
file's bytes and steps over what it does not want. Weights, inside the file or beside it, are not read.

A file that is something else (encrypted, ONNX Runtime's own format) cannot be looked at, which is no failure.
"""

import pathlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dormouse_kit.windows import Window

SMALL = 64
"""Elements of a constant that is read: axes, permutations, shapes. What is larger is a weight."""
INT64 = 7
Shape = tuple[int | str | None, ...]


@dataclass(slots=True)
class Node:
    """`attributes`: those that are a number or a list of numbers. `bodies`: the graphs of an If, a Loop or a Scan."""

    kind: str = ""
    name: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    attributes: dict[str, int | tuple[int, ...]] = field(default_factory=dict)
    bodies: list["Graph"] = field(default_factory=list)


@dataclass(slots=True)
class Graph:
    """`inputs`, `outputs`, `values`: what is declared of each; None: no shape. `constants`: weights' shapes. `integers`: the small INT64
    ones' elements."""

    nodes: list[Node] = field(default_factory=list)
    inputs: dict[str, Shape | None] = field(default_factory=dict)
    outputs: dict[str, Shape | None] = field(default_factory=dict)
    values: dict[str, Shape | None] = field(default_factory=dict)
    constants: dict[str, tuple[int, ...]] = field(default_factory=dict)
    integers: dict[str, tuple[int, ...]] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    """Where weights lie that are not in the model's file."""
    opset: int = 0

    def all_nodes(self) -> Iterator[Node]:
        """Those of inner graphs too."""
        for node in self.nodes:
            yield node
            for body in node.bodies:
                yield from body.all_nodes()


def read(path: pathlib.Path) -> Graph | None:
    """None: the file cannot be looked at."""
    try:
        with path.open("rb") as file:
            return parse(Window(file.fileno()))
    except (OSError, ValueError):
        return None


def parse(model: memoryview | Window) -> Graph | None:
    """A ModelProto's graph; None: the bytes are none."""
    graph, opset = None, 0
    try:
        for number, value in _fields(model):
            if number == 7:
                graph = _graph(value)
            elif number == 8:
                domain, version = "", 0
                for inner, item in _fields(value):
                    domain, version = (_text(item), version) if inner == 1 else (domain, item) if inner == 2 else (domain, version)
                opset = version if domain in ("", "ai.onnx") else opset
    except (IndexError, ValueError, TypeError, RecursionError):
        return None
    if graph is None or not graph.outputs:
        return None
    graph.opset = opset
    return graph


def _fields(data: Any) -> Iterator[tuple[int, Any]]:
    """Each field's number and value: an int, or the bytes of what has a length. ValueError, IndexError: this is no protobuf."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == 2:
            length, at = _varint(data, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at + length > end:
            raise ValueError("a field leads out of its message")
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: Any, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a varint of more than ten bytes")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _numbers(values: Sequence[Any]) -> tuple[int, ...]:
    """A repeated int64 field, packed or not."""
    found: list[int] = []
    for value in values:
        if isinstance(value, int):
            found.append(_signed(value))
        else:
            at = 0
            while at < len(value):
                number, at = _varint(value, at)
                found.append(_signed(number))
    return tuple(found)


def _text(value: Any) -> str:
    return bytes(value).decode()


def _graph(data: Any) -> Graph:
    graph = Graph()
    for number, value in _fields(data):
        if number == 1:
            graph.nodes.append(_node(value))
        elif number == 5:
            _constant(graph, value, None)
        elif number in (11, 12, 13):
            name, shape = _value(value)
            {11: graph.inputs, 12: graph.outputs, 13: graph.values}[number][name] = shape
    for node in graph.nodes:
        if node.kind == "Constant" and node.outputs:
            for key in ("value_ints", "value_int"):
                if key in node.attributes:
                    numbers = node.attributes[key]
                    graph.integers[node.outputs[0]] = numbers if isinstance(numbers, tuple) else (numbers,)
            graph.constants.setdefault(node.outputs[0], ())
            for body in node.bodies:  # the attribute's tensor
                graph.constants[node.outputs[0]] = body.constants.get("", ())
                if "" in body.integers:
                    graph.integers[node.outputs[0]] = body.integers[""]
            node.bodies = []
    return graph


def _node(data: Any) -> Node:
    node = Node()
    for number, value in _fields(data):
        if number == 1:
            node.inputs.append(_text(value))
        elif number == 2:
            node.outputs.append(_text(value))
        elif number == 3:
            node.name = _text(value)
        elif number == 4:
            node.kind = _text(value)
        elif number == 5:
            _attribute(node, value)
    return node


def _attribute(node: Node, data: Any) -> None:
    name, lists = "", []
    single: int | None = None
    for number, value in _fields(data):
        if number == 1:
            name = _text(value)
        elif number == 3:
            single = _signed(value)
        elif number == 8:
            lists.append(value)
        elif number == 5 and node.kind == "Constant":
            holder = Graph()
            _constant(holder, value, "")
            node.bodies.append(holder)
        elif number in (6, 11):
            node.bodies.append(_graph(value))
    if lists:
        node.attributes[name] = _numbers(lists)
    elif single is not None:
        node.attributes[name] = single


def _constant(graph: Graph, data: Any, named: str | None) -> None:
    dims: list[Any] = []
    numbers: list[Any] = []
    name, kind = named or "", 0
    raw: memoryview | None = None
    for number, value in _fields(data):
        if number == 1:
            dims.append(value)
        elif number == 2:
            kind = value
        elif number == 7:
            numbers.append(value)
        elif number == 8 and named is None:
            name = _text(value)
        elif number == 9:
            raw = value
        elif number == 13:
            entry = {inner: _text(item) for inner, item in _fields(value)}
            if entry.get(1) == "location":
                graph.files.add(entry.get(2, ""))
    graph.constants[name] = _numbers(dims)
    if kind == INT64:
        if raw is not None and len(raw) <= 8 * SMALL and len(raw) % 8 == 0:
            graph.integers[name] = tuple(int.from_bytes(raw[at : at + 8], "little", signed=True) for at in range(0, len(raw), 8))
        elif raw is None and sum(1 if isinstance(value, int) else len(value) for value in numbers) <= 10 * SMALL:
            graph.integers[name] = _numbers(numbers)


def _value(data: Any) -> tuple[str, Shape | None]:
    name, shape = "", None
    for number, value in _fields(data):
        if number == 1:
            name = _text(value)
        elif number == 2:
            shape = _type(value)
    return name, shape


def _type(data: Any) -> Shape | None:
    """Of a tensor, a sparse one, or an optional one."""
    for number, value in _fields(data):
        if number == 9:
            for inner, item in _fields(value):
                if inner == 1:
                    return _type(item)
        elif number in (1, 8):
            for inner, item in _fields(value):
                if inner == 2:
                    return tuple(_dimension(dim) for outer, dim in _fields(item) if outer == 1)
    return None


def _dimension(data: Any) -> int | str | None:
    size: int | str | None = None
    for number, value in _fields(data):
        size = _signed(value) if number == 1 else _text(value) if number == 2 else size
    return size
