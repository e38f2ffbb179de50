"""What TensorRT cannot take, or takes and computes slower or otherwise than the file says: checked on the ONNX file, without TensorRT.

Sources: the operator table of its ONNX parser (https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md) and the guide to
explicit quantization (https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/quantized-types-explicit-quantization.html).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..errors import first_line
from .half import LARGEST

if TYPE_CHECKING:
    import onnx

_NOT_THERE = """
AffineGrid Bernoulli BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad Col2Im Compress ConcatFromSequence ConvInteger
DFT Det DynamicQuantizeLinear ImageDecoder MatMulInteger MaxRoiPool MaxUnpool MelWeightMatrix Multinomial NegativeLogLikelihoodLoss
Optional OptionalGetElement OptionalHasElement QLinearConv QLinearMatMul RegexFullMatch SequenceAt SequenceConstruct SequenceEmpty
SequenceErase SequenceInsert SequenceLength SequenceMap SoftmaxCrossEntropyLoss SplitToSequence StringConcat StringNormalizer
StringSplit TfIdfVectorizer Unique
"""
REFUSED = frozenset(_NOT_THERE.split())
"""Operators that the parser of TensorRT 10 and 11 does not have."""

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FUSED = frozenset((*LAYERS, "Add", "AveragePool", "GlobalAveragePool", "MaxPool", "Concat", "Resize"))
"""What a DequantizeLinear may feed: these have int8 kernels of their own, or pass int8 values on."""
_TYPES = {"FLOAT", "FLOAT16", "BFLOAT16", "INT8", "INT32", "INT64", "BOOL"}
"""Of constants. FP8, FP4 and INT4 exist too, for layouts that edgekd does not write."""


def broken(model: onnx.ModelProto, opset: int) -> list[str]:
    """Return what in the file breaks a rule, in words. opset: the highest that the TensorRT version reads."""
    file = _File(model)
    checks = (_header(file, opset), _constants(file), _pairs(file), _layers(file), _placement(file))
    return list(dict.fromkeys(what for check in checks for what in check))


def operators(model: onnx.ModelProto) -> list[str]:
    """Return the operators of the file that TensorRT's parser does not have."""
    domains = {imported.domain for imported in model.opset_import} - {"", "ai.onnx"}
    own = {node.op_type for node in _nodes(model.graph) if node.domain in domains}
    return sorted(own | {node.op_type for node in _nodes(model.graph) if node.op_type in REFUSED})


