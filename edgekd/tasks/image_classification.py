"""Image classification: pictures in, one score a class out, accuracy decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import data
from ..data import PictureSplit, PictureSplits
from ..errors import BadInput
from ..export.graph import Graph, Runner
from ..recipe import Model, Preprocess, Recipe
from . import Evaluation, Metric
from .class_order import check_classes

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from ..models import LoadedModel

ROLES = ("teacher", "student")


class ImageClassification:
    """The task protocol (`edgekd.tasks.Task`) for classifiers of single pictures."""

    name = "image-classification"
    metric = Metric("accuracy", higher_is_better=True)
    outputs = ("logits",)
    unit = "images"

    def splits(self, recipe: Recipe) -> PictureSplits:
        """Load the data at the largest size that a model wants; a model that wants a smaller one resizes inside.

        Crop and interpolation happen once, before both models: they are the student's, which ships, unless it leaves them open.
        Raises BadInput for data that cannot be read and models that want different numbers of channels.
        """
        from ..preprocess import size_of

        wanted = _wanted(recipe)
        channels = _channels(wanted)
        sizes = [size for size in map(size_of, wanted.values()) if size is not None]
        size = (max(h for h, _ in sizes), max(w for _, w in sizes)) if sizes else None
        leading = _leading(wanted)
        return data.load(recipe.data, size, recipe.seed, channels, leading.crop, leading.interpolation)

    def models(self, recipe: Recipe, splits: PictureSplits) -> tuple[LoadedModel | None, LoadedModel]:
        """Load teacher (None without one) and student, and check that each fits the data. Raises BadInput.

        A student that is not distilled must bring weights.
        """
        teacher = self.model(recipe, splits, "teacher", need_weights=True) if recipe.teacher else None
        student = self.model(recipe, splits, "student", need_weights=recipe.student_is_trained)
        if teacher and teacher.classes and student.classes:
            check_classes(student.classes, teacher.classes, "student", "the teacher")
        return teacher, student

    def model(self, recipe: Recipe, splits: PictureSplits, role: str, *, need_weights: bool) -> LoadedModel:
        """Load one model, teacher or student, and check that it fits the data. Raises BadInput."""
        from .. import models

        config: Model | None = getattr(recipe, role)
        if config is None:
            raise BadInput(f"the recipe has no {role}: add `{role}: {{model: ...}}`")
        wanted = _wanted(recipe)
        leading = _leading(wanted)
        seen = wanted[role].model_copy(update={"crop": leading.crop, "interpolation": leading.interpolation})
        made = models.load(
            config.model_copy(update={"preprocess": seen}),
            role=role,
            num_classes=len(splits.classes),
            image_shape=splits.image_shape,
            shared=recipe.preprocess,
            seed=recipe.seed,
            need_weights=need_weights,
        )
        assert made.preprocess is not None  # models.load() gives every picture model one
        _check_channels(made.preprocess, splits.image_shape[2], role)
        _check_outputs(made, splits, role)
        if made.classes:
            check_classes(made.classes, splits.classes, role, "the data", explicit=config.classes is not None)
        return made

    def inputs(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Pick the pictures, uint8 (n, H, W, C)."""
        return {"image": batch["image"]}

    def forward(self, module: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return {"logits": (n, classes)}."""
        return {"logits": module(batch["image"])}

    def loss(self, outputs: dict[str, torch.Tensor], batch: dict[str, torch.Tensor], smoothing: float = 0.0) -> torch.Tensor:
        """Return the cross entropy, mean over samples. smoothing: label smoothing (Szegedy et al. 2016), 0-1."""
        from torch.nn import functional

        return functional.cross_entropy(outputs["logits"].float(), batch["label"], label_smoothing=smoothing)

    def evaluate(
        self, run: Runner, split: PictureSplit, batch_size: int = 256, advance: Callable[[int], object] | None = None
    ) -> Evaluation:
        """Return the accuracy, 0-1. A sample with a NaN or infinite logit counts as wrong. advance(n): called after n more."""
        parts = []
        for start in range(0, len(split), batch_size):
            batch = split.take(np.arange(start, min(start + batch_size, len(split))))
            parts.append(run("model", self.inputs(batch))["logits"])
            if advance is not None:
                advance(len(batch["label"]))
        return self.score({"logits": np.concatenate(parts)}, split)

    def score(self, outputs: dict[str, np.ndarray], split: PictureSplit) -> Evaluation:
        """Return the accuracy of logits (samples, classes), 0-1. A sample with a NaN or infinite logit counts as wrong."""
        logits = outputs["logits"]
        right = (logits.argmax(axis=1) == split.labels) & np.isfinite(logits).all(axis=1)
        return Evaluation(float(right.mean()), right.astype(np.float32), {"logits": logits})

    def validation_loss(self, made: Evaluation, split: PictureSplit) -> float:
        """Return the cross entropy of an evaluation's logits."""
        import torch

        return float(self.loss({"logits": torch.from_numpy(made.outputs["logits"])}, {"label": torch.from_numpy(split.labels)}))

    def graphs(self, model: LoadedModel, splits: PictureSplits) -> list[Graph]:
        """Return the one graph: image uint8 (batch, H, W, C) -> logits float32 (batch, classes)."""
        import torch

        # Two pictures: exporters take an axis of length 1 for a fixed one.
        example = torch.from_numpy(splits.validation.take(np.arange(2) % len(splits.validation))["image"])
        return [Graph("model", model.module, ("image",), ("logits",), {"image": example}, {"image": {0: "batch"}})]

    def golden(self, run: Runner, split: PictureSplit, positions: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
        """Return the pictures at those positions."""
        return {"model": self.inputs(split.take(positions))}

    def preprocessing(self, model: LoadedModel, split: PictureSplit, folder: Path) -> dict[str, Any]:
        """Return how pictures are brought to the graph's size, and what the graph does with them."""
        from ..preprocess import description

        assert model.preprocess is not None  # models.load() gives every picture model one
        return description(model.preprocess, split.image_shape)


def _wanted(recipe: Recipe) -> dict[str, Preprocess]:
    """Return the preprocessing of each model that the recipe has."""
    from .. import models

    configs: dict[str, Model | None] = {role: getattr(recipe, role) for role in ROLES}
    return {role: models.preprocess_of(config, recipe.preprocess, role) for role, config in configs.items() if config}


def _leading(wanted: dict[str, Preprocess]) -> Preprocess:
    """Return the preprocessing whose crop and interpolation hold for both models: the student's, unless it leaves both open."""
    unsaid = Preprocess()
    said = [p for p in wanted.values() if (p.crop, p.interpolation) != (unsaid.crop, unsaid.interpolation)]
    return said[-1] if said else unsaid


def _channels(wanted: dict[str, Preprocess]) -> int | None:
    """Return how many channels the models want; None when a single mean, good for any number, leaves it to the data."""
    counts = {role: len(preprocess.mean) for role, preprocess in wanted.items() if len(preprocess.mean) > 1}
    for role, count in counts.items():
        if count != 3:
            raise BadInput(f"{role}.preprocess: {count} values of mean and std; pictures have 1 channel (gray) or 3 (RGB)")
    return 3 if counts else None


def _check_channels(preprocess: Preprocess, channels: int, role: str) -> None:
    if len(preprocess.mean) not in (1, channels):
        raise BadInput(
            f"{role}.preprocess: {len(preprocess.mean)} values of mean and std, but the pictures have {channels} channel"
            f"{'s' if channels > 1 else ''}; give one value, or one a channel"
        )


def _check_outputs(model: LoadedModel, splits: PictureSplits, role: str) -> None:
    """Run one picture through the model and compare what comes out with what the data needs."""
    import torch

    picture = torch.from_numpy(splits.train.take(np.arange(1))["image"])
    try:
        with torch.inference_mode():
            logits = model.module(picture)
    except Exception as error:  # the user's network may raise anything
        raise BadInput(
            f"{role}: {model.reference} failed on a picture of {'x'.join(map(str, splits.image_shape))} (height, width, channels): "
            f"{type(error).__name__}: {error}; check `preprocess` and `arguments` in the recipe"
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != 1:
        found = f"a tensor of shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise BadInput(f"{role}: {model.reference} returned {found} for one picture; a classifier returns logits, (n, classes)")
    if logits.shape[1] != len(splits.classes):
        raise BadInput(
            f"{role}: {model.reference} has {logits.shape[1]} outputs and the data {len(splits.classes)} classes; "
            "train it on this data, or make it with as many outputs"
        )


TASK = ImageClassification()
