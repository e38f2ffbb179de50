"""The recipe: what the user wrote, checked. The only place where a default lives.

>>> recipe = load("models/digits", settings=["distill.epochs=3"])
>>> recipe.distill.epochs
3
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from .data import Data, Model, Preprocess
from .judging import Bench, Gate
from .strict import Strict
from .training import Augment, Distill, Features, Installed, Logits, Objective, TaskLoss, Training
from .variants import TRAINED, Activations, Budget, Calibration, Retraining, Scheme, VariantRecipe, Weights

__all__ = [
    "TRAINED", "Activations", "Augment", "Bench", "Budget", "Calibration", "Data", "Distill", "Features", "Gate", "Installed", "Logits",
    "Model", "Objective", "Preprocess", "Recipe", "Retraining", "Scheme", "Strict", "TaskLoss", "Training", "VariantRecipe", "Weights",
    "load",
]  # fmt: skip


class Recipe(Strict):
    """A teacher, data and the devices you ship to."""

    task: Literal["image-classification"] = "image-classification"
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
    def teaching(self) -> Distill:
        """What variants are trained by, before their own changes: `distill`, or what stands for it in a recipe without."""
        as_train = {name: getattr(self.train, name) for name in Training.model_fields}
        return self.distill or Distill(**as_train, teacher="live")

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
        return self


def load(path: str | Path, settings: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, or the recipe.yaml of a folder (yours, or one that ships with edgekd such as models/digits).

    settings: overrides such as "distill.epochs=3"; values are YAML. Paths in the file are relative to the file,
    paths in settings to the working directory. Raises BadInput with file, line and key for whatever is wrong.
    """
    from .. import recipe_file

    return recipe_file.load(path, settings)
