"""The uniform quantizer: evenly spaced levels between the smallest and the largest weight of a bucket.

v = (w - beta) / alpha, Q(v) = round(v (s - 1)) / (s - 1), w_q = alpha Q(v) + beta, with s = 2^bits levels, beta the smallest
weight of the bucket and alpha the range (Polino, Pascanu and Alistarh 2018, section 2, and their released code). Computed as
w_q = i step + beta with i = round((w - beta) / step) and step = alpha / (s - 1), which is how it is stored.

A NaN or infinite weight makes its whole bucket NaN: training sees it at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import nn

from .buckets import range_of, restored, to_buckets

Style = Literal["straight-through", "truncated", "exact"]


def scaled(buckets: torch.Tensor, levels: int, stochastic: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (indices 0 ... levels - 1 in floating point, step, beta) of (buckets, size) weights; of a constant bucket all 0.

    Deterministic: to the nearest level, halves to even. Stochastic: down, or up with the probability of the fraction, so
    that the expected value is the weight itself; from torch's own generator.
    """
    alpha, beta = range_of(buckets)
    step = alpha.div_(levels - 1)
    places = (buckets - beta).div_(step)
    if not stochastic:
        return places.round_(), step, beta
    down = places.floor()
    up = torch.rand_like(places) < places.sub_(down)  # a weight on a level stays there
    return down.add_(up).clamp_(max=levels - 1), step, beta


class _Uniform(torch.autograd.Function):
    """w -> w_q over buckets."""

    @staticmethod
    def forward(ctx: Any, weights: torch.Tensor, size: int, levels: int, style: Style, stochastic: bool) -> torch.Tensor:
        buckets = to_buckets(weights, size)
        buckets = buckets.clamp(-1, 1) if style == "truncated" else buckets
        indices, step, beta = scaled(buckets, levels, stochastic)
        ctx.style = style
        if style == "truncated":
            ctx.save_for_backward(weights.abs() <= 1)
        elif style == "exact":
            ctx.save_for_backward(buckets, indices.clone())
            ctx.levels = levels
        return restored(indices.mul_(step).add_(beta), weights)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        if ctx.style == "truncated":
            gradient = gradient * ctx.saved_tensors[0]
        elif ctx.style == "exact":
            buckets, indices = ctx.saved_tensors
            gradient = restored(_through_range(gradient, buckets, indices, ctx.levels), gradient)
        return gradient, None, None, None, None


_ROUNDED: ContextVar[dict[int, torch.Tensor] | None] = ContextVar("rounded", default=None)


@contextmanager
def rounded_once() -> Iterator[None]:
    """Within it a quantizer rounds at random once, so that layers that share a weight, and calls of one layer, see the same numbers.

    For one forward pass. (torch's parametrize.cached() is of no use here: to it tied layers are different, and copies of a layer one.)
    """
    token = _ROUNDED.set({})
    try:
        yield
    finally:
        _ROUNDED.reset(token)


def to_zeros(gradient: torch.Tensor, size: int) -> torch.Tensor:
    """Return the gradient in buckets, float32 at least, the last one filled up with zeros: padding has no say."""
    flat = gradient.reshape(-1)
    flat = flat.float() if flat.element_size() < 4 else flat
    missing = -flat.numel() % size
    return (torch.nn.functional.pad(flat, (0, missing)) if missing else flat).view(flat.numel() // size + bool(missing), size)


def _through_range(gradient: torch.Tensor, buckets: torch.Tensor, indices: torch.Tensor, levels: int) -> torch.Tensor:
    """Differentiate alpha Q((w - beta) / alpha) + beta with Q piecewise constant, through alpha and beta alone: (buckets, size).

    dw_q / dbeta = 1 and dw_q / dalpha = Q. Only the largest and the smallest weights of a bucket move these:
    alpha = w_max - w_min, beta = w_min. Several that are largest, or smallest, share equally.
    """
    count, gradient = gradient.numel(), to_zeros(gradient, buckets.shape[1])
    through_alpha = (gradient * indices).sum(1, keepdim=True) / (levels - 1)  # 0 where alpha is the constant 1: so is Q
    through_beta = gradient.sum(1, keepdim=True)
    highest, lowest = buckets.amax(1, keepdim=True), buckets.amin(1, keepdim=True)

    def among(those: torch.Tensor) -> torch.Tensor:
        those.view(-1)[count:] = False  # padding repeats the last weight, which has its share already
        return those / those.sum(1, keepdim=True)

    return among(buckets == highest) * through_alpha + among(buckets == lowest) * (through_beta - through_alpha)


class MinMax(nn.Module):
    """Fake quantization between each bucket's extremes; nothing to learn.

    style: the gradient. straight-through: as if not quantized. truncated: weights are clamped to [-1, 1] and get no gradient
    outside. exact: through the bucket's extremes alone, as w_q really depends on w.
    stochastic: round at random in training mode, anew at every use or once a forward pass (rounded_once()); always to the nearest in
    evaluation mode.
    """

    def __init__(self, size: int, bits: int, style: Style = "straight-through", stochastic: bool = False) -> None:
        super().__init__()
        self.size, self.bits, self.style, self.stochastic = size, bits, style, stochastic

    @property
    def levels(self) -> int:
        return 1 << self.bits

    def forward(self, weights: torch.Tensor) -> torch.Tensor:
        """Return the quantized weights, of the same shape."""
        if not weights.numel():
            return weights
        at_random = self.stochastic and self.training
        rounded = _ROUNDED.get() if at_random else None
        if rounded is None:
            return _Uniform.apply(weights, self.size, self.levels, self.style, at_random)
        if id(self) not in rounded:
            rounded[id(self)] = _Uniform.apply(weights, self.size, self.levels, self.style, at_random)
        return rounded[id(self)]

    def encode(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        """Return (indices (buckets, size), scale (buckets,), offset (buckets,), None) of the weights."""
        buckets = to_buckets(weights.detach().float(), self.size)
        indices, step, beta = scaled(buckets.clamp(-1, 1) if self.style == "truncated" else buckets, self.levels)
        return indices.to(torch.uint8), step.flatten(), beta.flatten(), None
