"""Make OpenVINO's IR of a variant's ONNX file: quantized weights stay small integers, the same input gives the same bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BadInput
from ..quantize import packing

if TYPE_CHECKING:
    import onnx

Weight = Callable[[], Any]
"""Builds the nodes of one weight in OpenVINO's own operations; returns the last."""


def read(model: onnx.ModelProto, where: Path | str) -> Any:
    """Return the ov.Model of an ONNX model, simplified, with packed weights in OpenVINO's integers of 2, 4 and 8 bits.

    OpenVINO's importer folds a Gather of constants, and computes a BitShift of bytes as a division in floating point. So weights
    are inputs while it imports and simplifies, and are put in afterwards. Raises BadInput for what OpenVINO cannot import.
    """
    import openvino as ov
    from openvino._offline_transformations import apply_moc_transformations

    model, weights = _opened(model)
    names = [value.name for value in model.graph.output]
    try:
        made = ov.Core().read_model(model.SerializeToString(), b"")
        apply_moc_transformations(made, False)
    except Exception as error:  # the binding raises RuntimeError with many lines
        raise BadInput(f"{where}: OpenVINO cannot import it: {reason(error)}") from None
    for parameter in [p for p in made.get_parameters() if p.get_friendly_name() in weights]:
        name = parameter.get_friendly_name()
        last = weights[name]()
        last.set_friendly_name(name)
        last.output(0).set_names({name})
        parameter.output(0).replace(last.output(0))
        made.remove_parameter(parameter)
    made.validate_nodes_and_infer_types()
    for result, name in zip(made.get_results(), names, strict=True):
        result.output(0).set_names({name})
        result.input_value(0).get_tensor().set_names({*result.input_value(0).get_names(), name})
    _rename(made)
    return made


def save(model: Any, path: Path, device: str, half: bool) -> None:
    """Write NAME.xml and NAME.bin. device: what it is to be compiled for, noted in the file. half: float constants in 16 bits."""
    import openvino as ov

    model.set_rt_info(device, ["edgekd", "device"])
    path.parent.mkdir(parents=True, exist_ok=True)
    ov.save_model(model, str(path), compress_to_fp16=half)


def unfused(model: Any) -> Any:
    """Take each FakeQuantize apart into operations in floating point, in place: so nothing runs on int8 kernels.

    As ONNX has it, values are rounded before the zero point is added. (The CPU plugin has an internal switch for its int8
    transformations; with it off and a dynamic batch, OpenVINO 2026.4 computes transformers wrong, to 7 dB.)
    """
    from openvino import opset13 as ops

    for node in model.get_ordered_ops():
        if node.get_type_name() != "FakeQuantize":
            continue
        low, high, out_low, out_high = (_constant(node.input_value(at)) for at in range(1, 5))
        steps = np.float32(node.get_attributes()["levels"] - 1)
        scale = (high - low) / steps
        zero = np.rint(-low / scale)
        index = ops.add(ops.round(ops.divide(node.input_value(0), scale), "HALF_TO_EVEN"), zero)
        moved = ops.subtract(ops.clamp(index, 0.0, float(steps)), np.rint(-out_low / ((out_high - out_low) / steps)))
        last = ops.multiply(moved, (out_high - out_low) / steps)
        last.set_friendly_name(node.get_friendly_name())
        last.output(0).set_names(node.output(0).get_names())
        node.output(0).replace(last.output(0))
    model.validate_nodes_and_infer_types()
    return model


def _constant(port: Any) -> np.ndarray:
    """Return the values of a constant, which may be stored in 16 bits with a Convert after it."""
    node = port.get_node()
    return np.asarray((node.input_value(0).get_node() if node.get_type_name() == "Convert" else node).data, np.float32)


def reason(error: Exception) -> str:
    """Return the line that says most in an OpenVINO error: most others are places in its source, and advice."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    best = [line for line in lines if line.startswith("No conversion rule")]
    lines = (
        best or [line for line in lines if not line.startswith(("Exception from", "To facilitate"))] or [type(error).__name__]
    )
    return lines[-1]


def unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Return the first `count` indices, uint8, of what packing.pack made."""
    rows, at, below = packed.reshape(-1, bits), 0, 0
    indices = np.zeros(len(rows) * 8, np.uint8)
    for width in packing.widths(bits):
        field = rows[:, at : at + width].reshape(-1, 1) >> np.arange(0, 8, width, dtype=np.uint8)
        indices |= (field & np.uint8((1 << width) - 1)).reshape(-1) << np.uint8(below)
        at, below = at + width, below + width
    return indices[:count]


