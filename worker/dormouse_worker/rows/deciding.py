"""What a graph lets the values of rows decide for all rows together: which way it goes, how often, how large a tensor is.

An If has one condition for a whole run, a Slice one end: where they follow from what is in the rows, one caller's numbers decide about
another's answer, and random inputs need not show it. So the values of rows are followed through the nodes, to everything that they may
reach; the shape of a tensor is no value of it, unless it counts what was found in rows. Told is only what reaches such a place.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from dormouse_worker.rows.graphs import Graph, Node

DECIDING: dict[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "If": (0,),
    "Loop": (0, 1),
    "OneHot": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Trilu": (1,),
}
"""The inputs of which there is one for all rows."""
FINDING: dict[str, int] = {"Compress": 1, "NonMaxSuppression": 1, "NonZero": 0, "Unique": 0}
"""As many results as the values of this input have it; https://onnx.ai/onnx/operators."""
INTO = frozenset({"ScatterElements", "ScatterND"})
"""The result is as large as the first input."""


class _Decided(Exception):
    """Values of rows decide something for all."""


@dataclass(slots=True)
class _Reached:
    """`values`: tensors whose values follow from those of rows. `sizes`: those whose shapes do."""

    values: set[str]
    sizes: set[str] = field(default_factory=set)


def look(graph: Graph, rows: Iterable[str]) -> str | None:
    """`rows`: the inputs that have rows. What their values decide, as half a sentence; None: nothing."""
    reached = _Reached(set(rows))
    try:
        _follow(graph, reached)
    except _Decided as decided:
        return str(decided)
    sized = next((name for name in graph.outputs if name in reached.sizes), None)
    return f'how large "{sized}" is follows from what is found in all rows together' if sized is not None else None


def _follow(graph: Graph, reached: _Reached) -> None:
    for node in graph.nodes:
        for place in DECIDING.get(node.kind, ()):
            if place < len(node.inputs) and node.inputs[place] in reached.values:
                raise _Decided(f"{_named(node)} is led by the values of all rows together")
        for body in node.bodies:
            _inside(node, body, reached)
        names = {*node.inputs, *(name for body in node.bodies for each in body.all_nodes() for name in (*each.inputs, *each.outputs))}
        valued, sized = not reached.values.isdisjoint(names), not reached.sizes.isdisjoint(names)
        if node.kind in ("Shape", "Size"):
            valued, sized = sized, False
        elif node.kind in FINDING:
            place = FINDING[node.kind]
            sized = sized or (place < len(node.inputs) and node.inputs[place] in reached.values)
        elif node.kind in INTO:
            sized = node.inputs[0] in reached.sizes
        if valued:
            reached.values.update(node.outputs)
        if sized:
            reached.sizes.update(node.outputs)


def _inside(node: Node, body: Graph, reached: _Reached) -> None:
    """A body knows what is outside. What a Loop or a Scan carries is reached if anything that goes in is."""
    inputs = list(body.inputs)[2 if node.kind == "Loop" else 0 :]
    if not reached.values.isdisjoint(node.inputs):
        reached.values.update(inputs)
    if not reached.sizes.isdisjoint(node.inputs):
        reached.sizes.update(inputs)
    _follow(body, reached)
    if node.kind == "Loop" and body.outputs and next(iter(body.outputs)) in reached.values:
        raise _Decided(f"{_named(node)} goes on for as long as the values of all rows together say")


def _named(node: Node) -> str:
    return f"the node {node.name!r} ({node.kind})" if node.name else f"a node {node.kind} of its graph"
