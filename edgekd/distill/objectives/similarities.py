"""Match how alike the texts of a batch are to each other: widths of student and teacher do not matter."""

from __future__ import annotations

import torch
from torch.nn import functional

from ...recipe import Similarities
from . import Step

NEEDS_TEACHER = True
READS = ("embedding",)


def loss(config: Similarities, step: Step) -> torch.Tensor:
    """Return KL(p, q), mean over samples, with p and q the softmax of a text's cosine similarities to the batch's other texts,
    divided by the temperature, for teacher and student; 0 for a batch of one.

    The similarity of a text with itself is left out. Wang et al. 2021 (MiniLMv2, arXiv:2012.15828) match such relations between
    tokens; INDUS (Bhattacharjee et al. 2024, arXiv:2405.10725), section 4, between texts.
    """
    student, teacher = (functional.normalize(one["embedding"].float(), dim=-1) for one in (step.student, step.teacher))
    if len(student) < 2:
        return student.sum() * 0
    others = ~torch.eye(len(student), dtype=torch.bool, device=student.device)
    log_q, log_p = (
        functional.log_softmax((one @ one.T)[others].view(len(one), -1) / config.temperature, dim=-1)
        for one in (student, teacher)
    )
    return functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
