"""The task's own loss against the labels."""

from __future__ import annotations

import torch

from ...recipe import TaskLoss
from . import Step

NEEDS_TEACHER = False


def loss(config: TaskLoss, step: Step) -> torch.Tensor:
    """Return the task's supervised loss, mean over samples, with the training's label smoothing."""
    return step.task.loss(step.student, step.batch, step.label_smoothing)
