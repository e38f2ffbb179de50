"""The uniform quantizer with learned ends: where a bucket's levels begin and how far apart they lie is trained.

LSQ+ (Bhalgat et al. 2020, after LSQ, Esser et al. 2020), for weights: with v = (w - beta) / alpha,
w_q = alpha Q(clip(v, 0, 1)) + beta. Weights beyond the ends are clipped to them, which at 2 and 3 bits is worth far more than
reaching a few outliers. With 4 levels around zero these are -1, -1/3, 1/3 and 1 times alpha / 2: no zero level, as ParetoQ
(2025) found best.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from .buckets import range_of, restored, to_buckets
from .uniform import to_zeros


def _step(alpha: torch.Tensor, levels: int) -> torch.Tensor:
    """Return the distance of levels. Where training drives alpha through zero it counts by its size, and so grows again."""
    return alpha.detach().float().abs().clamp_min(1e-10) / (levels - 1)


class _Clipped(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weights: torch.Tensor, alpha: torch.Tensor, beta: torch.Tensor, size: int, levels: int
    ) -> torch.Tensor:
        """alpha, beta: (buckets, 1)."""
        step = _step(alpha, levels)
        places = (to_buckets(weights, size) - beta).div_(step)
        ctx.save_for_backward(places, alpha)
        ctx.size, ctx.levels = size, levels
        return restored(places.clamp(0, levels - 1).round_().mul_(step).add_(beta), weights)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """dw_q/dw = 1 between the ends, else 0; dw_q/dalpha = Q - v between, else Q; dw_q/dbeta = 0 between, else 1.

        In sums and signs instead of masks: on a CPU these take a fifth of the time.
        """
        places, alpha = ctx.saved_tensors
        gradient, last = to_zeros(gradients[0], ctx.size), ctx.levels - 1
        clipped = places.clamp(0, last)
        side = places.sub(clipped).sign_()  # -1 below, 0 between, 1 above
        signed = gradient * side
        beyond = side.mul_(signed)
        below_and_above, above_less_below = beyond.sum(1, keepdim=True), signed.sum(1, keepdim=True)
        rounded = clipped.round().sub_(clipped).mul_(gradient).sum(1, keepdim=True) / last
        of_alpha = rounded + (below_and_above + above_less_below) / 2
        of_alpha = torch.where(alpha < 0, -of_alpha, of_alpha)
        factor = 1 / math.sqrt(ctx.size * last)
        of_weights = restored(gradient - beyond, gradients[0])
        return of_weights, (of_alpha * factor).to(alpha.dtype), (below_and_above * factor).to(alpha.dtype), None, None


class LearnedScale(nn.Module):
    """Fake quantization with a learned range a bucket.

    The gradients of alpha and beta are divided by sqrt(size (levels - 1)), as LSQ does with the step's. Alpha being levels - 1
    steps, SGD moves the range less than LSQ would, the less the more levels there are; Adam knows no such difference.

    start: the weights to begin with, with ranges of little squared error.
    """

    def __init__(self, size: int, bits: int, start: torch.Tensor) -> None:
        super().__init__()
        self.size, self.bits = size, bits
        alpha, beta = least_squares_range(to_buckets(start.detach().float(), size), self.levels)
        self.alpha, self.beta = nn.Parameter(alpha[:, 0]), nn.Parameter(beta[:, 0])  # one axis: they don't decay

    @property
    def levels(self) -> int:
        return 1 << self.bits

    def forward(self, weights: torch.Tensor) -> torch.Tensor:
        """Return the quantized weights, of the same shape."""
        if not weights.numel():
            return weights
        return _Clipped.apply(weights, self.alpha[:, None], self.beta[:, None], self.size, self.levels)

    def encode(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        """Return (indices (buckets, size), scale (buckets,), offset (buckets,), None) of the weights."""
        step = _step(self.alpha[:, None], self.levels)
        places = (to_buckets(weights.detach().float(), self.size) - self.beta.detach()[:, None]).div_(step)
        indices = places.clamp_(0, self.levels - 1).round_()
        return indices.to(torch.uint8), step[:, 0], self.beta.detach().float(), None


def least_squares_range(
    buckets: torch.Tensor, levels: int, tried: int = 40, fitted: int = 10
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (alpha, beta), each (buckets, 1): a range with little squared error, never more than from minimum to maximum.

    The best of `tried` ranges narrowed about their middle; then `fitted` times the straight line through (level, weight) of all
    weights, which moves both ends. For normally distributed weights this finds the step of Max (1960), 0.996 sigma at 2 bits.
    """
    alpha, beta = range_of(buckets)
    best = torch.full_like(alpha, math.inf)
    made = alpha, beta

    def q_of(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return ((buckets - b) / a).clamp_(0, 1).mul_(levels - 1).round_().div_(levels - 1)

    def take(a: torch.Tensor, b: torch.Tensor) -> None:
        nonlocal best, made
        error = q_of(a, b).mul_(a).add_(b).sub_(buckets).square_().sum(1, keepdim=True)
        better = (error < best) & (a >= 1e-10)
        best = torch.where(better, error, best)
        made = torch.where(better, a, made[0]), torch.where(better, b, made[1])

    for step in range(tried):
        share = 1 - step / tried
        take(alpha * share, beta + alpha * (1 - share) / 2)
    middle = buckets.mean(1, keepdim=True)
    for _ in range(fitted):
        q = q_of(*made)
        of_q = q.mean(1, keepdim=True)
        q -= of_q
        slope = (q * (buckets - middle)).sum(1, keepdim=True) / q.square().sum(
            1, keepdim=True
        )  # NaN where all are at one level
        take(slope, middle - slope * of_q)
    return made
