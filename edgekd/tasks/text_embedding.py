"""Text embedding: sentences in, vectors out; how well their cosines rank pairs as people do decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import Split, Splits
from ..data.texts import Reading, TextSplit, pairs, texts
from ..errors import BadInput
from ..export.graph import Graph, Runner
from ..progress import say
from ..recipe import Model, Recipe
from ..text import tokenizer as tokenizers
from . import Evaluation, Metric

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from ..models import LoadedModel

SIDES = ("first", "second")
TEACHER = "teacher_"
DECIMALS = 5
"""Of cosines, where pairs are ranked by them: float32 embeddings carry an error of some 1e-7."""


class TextEmbedding:
    """The task protocol (`edgekd.tasks.Task`) for encoders of single texts."""

    name = "text-embedding"
    metric = Metric("Spearman", higher_is_better=True)
    outputs = ("embedding",)
    unit = "texts"

    def splits(self, recipe: Recipe) -> Splits:
        """Load the texts to learn from and the scored pairs, as tokens of the student; of the teacher's too, where those differ."""
        readings = _readings(recipe)
        if len(readings) > 1:
            say("teacher and student have different tokenizers: each reads the texts in its own tokens")
        validation, test, judged = pairs(recipe.data, readings)
        return Splits(texts(recipe.data, readings, judged), validation, test)

    def models(self, recipe: Recipe, splits: Splits) -> tuple[LoadedModel | None, LoadedModel]:
        """Load teacher (None without one) and student. A student that is not distilled must bring weights. Raises BadInput."""
        teacher = self.model(recipe, splits, "teacher", need_weights=True) if recipe.teacher else None
        return teacher, _loaded(recipe.student, recipe, "student", teacher, recipe.student_is_trained)

    def model(self, recipe: Recipe, splits: Splits, role: str, *, need_weights: bool) -> LoadedModel:
        """Load one model, teacher or student. Raises BadInput."""
        if role == "student":
            starts = recipe.student.teacher_layers is not None and recipe.student.weights is None
            teacher = self.model(recipe, splits, "teacher", need_weights=True) if recipe.teacher and starts else None
            return _loaded(recipe.student, recipe, "student", teacher, need_weights)
        config: Model | None = recipe.teacher
        if config is None:
            raise BadInput("the recipe has no teacher: add `teacher: {model: ...}`")
        made = _loaded(config, recipe, role, None, need_weights)
        if len(readings := _readings(recipe)) > 1:
            made.module.prefix = readings["teacher"].prefix
        return made

    def inputs(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Pick the student's tokens; of pairs, those of the first sentences."""
        found = batch if "input_ids" in batch else _of_side(batch, "first")
        return {name: found[name] for name in ("input_ids", "attention_mask")}

    def forward(self, module: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return {"embedding": (n, width)}."""
        prefix = getattr(module, "prefix", "")
        return {"embedding": module(batch[f"{prefix}input_ids"], batch[f"{prefix}attention_mask"])}

    def loss(self, outputs: dict[str, torch.Tensor], batch: dict[str, torch.Tensor], smoothing: float = 0.0) -> torch.Tensor:
        """Raise BadInput: texts without labels have no loss of their own."""
        raise BadInput(
            "objective `task`: text-embedding learns from texts without labels, so there is no loss but the teacher's: "
            "use `embedding` and `similarities`"
        )

    def evaluate(
        self, run: Runner, split: Split, batch_size: int = 64, advance: Callable[[int], object] | None = None
    ) -> Evaluation:
        """Return Spearman's correlation, -1 to 1, of cosines with people's scores. advance(n): called after n more pairs."""
        parts: dict[str, list[np.ndarray]] = {side: [] for side in SIDES}
        for start in range(0, len(split), batch_size):
            batch = split.take(np.arange(start, min(start + batch_size, len(split))))
            for side in SIDES:
                parts[side].append(run("model", _of_side(batch, side))["embedding"])
            if advance is not None:
                advance(len(batch["index"]))
        return self.score({side: np.concatenate(made) for side, made in parts.items()}, split)

    def score(self, outputs: dict[str, np.ndarray], split: Split) -> Evaluation:
        """Return Spearman's correlation, cosines to DECIMALS; each pair's part in it is the product of its standardised ranks."""
        assert isinstance(split, TextSplit)
        assert split.scores is not None  # of texts to learn from there is nothing to score
        first, second = (outputs[side].astype(np.float64) for side in SIDES)
        norms = np.maximum(np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1), 1e-12)
        cosines = np.nan_to_num((first * second).sum(1) / norms, nan=-2.0)  # a broken pair ranks last
        # Pairs that are equally alike are so but for the processor's rounding, which must not rank them: it differs from machine to machine.
        product = _standardised(ranks(cosines.round(DECIMALS))) * _standardised(ranks(split.scores))
        return Evaluation(float(product.mean()), product, outputs)

    def validation_loss(self, made: Evaluation, split: Split) -> float:
        """Return 1 - Spearman's correlation: there is no loss by labels. NaN where an embedding is no number."""
        return 1 - made.score if all(np.isfinite(values).all() for values in made.outputs.values()) else float("nan")

    def graphs(self, model: LoadedModel, splits: Splits) -> list[Graph]:
        """Return the one graph: input_ids, attention_mask int64 (batch, tokens) -> embedding float32 (batch, width), pooled and normalised."""
        import torch

        assert isinstance(splits.test, TextSplit)
        two = _of_side(splits.validation.take(np.arange(2) % len(splits.validation)), "first")
        prefix = getattr(model.module, "prefix", "")
        tensors = {name: torch.from_numpy(two[name]) for name in (f"{prefix}input_ids", f"{prefix}attention_mask")}
        axes = {name: {0: "batch", 1: "tokens"} for name in tensors}
        longest = {"tokens": splits.test.max_tokens}
        return [Graph("model", model.module, tuple(tensors), self.outputs, tensors, axes, longest)]

    def golden(self, run: Runner, split: Split, positions: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
        """Return the first sentences of the pairs at those positions."""
        return {"model": self.inputs(split.take(positions))}

    def preprocessing(self, model: LoadedModel, split: Split, folder: Path) -> dict[str, Any]:
        """Write tokenizer.json into `folder`; return what to do with it, and what the graph does."""
        assert isinstance(split, TextSplit)
        file = tokenizers.ship(model.tokenizer, folder)
        pad = {"step": "pad", "to": "the longest of the batch; where the graph's shape is fixed, to that"}
        return {
            "host": [
                {"step": "tokenize", "file": file.name},
                {"step": "cut", "to": split.max_tokens, "unit": "tokens, those around a text counted"},
                {**pad, "with": model.tokenizer.pad_token_id or 0, "mask": 0},
            ],
            "graph": [{"step": "pool", "how": model.pooling}, {"step": "normalize", "norm": 2}],
        }


def ranks(values: np.ndarray) -> np.ndarray:
    """Return each value's rank from 1, float64 (n,); equal values share the mean of theirs.

    >>> ranks(np.array([3.0, 1.0, 3.0]))
    array([2.5, 1. , 2.5])
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def _standardised(values: np.ndarray) -> np.ndarray:
    spread = values.std()
    return (values - values.mean()) / spread if spread > 0 else np.zeros_like(values)


def _of_side(batch: dict[str, np.ndarray], side: str) -> dict[str, np.ndarray]:
    """Return the arrays of the pairs' first or second sentences, under the names that single texts have."""
    return {name.removeprefix(f"{side}_"): values for name, values in batch.items() if name.startswith(f"{side}_")}


def _loaded(config: Model, recipe: Recipe, role: str, teacher: LoadedModel | None, need_weights: bool) -> LoadedModel:
    """Load an encoder. Raises BadInput, also where its tokenizer has ids that it has no embedding for."""
    from .. import models
    from ..models.footprint import in_memory
    from ..text import vocabulary

    longest = recipe.data.max_tokens
    with in_memory(config, role):
        made = models.text_encoder(
            config, role=role, seed=recipe.seed, need_weights=need_weights, max_tokens=longest, teacher=teacher
        )
    if rows := vocabulary.embeddings_of(made.module.net):
        vocabulary.fits(vocabulary.Vocabulary(made.tokenizer, rows), role)
    return made


def _readings(recipe: Recipe) -> dict[str, Reading]:
    """Return role -> how it reads: the student, and the teacher where its tokens are others."""
    student = tokenizers.of(recipe.student, "student")
    if recipe.teacher is None:
        return {"student": Reading(student)}
    teacher = tokenizers.of(recipe.teacher, "teacher")
    if tokenizers.fingerprint(teacher) == tokenizers.fingerprint(student):
        return {"student": Reading(student)}
    return {"student": Reading(student), "teacher": Reading(teacher, TEACHER)}


TASK = TextEmbedding()
