"""Rotary positions (Su et al. 2021, arXiv:2104.09864) as one operator of ONNX Runtime, RotaryEmbedding, instead of a dozen nodes.

Its tables of cosines and sines have a row for each token of the batch: whatever the positions are, and however the angles come about.
Where all rows of the batch stand at the same positions, the tables have a row for each token of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .ort_match import DOMAIN, FAR, Nodes, integer, order

if TYPE_CHECKING:
    import onnx

OPERATOR = "RotaryEmbedding"
IDS = "input_ids"


@dataclass(frozen=True)
class Rotated:
    """Queries or keys turned by their positions. angles: (batch, tokens, half); cosines and sines are taken of them, times factor."""

    x: str
    half: int
    angles: str
    factor: float


def find(graph: Nodes, name: str) -> Rotated | None:
    """Recognise x cos + (-x[half:], x[:half]) sin (Su et al. 2021, arXiv:2104.09864)."""
    total = graph.made_by(name, "Add")
    parts = [graph.made_by(one, "Mul") for one in total.input] if total else []
    for straight, crossed in (parts, parts[::-1]) if len(parts) == 2 else ():
        for x, cos in (tuple(straight.input), tuple(straight.input)[::-1]) if straight else ():
            for turned, sin in (tuple(crossed.input), tuple(crossed.input)[::-1]) if crossed else ():
                half, table = _half(graph, turned, x), _table(graph, cos, "Cos")
                if half is not None and table is not None and table == _table(graph, sin, "Sin"):
                    return Rotated(x, half, *table)
    return None


def write(graph: Nodes, found: Rotated, x: str, heads: int, end: str, made: list[onnx.NodeProto]) -> str:
    """Add the nodes that turn x, (batch, tokens, heads x size); return what they make, `end`."""
    from onnx import helper

    rows, tables = _rows(graph, found, made), []
    for kind in ("Cos", "Sin"):
        table = graph.then(made, kind, [rows], f"{rows}.{kind}")
        if found.factor != 1:
            by = graph.store(f"{rows}.factor", np.float32(found.factor))
            table = graph.then(made, "Mul", [table, by], f"{table}.scaled")
        tables.append(table)
    taken = [x, _places(graph, found.angles, made), *tables]
    made.append(helper.make_node(OPERATOR, taken, [end], name=end, domain=DOMAIN, num_heads=heads))
    return end


def _rows(graph: Nodes, found: Rotated, made: list[onnx.NodeProto]) -> str:
    """Return the angles as the operator takes what is made of them: a row for each token of the batch."""
    product, rows = _frequencies(graph, found.angles), f"{found.angles}.rows"
    if product is None:
        shape = graph.store(f"{rows}.shape", np.array([-1, found.half]))
        return graph.then(made, "Reshape", [found.angles, shape], rows)
    positions, frequencies = product
    column = graph.then(made, "Reshape", [positions, graph.store("rotary.column", np.array([-1, 1]))], f"{rows}.column")
    numbers = graph.then(made, "Cast", [column], f"{rows}.numbers", to=1)
    return graph.then(made, "Mul", [numbers, graph.store(f"{rows}.frequencies", frequencies.reshape(1, -1))], rows)


def _places(graph: Nodes, angles: str, made: list[onnx.NodeProto]) -> str:
    """Return which row of the tables each token has, (batch, tokens): 0, 1, ...; or which the first has, (1,), in every row of the batch."""
    product = _frequencies(graph, angles)
    if product is not None and product[0] not in graph.inputs:
        return graph.store("rotary.first", np.array([0]))
    shape, count = graph.then(made, "Shape", [IDS], "rotary.shape"), graph.then(made, "Size", [IDS], "rotary.count")
    zero, one = (graph.store(f"rotary.{value}", np.array(value)) for value in (0, 1))
    return graph.then(
        made, "Reshape", [graph.then(made, "Range", [zero, count, one], "rotary.counted"), shape], "rotary.places"
    )


def _half(graph: Nodes, name: str, x: str) -> int | None:
    """Return half of x's size where a tensor is (-x[half:], x[:half]) along the last axis; None for another tensor."""
    joined = graph.made_by(name, "Concat")
    if joined is None or len(joined.input) != 2 or integer(joined, "axis", 0) not in (-1, 3):
        return None
    less = graph.made_by(joined.input[0], "Neg")
    high, low = _part(graph, less.input[0], x) if less else None, _part(graph, joined.input[1], x)
    if high is None or low is None or low[0] != 0 or high[1] < FAR or low[1] != high[0]:
        return None
    return high[0]


def _part(graph: Nodes, name: str, x: str) -> tuple[int, int] | None:
    """Return (start, end) of what is cut from x along its last axis; None for anything else."""
    cut = graph.made_by(name, "Slice")
    if cut is None or cut.input[0] != x or len(cut.input) < 4:
        return None
    start, end, axes = (graph.whole(cut.input[place]) for place in (1, 2, 3))
    steps = graph.whole(cut.input[4]) if len(cut.input) > 4 else [1]
    if not start or not end or axes not in ([3], [-1]) or steps != [1]:
        return None
    return start[0], end[0]


def _table(graph: Nodes, name: str, kind: str) -> tuple[str, float] | None:
    """Return (angles, factor) of cosines or sines (batch, 1, tokens, size) whose two halves are the same."""
    wide = graph.made_by(name, "Unsqueeze")
    if wide is None or graph.whole(wide.input[1]) != [1]:
        return None
    plain, factor = graph.scaled(wide.input[0])
    function = graph.made_by(plain, kind)
    twice = graph.made_by(function.input[0], "Concat") if function else None
    if twice is None or len(twice.input) != 2 or twice.input[0] != twice.input[1] or integer(twice, "axis", 0) not in (-1, 2):
        return None
    return twice.input[0], factor


def _frequencies(graph: Nodes, angles: str) -> tuple[str, np.ndarray] | None:
    """Return (positions, frequencies) whose products angles are; None where they are made otherwise.

    Positions are an input (batch, tokens), or counted (tokens,) and the same in every row of the batch.
    """
    turned = graph.made_by(angles, "Transpose")
    product = graph.made_by(turned.input[0], "MatMul") if turned and order(turned) == [0, 2, 1] else None
    if product is None:
        return None
    wide = graph.made_by(product.input[0], "Expand")
    frequencies = graph.constant(wide.input[0] if wide else product.input[0])
    cast = graph.made_by(product.input[1], "Cast")
    places = graph.made_by(cast.input[0], "Unsqueeze") if cast else None
    if frequencies is None or places is None:
        return None
    given, counted = places.input[0] in graph.inputs, graph.made_by(places.input[0], "Range") is not None
    axes = graph.whole(places.input[1])
    return (places.input[0], frequencies) if (given and axes == [1]) or (counted and axes == [0, 1]) else None
