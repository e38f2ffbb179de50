"""Compressed constants: integers with scales, palettes, sparse values. Computed in float32 whatever they are stored as."""

from __future__ import annotations

import torch
from torch import Tensor

from .values import Table, ints


def affine_dequantize(*, quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: Tensor) -> Tensor:
    """Return scale * (q - zero), one of each or one for each index along the axis (iOS 16)."""
    beside = [1] * quantized_data.ndim
    beside[int(axis)] = -1
    laid = [value.float().reshape(beside if value.numel() > 1 else [1] * quantized_data.ndim) for value in (scale, zero_point)]
    return laid[0] * (quantized_data.float() - laid[1])


def blockwise_shift_scale(*, data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """Return scale * (q - offset), one of each a block; as many blocks along an axis as there are scales (iOS 18)."""
    moved = data.float() if offset is None else data.float() - _spread(offset.float(), data.shape)
    return _spread(scale, data.shape) * moved


def lut_to_dense(*, indices: Tensor, lut: Tensor, shape: Tensor | None = None, vector_axis: Tensor | None = None) -> Tensor:
    """Return the palette's values at the indices.

    iOS 16: indices packed in bytes, the lowest bits first, one palette, and the shape. iOS 18: an index a weight, a palette a
    block, (*blocks, entries, 1).
    """
    if shape is not None:
        bits = lut.numel().bit_length() - 1
        sizes = ints(shape)
        count = int(torch.tensor(sizes).prod())
        stream = (indices.reshape(-1, 1) >> torch.arange(8) & 1).reshape(-1)[: count * bits].reshape(count, bits)
        return lut[(stream << torch.arange(bits)).sum(1)].reshape(sizes)
    if lut.shape[-1] != 1:
        raise NotImplementedError("palettes of vectors")
    tables = _spread(lut[..., 0], (*indices.shape, lut.shape[-2]))
    return torch.take_along_dim(tables, indices[..., None].long(), -1)[..., 0]


def sparse_to_dense(*, nonzero_data: Tensor, mask: Tensor, shape: Tensor | None = None) -> Tensor:
    """Return the values at the places that the mask names, zeros elsewhere. iOS 16 packs the mask in bytes."""
    if shape is not None:
        sizes = ints(shape)
        count = int(torch.tensor(sizes).prod())
        mask = (mask.reshape(-1, 1) >> torch.arange(8) & 1).reshape(-1)[:count].reshape(sizes)
    return torch.zeros(mask.shape).masked_scatter(mask.bool(), nonzero_data.float())


def _cast(*, source_val: Tensor, output_dtype: str) -> Tensor:
    if output_dtype != "fp32":
        raise NotImplementedError(f"output_dtype = {output_dtype!r} (known: fp32)")
    return source_val


def _spread(per_block: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """Repeat what there is one of a block until it lies beside each element."""
    for axis, (few, many) in enumerate(zip(per_block.shape, shape, strict=True)):
        if few != many:
            per_block = per_block.repeat_interleave(many // few, axis)
    return per_block


OPERATIONS: Table = {
    "constexpr_affine_dequantize": affine_dequantize,
    "constexpr_blockwise_shift_scale": blockwise_shift_scale,
    "constexpr_lut_to_dense": lut_to_dense,
    "constexpr_sparse_to_dense": sparse_to_dense,
    "constexpr_cast": _cast,
}
