"""What HTP wants of an ONNX graph before it is compiled, and what it gets wrong without saying so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .fixed import fix_batch

if TYPE_CHECKING:
    import onnx

_MOVES = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Identity")


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model for one sample, with bytes turned into numbers by DequantizeLinear instead of Cast.

    HTP's Cast of uint8 to float gives 1 for every byte but 0. DequantizeLinear with scale 1 and zero point 0 gives the byte.
    """
    from onnx import helper, numpy_helper

    made = fix_batch(model)
    graph = made.graph
    byte = helper.TensorProto.UINT8
    bytes_ = {value.name for value in graph.input if value.type.tensor_type.elem_type == byte}
    bytes_ |= {tensor.name for tensor in graph.initializer if tensor.data_type == byte}
    turned = False
    for node in graph.node:
        if node.op_type in _MOVES and node.input[0] in bytes_:
            bytes_.update(node.output)
        elif node.op_type == "Cast":
            to = next(a.i for a in node.attribute if a.name == "to")
            if to == byte:
                bytes_.update(node.output)
            elif to == helper.TensorProto.FLOAT and node.input[0] in bytes_:
                del node.attribute[:]
                node.op_type = "DequantizeLinear"
                node.input.extend(["edgekd.one", "edgekd.zero"])
                turned = True
    if turned:
        parts = {"edgekd.one": np.float32(1), "edgekd.zero": np.uint8(0)}
        graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in parts.items())
    return made


def signed_activations(model: onnx.ModelProto) -> list[str]:
    """Return the tensors that are quantized to int8 or int16 while the model runs: HTP takes them and computes wrong numbers."""
    from onnx import helper

    signed = {helper.TensorProto.INT8, helper.TensorProto.INT16}
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type != "QuantizeLinear":
            continue
        asked = next((a.i for a in node.attribute if a.name == "output_dtype"), 0)
        zero = kinds.get(node.input[2]) if len(node.input) > 2 else None
        if (zero or asked or helper.TensorProto.UINT8) in signed:
            found.append(node.input[0])
    return found


def outside(model: onnx.ModelProto, operators: set[str]) -> list[str]:
    """Return which of the operators the model has, each with the first node that is one: `Einsum (node einsum_3)`."""
    first: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type in operators:
            first.setdefault(node.op_type, node.name)
    return [f"{kind} (node {name})" for kind, name in sorted(first.items())]
