"""Methods that quantize the weights of the finished student in torch, alone or one after the other; some of them train.

A chain may begin with adapters (lora.py), which are merged before the first rounding.

Each puts its quantizers before the weights of a copy of the student (fake.py). In the end every quantizer gives way to the
numbers that it stands for, which are stored packed (packed.py). Arithmetic stays in floating point.
"""

from __future__ import annotations

import copy
import importlib
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInput
from .variant import Variant

if TYPE_CHECKING:
    from torch import nn

    from ..data import Splits
    from ..models import LoadedModel
    from ..recipe import Distill, VariantRecipe
    from ..tasks import Task
    from . import Job
    from .encoded import Encoded

_STEPS = {
    "round-to-nearest": "edgekd.quantize.round_to_nearest",
    "quantized-distillation": "edgekd.quantize.quantized_distillation",
    "differentiable": "edgekd.quantize.differentiable",
}


def refuses(config: VariantRecipe) -> str | None:
    """Say what of the scheme the methods cannot do; None when they can. They quantize weights alone, to 1-8 bits."""
    weights, methods = config.weights, " and ".join(config.methods)
    codebook = config.methods[-1] == "differentiable"
    if weights is None:
        return f"{methods} needs `weights: {{bits: 4}}`"
    if config.activations:
        what = "a codebook has no arithmetic of its own to run activations in" if codebook else f"{methods} makes weights alone"
        return f"activations of {config.activations.bits} bits: {what}; leave `activations` out, or use method ptq"
    if weights.symmetric and (reason := _not_symmetric(config, methods, codebook)):
        return reason
    if codebook and weights.kind != "codebook":
        return f"weights of kind {weights.kind}: differentiable learns a codebook; leave `kind` out"
    if not codebook and weights.kind != "uniform":
        return f"weights of kind {weights.kind}: {methods} makes uniform ones; leave `kind` out, or use method differentiable"
    written_out = weights.model_fields_set >= set(type(weights).model_fields)  # by a manifest, defaults and all
    if config.budget and (weights.bits != 8 or ("bits" in weights.model_fields_set and not written_out)):
        return f"weights of {weights.bits} bits and a budget: the bits are chosen among budget.choices; leave `bits` out"
    if config.scale == "learned" and (config.style or "straight-through") != "straight-through":
        return f"style {config.style} with a learned scale, which has a gradient of its own; leave one of the two out"
    if config.scale == "learned" and config.rounding == "stochastic":
        return "stochastic rounding with a learned scale, which rounds to the nearest; leave one of the two out"
    return None


def _not_symmetric(config: VariantRecipe, methods: str, codebook: bool) -> str | None:
    """Say why levels cannot lie around zero; None where they can."""
    if codebook or config.scale == "learned":
        what = "a codebook" if codebook else "a learned scale"
        return f"symmetric weights: {methods} with {what} puts its levels where they serve best; leave `symmetric` out"
    if config.style not in (None, "straight-through") or config.rounding == "stochastic":
        told = "stochastic rounding" if config.rounding == "stochastic" else f"style {config.style}"
        return f"symmetric weights with {told}, which needs levels from the smallest weight to the largest; leave one of the two out"
    least = min(config.budget.choices) if config.budget else config.weights.bits if config.weights else 8
    return "symmetric weights of 1 bit: zero would be one of two levels; give 2 bits or more" if least < 2 else None


def check(config: VariantRecipe, net: nn.Module) -> dict[str, int]:
    """Return what is to be quantized: name of each weight in the state dict -> weights a bucket.

    Raises BadInput for a pattern of `keep` that matches nothing or leaves nothing, and a budget below the smallest possible size.
    """
    from ..recipe import Lora
    from . import allocation
    from .buckets import bucket_size
    from .layers import weights_of

    weights = config.weights
    assert weights is not None
    if "lora" in config.methods:
        from . import lora

        lora.check(net, config.lora or Lora(), f"quantize.{config.name}.lora")
    try:
        names = weights_of(net, config.keep)
    except BadInput as error:
        raise BadInput(f"quantize `{config.name}`: {error}") from None
    shapes = {name: tuple(net.get_parameter(name).shape) for name in names}
    sizes = {name: bucket_size(shape, weights.granularity, weights.group) for name, shape in shapes.items()}
    if config.budget:
        allocation.check(config, net, sizes)
    return sizes


def make(config: VariantRecipe, job: Job, folder: Path) -> Variant:
    """Make the variant: model.safetensors with the quantized weights as plain numbers, and the same packed, as ONNX.

    Raises BadInput for what does not fit, Diverged for a training that does.
    """
    from .. import models
    from ..export.onnx import files_of
    from . import opset_for, packed, size

    _, task, splits = _given(config, job)
    student, encoded, facts = train(config, job, folder)
    models.save(student, folder)
    graphs = {}
    for graph in task.graphs(student, splits):
        graphs[graph.name] = folder / f"{graph.name}.onnx"
        packed.write(graph, encoded, graphs[graph.name], opset=opset_for(job.targets, config.scheme))
    rest = size.numbers(student.module.net, without=encoded)
    facts["sizes"] = size.sizes(encoded, rest, [file for graph in graphs.values() for file in files_of(graph)])
    shutil.rmtree(folder / "training", ignore_errors=True)
    method = " + ".join(config.methods)
    return Variant(config.name, method, config.scheme, folder, graphs, "torch", facts, folder / "model.safetensors")


