"""Distillation: fit a student to a teacher, or any network to labels alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInput

if TYPE_CHECKING:
    from ..data import Splits
    from ..materials import Materials
    from ..models import LoadedModel
    from ..plan import Plan
    from ..recipe import Distill, Training
    from ..tasks import Task
    from .history import History


def check(settings: Distill, task: Task, student: LoadedModel, teacher: LoadedModel | None) -> None:
    """Check before anything is computed that what the objectives read is there. Raises BadInput with the nearest names."""
    from ..quantize import lora
    from . import objectives, taps

    if settings.lora:
        lora.check(student.module.net, settings.lora, "distill.lora")

    for goal in objectives.resolve(settings.objectives):
        of_student, of_teacher = goal.layers
        if lacking := [name for name in goal.reads if not of_teacher and name not in task.outputs]:
            raise BadInput(
                f"objective `{goal.name}` reads `{lacking[0]}`, which a {task.name} model does not give; it gives "
                f"{', '.join(f'`{name}`' for name in task.outputs)}: choose an objective for that"
            )
        taps.layers_of(student.module, [name for name in of_student if name not in task.outputs], "student")
        if teacher is not None:
            taps.layers_of(teacher.module, [name for name in of_teacher if name not in task.outputs], "teacher")


def distill(plan: Plan, materials: Materials, folder: Path) -> tuple[LoadedModel, dict[str, Any]]:
    """Fit the recipe's student to its teacher; return the student with its best weights, and the history (JSON-able).

    folder: for checkpoints. Raises BadInput, Diverged.
    """
    settings = plan.recipe.distill
    assert settings is not None  # the plan has this stage only then
    student, splits = materials.fresh_student, materials.splits
    teacher = materials.teacher if plan.recipe.teacher else None
    cache = plan.out / "teacher_cache" if settings.teacher == "cached" else None
    history = _fit(student, splits, materials.task, settings, plan.recipe.seed, folder, "distill", teacher=teacher, cache=cache)
    return _named(student, splits.classes), history.to_json()


def train(plan: Plan, role: str, folder: Path) -> tuple[LoadedModel, dict[str, Any], float]:
    """Fit the recipe's teacher or student to the labels, from its start; return it, the history and the test score.

    folder: for checkpoints. Raises BadInput, Diverged.
    """
    from ..export.graph import torch_runner
    from ..tasks import task_of

    # Weights that the recipe names are what this training is to make.
    fresh = getattr(plan.recipe, role).model_copy(update={"weights": None})
    recipe = plan.recipe.model_copy(update={role: fresh})
    task = task_of(recipe.task)
    splits = task.splits(recipe)
    model = task.model(recipe, splits, role, need_weights=recipe.train.lora is not None)
    history = _fit(model, splits, task, recipe.train, recipe.seed, folder, "train")
    score = task.evaluate(torch_runner(task.graphs(model, splits)), splits.test).score
    return _named(model, splits.classes), history.to_json(), score


def _fit(
    model: LoadedModel, splits: Splits, task: Task, settings: Training, seed: int, folder: Path, section: str, **rest: Any
) -> History:
    """Fit a model, or adapters beside its weights and merge them; they are kept in FOLDER/adapter."""
    from ..quantize import lora
    from .trainer import fit

    if settings.lora is None:
        return fit(model, splits, task, settings, seed=seed, folder=folder, **rest)
    adapters = lora.attach(model, settings.lora, task, splits, seed, f"{section}.lora")
    history = fit(model, splits, task, settings, seed=seed, folder=folder, **rest)
    return replace(history, lora=lora.merge(model, adapters, task, splits, folder / "adapter"))


def _named(model: LoadedModel, classes: tuple[str, ...]) -> LoadedModel:
    """Note the data's class names with a model that knew none: their order is now what it was trained on."""
    return model if model.classes else replace(model, classes=classes)
