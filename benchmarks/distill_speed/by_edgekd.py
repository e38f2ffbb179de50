"""edgekd's contestants: its trainer without a teacher, with the cached one, with the live one."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from work import Work, settings

from edgekd import recipe
from edgekd.distill import trainer
from edgekd.tasks import task_of


@dataclass(frozen=True)
class Block:
    """What one block took. seconds: of the training loop; wall_s: of everything around it too. loss: mean of the last epoch."""

    images: int
    seconds: float
    wall_s: float
    loss: float


class ByEdgekd:
    """fit() with one way of teaching; `images` of an epoch are the whole training split."""

    def __init__(self, work: Work, teacher: str | None, folder: Path) -> None:
        self.work, self.kind, self.folder = work, teacher, folder
        self.task = task_of("image-classification")

    def block(self, epochs: int) -> Block:
        """Train from the start's weights for so many epochs. seconds is fit()'s own count: without validation and checkpoints."""
        work = self.work
        work.student.module.net.load_state_dict(work.start)
        chosen = settings(epochs=epochs) if self.kind is None else settings(epochs=epochs, teacher=self.kind)
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            history = trainer.fit(
                work.student, work.splits, self.task, chosen, seed=0, folder=Path(folder),
                teacher=work.teacher if isinstance(chosen, recipe.Distill) else None, cache=self.folder / "teacher_cache",
            )  # fmt: skip
            wall = time.perf_counter() - began
        images = epochs * len(work.splits.train)
        return Block(images, sum(epoch.seconds for epoch in history.epochs), wall, history.epochs[-1].loss)
