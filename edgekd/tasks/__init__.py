"""Tasks: what differs between domains, one file each; a new one is a file plus a line here.

Other packages add theirs through the entry point group `edgekd.tasks`: NAME = "module", whose TASK it is.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from .. import plugins
from ..errors import BadInput

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch

    from ..data import Split, Splits
    from ..export.graph import Graph, Runner
    from ..models import LoadedModel
    from ..recipe import Recipe

TASKS = {
    "image-classification": "edgekd.tasks.image_classification",
    "text-embedding": "edgekd.tasks.text_embedding",
    "causal-lm": "edgekd.tasks.causal_lm",
    "seq2seq-lm": "edgekd.tasks.seq2seq_lm",
}


@dataclass(frozen=True)
class Metric:
    """What the gate compares. Scores lie in the metric's own unit (accuracy: 0-1)."""

    name: str
    higher_is_better: bool


@dataclass(frozen=True)
class Evaluation:
    """One model on one split: the score, each sample's part in it, and the raw outputs (first axis: samples)."""

    score: float
    per_sample: np.ndarray
    outputs: dict[str, np.ndarray]


class Task(Protocol):
    """How to feed, score, export and time a model of this kind.

    outputs: what forward() returns, as objectives may read it; anything else that they name is a layer. unit: what samples are.
    It may have `facts(evaluation, split) -> {name: number}` too, what a person is told beside the metric (perplexity, BLEU).
    One of another package has `like`, too: the task here whose keys a recipe for it may have, and whose objectives it learns by
    where the recipe does not say.
    """

    name: str
    metric: Metric
    outputs: tuple[str, ...]
    unit: str

    def splits(self, recipe: Recipe) -> Splits:
        """Load the data as the recipe's models want it. Raises BadInput."""

    def models(self, recipe: Recipe, splits: Splits) -> tuple[LoadedModel | None, LoadedModel]:
        """Load teacher and student and check that they fit the data and each other. Raises BadInput."""

    def model(self, recipe: Recipe, splits: Splits, role: str, *, need_weights: bool) -> LoadedModel:
        """Load one of them, teacher or student, and check that it fits the data. Raises BadInput."""

    def inputs(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Pick what the (first) graph takes out of a batch."""

    def forward(self, module: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run a training forward pass; return `outputs`."""

    def loss(self, outputs: dict[str, torch.Tensor], batch: dict[str, torch.Tensor], smoothing: float = 0.0) -> torch.Tensor:
        """Return the supervised loss, mean over samples."""

    def evaluate(self, run: Runner, split: Split, batch_size: int = 256, advance: Any = None) -> Evaluation:
        """Score whatever answers to `run` on a split. advance(n): called after n more samples."""

    def score(self, outputs: dict[str, np.ndarray], split: Split) -> Evaluation:
        """Score the outputs that an evaluation on this split kept."""

    def validation_loss(self, made: Evaluation, split: Split) -> float:
        """Return the loss of an evaluation, which decides between epochs of equal score."""

    def graphs(self, model: LoadedModel, splits: Splits) -> list[Graph]:
        """Return the model's exportable graphs, preprocessing folded in."""

    def golden(self, run: Runner, split: Split, positions: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
        """Return inputs of each graph for some samples; `run` makes what one graph needs of another."""

    def preprocessing(self, model: LoadedModel, split: Split, folder: Path) -> dict[str, Any]:
        """Return {"host": [...], "graph": [...]}: what is to be done before the graph and what it does itself.

        What the host needs for it (a tokenizer) is written into `folder`, which ships.
        """


def names() -> list[str]:
    """Return the names of all tasks, those of other packages included."""
    return [*TASKS, *(name for name in plugins.found(plugins.TASKS) if name not in TASKS)]


def task_of(name: str) -> Task:
    """Return the task of that name. Raises KeyError for an unknown one."""
    module = importlib.import_module(TASKS[name]) if name in TASKS else plugins.load(plugins.TASKS, name)
    return module.TASK


def like(name: str) -> str:
    """Return the task here whose recipe one of that name has: itself, or what a task of another package says.

    Raises BadInput where that one does not say.
    """
    if name in TASKS:
        return name
    said = getattr(task_of(name), "like", None)
    if said not in TASKS:
        raise BadInput(
            f"task `{name}` (of {', '.join(plugins.versions(plugins.TASKS, [name]))}) must have `like`, one of {', '.join(TASKS)}"
        )
    return said
