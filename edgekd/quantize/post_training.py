"""Post-training quantization: int8 from a few hundred samples, no labels, no training. NNCF does the arithmetic."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInput, Missing, first_line
from .variant import Variant

if TYPE_CHECKING:
    import onnx

    from ..export.graph import Arrays
    from ..recipe import VariantRecipe
    from ..targets import Target
    from . import Job

HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operations that carry nearly all arithmetic."""

_MOVES = {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "MaxPool", "Slice", "Split", "Identity"}

_DEAR_DB = 6.0
"""What speed may cost of a file's accuracy."""


def refuses(config: VariantRecipe) -> str | None:
    """Say what of the scheme ptq cannot do; None when it can. It makes uniform 8-bit weights and 8-bit or float activations."""
    weights = config.weights
    if weights is None:
        return "ptq needs `weights: {bits: 8}`"
    can = "ptq makes uniform 8-bit weights (granularity tensor or channel) and 8-bit activations (16 for some NPUs), or none"
    if weights.bits != 8:
        return (
            f"weights of {weights.bits} bits need training to stay accurate: use method quantized-distillation "
            f"(round-to-nearest makes them without); {can}"
        )
    if weights.kind != "uniform":
        return f"weights of kind {weights.kind}; {can}"
    if weights.granularity == "group":
        return f"groups of {weights.group} weights; {can}"
    if weights.symmetric is False:
        return f"asymmetric weights; {can}, the weights symmetric"
    return None


def overflow_fix(config: VariantRecipe, targets: Iterable[Target]) -> tuple[bool, str]:
    """Decide whether weights keep to 7 bits so that sums of int8 products never saturate. Returns (yes or no, why)."""
    if config.method not in ("ptq", "dynamic") or config.activations is None:
        return False, "no int8 sums"
    asked = config.calibration.overflow_fix
    if asked != "auto":
        return asked == "on", "as the recipe says"
    reasons = [reason for target in targets if (reason := target.saturates())]
    return (True, reasons[0]) if reasons else (False, "no target saturates int8 sums")


def make(config: VariantRecipe, job: Job, folder: Path) -> Variant:
    """Quantize every source graph. Raises BadInput for an unknown module in `keep` or no calibration samples."""
    import onnx

    from ..export.onnx import save
    from . import dialects, kernels
    from .keep import kept_nodes, stem
    from .weights_only import quantize_weights

    narrow, why = overflow_fix(config, job.targets)
    wanted = dialects.wanted(config.scheme, job.targets)
    usual = config.activations is None or config.activations.bits == 8
    if not usual and not wanted:
        raise BadInput(
            f"quantize `{config.name}`: activations of 16 bits are for NPUs whose runtime quantizes by rules of its own, and none "
            "of the targets stores them; use 8 bits"
        )
    graphs: dict[str, Path] = {}
    others: dict[str, dict[str, Path]] = {dialect: {} for dialect in wanted}
    facts = {}
    for name, source in job.source.items():
        model = folded(onnx.load(str(source)))
        keep = kept_nodes(config.keep, model, source)
        corrected: dict[str, Any] = {}
        if config.activations is None:
            made = quantize_weights(model, keep, per_channel=_per_channel(config))
        else:
            if job.calibration is None:
                raise BadInput(
                    f"quantize `{config.name}`: int8 activations need calibration samples; leave `activations` out without any"
                )
            batches = _Batches(lambda name=name: job.calibration(name, config.calibration))  # type: ignore[misc]
            for dialect in set(wanted) & set(dialects.DIALECTS):
                other = dialects.quantize(dialect, source, keep, batches, config)
                tidy(other)
                others[dialect][name] = folder / dialect / source.name
                save(other, others[dialect][name])
            if usual:
                made, corrected = _corrected_if_better(model, keep, batches, config, narrow)
                if dialects.FUSED in wanted:
                    tidy(made)
                    others[dialects.FUSED][name] = folder / dialects.FUSED / source.name
                    save(made, others[dialects.FUSED][name])
                made, told = _rounded_unless_far(model, made, batches, config, corrected["bias_correction"]["sqnr_db"])
                corrected |= told
                kernels.widen(made, stem(made))
                kernels.make_unsigned(made)
            else:
                made = other
        tidy(made)
        save(made, folder / source.name)
        graphs[name], facts[name] = folder / source.name, counts(made) | {"kept": keep} | corrected
    whole = {"nodes": facts, "overflow_fix": {"on": narrow, "why": why}}
    return Variant(config.name, "ptq", config.scheme, folder, graphs, reference="graph", facts=whole, dialects=others)


