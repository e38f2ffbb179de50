"""What happened while a network was fitted."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Epoch:
    """One pass over the training split.

    loss: weighted sum of the terms; terms: each objective before its weight. Both are means over samples.
    validation: the task's metric after the epoch (of the averaged weights where they are averaged);
    validation_loss: the task's own loss there. seconds: training alone, without validation and checkpoints.
    """

    epoch: int
    loss: float
    terms: dict[str, float]
    validation: float
    validation_loss: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class History:
    """All epochs, counted from 1. Epoch 0 is the student as it came, before the first step.

    best_epoch: the epoch whose weights were kept: the best validation score, on a tie the lower validation loss.
    images_per_second: over all processes, training alone. warnings: what looks wrong, in whole sentences.
    lora: what is to be told of adapters that were trained and merged, max_relative_difference of the merged outputs among it.
    """

    initial_validation: float
    initial_validation_loss: float
    epochs: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0
    best_validation: float = 0.0
    images_per_second: float = 0.0
    steps: int = 0
    processes: int = 1
    warnings: list[str] = field(default_factory=list)
    lora: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts, lists, numbers and strings."""
        made = asdict(self)
        return made if self.lora else {name: value for name, value in made.items() if name != "lora"}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> History:
        """Return what to_json() was made from."""
        return cls(**{**data, "epochs": [Epoch(**epoch) for epoch in data["epochs"]]})


def warnings_of(history: History, metric: str, section: str) -> list[str]:
    """Return what a reader of the history should be told. section: where its settings stand in the recipe."""
    found = []
    if history.best_epoch == 0:
        found.append(
            f"no epoch was better than the start: validation {metric} was {history.initial_validation:.4f} before training, "
            f"at best {max((e.validation for e in history.epochs), default=float('nan')):.4f} after an epoch. The weights "
            f"it started with were kept; check {section}.learning_rate and the labels"
        )
    elif history.best_validation == history.initial_validation:
        found.append(
            f"validation {metric} never rose above the start's {history.initial_validation:.4f}: "
            f"check {section}.learning_rate and the labels"
        )
    if history.epochs and history.epochs[-1].validation_loss > history.initial_validation_loss:
        found.append(
            f"final validation loss is worse than initial ({history.epochs[-1].validation_loss:.4f} against "
            f"{history.initial_validation_loss:.4f})"
        )
    return found