def _opened(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, Weight]]:
    """Return the model with each weight that is expanded from integers as an input, and what builds these weights."""
    import onnx
    from onnx import numpy_helper

    made = onnx.ModelProto.FromString(model.SerializeToString())
    graph = made.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    weights: dict[str, Weight] = {}
    quantizes = any(node.op_type == "QuantizeLinear" for node in graph.node)
    kept = []
    for node in graph.node:
        constant = all(name in tensors for name in node.input if name)
        if not constant or not (node.domain == packing.DOMAIN or (node.op_type == "DequantizeLinear" and not quantizes)):
            kept.append(node)  # beside quantized activations OpenVINO finds int8 layers by their own DequantizeLinear
            continue
        parts = [numpy_helper.to_array(tensors[name]) for name in node.input if name]
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.domain == packing.DOMAIN:
            weights[node.output[0]], shape = _packed(parts, node.op_type, attributes)
        else:
            bits = {"uint4": 4, "uint2": 2}.get(_element(tensors[node.input[0]]), 8)
            weights[node.output[0]], shape = _dequantized(parts, attributes, bits), list(parts[0].shape)
        graph.input.append(onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, shape))
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(nodes)
    del made.functions[:]
    for opset in [o for o in made.opset_import if o.domain == packing.DOMAIN]:
        made.opset_import.remove(opset)
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
    return made, weights


def _packed(parts: list[np.ndarray], function: str, attributes: Mapping[str, Any]) -> tuple[Weight, list[int]]:
    """A call of edgekd's own function (packing.function): bytes, (buckets, 2) scales and offsets, the points of a codebook."""
    buckets, shape = list(attributes["buckets"]), list(attributes["shape"])
    bits = int(re.sub(r"\D", "", function))
    indices = unpack(parts[0], bits, int(np.prod(buckets)))
    scale, offset = parts[1][:, :1], parts[1][:, 1:]
    points = parts[2] if len(parts) > 2 else None
    count = int(np.prod(shape))
    if len(scale) == 1 or (len(scale) == shape[0] and indices.size == count):  # needs no rows of buckets
        beside = [len(scale)] + [1] * (len(shape) - 1)
        return lambda: _affine(
            indices[:count].reshape(shape), bits, points, scale.reshape(beside), offset.reshape(beside)
        ), shape

    def build() -> Any:
        from openvino import opset13 as ops

        rows = _affine(indices.reshape(buckets), bits, points, scale, offset)
        if indices.size != count:
            line = ops.reshape(rows, np.array([-1], np.int64), False)
            rows = ops.slice(line, *(np.array([n], np.int64) for n in (0, count, 1)))
        return ops.reshape(rows, np.array(shape, np.int64), False)

    return build, shape


def _dequantized(parts: list[np.ndarray], attributes: Mapping[str, Any], bits: int) -> Weight:
    q, scale = parts[0], parts[1].astype(np.float32)
    zero = parts[2].astype(np.float32) if len(parts) > 2 else np.zeros_like(scale)
    if block := attributes.get("block_size", 0):
        raise BadInput(f"weights in blocks of {block}: the OpenVINO backend takes scales for each tensor or channel")
    if scale.size > 1:
        beside = [1] * q.ndim
        beside[attributes.get("axis", 1)] = scale.size
        scale, zero = scale.reshape(beside), zero.reshape(beside)
    if q.dtype == np.int8:
        return lambda: _affine(q, 8, None, scale, -scale * zero)
    return lambda: _affine(q.astype(np.uint8), bits, None, scale, -scale * zero)


def _affine(indices: np.ndarray, bits: int, points: np.ndarray | None, scale: np.ndarray, offset: np.ndarray) -> Any:
    """Return value(indices) * scale + offset, the arithmetic of quantize.encoded; a scale of 1 and an offset of 0 are left out."""
    from openvino import opset13 as ops

    stored = _integers(indices, bits)
    if points is None:
        value = ops.convert(stored, "f32")
    else:
        value = ops.gather(points.astype(np.float32), ops.convert(stored, "i32"), np.int64(0))
    if (scale != 1).any():
        value = ops.multiply(value, scale.astype(np.float32))
    return ops.add(value, offset.astype(np.float32)) if offset.any() else value


def _integers(indices: np.ndarray, bits: int) -> Any:
    """Return a constant of the narrowest of OpenVINO's 2, 4 and 8 bits; the first index has a byte's lowest bits."""
    import openvino as ov

    width = next(w for w in (2, 4, 8) if w >= bits)
    if width == 8:
        return ov.op.Constant(indices)
    packed = packing.pack(indices, width)[: -(-indices.size * width // 8)]
    tensor = ov.Tensor(packed, list(indices.shape), {2: ov.Type.u2, 4: ov.Type.u4}[width])
    return ov.op.Constant(tensor, shared_memory=False)  # else it would read memory that NumPy has freed


def _element(tensor: onnx.TensorProto) -> str:
    import onnx

    return onnx.TensorProto.DataType.Name(tensor.data_type).lower()


def _rename(model: Any) -> None:
    """Name what OpenVINO named by a counter of the process after its place in the graph instead."""
    for place, node in enumerate(model.get_ordered_ops()):
        if re.fullmatch(r"[A-Z][A-Za-z0-9]*_\d+", name := node.get_friendly_name()) and not node.output(0).get_names() & {name}:
            node.set_friendly_name(f"{node.get_type_name()}.{place}")
