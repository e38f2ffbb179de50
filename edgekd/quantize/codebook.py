"""The codebook quantizer: weights go to the nearest of a few points, and the points are what is learned.

Differentiable quantization (Polino, Pascanu and Alistarh 2018, section 4): one vector p of points a tensor, in the scaled space
v = (w - beta) / alpha of its buckets; w_q = alpha p_nearest(v) + beta; dL/dp_j = sum of alpha dL/dw_q over the weights at p_j.
The weights of a constant bucket (a dead filter, a tail of one) stay as they are: its alpha is 0, and no point moves them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from .buckets import divisor, extent_of, restored, to_buckets
from .uniform import to_zeros

CELLS = 4096
"""Equal parts of [0, 1] in the table of nearest()."""

UNSURE = 255
"""Stands in the table for the index of a cell that has a middle in it. The index 255 itself is searched for as well, which costs little."""

BLOCK = 2**17
"""Values at a time, so that what is computed on the way stays in the processor's cache."""


def nearest(values: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return, for each value, the index of the nearest point, uint8, and that point; both of the values' shape.

    points: (n,), rising, n from 2 to 256, of the values' type. A value in the middle between two goes to the lower one, and a value
    on several equal points to the first of these. NaN goes anywhere.
    On a CPU many values are looked up in a table by the cell they lie in; only those in a cell that a middle cuts in two are searched
    for, one by one. A search guesses a branch wrong every other time.
    """
    middles = (points[1:] + points[:-1]) / 2
    if values.device.type != "cpu" or values.numel() < CELLS:
        return _searched(values, points, middles)
    index_of, point_of = _table(points, middles)
    flat = values.reshape(-1)
    indices, chosen = torch.empty(flat.shape, dtype=torch.uint8), torch.empty_like(flat)
    for some, at, point in zip(flat.split(BLOCK), indices.split(BLOCK), chosen.split(BLOCK), strict=True):
        cell = _cells(some)
        torch.index_select(index_of, 0, cell, out=at)
        torch.index_select(point_of, 0, cell, out=point)
        unsure = torch.from_numpy(np.flatnonzero(at.numpy() == UNSURE))  # torch's nonzero() takes ten times as long
        at[unsure], point[unsure] = _searched(some[unsure], points, middles)
    return indices.view(values.shape), chosen.view(values.shape)


def _searched(values: torch.Tensor, points: torch.Tensor, middles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    index = torch.bucketize(values, middles, out_int32=True)
    return index.to(torch.uint8), points[index]


def _table(points: torch.Tensor, middles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return, for each cell, the index of the point nearest to all of it, or UNSURE where a middle lies in it, and that point."""
    inside = torch.bincount(_cells(middles), minlength=CELLS + 1)
    before = inside.cumsum(0) - inside  # middles in the cells before
    return before.masked_fill(inside > 0, UNSURE).to(torch.uint8), points[before]


def _cells(values: torch.Tensor) -> torch.Tensor:
    """Return the cell of each value, int32, rising with the value; what lies outside [0, 1] is in the first or the last."""
    return (values * CELLS).clamp_(0, CELLS).int().clamp_(0, CELLS)  # again, because NaN becomes any integer


def quantiles(values: torch.Tensor, count: int) -> torch.Tensor:
    """Return `count` points that each have as many values around them: the (j + 1/2) / count quantiles of the values.

    Evenly spaced from 0 to 1 where there are no values.
    """
    if not values.numel():
        return torch.linspace(0, 1, count, dtype=values.dtype, device=values.device)
    at = (torch.arange(count, dtype=torch.float64, device=values.device) + 0.5) / count
    ordered = values.detach().flatten().sort().values.double()
    place = at * (len(ordered) - 1)
    low = place.floor().long()
    high = (low + 1).clamp(max=len(ordered) - 1)
    return torch.lerp(ordered[low], ordered[high], place - low).to(values.dtype)


class _Nearest(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weights: torch.Tensor, points: torch.Tensor, size: int, ranges: tuple[torch.Tensor, torch.Tensor] | None
    ) -> torch.Tensor:
        buckets = to_buckets(weights, size)
        alpha, beta = ranges or extent_of(buckets)
        points = points.to(buckets.dtype)
        indices, chosen = nearest((buckets - beta).div_(divisor(alpha)), points)
        ctx.save_for_backward(indices, alpha)
        ctx.size, ctx.count, ctx.dtype = size, len(points), points.dtype
        return restored(chosen.mul_(alpha).add_(beta), weights)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        indices, alpha = ctx.saved_tensors
        of_weights = gradients[0] if ctx.needs_input_grad[0] else None  # straight-through
        each = to_zeros(gradients[0], ctx.size) * alpha
        return of_weights, sums(indices.view(-1), each.view(-1), ctx.count).to(ctx.dtype), None, None


def sums(indices: torch.Tensor, values: torch.Tensor, count: int) -> torch.Tensor:
    """Return the sum of the values at each index 0 ... count - 1, the same one every time. indices: uint8 (n,), values: (n,)."""
    if values.device.type == "cpu":
        return torch.bincount(indices, values.double(), minlength=count)  # a million float32 would lose digits
    return sums_by_products(indices, values, count)


def sums_by_products(indices: torch.Tensor, values: torch.Tensor, count: int, most: int = 2**25) -> torch.Tensor:
    """Return what sums() does, for a GPU: there bincount() adds in any order. most: numbers in memory at a time."""
    made = torch.zeros(count, dtype=values.dtype, device=values.device)
    each = torch.arange(count, dtype=torch.uint8, device=values.device)[:, None]
    for some, at in zip(values.split(most // count), indices.split(most // count), strict=True):
        made += (at == each).to(values.dtype) @ some
    return made


class Codebook(nn.Module):
    """Fake quantization to learned points, one vector a tensor, shared by its buckets.

    start: the weights to begin with. count: points. uniform: begin with evenly spaced points, which with the weights and buckets of
    a finished quantized distillation is exactly its result; else at the quantiles.
    ranges: (alpha, beta), each (buckets,), that stay as they are, such as learned ones; the buckets' own when absent. A constant
    bucket stays at the level that evenly spaced points give it.
    """

    def __init__(
        self, size: int, count: int, start: torch.Tensor, uniform: bool = False,
        ranges: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.size = size
        self.alpha: torch.Tensor | None
        self.beta: torch.Tensor | None
        self.register_buffer("alpha", ranges[0].detach().abs().clamp_min(1e-10) if ranges else None)
        self.register_buffer("beta", ranges[1].detach().clone() if ranges else None)
        buckets = to_buckets(start.detach().float(), size)
        own, _ = extent_of(buckets) if start.numel() else (buckets[:, :1], None)
        even = torch.linspace(0, 1, count, device=start.device)
        if self.alpha is not None and self.beta is not None:
            _, chosen = nearest((buckets[:, 0] - self.beta) / self.alpha, even.to(self.alpha.dtype))
            self.beta = torch.where(own[:, 0] == 0, chosen * self.alpha + self.beta, self.beta)
            self.alpha = torch.where(own[:, 0] == 0, torch.zeros_like(self.alpha), self.alpha)
        alpha, beta = self._ranges() or extent_of(buckets)
        scaled = ((buckets - beta) / divisor(alpha)).flatten()[: start.numel()].clamp(0, 1)
        varied = (own != 0).expand_as(buckets).flatten()[: start.numel()]
        self.points = nn.Parameter(even if uniform else quantiles(scaled[varied], count))

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
        return _Nearest.apply(weights, self.points.sort().values, self.size, self._ranges())

    def encode(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (indices (buckets, size), scale (buckets,), offset (buckets,), points (levels,)) of the weights."""
        buckets = to_buckets(weights.detach().float(), self.size)
        alpha, beta = self._ranges() or extent_of(buckets)
        points = self.points.detach().float().sort().values
        indices, _ = nearest((buckets - beta).div_(divisor(alpha)), points)
        return indices, alpha.flatten(), beta.flatten(), points

    def _ranges(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        if self.alpha is None or self.beta is None:
            return None
        return self.alpha.float()[:, None], self.beta.float()[:, None]
