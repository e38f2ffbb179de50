"""Match a layer of the teacher."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from ...errors import BadInput
from ...recipe import Features
from . import Step

NEEDS_TEACHER = True


def layers(config: Features) -> tuple[list[str], list[str]]:
    """Return the layers read: the student's and the teacher's."""
    return [config.student], [config.teacher]


def trained(config: Features, student: Mapping[str, torch.Tensor], teacher: Mapping[str, torch.Tensor]) -> nn.Module | None:
    """Return a linear projector from the student's width to the teacher's, or None where they are equal.

    Feature maps (samples, width, height, width) get a 1x1 convolution, everything else (samples, ..., width) a linear
    layer; both with a bias. Raises BadInput for layers that cannot be matched.
    """
    s, t = student[config.student], teacher[config.teacher]
    pair = (
        f"features: student layer `{config.student}` gives {tuple(s.shape)}, teacher layer `{config.teacher}` {tuple(t.shape)}"
    )
    if s.ndim != t.ndim or s.ndim < 2:
        raise BadInput(f"{pair} (samples first): choose two layers with equally many axes")
    if s.ndim != 4 and s.shape[1:-1] != t.shape[1:-1]:
        raise BadInput(f"{pair} (samples first): only the last axis (the width) may differ; choose other layers")
    axis = 1 if s.ndim == 4 else -1
    if s.shape[axis] == t.shape[axis]:
        return None
    if s.ndim == 4:
        return nn.Conv2d(s.shape[1], t.shape[1], kernel_size=1)
    return nn.Linear(s.shape[-1], t.shape[-1])


def loss(config: Features, step: Step) -> torch.Tensor:
    """Return the distance between P(student's layer) and the teacher's layer, mean over samples, positions and channels.

    mse: (a - b)^2; l1: |a - b|; smooth-l1: d^2 / 2 where d = |a - b| < 1, else d - 1/2; cosine: 1 - cos of the angle
    between the two vectors of channels at each position. P: see trained(). Feature maps of different size are both
    averaged (adaptive pooling) to the smaller height and the smaller width first: a pool after a 1x1 convolution is
    the same as before it, and cheaper. FitNets (Romero et al. 2015, arXiv:1412.6550) with the distance left open.
    """
    student, teacher = step.student[config.student].float(), step.teacher[config.teacher].float()
    if student.ndim == 4 and student.shape[2:] != teacher.shape[2:]:
        size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
        student, teacher = (functional.adaptive_avg_pool2d(x, size) for x in (student, teacher))
    if step.trained is not None:
        student = step.trained(student)
    if student.shape != teacher.shape:
        raise BadInput(
            f"features: student layer `{config.student}` gives {tuple(student.shape)} and teacher layer `{config.teacher}` "
            f"{tuple(teacher.shape)} for the same samples: match layers of models that read texts in the same tokens, or leave it out"
        )
    match config.distance:
        case "mse":
            return functional.mse_loss(student, teacher)
        case "l1":
            return functional.l1_loss(student, teacher)
        case "smooth-l1":
            return functional.smooth_l1_loss(student, teacher)
        case "cosine":
            return 1 - functional.cosine_similarity(student, teacher, dim=1 if student.ndim == 4 else -1).mean()
