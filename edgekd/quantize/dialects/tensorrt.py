"""int8 as TensorRT wants it: explicit QuantizeLinear and DequantizeLinear pairs, signed, symmetric, where its kernels fuse them.

Placement follows NVIDIA's guide to explicit quantization
(https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/quantized-types-explicit-quantization.html):
both inputs of convolutions and products with weights are quantized, the weights for each channel; of a residual sum the shortcut
is, so that the sum fuses with the convolution that makes its other side; nothing is quantized after the last layer. Products of
two activations (attention) stay in 16-bit floats, where TensorRT has one fused kernel for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...backends.half import cast_first, to_half
from ...errors import BadInput, first_line
from ..keep import stem
from ..nearest import sqnr_db
from ..post_training import HEAVY, folded

if TYPE_CHECKING:
    import onnx

    from ...export.graph import Arrays
    from ...recipe import VariantRecipe

_HALF_PAIRS = 19
_BINS = 2048
_SHARES = np.linspace(0.2, 1.0, 81)
"""Of the largest value: where values may be clipped."""


def quantize(source: Path, keep: list[str], batches: Iterable[Arrays], config: VariantRecipe) -> onnx.ModelProto:
    """Return the graph in `source` with int8 layers, the rest in 16-bit floats. Weights have a scale a channel, always.

    keep: names of nodes that stay in floating point. batches: of calibration inputs, read several times. Activations clip at
    their largest value or where the squared error is least, whichever leaves the outputs nearer. Raises BadInput where the
    recipe asks for other activations than 8 bits.
    """
    import onnx

    if config.activations is None or config.activations.bits != 8:
        raise BadInput(f"quantize `{config.name}`: TensorRT's int8 layers need `activations: {{bits: 8}}`")
    model = cast_first(_recent(folded(onnx.load(str(source))), source))
    sites = find_sites(model, keep)
    if not sites.activations:
        return to_half(model, stem(model))
    histograms = _histograms(model, sites.activations, batches)
    scales: dict[str, dict[str, np.ndarray]] = {"largest": {}, "least error": {}}
    for name, (largest, counts) in histograms.items():
        scales["largest"][name] = _rounded_up(largest / 127)
        scales["least error"][name] = _rounded_up(_clip_at(largest, counts) / 127)
    made = {rule: to_half(_inserted(model, sites, chosen), stem(model)) for rule, chosen in scales.items()}
    ratios = sqnr_db(model, made, batches)
    return made[max(ratios, key=lambda rule: ratios[rule])]


def _recent(model: onnx.ModelProto, source: Path) -> onnx.ModelProto:
    """Bring an older file to the first opset whose QuantizeLinear takes 16-bit floats."""
    import onnx

    used = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    if used >= _HALF_PAIRS:
        return model
    try:
        return onnx.version_converter.convert_version(model, _HALF_PAIRS)
    except Exception as error:
        reason = first_line(error)
        raise BadInput(
            f"{source}: TensorRT's int8 in 16-bit floats needs opset {_HALF_PAIRS}, and this file of opset {used} cannot be "
            f"converted ({reason}); export it with opset 20"
        ) from None


@dataclass(frozen=True)
class Sites:
    """Where to quantize. layers: node name -> its channel axis of the weights. activations: tensors, in the order of the file.
    shortcuts: node name of a residual sum -> the input to quantize.
    """

    layers: Mapping[str, int]
    activations: list[str]
    shortcuts: Mapping[str, str]


def find_sites(model: onnx.ModelProto, keep: Iterable[str] = ()) -> Sites:
    """Find the layers with constant weights, what they read, and the shortcuts of residual sums around them."""
    graph, kept = model.graph, set(keep)
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    layers: dict[str, int] = {}
    activations: list[str] = []
    for node in graph.node:
        axis = _channel_axis(node, tensors)
        if axis is not None and node.name not in kept and node.input[0] not in tensors:
            layers[node.name] = axis
            activations.append(node.input[0])
    makers = {name: node for node in graph.node for name in node.output}
    takers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            takers[name] = takers.get(name, 0) + 1
    depth: dict[str, int] = {}
    for node in graph.node:
        below = max((depth.get(name, 0) for name in node.input), default=0) + 1
        depth |= dict.fromkeys(node.output, below)
    shortcuts: dict[str, str] = {}
    for node in graph.node:
        if node.op_type != "Add" or node.name in kept or any(name in tensors for name in node.input):
            continue
        # a convolution takes the other side of a sum along when nobody else wants its own output
        own = [
            n for n in node.input if n in makers and makers[n].op_type == "Conv" and makers[n].name in layers and takers[n] == 1
        ]
        if not own:
            continue
        main = max(own, key=lambda name: depth[name])
        other = node.input[1] if node.input[0] == main else node.input[0]
        if other in activations or other in own:
            shortcuts[node.name] = other
            activations.append(other)
    return Sites(layers, list(dict.fromkeys(activations)), shortcuts)


def _channel_axis(node: onnx.NodeProto, tensors: Mapping[str, onnx.TensorProto]) -> int | None:
    """Return the axis of a layer's constant weights that becomes output channels; None for what is no such layer."""
    from onnx import TensorProto

    weights = tensors.get(node.input[1]) if node.op_type in HEAVY else None
    if weights is None or weights.data_type != TensorProto.FLOAT:
        return None
    attributes = {a.name: a.i for a in node.attribute}
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":  # grouped ones have no axis that is their output channels
        return 1 if attributes.get("group", 1) == 1 else None
    if len(weights.dims) != 2:
        return None
    return 0 if node.op_type == "Gemm" and attributes.get("transB", 0) else 1


