"""The uniform quantizer with zero as a level: w_q = step (i - s / 2), i = 0 ... s - 1, s = 2^bits.

Of s levels s / 2 are below zero and s / 2 - 1 above it. Runtimes multiply by such weights without a zero point. Levels between the
extremes (uniform.py) lie closer where a bucket's weights are not centred, at the price of an offset a bucket.
"""

from __future__ import annotations

import torch
from torch import nn

from .buckets import divisor, restored, to_buckets


def scaled(buckets: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (indices 0 ... s - 1 in floating point, step (buckets, 1)) of (buckets, size) weights, to the nearest level.

    step: the least by which both extremes are within the levels; 1 where all weights are 0.
    """
    half = 1 << (bits - 1)
    above, below = buckets.amax(1, keepdim=True) / (half - 1), -buckets.amin(1, keepdim=True) / half
    step = divisor(torch.maximum(torch.maximum(above, below), torch.zeros_like(above)))
    return (buckets / step).round().add(half).clamp(0, 2 * half - 1), step


class Symmetric(nn.Module):
    """Fake quantization with zero as a level; nothing to learn. The gradient goes straight through. bits: 2 or more."""

    def __init__(self, size: int, bits: int) -> None:
        super().__init__()
        self.size, self.bits = size, bits

    @property
    def levels(self) -> int:
        return 1 << self.bits

    def forward(self, weights: torch.Tensor) -> torch.Tensor:
        """Return the quantized weights, of the same shape."""
        if not weights.numel():
            return weights
        with torch.no_grad():
            indices, step = scaled(to_buckets(weights, self.size), self.bits)
            rounded = restored((indices - (self.levels >> 1)) * step, weights)
        return weights + (rounded - weights).detach()

    def encode(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        """Return (indices (buckets, size), scale (buckets,), offset (buckets,), None) of the weights."""
        indices, step = scaled(to_buckets(weights.detach().float(), self.size), self.bits)
        return indices.to(torch.uint8), step.flatten(), (step * -(self.levels >> 1)).flatten(), None
