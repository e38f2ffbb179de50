"""Match the teacher's embedding of each text."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from ...recipe import Embedding
from . import Step

NEEDS_TEACHER = True
READS = ("embedding",)


def trained(config: Embedding, student: Mapping[str, torch.Tensor], teacher: Mapping[str, torch.Tensor]) -> nn.Module | None:
    """Return a linear projector from the student's width to the teacher's, or None where they are equal."""
    widths = student["embedding"].shape[-1], teacher["embedding"].shape[-1]
    return None if widths[0] == widths[1] else nn.Linear(*widths)


def loss(config: Embedding, step: Step) -> torch.Tensor:
    """Return the distance between P(student's embedding) and the teacher's, (samples, width) both, mean over samples.

    cosine: 1 - cos of their angle; mse: |a - b|^2 / width. Reimers and Gurevych 2020 (arXiv:2004.09813), section 2, with the same
    language on both sides.
    """
    student, teacher = step.student["embedding"].float(), step.teacher["embedding"].float()
    if step.trained is not None:
        student = step.trained(student)
    if config.distance == "mse":
        return functional.mse_loss(student, teacher)
    return 1 - functional.cosine_similarity(student, teacher, dim=-1).mean()
