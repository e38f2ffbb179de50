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
    from ..recipe import Calibration, Training, VariantRecipe
    from ..targets import Target
    from ..tasks import Task
    from .variant import Variant

METHODS = {
    "none": "edgekd.quantize.full_precision",
    "ptq": "edgekd.quantize.post_training",
}


@dataclass(frozen=True)
class Job:
    """What a method may work with. The first three are enough for the methods that start from a graph, a bare .onnx included.

    source: graph name -> full-precision ONNX file. targets: what the variant is for.
    calibration: (graph name, how much) -> batches of that graph's inputs, made while they are read, the same ones every time.
    The rest is for methods that train.
    """

    source: Mapping[str, Path]
    targets: tuple[Target, ...] = ()
    calibration: Callable[[str, Calibration], Iterable[Arrays]] | None = None
    task: Task | None = None
    splits: Splits | None = None
    student: LoadedModel | None = None
    teacher: LoadedModel | None = None
    training: Training | None = None
    seed: int = 0


def refuses(config: VariantRecipe) -> str | None:
    """Say what the variant's method cannot do, and what it can; None when it can. Imports no quantizer."""
    return _method(config).refuses(config)


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
    from .calibration import from_task

    recipe = plan.recipe
    job = Job(
        source=materials.source_graphs(),
        targets=plan.targets,
        calibration=lambda graph, settings: from_task(materials.task, materials.splits.train, settings, recipe.seed),
        training=recipe.distill or recipe.train,
        seed=recipe.seed,
    )
    make(config, job, folder)


def _method(config: VariantRecipe) -> Any:
    return importlib.import_module(METHODS[config.method])
