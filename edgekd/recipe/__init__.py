"""The recipe: what the user wrote, checked. The only place where a default lives.

>>> recipe = load("models/digits", settings=["distill.epochs=3"])
>>> recipe.distill.epochs
3
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from .. import tasks
from ..names import nearest
from .data import Data, Model, Pairs, Preprocess
from .judging import Bench, Gate
from .strict import Strict
from .training import (
    OBJECTIVES,
    Augment,
    Distill,
    Embedding,
    Features,
    Installed,
    Logits,
    Lora,
    Objective,
    Similarities,
    TaskLoss,
    Training,
)  # fmt: skip
from .variants import TRAINED, Activations, Budget, Calibration, Retraining, Scheme, VariantRecipe, Weights

__all__ = [
    "TRAINED", "Activations", "Augment", "Bench", "Budget", "Calibration", "Data", "Distill", "Embedding", "Features", "Gate", "Installed", "Logits",
    "Lora", "Model", "Objective", "Pairs", "Preprocess", "Recipe", "Retraining", "Scheme", "Similarities", "Strict", "TaskLoss", "Training", "VariantRecipe", "Weights",
    "load",
]  # fmt: skip


TEXT = ("text-embedding", "causal-lm", "seq2seq-lm")
"""Tasks whose samples are text."""
LANGUAGE_MODELS = ("causal-lm", "seq2seq-lm")
"""Tasks whose models give a score for every token of a vocabulary, at every place of a text."""
_READ_BY = {
    "data.image": ("image-classification",), "data.label": ("image-classification",),
    "data.text": ("text-embedding", "causal-lm"), "data.pairs": ("text-embedding",),
    "data.input": ("seq2seq-lm",), "data.output": ("seq2seq-lm",),
    "teacher.pooling": ("text-embedding",), "student.pooling": ("text-embedding",),
    "teacher.tokenizer": TEXT, "student.tokenizer": TEXT, "student.teacher_layers": TEXT,
    "distill.vocabulary": LANGUAGE_MODELS, "distill.targets": ("seq2seq-lm",),
}  # fmt: skip
"""Keys that not every task reads -> those that do."""


class Recipe(Strict):
    """A teacher, data and the devices you ship to."""

    task: str = "image-classification"
    data: Data
    teacher: Model | None = None
    student: Model
    preprocess: Preprocess | None = Field(None, description="for both models, unless a model has its own")
    train: Training = Field(Training(), description="what `edgekd train` does")
    distill: Distill | None = None
    quantize: tuple[VariantRecipe, ...] = Field((VariantRecipe(name="fp32", method="none"),), min_length=1)
    targets: tuple[str, ...] = Field(("onnxruntime-cpu",), min_length=1)
    gate: Gate = Gate()
    bench: Bench = Bench()
    seed: int = Field(0, ge=0, lt=2**31)

    @property
    def like(self) -> str:
        """The task of our own whose keys it may have: its own, or what one of another package says."""
        return tasks.like(self.task)

    @property
    def reads_text(self) -> bool:
        """Whether its samples are text, not pictures."""
        return self.like in TEXT

    @property
    def student_is_trained(self) -> bool:
        """Whether the student must bring weights: one that is taken as it is, or that learns by adapters beside them."""
        return self.distill is None or self.distill.lora is not None

    @property
    def teaching(self) -> Distill:
        """What variants are trained by, before their own changes: `distill`, or what stands for it in a recipe without."""
        as_train = {name: getattr(self.train, name) for name in Training.model_fields}
        return self.distill or Distill(**as_train, teacher="live", objectives=OBJECTIVES[self.like])

    @model_validator(mode="before")
    @classmethod
    def _objectives_of_the_task(cls, values: Any) -> Any:
        """Put what is usual for the task where `distill` does not say, and the teacher's reference where the student's is `teacher`."""
        if isinstance(values, dict):
            values = _like_the_teacher(values)
        distill = values.get("distill") if isinstance(values, dict) else None
        if isinstance(distill, dict):
            task = values.get("task", "image-classification")
            task = tasks.like(task) if task in tasks.names() else ""
            usual = {"objectives": OBJECTIVES.get(task, ())} | ({"teacher": "live"} if task in LANGUAGE_MODELS else {})
            return {**values, "distill": {**distill, **{key: value for key, value in usual.items() if key not in distill}}}
        return values

    @field_validator("task")
    @classmethod
    def _is_there(cls, value: str) -> str:
        if value not in tasks.names():
            raise ValueError(f"unknown task `{value}`{nearest(value, tasks.names())}; there are {', '.join(tasks.names())}")
        return value

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        names = [variant.name for variant in self.quantize]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two variants are named `{name}`: each names a folder, so give them different names")
        targets = [Path(name).stem if name.endswith(".toml") else name for name in self.targets]
        for name in targets:
            if targets.count(name) > 1:
                raise ValueError(f"two targets are named `{name}`: each names a folder, so leave one out or rename its file")
        if self.distill and not self.teacher:
            needing = [o.kind for o in self.distill.objectives if o.kind != "task"]
            if needing:
                raise ValueError(f"objective `{needing[0]}` needs a teacher: add `teacher: {{model: ...}}`")
        if reason := _without_effect(self) or (_unlike_text(self) if self.reads_text else None):
            raise ValueError(reason)
        if self.like in LANGUAGE_MODELS and self.distill and self.distill.teacher == "cached":
            raise ValueError(
                "distill.teacher: cached: a language model's logits (a number for each token of the vocabulary at each place of the "
                "text) are too many to keep: set distill.teacher: live"
            )
        return self


def _without_effect(recipe: Recipe) -> str | None:
    """Name a key that is given, and that the task does not read; None where there is none."""
    for key, readers in _READ_BY.items():
        name, part = key.split(".")
        section = getattr(recipe, name)
        given = section is not None and getattr(section, part) != type(section).model_fields[part].default
        if given and recipe.like not in readers:
            return f"{key}: a recipe for {recipe.task} does not read it (those for {', '.join(readers)} do): leave it out"
    return None


def _unlike_text(recipe: Recipe) -> str | None:
    """Say what a recipe for text lacks, or has that is for pictures; None when all fits."""
    if recipe.preprocess or any(model.preprocess for model in (recipe.teacher, recipe.student) if model):
        return "preprocess: is for pictures; a model that reads text brings its tokenizer (`tokenizer` names another)"
    if recipe.distill and recipe.distill.augment != Augment():
        return "distill.augment: is for pictures, and this task reads text: leave it out"
    if recipe.like != "text-embedding":
        return None
    if recipe.data.pairs is None:
        return (
            "data.pairs: text embeddings are judged by pairs of sentences that people scored (STS-B is such a set): add "
            "`pairs: {source: ...}` to `data`"
        )
    if recipe.distill and any(goal.kind == "task" for goal in recipe.distill.objectives):
        return (
            "distill.objectives: text-embedding learns from texts without labels, so `task` has no loss: use `embedding` and "
            "`similarities`"
        )
    return None


def _like_the_teacher(values: dict[str, Any]) -> dict[str, Any]:
    """Write out `student: {model: teacher}`: what the teacher is made from."""
    student, teacher = values.get("student"), values.get("teacher")
    if not isinstance(student, dict) or student.get("model") != "teacher":
        return values
    if not isinstance(teacher, dict) or "model" not in teacher:
        raise ValueError("student.model: `teacher` means a model of the teacher's kind, and there is no teacher: add one")
    shared = {key: teacher[key] for key in ("model", "tokenizer", "pooling", "preprocess") if key in teacher}
    return {**values, "student": {**shared, **student, "model": teacher["model"]}}


def load(path: str | Path, settings: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, or the recipe.yaml of a folder (yours, or one that ships with edgekd such as models/digits).

    settings: overrides such as "distill.epochs=3"; values are YAML. Paths in the file are relative to the file,
    paths in settings to the working directory. Raises BadInput with file, line and key for whatever is wrong.
    """
    from .. import recipe_file

    return recipe_file.load(path, settings)
