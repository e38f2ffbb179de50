"""What is asked of an ONNX graph where a pattern is looked for: who makes a tensor, what a constant is, how a shape ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import onnx

DOMAIN = "com.microsoft"
"""Of ONNX Runtime's own operators."""

FAR = 2**31 - 1
"""An end of a Slice that is no end: exporters write this or more."""

HEADS = [0, 2, 1, 3]
"""(batch, tokens, heads, size) -> (batch, heads, tokens, size), and back."""

G = TypeVar("G", bound="Nodes")


class Nodes:
    """A graph's nodes by what they make."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.makers = {name: node for node in graph.node for name in node.output}
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = {value.name: value.type.tensor_type.shape.dim for value in graph.input}
        self._written: set[str] = set()

    def constant(self, name: str) -> np.ndarray | None:
        """Return a constant's value; None for what is computed."""
        from onnx import numpy_helper

        if name in self.tensors:
            return np.asarray(numpy_helper.to_array(self.tensors[name]))
        node = self.makers.get(name)
        if node is None or node.op_type != "Constant" or node.attribute[0].name != "value":
            return None
        return np.asarray(numpy_helper.to_array(node.attribute[0].t))

    def whole(self, name: str) -> list[int] | None:
        """Return a constant's integers, flat; None for what is computed."""
        values = self.constant(name)
        return None if values is None else [int(value) for value in values.reshape(-1)]

    def number(self, name: str) -> float | None:
        """Return a constant's one value; None for what is computed, and for several."""
        values = self.constant(name)
        return float(values.reshape(())) if values is not None and values.size == 1 else None

    def made_by(self, name: str, *kinds: str) -> onnx.NodeProto | None:
        """Return the node that makes a tensor, if it is of one of these kinds of ONNX's own."""
        node = self.makers.get(name)
        return node if node is not None and node.op_type in kinds and not node.domain else None

    def softmax(self, last: onnx.NodeProto) -> tuple[onnx.NodeProto, onnx.NodeProto] | None:
        """Return (MatMul, Softmax) of softmax(scores) v that ends in this Reshape, which puts heads side by side; None for anything else."""
        turned = self.made_by(last.input[0], "Transpose") if last.op_type == "Reshape" and not last.domain else None
        weighted = self.made_by(turned.input[0], "MatMul") if turned and order(turned) == HEADS else None
        shares = self.made_by(weighted.input[0], "Softmax") if weighted else None
        return (weighted, shares) if weighted and shares and integer(shares, "axis", -1) in (-1, 3) else None

    def scaled(self, name: str) -> tuple[str, float]:
        """Return (a tensor before it is multiplied by a constant number, the number); (itself, 1) where it is not."""
        if node := self.made_by(name, "Mul", "Div"):
            for place in (1,) if node.op_type == "Div" else (1, 0):
                value = self.number(node.input[place])
                if value is not None:
                    return node.input[1 - place], 1 / value if node.op_type == "Div" else value
        return name, 1.0

    def capped(self, name: str) -> tuple[str, float]:
        """Return (x, cap) of a tensor cap tanh(x / cap); (itself, 0) where it is not."""
        inner, cap = self.scaled(name)
        limited = self.made_by(inner, "Tanh")
        x, part = self.scaled(limited.input[0]) if limited else ("", 0.0)
        return (x, cap) if limited and cap > 0 and abs(cap * part - 1) < 1e-6 else (name, 0.0)

    def repeated(self, name: str) -> tuple[str, int]:
        """Return (x, times) of a tensor in which each head of x, (batch, heads, length, size), comes so many times in a row; else (itself, 1)."""
        cut = self.made_by(name, "Reshape")
        wide = self.made_by(cut.input[0], "Expand") if cut else None
        single = self.made_by(wide.input[0], "Unsqueeze") if wide else None
        shape = self.made_by(wide.input[1], "Concat") if wide else None
        if single is None or shape is None or self.whole(single.input[1]) != [2] or len(shape.input) != 5:
            return name, 1
        times = self.whole(shape.input[2])
        return (single.input[0], times[0]) if times is not None and len(times) == 1 else (name, 1)

    def padding(self, mask: str) -> tuple[str, float] | None:
        """Return (padding mask (batch, tokens), what is added where it is 0) of (1 - mask) value; None for another mask."""
        turned, value = self.scaled(mask)
        less = self.made_by(turned, "Sub")
        one = self.constant(less.input[0]) if less else None
        cast = self.made_by(less.input[1], "Cast") if less else None
        wide = cast and self.made_by(cast.input[0], "Unsqueeze")
        axes = self.constant(wide.input[1]) if wide else None
        if one is None or one.size != 1 or float(one.reshape(())) != 1 or wide is None or axes is None:
            return None
        return (wide.input[0], value) if axes.tolist() == [1, 2] and value < 0 else None

    def end(self, shape: str, count: int) -> list[int] | None:
        """Return the last lengths of a shape, as far as they are constant; None where one is not."""
        pieces = [shape]
        if node := self.made_by(shape, "Concat"):
            pieces = list(node.input)
        found: list[int] = []
        while pieces and len(found) < count:
            values = self.whole(pieces.pop())
            if values is None:
                return None
            found = [*values, *found]
        return found[-count:] if len(found) >= count else None

    def store(self, name: str, values: np.ndarray | np.float32) -> str:
        """Add a constant; return its name."""
        from onnx import numpy_helper

        if name not in self.tensors:
            self.tensors[name] = numpy_helper.from_array(np.array(values, order="C"), name)
            self.graph.initializer.append(self.tensors[name])
        return name

    def then(self, made: list[onnx.NodeProto], kind: str, inputs: Sequence[str], output: str, **told: int | list[int]) -> str:
        """Add a node where it is not there yet; return its output."""
        from onnx import helper

        if output not in self._written:
            self._written.add(output)
            made.append(helper.make_node(kind, inputs, [output], name=output, **told))
        return output


def attention_replaced(
    model: onnx.ModelProto,
    graph_of: Callable[[onnx.GraphProto], G],
    others: Callable[[G, onnx.NodeProto], list[onnx.NodeProto]],
) -> tuple[onnx.ModelProto, int]:
    """Return the model with other nodes for each attention that is recognised, and how many there were; the model itself where none was.

    others: (graph, a node) -> what stands for the attention that ends in that node; nothing for a node that stays.
    """
    import onnx

    from ..export.edit import drop_unused, set_nodes

    if all(node.op_type != "Softmax" for node in model.graph.node):
        return model, 0
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = graph_of(made.graph)
    nodes: list[onnx.NodeProto] = []
    count = 0
    for node in made.graph.node:
        written = others(graph, node)
        count += bool(written)
        nodes += written or [node]
    if not count:
        return model, 0
    set_nodes(made, nodes)
    drop_unused(made)
    with_domain(made)
    return made, count


def order(node: onnx.NodeProto) -> list[int]:
    """Return a Transpose's order of axes."""
    return next((list(a.ints) for a in node.attribute if a.name == "perm"), [])


def integer(node: onnx.NodeProto, name: str, default: int) -> int:
    """Return an attribute's integer."""
    return next((a.i for a in node.attribute if a.name == name), default)


def with_domain(model: onnx.ModelProto) -> None:
    """Declare ONNX Runtime's own operators, and forget what was known of tensors that are gone."""
    import onnx

    made = {name for node in model.graph.node for name in node.output}
    for value in [value for value in model.graph.value_info if value.name not in made]:
        model.graph.value_info.remove(value)
    if all(used.domain != DOMAIN for used in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
