"""The codebook quantizer: weights go to the nearest of a few points, and the points are what is learned.

Differentiable quantization (Polino, Pascanu and Alistarh 2018, section 4): one vector p of points a tensor, in the scaled space
v = (w - beta) / alpha of its buckets; w_q = alpha p_nearest(v) + beta; dL/dp_j = sum of alpha dL/dw_q over the weights at p_j.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .buckets import from_buckets, range_of, to_buckets
from .uniform import to_zeros


def nearest(values: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Return, for each value, the index of the nearest point: int64, of the values' shape. points: (n,), rising.

    A value in the middle between two goes to the lower one.
    """
    return torch.bucketize(values, (points[1:] + points[:-1]) / 2)


def quantiles(values: torch.Tensor, count: int) -> torch.Tensor:
    """Return `count` points that each have as many values around them: the (j + 1/2) / count quantiles of the values."""
    at = (torch.arange(count, dtype=torch.float64, device=values.device) + 0.5) / count
    ordered = values.detach().flatten().sort().values.double()
    place = at * (len(ordered) - 1)
    low = place.floor().long()
    high = (low + 1).clamp(max=len(ordered) - 1)
    return torch.lerp(ordered[low], ordered[high], place - low).to(values.dtype)


class _Nearest(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: torch.Tensor, points: torch.Tensor, size: int) -> torch.Tensor:
        buckets = to_buckets(weights, size)
        alpha, beta = range_of(buckets)
        indices = nearest((buckets - beta) / alpha, points)
        ctx.save_for_backward(indices, alpha)
        ctx.size, ctx.count = size, len(points)
        return from_buckets(torch.addcmul(beta, points[indices], alpha), weights.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        indices, alpha = ctx.saved_tensors
        of_weights = gradients[0] if ctx.needs_input_grad[0] else None  # straight-through
        each = to_zeros(gradients[0], ctx.size) * alpha
        of_points = torch.bincount(indices.view(-1), each.view(-1), minlength=ctx.count).to(alpha.dtype)
        return of_weights, of_points, None


class Codebook(nn.Module):
    """Fake quantization to learned points, one vector a tensor, shared by its buckets.

    start: the weights to begin with. count: points. uniform: begin with evenly spaced points, which with the weights and buckets of
    a finished quantized distillation is exactly its result; else at the quantiles.
    """

    def __init__(self, size: int, count: int, start: torch.Tensor, uniform: bool = False) -> None:
        super().__init__()
        self.size = size
        buckets = to_buckets(start.detach().float(), size)
        alpha, beta = range_of(buckets)
        scaled = ((buckets - beta) / alpha).flatten()[: start.numel()]
        points = torch.linspace(0, 1, count, device=start.device) if uniform else quantiles(scaled, count)
        self.points = nn.Parameter(points)

    @property
    def levels(self) -> int:
        return len(self.points)

    @property
    def bits(self) -> int:
        return max(1, (self.levels - 1).bit_length())

    def forward(self, weights: torch.Tensor) -> torch.Tensor:
        """Return the quantized weights, of the same shape."""
        if not weights.numel():
            return weights
        # Sorted here, so that they are whatever an optimizer did to them.
        return _Nearest.apply(weights, self.points.sort().values, self.size)

    def encode(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (indices (buckets, size), scale (buckets,), offset (buckets,), points (levels,)) of the weights."""
        buckets = to_buckets(weights.detach().float(), self.size)
        alpha, beta = range_of(buckets)
        points = self.points.detach().sort().values
        indices = nearest((buckets - beta) / alpha, points)
        return indices.to(torch.uint8), alpha.flatten(), beta.flatten(), points