def train(config: VariantRecipe, job: Job, folder: Path) -> tuple[LoadedModel, dict[str, Encoded], dict[str, Any]]:
    """Return a copy of the student with quantized weights, the same weights as they are stored, and what is to be told of them.

    folder: for checkpoints; an interrupted training goes on from there. Under `accelerate launch` every process calls this.
    """
    from ..recipe import Distill
    from . import allocation, fake

    whole, _, _ = _given(config, job)
    student = replace(whole, module=copy.deepcopy(whole.module).requires_grad_(True))
    net = student.module.net
    sizes = check(config, net)
    assert config.weights is not None
    lessons = dict(config.lessons(job.training or Distill(teacher="live")))
    told, unmerged = [], None
    if "lora" in config.methods:
        unmerged, lesson = _adapt(config, job, student, lessons["lora"], folder)
        told.append(lesson)
    bits, budget = dict.fromkeys(sizes, config.weights.bits), None
    if config.budget:
        bits, budget = allocation.bits_of(config, job, student, sizes)
    layout = {name: (size, bits[name]) for name, size in sizes.items()}
    for method in config.methods[len(told) :]:
        importlib.import_module(_STEPS[method]).prepare(net, layout, config)
        if method in lessons:
            told.append(_fit(config, job, student, method, lessons[method], folder / "training" / method, unmerged))
    encoded = fake.bake(net)
    return student, encoded, _facts(config, net, encoded, layout, told, budget)


def _given(config: VariantRecipe, job: Job) -> tuple[LoadedModel, Task, Splits]:
    """Return the finished student, its task and the data. Raises BadInput where there is but a graph."""
    if job.student is None or job.task is None or job.splits is None:
        raise BadInput(
            f"quantize `{config.name}`: {' and '.join(config.methods)} needs the student as a torch network and data; "
            "a bare .onnx has neither: use method ptq, or a recipe"
        )
    return job.student(), job.task, job.splits()


def _adapt(
    config: VariantRecipe, job: Job, student: LoadedModel, settings: Distill, folder: Path
) -> tuple[LoadedModel, dict[str, Any]]:
    """Train adapters and merge them into the student; return it unmerged, as a teacher, and the history."""
    from . import lora

    _, task, splits = _given(config, job)
    assert settings.lora is not None
    adapters = lora.attach(student, settings.lora, task, splits, job.seed, f"quantize.{config.name}.lora")
    told = _fit(config, job, student, "lora", settings, folder / "training" / "lora")
    unmerged = replace(student, module=copy.deepcopy(student.module), role="teacher")
    return unmerged, {**told, "lora": lora.merge(student, adapters, task, splits, folder / "adapter")}


def _fit(
    config: VariantRecipe, job: Job, student: LoadedModel, method: str, settings: Distill, folder: Path,
    unmerged: LoadedModel | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train what the quantizers leave trainable; return the history without the times, so that the same run tells the same.

    unmerged: the student with adapters, in full precision, which is the teacher where there is one.
    """
    from ..distill.trainer import fit

    whole, task, splits = _given(config, job)
    if not len(splits.train):
        raise BadInput(f"quantize `{config.name}`: {method} trains, and there are no training samples; check `data`")
    history = fit(
        student, splits, task, settings, seed=job.seed, folder=folder,
        teacher=unmerged or (job.teacher() if job.teacher else replace(whole, module=copy.deepcopy(whole.module))),
        cache=job.teacher_cache if unmerged is None and _reads_the_same(settings, job.training) else None,
        section=f"quantize.{config.name}.training"
        + (f"[{config.methods.index(method)}]" if isinstance(config.training, tuple) else ""),
    ).to_json()  # fmt: skip
    history.pop("images_per_second")
    for epoch in history["epochs"]:
        epoch.pop("seconds")
    return {"method": method, **history, "settings": settings.model_dump(mode="json", exclude={"checkpoint_minutes"})}


def _reads_the_same(settings: Distill, base: Distill | None) -> bool:
    """Say whether a training reads the outputs of the teacher that the student's own did, so that their cache serves both."""
    from ..distill import objectives
    from ..distill.teacher_cache import wanted_outputs

    wanted = [wanted_outputs(objectives.resolve(s.objectives)) if s else None for s in (settings, base)]
    return wanted[0] == wanted[1]


def _facts(
    config: VariantRecipe, net: nn.Module, encoded: dict[str, Encoded], layout: dict[str, tuple[int, int]],
    told: list[dict[str, Any]], budget: Any,
) -> dict[str, Any]:  # fmt: skip
    from .layers import unquantized

    assert config.weights is not None
    tensors = [
        {
            "name": name,
            "shape": list(e.shape),
            "bits": e.bits,
            "levels": e.levels,
            "buckets": len(e.indices),
            "bucket_size": layout[name][0],
            "bytes": _bytes(e),
        }
        for name, e in encoded.items()
    ]
    return {
        "methods": list(config.methods),
        "tensors": tensors,
        "kept": unquantized(net, encoded),
        "training": told,
        "budget": budget,
    }


def _bytes(one: Encoded) -> int:
    """Return the bytes of a tensor's packed indices, scales, offsets and points."""
    floats = sum(len(values) for values in (one.scale, one.offset, one.points) if values is not None)
    return math.ceil(one.count * one.bits / 8) + 4 * floats
