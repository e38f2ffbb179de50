"""Quantized weights read back out of an ONNX file, as the integers and scales that it stores: what packed.py and weights_only.py wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from . import packing
from .encoded import Encoded

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Symmetric:
    """A weight as weights_only.py stores it: scale * q. q: int8, of the weight's shape. scale: float32, one, or one for each
    index along `axis`.
    """

    q: np.ndarray
    scale: np.ndarray
    axis: int | None

    def decoded(self) -> np.ndarray:
        """Return the weights, float32."""
        beside = [1] * self.q.ndim
        if self.axis is not None:
            beside[self.axis] = -1
        return (self.q.astype(np.float32) * self.scale.reshape(beside)).astype(np.float32)


Stored = Encoded | Symmetric


def read(model: onnx.ModelProto) -> dict[str, Stored]:
    """Return tensor name -> the weight as stored, for each weight that the file holds as integers.

    The names are those of the tensors that the integers expand to: in what packed.write() made, the network's own. Activations
    that are quantized are left out. Raises ValueError for integers that neither packed.py nor weights_only.py writes.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    takers = {name: node for node in reversed(model.graph.node) for name in node.input}
    found: dict[str, Stored] = {}
    for node in model.graph.node:
        if node.domain == packing.DOMAIN:
            found[node.output[0]] = _function(node, tensors)
            continue
        stored = tensors.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if stored is not None and (len(stored.dims) > 1 or stored.name.endswith(".q")):
            name, one = _dequantized(node, tensors, takers)
            found[name] = one
    return found


def unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Return the `count` indices, uint8, that packing.pack() made these bytes of."""
    groups = packed.reshape(-1, bits)  # eight indices: a field of 1, 2, 4 or 8 bits of each, one field after the other
    made = np.zeros((len(groups), 8), np.uint8)
    below = 0
    for width in packing.widths(bits):
        shifts = np.arange(0, 8, width, dtype=np.uint8)
        field = groups[:, below : below + width, None] >> shifts & np.uint8((1 << width) - 1)
        made |= field.reshape(-1, 8) << np.uint8(below)
        below += width
    return made.reshape(-1)[:count]


def _function(node: onnx.NodeProto, tensors: Mapping[str, onnx.TensorProto]) -> Encoded:
    """Read a call of packing.function()."""
    from onnx import numpy_helper

    attributes = {a.name: list(a.ints) for a in node.attribute}
    kind = node.op_type.rstrip("0123456789")
    bits = int(node.op_type.removeprefix(kind))
    if kind not in ("Codebook", "Uniform"):
        raise ValueError(f"node {node.name}: no function of edgekd packs weights as {node.op_type}")
    packed, ranges, *rest = (numpy_helper.to_array(tensors[name]) for name in node.input)
    buckets, size = attributes["buckets"]
    indices = unpack(packed, bits, buckets * size).reshape(buckets, size)
    points = rest[0] if kind == "Codebook" else None
    levels = len(points) if points is not None else 1 << bits
    offset = ranges[:, 1].copy()
    return Encoded(indices, ranges[:, 0].copy(), offset if offset.any() else None, points, levels, tuple(attributes["shape"]))


def _dequantized(
    node: onnx.NodeProto, tensors: Mapping[str, onnx.TensorProto], takers: Mapping[str, onnx.NodeProto]
) -> tuple[str, Stored]:
    """Read a DequantizeLinear of constants, and the Add, Reshape and Slice after it. Return (name of the weight, the weight)."""
    from onnx import TensorProto, helper, numpy_helper

    def array(name: str) -> np.ndarray:
        return numpy_helper.to_array(tensors[name])

    attributes: dict[str, Any] = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    stored = tensors[node.input[0]]
    scale = array(node.input[1])
    if attributes.get("block_size", 0):
        raise ValueError(f"node {node.name}: integers in blocks of {attributes['block_size']} are not read")
    axis = None if scale.ndim == 0 else int(attributes.get("axis", 1)) % max(len(stored.dims), 1)
    if stored.data_type == TensorProto.INT8:
        if len(node.input) > 2 and node.input[2] and array(node.input[2]).any():
            raise ValueError(f"node {node.name}: signed integers with a zero point are not read")
        return node.output[0], Symmetric(array(node.input[0]), scale, axis)
    if axis not in (None, 0):
        raise ValueError(f"node {node.name}: unsigned integers with a scale along axis {axis} are not read")
    indices = array(node.input[0]).astype(np.uint8)
    bits = {TensorProto.UINT8: 8, TensorProto.UINT4: 4, TensorProto.UINT2: 2}[stored.data_type]
    shape, name = tuple(stored.dims), node.output[0]
    offset = None
    if len(node.input) > 2 and node.input[2]:
        zero = array(node.input[2]).astype(np.float32)
        offset = (-scale * zero).astype(np.float32)
    elif name.endswith(".q_"):  # the offset is added after it, and buckets that are no channels take the weight's shape then
        add = takers[name]
        offset, name = array(add.input[1]), add.output[0]
        while name.endswith((".m", ".l", ".s")):
            move = takers[name]
            name = move.output[0]
            if not name.endswith((".l", ".s")):
                shape = tuple(int(n) for n in array(move.input[1]))
    scale = scale.reshape(-1)
    offset = None if offset is None or not offset.any() else offset.reshape(-1)
    return name, Encoded(indices.reshape(len(scale), -1), scale, offset, None, 1 << bits, shape)
