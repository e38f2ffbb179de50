"""What a device of OpenVINO cannot take, or computes otherwise than the file says: checked on the IR, without the device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import host
from .half import LARGEST

if TYPE_CHECKING:
    import onnx

    from ..targets import Target

_SEVEN_BITS = 64
"""Products of 8 and 7 bits, summed in pairs, stay within 16 bits: 2 * 255 * 64 < 2**15."""


def broken(model: Any, target: Target, device: str) -> list[str]:
    """Return the rules of the target that an IR (ov.Model) breaks, in words. device: CPU or NPU."""
    found = []
    half = target.precision == "fp16"
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or not node.get_element_type().is_real():
            continue
        values, name = np.asarray(node.data), node.get_friendly_name()
        if np.isnan(values).any():
            found.append(f"constant `{name}` has NaN")
        elif half and not np.isfinite(values).all():
            found.append(f"constant `{name}` has infinite values, which become NaN in 16 bits: use -1e4 in masks")
        elif half and np.abs(values, dtype=np.float64).max(initial=0) > LARGEST:
            found.append(f"constant `{name}` has {np.abs(values).max():g}, above the {LARGEST:g} of 16-bit floats")
    refused = set(target.limits.get("operators_refused", ()))
    if kinds := sorted({node.get_type_name() for node in model.get_ops()} & refused):
        found.append(f"{target.title} has no {', '.join(kinds)}")
    if target.static and (names := dynamic(model)):
        found.append(f"the shape of `{names[0]}` is not fixed, and {target.title} takes fixed shapes alone")
    told = model.get_rt_info(["edgekd", "device"]).astype(str) if model.has_rt_info(["edgekd", "device"]) else "nothing"
    if told != device:
        found.append(f"the file says that it is for {told}, and {target.name} is a {device}")
    if target.saturates() and host.vnni() and (wide := wide_weights(model)):
        advice = "set calibration.overflow_fix to `on`"
        found.append(f"weights of {wide[0]} use more than 7 bits: {target.saturates()}; {advice}")
    return found


def wide_weights(model: Any) -> list[str]:
    """Return the layers that multiply quantized activations by int8 weights of more than 7 bits."""
    found = []
    for node in model.get_ordered_ops():
        if node.get_type_name() not in ("Convolution", "GroupConvolution", "MatMul", "ConvolutionBackpropData"):
            continue
        first, second = ({step.get_type_name(): step for step in _upwards(node.input_value(at))} for at in (0, 1))
        stored = second.get("Constant")
        if node.get_type_name() == "GroupConvolution" and node.input_value(1).get_partial_shape()[2] == 1:
            continue  # depthwise: its kernels add up one product after the other, and NNCF leaves the weights 8 bits
        if "FakeQuantize" not in first or stored is None or stored.get_element_type().to_dtype() != np.int8:
            continue
        if np.abs(np.asarray(stored.data).astype(np.int32)).max(initial=0) > _SEVEN_BITS:
            found.append(node.get_friendly_name())
    return found


def miscounted(model: onnx.ModelProto) -> list[str]:
    """Return the nodes whose means OpenVINO gets wrong: AveragePool that counts padding, where ceil_mode adds a window.

    What such a window has beyond the padding counts for nothing in ONNX, and OpenVINO (2026.4) counts the padding for nothing too.
    """
    import onnx

    told = {
        node.name: {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        for node in model.graph.node
        if node.op_type == "AveragePool"
    }
    counted = {
        name: t for name, t in told.items() if t.get("ceil_mode") and t.get("count_include_pad") and any(t.get("pads", ()))
    }
    if not counted:
        return []
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {v.name: v.type.tensor_type.shape.dim for v in (*graph.value_info, *graph.input)}
    found = []
    for node in graph.node:
        if node.name not in counted:
            continue
        one = counted[node.name]
        kernel, pads, ones = one["kernel_shape"], one["pads"], [1] * len(one["kernel_shape"])
        steps, gaps = one.get("strides", ones), one.get("dilations", ones)
        around = zip(pads[: len(kernel)], pads[len(kernel) :], strict=True)
        sizes = [axis.dim_value for axis in shapes.get(node.input[0], ())][2:]
        for size, k, step, gap, (before, after) in zip(sizes, kernel, steps, gaps, around, strict=True):
            padded, extent = size + before + after, (k - 1) * gap + 1
            last = -(-(padded - extent) // step) * step
            if last + extent > padded and last < size + before:
                found.append(node.name)
    return found


def _upwards(port: Any) -> list[Any]:
    """Return the nodes that a value comes from by its first input, through what only moves and scales."""
    found = []
    while True:
        node = port.get_node()
        found.append(node)
        if node.get_type_name() not in ("Convert", "Multiply", "Subtract", "Reshape", "Transpose", "MaxPool"):
            return found
        port = node.input_value(0)


def dynamic(model: Any) -> list[str]:
    """Return the nodes whose shape is not fixed."""
    return [
        node.get_friendly_name()
        for node in model.get_ordered_ops()
        if any(port.get_partial_shape().is_dynamic for port in node.outputs())
    ]
