"""How weights move: optimizer, learning rate by step, moving average of the weights."""

from __future__ import annotations

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import nn

from .. import recipe


def optimizer_of(module: nn.Module, settings: recipe.Training) -> torch.optim.Optimizer:
    """Return AdamW, or SGD with Nesterov momentum. Biases and norms (tensors of at most one axis) do not decay."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=settings.learning_rate, momentum=settings.momentum, nesterov=settings.momentum > 0, fused=True
        )
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)


def learning_rate(settings: recipe.Training, step: int, steps: int) -> float:
    """Return the rate of a step (counted from 0) out of `steps`.

    warmup: that share of the steps rises to the highest rate. cosine: a straight rise, then half a cosine to 0.
    constant: a straight rise, then level. one-cycle: half a cosine from 1/25 up and half a cosine down to 1/250000,
    as in Smith & Topin 2017 (arXiv:1708.07120) and torch's OneCycleLR, without its cycling of the momentum.
    """
    highest = settings.learning_rate
    if settings.schedule == "one-cycle":
        lowest, peak = highest / 25, settings.warmup * steps - 1
        if step < peak:
            return _between(lowest, highest, step / peak)
        return _between(highest, lowest / 1e4, (step - max(peak, 0)) / max(steps - 1 - max(peak, 0), 1))
    rising = math.ceil(settings.warmup * steps)
    if step < rising:
        return highest * (step + 1) / rising
    if settings.schedule == "constant":
        return highest
    return _between(highest, 0.0, (step - rising) / max(steps - rising, 1))


def _between(start: float, end: float, share: float) -> float:
    """Half a cosine from start to end."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


Module = TypeVar("Module", bound=nn.Module)


class Average(Generic[Module]):
    """An exponential moving average of a module's weights: average = d average + (1 - d) weights after every step.

    d = min(decay, (1 + step) / (10 + step)), step counted from 1, so that the start is soon forgotten. Float buffers
    (BatchNorm's statistics) are averaged like weights, other buffers copied.
    """

    def __init__(self, module: Module, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(module)
        self.module.eval().requires_grad_(False)
        pairs = list(zip(self.module.state_dict().values(), module.state_dict().values(), strict=True))
        self._floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self._others = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after that step."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, weights = [a for a, _ in self._floats], [w for _, w in self._floats]
        torch._foreach_lerp_(averages, weights, 1 - decay)
        for average, value in self._others:
            average.copy_(value)
