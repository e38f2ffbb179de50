"""int8 files as Qualcomm's HTP wants them: every tensor quantized, unsigned activations, made by ONNX Runtime's QNN quantizer."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import BadInput, Missing

if TYPE_CHECKING:
    import onnx

    from ...export.graph import Arrays
    from ...recipe import VariantRecipe


def quantize(source: Path, keep: list[str], batches: Iterable[Arrays], config: VariantRecipe) -> onnx.ModelProto:
    """Return the graph with weights of 8 bits and activations of 8 or 16 bits, all of them unsigned.

    Weights of convolutions are symmetric int8 with a scale per channel, or with granularity `tensor` uint8 with one scale; those
    of products are always uint8 with one scale (HTP takes no other). Ranges are the least and the largest value seen. The nodes
    before the first layer with weights (cast, normalisation), quotients() and those in `keep` stay in floating point.
    Raises BadInput without calibration samples.
    """
    import onnx

    from ..keep import quotients, stem
    from ..post_training import folded

    quantizer, qnn = _quantizer()
    assert config.weights is not None
    assert config.activations is not None
    per_channel = config.weights.granularity != "tensor"
    kinds = quantizer.QuantType
    with tempfile.TemporaryDirectory() as folder, _quiet():
        original = padded_with_zeros(folded(onnx.load(str(source))))
        model = _fused(qnn, original, Path(folder))
        for entry in model.opset_import:
            if entry.domain == "" and entry.version == 20:
                entry.version = 21  # adds integers of 16 bits to QuantizeLinear, and changes nothing that was there
        apart = sorted({*_now(keep, original, model), *stem(model), *quotients(model)})
        settings = qnn.get_qnn_qdq_config(
            model,
            _reader(quantizer, model, batches, source),
            activation_type=kinds.QUInt8 if config.activations.bits == 8 else kinds.QUInt16,
            weight_type=kinds.QInt8 if per_channel else kinds.QUInt8,
            per_channel=per_channel,
            activation_symmetric=config.activations.symmetric,
            weight_symmetric=True if per_channel else bool(config.weights.symmetric),
            init_overrides=_one_scale(model, kinds.QUInt8) if per_channel else None,
            nodes_to_exclude=apart,
        )
        made = Path(folder) / "quantized.onnx"
        quantizer.quantize(model, made, settings)
        return _tidy(onnx.load(str(made)))


def _tidy(model: onnx.ModelProto) -> onnx.ModelProto:
    """Leave out the operator sets that ONNX Runtime declares and no node uses."""
    used = {"", *(node.domain for node in model.graph.node), *(node.domain for f in model.functions for node in f.node)}
    opsets = [(entry.domain, entry.version) for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    for domain, version in opsets:
        model.opset_import.add(domain=domain, version=version)
    return model


def padded_with_zeros(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with each padding of another constant c than 0 as a padding of zeros, plus a constant of c there.

    HTP stores c with the scale of what is padded, which cuts it off where it lies outside that range; and where no constant is
    given it pads with the integer 0, whatever the zero point. Pads of an axis whose size is not known stay.
    """
    import onnx
    from onnx import helper, numpy_helper

    if not any(node.op_type == "Pad" for node in model.graph.node):
        return model
    made = onnx.shape_inference.infer_shapes(model)
    tensors = {tensor.name: tensor for tensor in made.graph.initializer}
    ends = [*made.graph.input, *made.graph.value_info]
    shapes = {value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in ends}
    nodes = []
    for node in made.graph.node:
        nodes.append(node)
        mode = next((a.s for a in node.attribute if a.name == "mode"), b"constant")
        if node.op_type != "Pad" or mode != b"constant" or len(node.input) > 3:
            continue
        data, widths, constant = [*node.input, ""][:3]
        if not constant:
            del node.input[2:]
            node.input.append(_zero(made, data))
        elif constant in tensors and widths in tensors:
            value, width = (numpy_helper.to_array(tensors[name]) for name in (constant, widths))
            width, shape = width.reshape(2, -1).T, shapes.get(data, [])
            known = len(shape) == len(width) and all(size > 0 for size, pad in zip(shape, width, strict=True) if pad.any())
            if not value.any() or not known or width.min() < 0:
                continue
            size = [size if pad.any() else 1 for size, pad in zip(shape, width, strict=True)]
            filled = np.pad(np.zeros(size, value.dtype), width.tolist(), constant_values=value.item())
            out = node.output[0]
            node.output[0], node.input[2] = f"{out}.zeros", _zero(made, data)
            made.graph.initializer.append(numpy_helper.from_array(filled, f"{out}.filled"))
            nodes.append(helper.make_node("Add", [f"{out}.zeros", f"{out}.filled"], [out], name=f"{node.name}.fill"))
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return made


def _zero(model: onnx.ModelProto, beside: str) -> str:
    """Add a constant of 0 to the model and return its name."""
    from onnx import numpy_helper

    name = f"{beside}.zero"
    if name not in {tensor.name for tensor in model.graph.initializer}:
        model.graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), name))
    return name


def _fused(qnn: Any, model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Return the model with the patterns that HTP has one operation for made into it (GELU, LayerNormalization, L2 norm)."""
    import onnx

    before, after = folder / "before.onnx", folder / "after.onnx"
    plain = onnx.ModelProto.FromString(model.SerializeToString())
    del plain.metadata_props[:]  # ONNX Runtime 1.31 takes them for a dict
    onnx.save(plain, str(before))
    if not qnn.qnn_preprocess_model(str(before), str(after)):
        return model
    made = onnx.load(str(after))
    del made.metadata_props[:]
    made.metadata_props.extend(model.metadata_props)
    return made


def _one_scale(model: onnx.ModelProto, kind: Any) -> dict[str, list[dict[str, Any]]]:
    """Return the settings of the weights that keep one scale where others have one a channel.

    HTP refuses a LayerNormalization with more, and computes a grouped transposed convolution from the wrong ones.
    """
    found = {}
    constant = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        apart = node.op_type == "LayerNormalization" or (node.op_type == "ConvTranspose" and groups > 1)
        if apart and node.input[1] in constant:
            found[node.input[1]] = [{"quant_type": kind, "symmetric": False}]
    return found


def _now(keep: Iterable[str], original: onnx.ModelProto, model: onnx.ModelProto) -> list[str]:
    """Return what the nodes to keep are called after fusing: a fused node makes the output of the last that it stands for."""
    kept = {name for node in original.graph.node if node.name in set(keep) for name in node.output}
    return [node.name for node in model.graph.node if kept & set(node.output)]


def _reader(quantizer: Any, model: onnx.ModelProto, batches: Iterable[Arrays], source: Path) -> Any:
    inputs = {value.name for value in model.graph.input} - {tensor.name for tensor in model.graph.initializer}

    class Reader(quantizer.CalibrationDataReader):
        def __init__(self) -> None:
            self.left: Iterator[Arrays] = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.left, None)
            return None if batch is None else {name: batch[name] for name in sorted(inputs)}

    if next(iter(batches), None) is None:
        raise BadInput(f"{source.name}: no calibration samples; int8 activations need some")
    return Reader()


def _quantizer() -> tuple[Any, Any]:
    try:
        from onnxruntime import quantization
        from onnxruntime.quantization.execution_providers import qnn
    except ImportError as error:
        raise Missing(f"quantizing for QNN needs {error.name}: pip install onnxruntime ml_dtypes") from None
    return quantization, qnn


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep advice on files that edgekd has prepared already out of the terminal."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
