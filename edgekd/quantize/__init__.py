"""Quantization methods, one file each; a new one is a file plus a line here (or an entry point `edgekd.methods`).

A method's module has `refuses(config) -> str | None`, told before anything is trained, and `make(config, job, folder) -> Variant`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInput

if TYPE_CHECKING:
    from ..data import Splits
    from ..export.graph import Arrays
    from ..materials import Materials
    from ..models import LoadedModel
    from ..plan import Plan
    from ..recipe import Calibration, Distill, Scheme, VariantRecipe
    from ..targets import Target
    from ..tasks import Task
    from .variant import Variant

METHODS = {
    "none": "edgekd.quantize.full_precision",
    "ptq": "edgekd.quantize.post_training",
    "dynamic": "edgekd.quantize.dynamic",
    "round-to-nearest": "edgekd.quantize.chain",
    "quantized-distillation": "edgekd.quantize.chain",
    "differentiable": "edgekd.quantize.chain",
    "lora": "edgekd.quantize.chain",
}

_OPTIONS = {
    "keep": ("ptq", "dynamic", "round-to-nearest", "quantized-distillation", "differentiable"),
    "calibration": ("ptq", "dynamic"),
    "style": ("quantized-distillation",),
    "rounding": ("quantized-distillation",),
    "scale": ("quantized-distillation",),
    "lora": ("lora",),
    "training": ("quantized-distillation", "differentiable", "lora"),
    "budget": ("round-to-nearest", "quantized-distillation", "differentiable"),
}
"""Which methods read an option; with another one it would silently do nothing. Defaults a manifest has written out are fine."""


@dataclass(frozen=True)
class Job:
    """What a method may work with. The first three are enough for the methods that start from a graph, a bare .onnx included.

    source: graph name -> full-precision ONNX file. targets: what the variant is for.
    calibration: (graph name, how much) -> batches of that graph's inputs, made while they are read, the same ones every time.
    The rest is for the methods that start from the network, called when it is needed: the finished student, in full
    precision; the teacher, where there is one; the data. training: what variants are trained by, before their own changes.
    teacher_cache: folder of the teacher's outputs for `training`.
    """

    source: Mapping[str, Path]
    targets: tuple[Target, ...] = ()
    calibration: Callable[[str, Calibration], Iterable[Arrays]] | None = None
    task: Task | None = None
    splits: Callable[[], Splits] | None = None
    student: Callable[[], LoadedModel] | None = None
    teacher: Callable[[], LoadedModel] | None = None
    training: Distill | None = None
    teacher_cache: Path | None = None
    seed: int = 0


def refuses(config: VariantRecipe) -> str | None:
    """Say what the variant's method cannot do, and what it can; None when it can. Imports no quantizer."""
    for option, methods in _OPTIONS.items():
        default = type(config).model_fields[option].default
        if getattr(config, option) != default and not set(methods) & set(config.methods):
            return f"`{option}` goes with {' or '.join(methods)}, not with {config.methods[0]}; leave it out"
    return _method(config).refuses(config)


def from_the_network(config: VariantRecipe) -> bool:
    """Say whether a variant is made from the student as a torch network, not from its graphs."""
    return METHODS[config.methods[0]] == METHODS["round-to-nearest"]


def opset_for(targets: Iterable[Target], scheme: Scheme) -> int:
    """Return the highest opset that all targets take which store the scheme: one file serves them all."""
    from ..targets import OPSET, covers

    return min((target.opset for target in targets if covers(target.stores, scheme.label)), default=OPSET)


def make(config: VariantRecipe, job: Job, folder: Path) -> Variant:
    """Make one variant in `folder`, variant.json included. Raises BadInput for what the method cannot do."""
    from . import variant

    if reason := refuses(config):
        raise BadInput(f"quantize `{config.name}`: {reason}")
    folder.mkdir(parents=True, exist_ok=True)
    made: Variant = _method(config).make(config, job, folder)
    variant.save(made)
    return made


def fill(config: VariantRecipe, plan: Plan, materials: Materials, folder: Path) -> None:
    """Make one variant of a run's student."""
    make(config, job_of(plan, materials), folder)


def train_along(config: VariantRecipe, plan: Plan, materials: Materials, folder: Path) -> None:
    """Do this process's part of training a variant; the files are the first process's work."""
    from . import chain

    chain.train(config, job_of(plan, materials), folder)


def job_of(plan: Plan, materials: Materials) -> Job:
    """Return the job of a run; nothing is loaded yet."""
    from .calibration import from_task
    from .variant import file_runner

    recipe = plan.recipe
    source = materials.source_graphs()
    run = file_runner(source)
    return Job(
        source=source,
        targets=plan.targets,
        calibration=lambda graph, settings: from_task(
            materials.task, materials.splits.train, settings, recipe.seed, graph=graph, run=run
        ),
        task=materials.task,
        splits=lambda: materials.splits,
        student=lambda: materials.student,
        teacher=(lambda: materials.teacher) if recipe.teacher else None,
        training=recipe.teaching,
        teacher_cache=plan.out / "teacher_cache",
        seed=recipe.seed,
    )


def _method(config: VariantRecipe) -> Any:
    return importlib.import_module(METHODS[config.methods[0]])
