"""Results of int8 convolutions rounded before the function that follows, because ONNX Runtime computes them in integers only then.

NNCF takes a convolution and its activation function for one operation, as OpenVINO does, and rounds after both. ONNX Runtime has
that for ReLU and Clip alone: before HardSwish, SiLU, GELU, Sigmoid, LeakyReLU and others it computes the convolution in float, on
weights that it expands at every call. Products of matrices need no such rounding: ONNX Runtime has kernels for them that give float.
"""

from __future__ import annotations

import math
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

    from ..export.graph import Arrays

_FUSED = ("Relu", "Clip")
"""Functions that ONNX Runtime takes into an int8 convolution before them, where their result is rounded."""

_MOVES = {
    *("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split"),
    *("Identity", "MaxPool", "Resize", "DepthToSpace"),
}
_OF_ONE = {
    *("HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "Relu", "Clip", "LeakyRelu"),
    *("Elu", "Gelu", "Erf", "Softplus", "Mish", "Selu"),
}
_OF_TWO = {"Add", "Sub", "Mul", "Div", "Min", "Max"}
_POINTS = 4096


def round_results(model: onnx.ModelProto, batches: Iterable[Arrays], symmetric: bool) -> int:
    """Round the results of a quantized model's int8 convolutions to 8 bits, in place; return how many were not rounded before.

    Ranges are the least and the largest value seen over `batches`, without what the function after it makes no difference of
    (HardSwish: below -3). What leaves the graph without arithmetic after it is not rounded: the model's outputs stay as they are.
    symmetric: as much below zero as above it, zero in the middle.
    """
    names = unrounded(model)
    if names:
        functions = _functions(model, names)
        ranges = {name: _that_counts(functions[name], name, *ends) for name, ends in _seen(model, names, batches).items()}
        _insert(model, {name: _levels(low, high, symmetric) for name, (low, high) in ranges.items()})
    return len(names)


def unrounded(model: onnx.ModelProto) -> list[str]:
    """Return the results of convolutions of integers that something other than a rounding reads."""
    made_of_integers = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    readers = _readers(model)
    outputs = {value.name for value in model.graph.output}

    def leaves(name: str) -> bool:
        moves = (node for node in readers[name].values() if node.op_type in _MOVES)
        return name in outputs or any(leaves(result) for node in moves for result in node.output)

    found = []
    for node in model.graph.node:
        if node.op_type in _MOVES and node.input[0] in made_of_integers:  # ONNX Runtime moves integers there
            made_of_integers.update(node.output)
        if node.op_type != "Conv" or not made_of_integers.issuperset(node.input[:2]) or leaves(node.output[0]):
            continue
        after = list(readers[node.output[0]].values())
        if len(after) == 1 and after[0].op_type in _FUSED:
            after = list(readers[after[0].output[0]].values())
        if any(reader.op_type != "QuantizeLinear" for reader in after):
            found.append(node.output[0])
    return found


def _readers(model: onnx.ModelProto) -> Mapping[str, dict[int, onnx.NodeProto]]:
    """Return what reads each tensor, by its place in the file."""
    readers: dict[str, dict[int, onnx.NodeProto]] = defaultdict(dict)
    for place, node in enumerate(model.graph.node):
        for name in node.input:
            readers[name][place] = node
    return readers


def _seen(model: onnx.ModelProto, names: list[str], batches: Iterable[Arrays]) -> dict[str, tuple[float, float]]:
    """Return the least and the largest value of each result, in exact arithmetic. What leaves the graph are these two numbers alone."""
    from onnx import ModelProto, TensorProto, helper

    from ..export.onnx import save
    from .variant import file_runner

    told = ModelProto.FromString(model.SerializeToString())
    del told.graph.output[:]
    for number, name in enumerate(names):
        for kind in ("Min", "Max"):
            told.graph.node.append(helper.make_node(f"Reduce{kind}", [name], [f"{kind}.{number}"], keepdims=0))
            told.graph.output.append(helper.make_tensor_value_info(f"{kind}.{number}", TensorProto.FLOAT, []))
    found = dict.fromkeys(names, (0.0, 0.0))  # zero is padding, and has to be a level
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        save(told, file)
        run = file_runner({"model": file})
        for batch in batches:
            made = run("model", batch)
            for number, (name, (low, high)) in enumerate(found.items()):
                found[name] = min(low, float(made[f"Min.{number}"])), max(high, float(made[f"Max.{number}"]))
    return found


def _that_counts(functions: Any, name: str, low: float, high: float) -> tuple[float, float]:
    """Return the part of a range outside which the functions that read the result are flat, to a quarter of a level of their own."""
    if functions is None or low == high:
        return low, high
    points = np.linspace(low, high, _POINTS, dtype=np.float32)
    with np.errstate(all="ignore"):  # exponentials overflow where other branches of a function count
        curves = np.stack([np.ravel(curve) for curve in functions.run(None, {name: points})])
    if not np.isfinite(curves).all():
        return low, high
    first, last = _flat(curves) - 1, _POINTS - _flat(curves[:, ::-1])
    return (min(float(points[first]), 0.0), max(float(points[last]), 0.0)) if first < last else (low, high)


def _flat(curves: np.ndarray) -> int:
    """Return how many points from the left all curves stay flat for. curves: (curves, points)."""
    so_far = np.maximum.accumulate(curves, axis=1) - np.minimum.accumulate(curves, axis=1)
    return int((so_far <= np.ptp(curves, axis=1, keepdims=True) / 1020).all(axis=0).sum())


def _functions(model: onnx.ModelProto, names: list[str]) -> dict[str, Any]:
    """Return of each result an evaluator of what depends on it and on constants alone, number by number; None where it is read as it is."""
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    single = {tensor.name: tensor for tensor in model.graph.initializer if math.prod(tensor.dims) == 1}
    outputs = {value.name for value in model.graph.output}
    readers = _readers(model)
    found = dict.fromkeys(names)
    for name in names:
        inside, nodes, left, waiting = {name}, [], set(), dict(readers[name])
        while waiting:
            node = waiting.pop(min(waiting))  # in the order of the file: what it reads is known before it
            known = [value for value in node.input if value in inside]
            alone = all(value in inside or value in single for value in node.input if value)
            if alone and node.op_type in _OF_ONE | _OF_TWO and not node.domain:
                nodes.append(node)
                inside.update(node.output)
                for value in node.output:
                    waiting.update(readers[value])
            else:
                left.update(known)
        left |= inside & outputs
        if not left or name in left:
            continue
        ends = [helper.make_tensor_value_info(value, TensorProto.FLOAT, None) for value in (name, *sorted(left))]
        used = {value: single[value] for node in nodes for value in node.input if value in single}
        graph = helper.make_graph(nodes, "functions", ends[:1], ends[1:], list(used.values()))
        found[name] = ReferenceEvaluator(
            helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
        )
    return found


def _levels(low: float, high: float, symmetric: bool) -> tuple[np.float32, np.uint8]:
    """Return the step and the place of zero of 256 levels between the ends, or of 255 that lie around zero."""
    if symmetric:
        return np.float32(max(-low, high) / 127 or 1.0), np.uint8(128)
    step = np.float32((high - low) / 255 or 1.0)
    return step, np.uint8(np.clip(np.rint(-low / step), 0, 255))


def _insert(model: onnx.ModelProto, levels: Mapping[str, tuple[np.float32, np.uint8]]) -> None:
    """Round each of the results to its levels."""
    from onnx import helper, numpy_helper

    from ..export.edit import set_nodes

    nodes = []
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name in levels:
                node.input[place] = f"{name}.dequantized"
        nodes.append(node)
        for name in (each for each in node.output if each in levels):
            step, zero = levels[name]
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(step), f"{name}.scale"))
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(zero), f"{name}.zero_point"))
            by, stored = [f"{name}.scale", f"{name}.zero_point"], f"{name}.quantized"
            nodes.append(helper.make_node("QuantizeLinear", [name, *by], [stored], f"{name}.quantize"))
            nodes.append(helper.make_node("DequantizeLinear", [stored, *by], [f"{name}.dequantized"], f"{name}.dequantize"))
    set_nodes(model, nodes)
