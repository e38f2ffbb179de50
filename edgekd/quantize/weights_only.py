"""Weights stored as int8, arithmetic in floating point: a quarter of the size, no calibration, no saturation."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

_WEIGHTS = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "Gather": 0}
"""Operation -> which input holds the weights."""
SMALL = 4096
"""Numbers of a table that is not worth nodes of its own."""


def quantize_weights(model: onnx.ModelProto, keep: Collection[str], per_channel: bool = True) -> onnx.ModelProto:
    """Return the model with each layer's weights w as int8 q and scales s, s * q = w to within s / 2.

    Symmetric: s = max|w| / 127 for each output channel (or the tensor), q = round(w / s), to nearest even; of a table that is looked
    up, for each row. Nodes named in `keep`, biases and small tables stay as they are.
    """
    import onnx
    from onnx import helper, numpy_helper

    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    kept = {name for node in graph.node if node.name in keep for name in node.input}
    converters: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        at = _WEIGHTS.get(node.op_type)
        if at is None or node.name in keep or node.input[at] not in tensors or node.input[at] in kept:
            continue
        name = node.input[at]
        weights = numpy_helper.to_array(tensors[name])
        if weights.dtype != np.float32 or weights.ndim < 2 or (node.op_type == "Gather" and not is_table(node, weights)):
            continue
        if name not in converters:
            axis = _channel_axis(node, weights.ndim) if per_channel else None
            q, scale = symmetric_int8(weights, axis)
            parts = {f"{name}_int8": q, f"{name}_scale": scale}
            graph.initializer.extend(numpy_helper.from_array(values, key) for key, values in parts.items())
            graph.initializer.remove(tensors[name])
            attributes = {} if axis is None else {"axis": axis}
            converters[name] = helper.make_node(
                "DequantizeLinear", list(parts), [f"{name}_dequantized"], name=f"{name}_dequantize", **attributes
            )
    for node in graph.node:  # every reader: a table may be the output layer too, turned around
        node.input[:] = [converters[name].output[0] if name in converters else name for name in node.input]
    nodes = [*converters.values(), *graph.node]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    return made


def symmetric_int8(weights: np.ndarray, axis: int | None, most: int = 127) -> tuple[np.ndarray, np.ndarray]:
    """Return (int8 values of the same shape, float32 scales: one, or one for each index along `axis`).

    most: the largest value, which the largest weight gets; 63 for sums of products in pairs that stay within 16 bits.
    """
    others = tuple(i for i in range(weights.ndim) if i != axis) if axis is not None else None
    largest = np.abs(weights).max(axis=others, keepdims=True)
    scale = np.maximum(largest / np.float32(most), np.finfo(np.float32).tiny)  # all zero: any scale will do
    q = np.clip(np.rint(weights / scale), -most, most).astype(np.int8)
    return q, scale.reshape(-1) if axis is not None else scale.reshape(())


def is_table(node: onnx.NodeProto, weights: np.ndarray) -> bool:
    """Say whether a Gather of these weights looks up rows of a table that is worth quantizing."""
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    return axis == 0 and weights.dtype == np.float32 and weights.ndim == 2 and weights.size > SMALL


def _channel_axis(node: onnx.NodeProto, ndim: int) -> int | None:
    """Return the axis of the weights that becomes output channels (a grouped transposed convolution has none of its own)."""
    attributes = {a.name: a.i for a in node.attribute}
    if node.op_type in ("Conv", "Gather"):
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if attributes.get("group", 1) == 1 else None
    if node.op_type == "Gemm":
        return 0 if attributes.get("transB", 0) else 1
    return ndim - 1
