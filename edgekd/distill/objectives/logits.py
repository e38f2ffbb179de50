"""Match the teacher's softened class probabilities."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from ...recipe import Logits
from . import Step

NEEDS_TEACHER = True


def loss(config: Logits, step: Step) -> torch.Tensor:
    """Return T^2 D(p, q), mean over samples, with p = softmax(teacher / T) and q = softmax(student / T).

    kl: sum p log(p / q); reverse-kl: sum q log(q / p); js: (KL(p, m) + KL(q, m)) / 2 with m = (p + q) / 2; natural
    logarithms, sums over classes. Logits: (samples, ..., classes); all axes but the last count as samples. T^2 is
    always there: it keeps the gradient's size independent of T. Hinton, Vinyals, Dean 2015 (arXiv:1503.02531), section 2.
    """
    temperature = config.temperature
    student = step.student["logits"].flatten(0, -2).float()
    teacher = step.teacher["logits"].flatten(0, -2).float()
    log_q = functional.log_softmax(student / temperature, dim=-1)
    log_p = functional.log_softmax(teacher / temperature, dim=-1)
    scale = temperature**2 / len(student)
    if config.divergence == "kl":
        return functional.kl_div(log_q, log_p, reduction="sum", log_target=True) * scale
    q = log_q.exp()
    if config.divergence == "reverse-kl":
        return (q * (log_q - log_p)).sum() * scale
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return ((log_p.exp() * (log_p - log_m)).sum() + (q * (log_q - log_m)).sum()) * (scale / 2)
