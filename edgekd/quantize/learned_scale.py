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

from .buckets import from_buckets, range_of, to_buckets
from .uniform import to_zeros


class _Clipped(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weights: torch.Tensor, alpha: torch.Tensor, beta: torch.Tensor, size: int, levels: int
    ) -> torch.Tensor:
        buckets = to_buckets(weights, size)
        v = (buckets - beta) / alpha
        q = v.clamp(0, 1).mul_(levels - 1).round_().div_(levels - 1)
        ctx.save_for_backward(v, q)
        ctx.size, ctx.factor = size, 1 / math.sqrt(size * (levels - 1))
        return from_buckets(torch.addcmul(beta, q, alpha), weights.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """dw_q/dw = 1 between the ends, else 0; dw_q/dalpha = Q - v between, else Q; dw_q/dbeta = 0 between, else 1."""
        v, q = ctx.saved_tensors
        gradient = to_zeros(gradients[0], ctx.size)
        between = (v >= 0) & (v <= 1)
        of_weights = gradient * between
        of_alpha = (gradient * torch.where(between, q - v, q)).sum(1, keepdim=True) * ctx.factor
        of_beta = (gradient - of_weights).sum(1, keepdim=True) * ctx.factor
        return from_buckets(of_weights, gradients[0].shape), of_alpha, of_beta, None, None


class LearnedScale(nn.Module):
    """Fake quantization with a learned range a bucket. The gradient of the range is divided by sqrt(size (levels - 1)), as in LSQ.

    start: the weights to begin with; their ranges are those of least squared error.
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
        v = (to_buckets(weights.detach().float(), self.size) - self.beta[:, None]) / self.alpha[:, None]
        indices = v.clamp(0, 1).mul_(self.levels - 1).round_()
        return indices.to(torch.uint8), self.alpha.detach() / (self.levels - 1), self.beta.detach(), None


def least_squares_range(buckets: torch.Tensor, levels: int, tried: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (alpha, beta), each (buckets, 1): the range, narrowed about its middle, with the least squared error, of `tried`."""
    alpha, beta = range_of(buckets)
    best = torch.full_like(alpha, math.inf)
    made = alpha.clone(), beta.clone()
    for step in range(tried):
        share = 1 - step / tried
        a, b = alpha * share, beta + alpha * (1 - share) / 2
        q = ((buckets - b) / a).clamp_(0, 1).mul_(levels - 1).round_().mul_(a / (levels - 1)).add_(b)
        error = (q - buckets).square().sum(1, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        made = torch.where(better, a, made[0]), torch.where(better, b, made[1])
    return made
