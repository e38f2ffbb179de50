"""Queries, keys and values of a layer as one product, their weights side by side: one start of the runtime's threads instead of three."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from . import ort_grouped, ort_rotary
from .ort_match import Nodes, integer

if TYPE_CHECKING:
    import onnx

NAME = "joint products"
_KINDS = ("MatMul", "MatMulNBits")


def fuse(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Return the model with the three products before each GroupQueryAttention as one, and how many of those there are.

    All three are products of one tensor with constant weights, without bias, in floating point or by MatMulNBits in the same blocks, and
    nothing else reads them. What they were called is what the parts of the joint one are called.
    """
    import onnx
    from onnx import helper

    from ..export.edit import drop_unused, set_nodes

    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = _Graph(made.graph)
    begins: dict[str, list[onnx.NodeProto]] = {}
    gone: set[str] = set()
    for node in made.graph.node:
        parts = graph.products(node) if node.op_type == ort_grouped.OPERATOR else None
        joint = graph.joint(parts, f"{node.output[0]}.joint") if parts else None
        if parts is None or joint is None:
            continue
        names = [part.output[0] for part in parts]
        sizes = graph.store(f"{joint.output[0]}.sizes", np.array([graph.width(part) for part in parts]))
        cut = helper.make_node("Split", [joint.output[0], sizes], names, name=f"{joint.output[0]}.split", axis=-1)
        first = next(one.output[0] for one in made.graph.node if one.output[0] in names)
        begins[first] = [joint, cut]
        gone |= set(names)
    if not begins:
        return model, 0
    nodes: list[onnx.NodeProto] = []
    for node in made.graph.node:
        nodes += begins.get(node.output[0], [])
        nodes += [] if node.output[0] in gone else [node]
    set_nodes(made, nodes)
    drop_unused(made)
    return made, len(begins)


class _Graph(Nodes):
    """A graph in which products of one tensor are looked for."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        super().__init__(graph)
        self.readers: dict[str, int] = {}
        for name in [name for node in graph.node for name in node.input] + [value.name for value in graph.output]:
            self.readers[name] = self.readers.get(name, 0) + 1

    def products(self, attention: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        """Return the products that queries, keys and values are; None where they are not three products of one tensor."""
        found = []
        for name in attention.input[:3]:
            maker = self.makers.get(name)
            if maker is not None and maker.op_type == ort_rotary.OPERATOR:
                name = maker.input[0]
                maker = self.makers.get(name)
            if maker is None or maker.op_type not in _KINDS or self.readers[name] != 1:
                return None
            found.append(maker)
        first = found[0]
        same = all(one.op_type == first.op_type and one.input[0] == first.input[0] for one in found)
        return found if same and len({one.output[0] for one in found}) == 3 else None

    def width(self, product: onnx.NodeProto) -> int:
        """Return how many outputs a product has."""
        return integer(product, "N", 0) or self.tensors[product.input[1]].dims[1]

    def joint(self, parts: list[onnx.NodeProto], name: str) -> onnx.NodeProto | None:
        """Return one product that makes what these make, side by side; None where their weights do not go together."""
        from onnx import helper

        first = parts[0]
        if any(len(part.input) != len(first.input) or self._told(part) != self._told(first) for part in parts):
            return None
        stored = [[self.constant(part.input[place]) for part in parts] for place in range(1, len(first.input))]
        if any(values is None for row in stored for values in row):
            return None
        axis = 1 if first.op_type == "MatMul" else 0  # (in, out), or a row for each output
        if axis == 1 and any(values is None or values.ndim != 2 or values.dtype != np.float32 for values in stored[0]):
            return None
        inputs = [first.input[0]]
        for place, row in enumerate(stored):
            values = [value for value in row if value is not None]
            inputs.append(self.store(f"{name}.{place}", np.concatenate(values, axis=axis)))
        told = dict(self._told(first))
        if first.op_type != "MatMul":
            told["N"] = sum(self.width(part) for part in parts)
        return helper.make_node(first.op_type, inputs, [name], name=name, domain=first.domain, **told)

    def _told(self, product: onnx.NodeProto) -> list[tuple[str, int]]:
        """Return a product's attributes but how many outputs it has."""
        return sorted((a.name, a.i) for a in product.attribute if a.name != "N")
