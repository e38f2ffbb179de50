"""Masks of a decoder that reads a cache: which positions they hide, recognised in what torch's exporter makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .ort_match import FAR, Nodes, integer

if TYPE_CHECKING:
    import onnx

IDS, MASK = "input_ids", "attention_mask"
PAST = "past_key_values."
_TOKENS = ((IDS, 1), ("position_ids", 1))
"""Inputs, and their axis, that are as long as there are tokens to read."""


@dataclass(frozen=True)
class Causal:
    """A mask that hides from each token those after it. masked: what it adds there. padded: it hides what `attention_mask` says too."""

    masked: float
    padded: bool


def find(graph: Nodes, mask: str) -> Causal | None:
    """Recognise a mask that is added to scores; None for one that hides other places than padding and later tokens."""
    masked = _padded(graph, mask) if MASK in graph.inputs else None
    if masked is not None:
        return Causal(masked, True)
    masked = _unpadded(graph, mask)
    return None if masked is None else Causal(masked, False)


def _padded(graph: Nodes, mask: str) -> float | None:
    """Return what (1 - (earlier and real)) value adds, (batch, 1, tokens, past + tokens)."""
    if (cut := graph.made_by(mask, "Slice")) and len(cut.input) >= 4:  # to the length that it has
        if (
            graph.whole(cut.input[1]) != [0]
            or graph.whole(cut.input[3]) not in ([3], [-1])
            or graph.whole(cut.input[2]) is not None
        ):
            return None
        mask = cut.input[0]
    hidden, value = graph.scaled(mask)
    less = graph.made_by(hidden, "Sub")
    cast = graph.made_by(less.input[1], "Cast") if less and graph.number(less.input[0]) == 1 else None
    both = graph.made_by(cast.input[0], "And") if cast else None
    if both is None or value >= 0:
        return None
    orders = (tuple(both.input), tuple(both.input)[::-1])
    return value if any(_earlier(graph, a) and _real(graph, b) for a, b in orders) else None


def _unpadded(graph: Nodes, mask: str) -> float | None:
    """Return what (key's place > token's place) value adds, (1, 1, tokens, past + tokens)."""
    wide = graph.made_by(mask, "Unsqueeze")
    hidden, value = graph.scaled(wide.input[0]) if wide and graph.whole(wide.input[1]) == [0, 1] else ("", 0.0)
    cast = graph.made_by(hidden, "Cast")
    later = graph.made_by(cast.input[0], "Greater") if cast else None
    if later is None or value >= 0:
        return None
    keys, rows = (_range(graph, name, axis) for axis, name in enumerate(later.input))
    if keys is None or rows is None or graph.number(keys.input[0]) != 0 or not _is_past(graph, rows.input[0]):
        return None
    return value if _is_total(graph, keys.input[1]) and _is_total(graph, rows.input[1]) else None


def _real(graph: Nodes, name: str) -> bool:
    """Say whether a tensor is (attention_mask > 0), (batch, 1, 1, past + tokens)."""
    above = graph.made_by(name, "Greater")
    wide = graph.made_by(above.input[0], "Unsqueeze") if above and graph.number(above.input[1]) == 0 else None
    return wide is not None and wide.input[0] == MASK and graph.whole(wide.input[1]) == [1, 2]


def _earlier(graph: Nodes, name: str) -> bool:
    """Say whether a tensor is (key's place <= token's place), (1, 1, tokens, past + tokens)."""
    wide = graph.made_by(name, "Unsqueeze")
    within = graph.made_by(wide.input[0], "LessOrEqual") if wide and graph.whole(wide.input[1]) == [0, 1] else None
    if within is None or _counted(graph, within.input[0], 0) != (MASK, 1):
        return False
    places = graph.made_by(within.input[1], "Add")
    pairs = (tuple(places.input), tuple(places.input)[::-1]) if places else ()
    return any(_counted(graph, rows, 1) in _TOKENS and _is_past(graph, past) for rows, past in pairs)


def _counted(graph: Nodes, name: str, axis: int) -> tuple[str, int] | None:
    """Return (input, axis) where a tensor counts 0, 1, ... along that axis of an input, with an axis of 1 put in at `axis`."""
    counted = _range(graph, name, axis)
    return length(graph, counted.input[1]) if counted is not None and graph.number(counted.input[0]) == 0 else None


def _range(graph: Nodes, name: str, axis: int) -> onnx.NodeProto | None:
    """Return the Range by ones that a tensor is, with an axis of 1 put in at `axis`."""
    wide = graph.made_by(name, "Unsqueeze")
    counted = graph.made_by(wide.input[0], "Range") if wide and graph.whole(wide.input[1]) == [axis] else None
    return counted if counted is not None and graph.number(counted.input[2]) == 1 else None


def _is_past(graph: Nodes, name: str) -> bool:
    found = length(graph, name)
    return found is not None and found[0].startswith(PAST) and found[1] == 2


def _is_total(graph: Nodes, name: str) -> bool:
    """Say whether a number is past + tokens."""
    total = graph.made_by(name, "Add")
    pairs = (tuple(total.input), tuple(total.input)[::-1]) if total else ()
    return any(_is_past(graph, past) and length(graph, tokens) in _TOKENS for past, tokens in pairs)


def length(graph: Nodes, name: str) -> tuple[str, int] | None:
    """Return (input, axis) whose length a number is; None for another number."""
    if node := graph.made_by(name, "Squeeze", "Reshape", "Cast"):
        name = node.input[0]
    node = graph.made_by(name, "Shape")
    if node is None or node.input[0] not in graph.inputs:
        return None
    start = integer(node, "start", 0)
    return (node.input[0], start) if integer(node, "end", FAR) == start + 1 else None