def _corrected_if_better(
    model: onnx.ModelProto, keep: list[str], batches: _Batches, config: VariantRecipe, narrow: bool
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Quantize with and without fast bias correction; return the nearer one and {"bias_correction": ...}.

    The correction takes a channel for constant over the picture. That brings up to 1 dB where maps are large, and cost 19 dB
    on digits of 8 x 8 pixels, where padding is much of the picture.
    """
    from .nearest import sqnr_db

    made = {name: _static(model, keep, batches, config, narrow, correct=name == "on") for name in ("off", "on")}
    ratios = sqnr_db(model, made, batches)
    best = "on" if ratios["on"] > ratios["off"] else "off"
    return made[best], {"bias_correction": {"on": best == "on", "sqnr_db": ratios}}


def _rounded_unless_far(
    model: onnx.ModelProto, made: onnx.ModelProto, batches: _Batches, config: VariantRecipe, before: Mapping[str, float]
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Round the results of convolutions (rounded.py) unless that costs more than 6 dB; return {"rounded": how many}, and why none.

    It brings speed and costs 1 to 3 dB. Where channels of very different size share a result and are normalised afterwards, one
    scale keeps nothing of the small ones: 26 dB before an InstanceNormalization.
    """
    from .nearest import sqnr_db
    from .rounded import round_results

    assert config.activations is not None
    rounded = type(made).FromString(made.SerializeToString())
    count = round_results(rounded, batches, config.activations.symmetric)
    if not count:
        return made, {"rounded": 0}
    ratios = {"off": max(before.values()), **sqnr_db(model, {"on": rounded}, batches)}
    if ratios["on"] < ratios["off"] - _DEAR_DB:
        return made, {"rounded": 0, "left_unrounded": {"convolutions": count, "sqnr_db": ratios}}
    return rounded, {"rounded": count}


def counts(model: onnx.ModelProto) -> dict[str, Any]:
    """Count the heavy nodes: {heavy, int8 (weights and activations), int8_weights (weights alone), float}."""
    makers = {output: node for node in model.graph.node for output in node.output}

    def stored_as_integers(name: str) -> bool:
        while name in makers and makers[name].op_type in _MOVES:  # these move values and run on integers as well
            name = makers[name].input[0]
        return name in makers and makers[name].op_type == "DequantizeLinear"

    found = {"heavy": 0, "int8": 0, "int8_weights": 0, "float": 0}
    for node in model.graph.node:
        if node.op_type == "MatMulInteger":
            found["heavy"] += 1
            found["int8"] += 1
        if node.op_type in HEAVY:
            found["heavy"] += 1
            first, second = (stored_as_integers(name) for name in node.input[:2])
            found["int8" if first and second else "int8_weights" if first or second else "float"] += 1
    return found


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold each BatchNormalization into the convolution before it (what edgekd exports is folded already)."""
    if any(node.op_type == "BatchNormalization" for node in model.graph.node):
        from onnxscript import optimizer, rewriter

        return rewriter.rewrite(optimizer.optimize(model))
    return model


@dataclass(frozen=True)
class _Batches:
    """Calibration batches, made anew for each pass and never held."""

    source: Callable[[], Iterable[Arrays]]

    def __iter__(self) -> Iterator[Arrays]:
        return iter(self.source())


def _static(
    model: onnx.ModelProto, keep: list[str], batches: _Batches, config: VariantRecipe, narrow: bool, correct: bool
) -> onnx.ModelProto:
    from .keep import quotients, stem

    assert config.activations is not None
    nncf = _nncf()
    from nncf.parameters import ModelType
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
        OverflowFix,
        QuantizationParameters,
    )

    inputs = {value.name for value in model.graph.input} - {t.name for t in model.graph.initializer}
    only_known = nncf.Dataset(batches, lambda batch: {name: batch[name] for name in inputs})
    total = -(-config.calibration.samples // config.calibration.batch_size)
    advanced = AdvancedQuantizationParameters(
        disable_bias_correction=not correct,
        overflow_fix=OverflowFix.ENABLE if narrow else OverflowFix.DISABLE,
        weights_quantization_params=QuantizationParameters(per_channel=_per_channel(config)),
        # scales per channel of depthwise activations would be exact in QDQ, but no runtime has integer kernels for them
        activations_quantization_params=QuantizationParameters(per_channel=False),
    )
    if _turns_weights(model):  # NNCF's smoothing of activations into weights looks for these and finds none
        advanced.smooth_quant_alphas = AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
    ignored = sorted({*keep, *stem(model), *quotients(model), *(_grouped(model) if narrow else [])})
    preset = nncf.QuantizationPreset.PERFORMANCE if config.activations.symmetric else nncf.QuantizationPreset.MIXED
    try:
        with _quiet():
            return nncf.quantize(
                model,
                only_known,
                preset=preset,
                subset_size=total,
                model_type=ModelType.TRANSFORMER if _attends(model) else None,
                ignored_scope=nncf.IgnoredScope(names=ignored, validate=False) if ignored else None,
                advanced_parameters=advanced,
            )
    except (AttributeError, IndexError, nncf.InternalError, nncf.UnsupportedModelError, nncf.ValidationError) as error:
        raise BadInput(
            f"quantize `{config.name}`: NNCF cannot quantize this graph's activations ({type(error).__name__}: {first_line(error)}): "
            "leave `activations` out, or use method dynamic"
        ) from error


def _turns_weights(model: onnx.ModelProto) -> bool:
    """Say whether a product takes weights that are transposed before it, as those that a language model's first and last layer share."""
    stored = {tensor.name for tensor in model.graph.initializer}
    turned = {node.output[0] for node in model.graph.node if node.op_type == "Transpose" and node.input[0] in stored}
    return any(node.op_type == "MatMul" and node.input[1] in turned for node in model.graph.node)


def _grouped(model: onnx.ModelProto) -> list[str]:
    """Return the convolutions in groups of several channels: NNCF leaves them 8 bits, as if they were depthwise, and their sums saturate."""
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        if node.op_type == "Conv" and groups > 1 and len(shapes.get(node.input[1], ())) > 1 and shapes[node.input[1]][1] > 1:
            found.append(node.name)
    return found


def _attends(model: onnx.ModelProto) -> bool:
    kinds = {node.op_type for node in model.graph.node}
    return "Softmax" in kinds and ("LayerNormalization" in kinds or "MatMul" in kinds)


def _per_channel(config: VariantRecipe) -> bool:
    return config.weights is None or config.weights.granularity != "tensor"


def tidy(model: onnx.ModelProto) -> None:
    """Bring the file to one form: no metadata, and the weights in the order of their names."""
    from ..export.onnx import strip

    strip(model)
    ordered = sorted(model.graph.initializer, key=lambda tensor: tensor.name)
    del model.graph.initializer[:]
    model.graph.initializer.extend(ordered)


def _nncf() -> Any:
    """Import NNCF with its telemetry off: it reads this variable once, when it is imported."""
    before = os.environ.get("NNCF_CI")
    os.environ["NNCF_CI"] = "1"
    try:
        with _quiet():
            import nncf
    except ImportError:
        raise Missing("method `ptq` needs NNCF: pip install 'edgekd[onnxruntime]'") from None
    finally:
        if before is None:
            del os.environ["NNCF_CI"]
        else:
            os.environ["NNCF_CI"] = before
    nncf.set_log_level(logging.ERROR)
    return nncf


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
