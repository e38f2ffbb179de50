"""What the optimizer sees: the student, and whatever the objectives train beside it, as one module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Self

import torch
from torch import nn

from ..models.mode import without_dropout
from ..quantize.uniform import rounded_once
from .memory_format import channels_last
from .objectives import Objective, Step
from .taps import Taps

if TYPE_CHECKING:
    from ..models import LoadedModel
    from ..recipe import Training
    from ..tasks import Task


class Trainee(nn.Module):
    """Computes a batch's loss. One module, so that DistributedDataParallel and the optimizer see all that is trained.

    example: a batch of two samples, teacher: the teacher's outputs for two; both only for their shapes.
    """

    def __init__(
        self, student: LoadedModel, task: Task, goals: Sequence[Objective], settings: Training, seed: int,
        example: dict[str, torch.Tensor], teacher: Mapping[str, torch.Tensor],
    ) -> None:  # fmt: skip
        super().__init__()
        self.student = student.module
        self.goals, self.task, self.settings = list(goals), task, settings
        self.taps = Taps(student.module, [name for goal in goals for name in goal.layers[0]], "student")
        self.trained: list[nn.Module | None] = []
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            student.module.eval()
            channels_last(student.module, lambda: task.forward(student.module, example))
            outputs = {**task.forward(student.module, example), **self.taps.outputs}
            for goal in self.goals:
                make = getattr(goal.module, "trained", None)
                self.trained.append(make(goal.config, outputs, teacher) if make else None)
        self.beside = nn.ModuleDict({str(n): made for n, made in enumerate(self.trained) if made is not None})

    def forward(self, batch: dict[str, torch.Tensor], teacher: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weighted loss, and every objective's own value before its weight: (objectives,), detached."""
        with rounded_once():
            outputs = self.task.forward(self.student, batch)
        if self.taps.outputs:
            outputs = {**outputs, **self.taps.outputs}
        terms = []
        for goal, trained in zip(self.goals, self.trained, strict=True):
            step = Step(outputs, teacher, batch, self.task, self.settings.label_smoothing, trained)
            terms.append(goal.module.loss(goal.config, step))
        weights = [goal.config.weight for goal in self.goals]
        total = sum(term if weight == 1 else term * weight for term, weight in zip(terms, weights, strict=True))
        assert isinstance(total, torch.Tensor)  # there is at least one objective
        return total, torch.stack([term.detach() for term in terms])

    def train(self, mode: bool = True) -> Self:
        """Set the mode; training mode without dropout where the recipe says so."""
        super().train(mode)
        if mode and not self.settings.dropout:
            without_dropout(self.student.net)
        return self

    def leaves_out(self, example: dict[str, torch.Tensor], teacher: dict[str, torch.Tensor]) -> bool:
        """Say whether the objectives leave parts of the student without a gradient."""
        self.eval()
        self(example, teacher)[0].backward()
        missing = any(p.requires_grad and p.grad is None for p in self.parameters())
        self.zero_grad()
        return missing
