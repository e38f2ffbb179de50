"""Attention as one operator of ONNX Runtime, MultiHeadAttention, instead of the dozen nodes that torch's exporter leaves for it.

ONNX Runtime fuses much itself on loading, a sum with the LayerNormalization after it and a GELU with its bias among it. Attention it
knows from older exporters alone. Queries, keys and values come out of one product here, their weights side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .ort_match import DOMAIN, HEADS, Nodes, attention_replaced, order

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx

OPERATOR = "MultiHeadAttention"


def fuse(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Return the model with each attention that is recognised as one node, and how many there were.

    Recognised is softmax(q k^T scale + mask) v with q, k and v of shape (batch, tokens, heads x size) cut into heads, in
    floating point. Where the three are products of one input with constant weights, floats or int8 with activations scaled at each call
    (quantize/dynamic.py), they become one product: the same integers and the same scales. A mask that is made of a padding mask is given
    as that. All tensors that remain keep their names.
    """
    return attention_replaced(model, _Graph, _Graph.operator)


@dataclass(frozen=True)
class Attention:
    """What was recognised. q, k, v: tensors (batch, tokens, heads x size). mask: what is added to the scores, "" for nothing."""

    q: str
    k: str
    v: str
    heads: int
    scale: float
    mask: str


@dataclass(frozen=True)
class _Linear:
    """x w + b. weights: float32 or int8 (in, out). scale: of int8, float32 (out,). inner: the nodes, from x on."""

    x: str
    weights: np.ndarray
    bias: np.ndarray | None
    scale: np.ndarray | None
    inner: tuple[onnx.NodeProto, ...]


