"""The same numbers as ONNX Runtime's int8 kernels take them: activations unsigned, constants of a normalisation as wide as the picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

_ELEMENTWISE = ("Add", "Sub", "Mul", "Div")


def make_unsigned(model: onnx.ModelProto) -> None:
    """Store signed activations as unsigned ones, in place: they move by 128, and so do their zero points.

    ONNX Runtime computes a convolution or a sum in integers where all its activations are of one type, and NNCF makes those signed
    that are negative somewhere; on x86 it has kernels for unsigned ones alone. The right factor of a product is signed there, and stays.
    """
    from onnx import TensorProto, numpy_helper

    from ..export.edit import drop_unused

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            readers.setdefault(name, []).append((node, place))
    for node in model.graph.node:
        zero = tensors.get(node.input[2]) if node.op_type == "QuantizeLinear" and len(node.input) > 2 else None
        if zero is None or zero.data_type != TensorProto.INT8:
            continue
        back = [reader for reader, _ in readers.get(node.output[0], [])]
        uses = [use for reader in back for use in readers.get(reader.output[0], [])]
        right = any(user.op_type in ("MatMul", "Gemm") and place == 1 for user, place in uses)
        if right or not back or any(reader.op_type != "DequantizeLinear" for reader in back):
            continue
        moved = f"{zero.name}.unsigned"
        if moved not in tensors:
            values = numpy_helper.to_array(zero).astype(np.int16) + 128
            tensors[moved] = numpy_helper.from_array(values.astype(np.uint8), moved)
            model.graph.initializer.append(tensors[moved])
        for each in (node, *back):
            each.input[2] = moved
    drop_unused(model)
    moved_values = {node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    typed = [value for value in model.graph.value_info if value.name not in moved_values]
    del model.graph.value_info[:]
    model.graph.value_info.extend(typed)


def widen(model: onnx.ModelProto, names: list[str]) -> None:
    """Repeat constants of one number a channel along the width, in place. names: of the nodes that calculate with them.

    ONNX Runtime turns pictures to channels last before an int8 convolution, and with them what comes before it. There a constant of
    three numbers takes 15 times as long as one of a row: 0.6 ms at 224 x 224, a quarter of MobileNetV3-Small.
    """
    from onnx import numpy_helper, shape_inference

    inferred = shape_inference.infer_shapes(model).graph
    values = [*inferred.value_info, *inferred.output]
    shapes = {value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in values}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    wanted = set(names)
    for node in model.graph.node:
        if node.name not in wanted or node.op_type not in _ELEMENTWISE:
            continue
        shape = shapes.get(node.output[0], [])
        for place, name in enumerate(node.input):
            if name not in tensors or len(shape) != 4 or not shape[3]:
                continue
            constant = numpy_helper.to_array(tensors[name])
            if constant.size == 1 or constant.shape[-3:] != (shape[1], 1, 1):
                continue
            wide = f"{name}.wide.{shape[3]}"
            if wide not in tensors:
                row = np.ascontiguousarray(np.broadcast_to(constant, (*constant.shape[:-1], shape[3])))
                tensors[wide] = numpy_helper.from_array(row, wide)
                model.graph.initializer.append(tensors[wide])
            node.input[place] = wide