@dataclass
class _File:
    """A model, and who makes and who reads each tensor."""

    model: onnx.ModelProto
    tensors: dict[str, onnx.TensorProto] = field(init=False)
    makers: dict[str, onnx.NodeProto] = field(init=False)
    takers: dict[str, list[onnx.NodeProto]] = field(init=False)
    outputs: set[str] = field(init=False)

    def __post_init__(self) -> None:
        graph = self.model.graph
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output}
        self.takers = {}
        for node in graph.node:
            for name in dict.fromkeys(node.input):
                self.takers.setdefault(name, []).append(node)
        self.outputs = {value.name for value in graph.output}

    def of(self, kind: str) -> Iterator[onnx.NodeProto]:
        return (node for node in self.model.graph.node if node.op_type == kind)

    def made_by(self, name: str, kind: str) -> bool:
        return name in self.makers and self.makers[name].op_type == kind

    def type_of(self, name: str) -> str | None:
        import onnx

        return onnx.TensorProto.DataType.Name(self.tensors[name].data_type) if name in self.tensors else None

    def values(self, name: str) -> np.ndarray:
        from onnx import numpy_helper

        return numpy_helper.to_array(self.tensors[name])


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield every node, those of branches and loops too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _header(file: _File, opset: int) -> Iterator[str]:
    """Opset, operators, types that do not meet, and bytes that something other than a Cast reads."""
    import onnx
    from onnx import TensorProto

    used = next((o.version for o in file.model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if used > opset:
        yield f"the file has opset {used}, and this TensorRT reads up to {opset}"
    for kind in operators(file.model):
        yield f"TensorRT has no operator {kind}"
    try:
        onnx.checker.check_model(file.model, full_check=True)
    except Exception as error:  # protobuf and the checker raise types of their own
        yield f"the file is no valid ONNX: {first_line(error)}"
    for value in file.model.graph.input:
        if value.type.tensor_type.elem_type == TensorProto.UINT8:
            for node in file.takers.get(value.name, []):
                if node.op_type != "Cast":
                    yield f"node {node.name} ({node.op_type}) reads the bytes of input `{value.name}`: TensorRT lets a Cast alone do so"


def _constants(file: _File) -> Iterator[str]:
    """Types, and values that a calculation does not survive."""
    for name in file.tensors:
        kind = file.type_of(name)
        if kind not in _TYPES:
            bits = "weights of 2 and 4 bits" if kind in ("UINT2", "INT2", "UINT4", "INT4") else f"constants of type {kind}"
            yield f"`{name}` is {kind}: TensorRT does not read {bits} as edgekd stores them; use int8 or full precision"
            continue
        if kind in ("FLOAT", "FLOAT16"):
            values = file.values(name)
            if np.isnan(values).any():
                yield f"constant `{name}` has NaN"
            elif not np.isfinite(values).all():
                yield f"constant `{name}` has infinite values, which become NaN when they meet a 0 or each other: use -1e4 in masks"
            elif kind == "FLOAT" and _meets_half(file, name) and np.abs(values).max(initial=0) > LARGEST:
                yield f"constant `{name}` has {np.abs(values).max():g}, above the {LARGEST:g} of 16-bit floats"
        if kind == "INT64" and any(node.op_type in LAYERS for node in file.takers.get(name, [])):
            yield f"`{name}` is INT64, and a layer multiplies by it: TensorRT's kernels do not"


def _meets_half(file: _File, name: str) -> bool:
    """Say whether a 32-bit constant is cast to 16 bits right away."""
    from onnx import TensorProto

    return any(
        node.op_type == "Cast" and any(a.name == "to" and a.i == TensorProto.FLOAT16 for a in node.attribute)
        for node in file.takers.get(name, [])
    )


def _pairs(file: _File) -> Iterator[str]:
    """Each QuantizeLinear and DequantizeLinear by itself: signed, symmetric, positive scales, in pairs."""
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        for node in file.of(kind):
            yield from _zero_point(file, node)
            yield from _scale(file, node)
    for node in file.of("QuantizeLinear"):
        takers = file.takers.get(node.output[0], [])
        if node.output[0] in file.outputs or not takers or any(t.op_type != "DequantizeLinear" for t in takers):
            yield f"node {node.name} quantizes, and no DequantizeLinear follows: TensorRT fuses them in pairs"
        if file.made_by(node.input[0], "DequantizeLinear"):
            yield f"node {node.name} quantizes what {file.makers[node.input[0]].name} has just dequantized: values are rounded twice"
    for node in file.of("DequantizeLinear"):
        if node.input[0] not in file.tensors and not file.made_by(node.input[0], "QuantizeLinear"):
            yield f"node {node.name} dequantizes what no QuantizeLinear made"


def _zero_point(file: _File, node: onnx.NodeProto) -> Iterator[str]:
    quantizes = node.op_type == "QuantizeLinear"
    zero = node.input[2] if len(node.input) > 2 else ""
    stored = file.type_of(node.input[0])
    if not quantizes and stored not in (None, "INT8") and stored in _TYPES:
        yield f"node {node.name} dequantizes {stored} constants (`{node.input[0]}`): TensorRT takes INT8 alone, so biases stay floats"
    if not zero:
        if quantizes:
            yield f"node {node.name} has no zero point, which makes it UINT8: TensorRT takes INT8 alone"
        return
    kind = file.type_of(zero)
    if kind is None:
        yield f"node {node.name}: the zero point is no constant"
    elif kind != "INT8" and not (kind == stored and not quantizes):
        yield f"node {node.name} has a zero point of type {kind}: TensorRT takes INT8 alone"
    if kind is not None and kind in ("INT8", "UINT8", "INT32") and file.values(zero).any():
        yield f"node {node.name} is asymmetric (zero point {file.values(zero).reshape(-1)[0]}): TensorRT's zero points are all 0"


def _scale(file: _File, node: onnx.NodeProto) -> Iterator[str]:
    name = node.input[1]
    if name not in file.tensors:
        yield f"node {node.name}: the scale is no constant"
        return
    scale = file.values(name).astype(np.float64)
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        yield f"node {node.name}: scales must be positive, and the least of `{name}` is {scale.min():g}"
    if any(a.name == "block_size" and a.i for a in node.attribute):
        yield f"node {node.name} scales blocks: TensorRT does so for INT4 and FP4 alone"
    if scale.size > 1 and node.input[0] not in file.tensors:
        yield f"node {node.name} has {scale.size} scales for an activation: TensorRT takes one"


def _layers(file: _File) -> Iterator[str]:
    """Each layer with weights: both inputs quantized or neither, convolutions by channel."""
    for node in file.model.graph.node:
        if node.op_type not in LAYERS:
            continue
        first, second = (_dequantized(file, name) for name in node.input[:2])
        if (first is None) != (second is None):
            which = "weights" if first is None else "input"
            yield f"node {node.name} ({node.op_type}): only its {which} is quantized, so TensorRT computes it in floating point"
        if second is None or second.input[0] not in file.tensors or second.input[1] not in file.tensors:
            continue
        shape, scales = list(file.tensors[second.input[0]].dims), file.values(second.input[1]).size
        axis = next((a.i for a in second.attribute if a.name == "axis"), 1) % max(len(shape), 1)
        right = _output_axis(node, len(shape))
        if scales == 1 and node.op_type == "Conv" and shape[0] > 1:
            yield f"node {node.name} (Conv) has one scale for all weights: give each output channel its own"
        elif scales > 1 and right is not None and (axis != right or scales != shape[right]):
            yield f"node {node.name} ({node.op_type}): its weights are scaled along axis {axis}, its output channels are axis {right}"


def _dequantized(file: _File, name: str) -> onnx.NodeProto | None:
    return file.makers[name] if file.made_by(name, "DequantizeLinear") else None


def _output_axis(node: onnx.NodeProto, rank: int) -> int | None:
    attributes = {a.name: a.i for a in node.attribute}
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if attributes.get("group", 1) == 1 else None
    return 0 if node.op_type == "Gemm" and attributes.get("transB", 0) else rank - 1


def _placement(file: _File) -> Iterator[str]:
    """Where pairs stand: before what has int8 kernels, never after the last layer."""
    for node in file.of("DequantizeLinear"):
        if node.output[0] in file.outputs:
            yield f"node {node.name} is the last: nothing is quantized after the last layer"
        for taker in file.takers.get(node.output[0], []):
            if taker.op_type not in _FUSED and taker.op_type != "QuantizeLinear":
                yield f"node {taker.name} ({taker.op_type}) reads quantized values, and TensorRT fuses no DequantizeLinear with it"