class _Graph(Nodes):
    """A graph in which attention is looked for."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        super().__init__(graph)
        self.masks: dict[str, str] = {}

    def operator(self, last: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return the nodes that stand for the attention that ends in this node; nothing where there is none."""
        found = self.attention(last)
        return self.fused(last, found) if found is not None else []

    def attention(self, last: onnx.NodeProto) -> Attention | None:
        """Recognise the attention that ends in this Reshape; None where there is none."""
        ends_in = self.softmax(last)
        if ends_in is None:
            return None
        weighted, shares = ends_in
        scores, mask = shares.input[0], ""
        if added := self.made_by(scores, "Add"):
            one, other = added.input
            scores, mask = (one, other) if self.made_by(self.scaled(one)[0], "MatMul") else (other, one)
        scores, scale = self.scaled(scores)
        product = self.made_by(scores, "MatMul")
        if product is None:
            return None
        q, v = self._heads(product.input[0], HEADS), self._heads(weighted.input[1], HEADS)
        k = self._heads(product.input[1], [0, 2, 3, 1])
        if not q or not k or not v or not q[1] == k[1] == v[1] or q[2] != k[2]:
            return None
        ends = self.end(last.input[1], 1)
        return Attention(q[0], k[0], v[0], q[1], scale, mask) if ends in ([-1], [v[1] * v[2]]) else None

    def _heads(self, name: str, perm: list[int]) -> tuple[str, int, int] | None:
        """Return (tensor, heads, size of one) of what a tensor is the heads of; None where it is made otherwise."""
        turned = self.made_by(name, "Transpose")
        if turned is None:
            return None
        if perm == [0, 2, 3, 1] and order(turned) == [0, 1, 3, 2]:
            return self._heads(turned.input[0], HEADS)
        cut = self.made_by(turned.input[0], "Reshape")
        ends = self.end(cut.input[1], 2) if cut and order(turned) == perm else None
        return (cut.input[0], ends[0], ends[1]) if cut and ends and min(ends) > 0 else None

    def fused(self, last: onnx.NodeProto, found: Attention) -> list[onnx.NodeProto]:
        """Return the nodes that stand for an attention, whose last one was `last`."""
        from onnx import helper

        end, made = last.output[0], []
        names = [found.q, found.k, found.v]
        parts = [self._linear(name) for name in names]
        if joined := _joined([part for part in parts if part is not None]):
            names = [f"{end}.{part}" for part in ("queries", "keys", "values")]
            made += self._product(joined, names, end)
        inputs = [*names, "", *self._mask(found.mask, made)]
        while inputs[-1] == "":
            inputs.pop()
        beside = {"scale": found.scale, "num_heads": found.heads}
        if padding := self.padding(found.mask):
            beside["mask_filter_value"] = padding[1]
        made.append(helper.make_node(OPERATOR, inputs, [end], name=last.name, domain=DOMAIN, **beside))
        return made

    def _linear(self, name: str) -> _Linear | None:
        """Recognise x w + b, or x w; None where it is no such product."""
        node, bias = self.made_by(name, "Add"), None
        if node:
            values = [self.constant(one) for one in node.input]
            place = 0 if values[0] is not None else 1
            bias = values[place]
            if bias is None or bias.ndim != 1:
                return None
            name = node.input[1 - place]
        if product := self.made_by(name, "MatMul"):
            weights = self.constant(product.input[1])
            if weights is None or weights.ndim != 2 or weights.dtype != np.float32:
                return None
            return _Linear(product.input[0], weights, bias, None, (product,))
        scaled = self.made_by(name, "Mul")
        cast = scaled and self.made_by(scaled.input[0], "Cast")
        sums = cast and self.made_by(cast.input[0], "MatMulInteger")
        factor = scaled and self.made_by(scaled.input[1], "Mul")
        if not scaled or not cast or not sums or not factor or len(sums.input) != 3:
            return None
        weights, scale = self.constant(sums.input[1]), self.constant(factor.input[1])
        if weights is None or scale is None or weights.ndim != 2 or scale.ndim > 1:
            return None
        scales = np.broadcast_to(scale, weights.shape[1:])
        return _Linear(sums.input[0], weights, bias, scales, (sums, cast, factor, scaled))

    def _product(self, linear: _Linear, names: Sequence[str], end: str) -> list[onnx.NodeProto]:
        """Return the nodes of one product whose result is cut into `names`. Its constants are called after `end`."""
        from onnx import helper

        result = f"{end}.qkv"
        weights = self.store(f"{end}.weights", linear.weights)
        made: list[onnx.NodeProto] = []

        def then(kind: str, inputs: Sequence[str], output: str, **attributes: int) -> str:
            made.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
            return output

        before_bias = f"{result}.product" if linear.bias is not None else result
        if linear.scale is None:
            then("MatMul", [linear.x, weights], before_bias)
        else:
            sums, _, factor, _ = linear.inner
            added = then("MatMulInteger", [linear.x, weights, sums.input[2]], f"{result}.sums")
            whole = then("Cast", [added], f"{result}.float", to=1)
            scale = then("Mul", [factor.input[0], self.store(f"{end}.scales", linear.scale)], f"{result}.scale")
            then("Mul", [whole, scale], before_bias)
        if linear.bias is not None:
            then("Add", [before_bias, self.store(f"{end}.bias", linear.bias)], result)
        each = linear.weights.shape[1] // len(names)
        sizes = self.store(f"{end}.sizes", np.array([each] * len(names)))
        made.append(helper.make_node("Split", [result, sizes], list(names), name=f"{end}.split", axis=2))
        return made

    def _mask(self, mask: str, made: list[onnx.NodeProto]) -> list[str]:
        """Return the inputs key_padding_mask and attention_bias."""
        from onnx import helper

        padding = self.padding(mask)
        if padding is None:
            return ["", mask]
        name = f"{padding[0]}.int32"
        if padding[0] not in self.masks:
            self.masks[padding[0]] = name
            made.append(helper.make_node("Cast", [padding[0]], [name], name=name, to=6))
        return [name, ""]


def _joined(parts: Sequence[_Linear]) -> _Linear | None:
    """Return three products of one input as one; None where they are of several inputs, kinds or widths."""
    first = parts[0] if len(parts) == 3 else None
    if first is None or any(p.x != first.x or p.weights.dtype != first.weights.dtype for p in parts):
        return None
    if any(p.weights.shape != first.weights.shape or (p.bias is None) != (first.bias is None) for p in parts):
        return None
    bias = np.concatenate([p.bias for p in parts if p.bias is not None]) if first.bias is not None else None
    scale = np.concatenate([p.scale for p in parts if p.scale is not None]) if first.scale is not None else None
    return _Linear(first.x, np.concatenate([p.weights for p in parts], axis=1), bias, scale, first.inner)
