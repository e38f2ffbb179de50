"""Buckets: the weights that share a scale. A tensor becomes a matrix with one bucket a row, and back."""

from __future__ import annotations

import math

import torch


def bucket_size(shape: tuple[int, ...], granularity: str, group: int | None) -> int:
    """Return how many weights share a scale. shape: of the weights, as torch lays them out.

    tensor: all of them. channel: those of one index along the first axis. That is the output channel of a convolution or linear
    layer and the row of an embedding, but the *input* channel of a transposed convolution, whose weights torch lays out
    (in, out / groups, ...): buckets follow the memory. group: `group` of the flattened tensor, or all of a tensor
    that is smaller (Polino et al. 2018).
    """
    count = math.prod(shape)
    if granularity == "group":
        assert group is not None
        return max(min(group, count), 1)
    return max(count // shape[0], 1) if granularity == "channel" and shape and shape[0] else max(count, 1)


def to_buckets(weights: torch.Tensor, size: int) -> torch.Tensor:
    """Return (buckets, size), the flattened tensor row by row; the last row is filled up with the tensor's last value.

    However the tensor lies in memory, row by row means by its axes. Half precision becomes float32.
    """
    flat = weights.reshape(-1)
    flat = flat.float() if flat.element_size() < 4 else flat
    if missing := -flat.numel() % size:
        flat = torch.cat([flat, flat[-1:].expand(missing)])
    return flat.view(flat.numel() // size, size)


def from_buckets(buckets: torch.Tensor, shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
    """Return the tensor that to_buckets() took apart."""
    count = math.prod(shape)
    flat = buckets.reshape(-1)
    return (flat if flat.numel() == count else flat[:count]).view(shape)


def restored(buckets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return from_buckets() in the weights' type and memory format: a convolution with channels-last weights stays as fast."""
    made = from_buckets(buckets, weights.shape)
    return made.to(weights.dtype) if weights.is_contiguous() else torch.empty_like(weights).copy_(made)


def range_of(buckets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (alpha, beta), each (buckets, 1): max - min, 1 where that is below 1e-10, and min. NaN and infinity make alpha so."""
    alpha, lowest = _extremes(buckets)
    return alpha.masked_fill_(alpha < 1e-10, 1.0), lowest


def extent_of(buckets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what range_of() does, but alpha is 0 where max - min is below 1e-10: of a constant bucket."""
    alpha, lowest = _extremes(buckets)
    return alpha.masked_fill_(alpha < 1e-10, 0.0), lowest


def _extremes(buckets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    lowest = buckets.amin(1, keepdim=True)
    return buckets.amax(1, keepdim=True) - lowest, lowest  # aminmax() does both at once, and takes ten times as long on a CPU


def divisor(alpha: torch.Tensor) -> torch.Tensor:
    """Return alpha, 1 where it is 0."""
    return alpha.masked_fill(alpha == 0, 1.0)
