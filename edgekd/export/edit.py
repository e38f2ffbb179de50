"""Edits of an ONNX graph that several parts of edgekd make."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def every_node(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield every node, those of branches and loops too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from every_node(attribute.g)


def set_nodes(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Make these the model's nodes, in this order; they may be its own."""
    import onnx

    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def drop_unused(model: onnx.ModelProto) -> None:
    """Remove the nodes that no output of the graph depends on, and the tensors that no node reads."""
    graph = model.graph
    needed = {value.name for value in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(node.input)
            needed.update(name for a in node.attribute if a.HasField("g") for inner in every_node(a.g) for name in inner.input)
    set_nodes(model, reversed(nodes))
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in needed]:
        graph.initializer.remove(tensor)
