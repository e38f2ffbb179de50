"""How far a training has come: all of it that is not a tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from .history import Epoch, History, warnings_of


@dataclass
class State:
    """Kept in a checkpoint beside the tensors.

    epoch, step: what comes next, from 0. sums: each term over the epoch's samples so far. start, best: validation score
    and loss. seconds, samples: of the epoch so far; all_*: since the beginning, training alone.
    """

    epoch: int = 0
    step: int = 0
    sums: list[float] = field(default_factory=list)
    samples: int = 0
    seconds: float = 0.0
    all_seconds: float = 0.0
    all_samples: int = 0
    start: tuple[float, float] = (math.nan, math.nan)
    best: tuple[float, float] = (math.nan, math.nan)
    best_epoch: int = 0
    epochs: list[dict[str, Any]] = field(default_factory=list)

    def better(self, now: tuple[float, float], higher_is_better: bool) -> bool:
        """Compare (score, loss) with the best so far: a better score, or the same with a lower loss."""
        sign = 1 if higher_is_better else -1
        return (sign * now[0], -now[1]) > (sign * self.best[0], -self.best[1])

    def count(self, steps: int, samples: int, seconds: float) -> None:
        """Note that so many more steps are done."""
        self.step += steps
        self.samples, self.all_samples = self.samples + samples, self.all_samples + samples
        self.seconds, self.all_seconds = self.seconds + seconds, self.all_seconds + seconds

    def rate(self) -> float:
        """Return the samples a second of this epoch so far."""
        return self.samples / max(self.seconds, 1e-9)

    def restore(self, saved: dict[str, Any]) -> None:
        """Go back to what asdict() gave, after a trip through JSON."""
        for name, value in saved.items():
            setattr(self, name, tuple(value) if isinstance(getattr(self, name), tuple) else value)

    def end_epoch(self, epoch: Epoch) -> None:
        """Note a finished epoch and turn to the next."""
        self.epochs.append(vars(epoch))
        self.epoch, self.step, self.sums, self.samples, self.seconds = self.epoch + 1, 0, [], 0, 0.0

    def history(self, steps: int, processes: int, metric: str, section: str) -> History:
        """Return the history. steps: in an epoch; section: of the recipe, for advice."""
        made = History(
            initial_validation=self.start[0],
            initial_validation_loss=self.start[1],
            epochs=[Epoch(**epoch) for epoch in self.epochs],
            best_epoch=self.best_epoch,
            best_validation=self.best[0],
            images_per_second=self.all_samples / max(self.all_seconds, 1e-9),
            steps=steps * len(self.epochs),
            processes=processes,
        )
        return replace(made, warnings=warnings_of(made, metric, section))