def _histograms(model: onnx.ModelProto, names: list[str], batches: Iterable[Arrays]) -> dict[str, tuple[float, np.ndarray]]:
    """Return tensor name -> (largest absolute value, how many values lie in each of _BINS equal parts up to it)."""
    import onnx
    import onnxruntime as ort

    watched = onnx.ModelProto.FromString(model.SerializeToString())
    known = {value.name for value in watched.graph.output}
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = {value.name for value in session.get_inputs()}
    largest = dict.fromkeys(names, 0.0)
    counts = {name: np.zeros(_BINS, np.int64) for name in names}
    for count in (False, True):
        for batch in batches:
            made = session.run(names, {name: values for name, values in batch.items() if name in wanted})
            for name, values in zip(names, made, strict=True):
                sizes = np.abs(values.reshape(-1))
                if not count:
                    if not np.isfinite(sizes).all():
                        raise BadInput(f"calibration: the values of `{name}` are not finite")
                    largest[name] = max(largest[name], float(sizes.max(initial=0)))
                elif largest[name] > 0:
                    counts[name] += np.histogram(sizes, _BINS, (0, largest[name]))[0]
    return {name: (largest[name], counts[name]) for name in names}


def _clip_at(largest: float, counts: np.ndarray) -> float:
    """Return where to clip absolute values so that the squared error of 127 steps is least."""
    if largest == 0:
        return 0.0
    centers = (np.arange(_BINS) + 0.5) * (largest / _BINS)
    errors = []
    for share in _SHARES:
        scale = share * largest / 127
        errors.append(float(counts @ np.square(centers - np.minimum(np.rint(centers / scale), 127) * scale)))
    return float(_SHARES[int(np.argmin(errors))] * largest)


def _rounded_up(scale: float | np.ndarray) -> np.ndarray:
    """Return scales that 16-bit floats hold exactly, at least as large, so that nothing is lost when the file is typed so."""
    wanted = np.asarray(scale, np.float64)
    near = np.maximum(wanted, 2.0**-24).astype(np.float16)
    return np.where(near.astype(np.float64) < wanted, np.nextafter(near, np.float16(np.inf)), near).astype(np.float32)


def _inserted(model: onnx.ModelProto, sites: Sites, scales: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """Return the model with the pairs in it: one for each tensor, whoever reads it quantized."""
    import onnx
    from onnx import helper, numpy_helper

    made = onnx.ModelProto.FromString(model.SerializeToString())
    graph = made.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    pairs: dict[str, str] = {}
    stored: dict[tuple[str, int], str] = {}

    def constant(name: str, values: np.ndarray) -> str:
        graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def pair(name: str) -> str:
        if name not in pairs:
            scale, zero = constant(f"{name}.scale", scales[name]), constant(f"{name}.zero", np.zeros((), np.int8))
            pairs[name] = f"{name}.dq"
            nodes.append(helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}.q"], name=f"{name}.q"))
            nodes.append(helper.make_node("DequantizeLinear", [f"{name}.q", scale, zero], [pairs[name]], name=pairs[name]))
        return pairs[name]

    def weights(name: str, axis: int) -> str:
        if (name, axis) not in stored:
            values = numpy_helper.to_array(tensors[name])
            if not np.isfinite(values).all():
                raise BadInput(f"the weights `{name}` are not finite: train the student again")
            others = tuple(i for i in range(values.ndim) if i != axis)
            scale = _rounded_up(np.abs(values).max(axis=others, keepdims=True) / 127)
            at = f"{name}.{axis}" if any(name == known for known, _ in stored) else name
            stored[name, axis] = f"{at}.dq"
            q = constant(f"{at}.int8", np.clip(np.rint(values / scale), -127, 127).astype(np.int8))
            parts = [q, constant(f"{at}.scale", scale.reshape(-1))]
            nodes.append(helper.make_node("DequantizeLinear", parts, [f"{at}.dq"], name=f"{at}.dq", axis=axis))
        return stored[name, axis]

    for node in graph.node:
        if node.name in sites.layers:
            node.input[0] = pair(node.input[0])
            node.input[1] = weights(node.input[1], sites.layers[node.name])
        elif node.name in sites.shortcuts:
            shortcut = sites.shortcuts[node.name]
            node.input[:] = [pair(name) if name == shortcut else name for name in node.input]
        nodes.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    used = {name for node in copies for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
    return made
