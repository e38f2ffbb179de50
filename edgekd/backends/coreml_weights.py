"""Our quantized weights as Core ML stores them: integers with scales, or palettes. NumPy only; nothing is rounded here.

Core ML has two forms of a compressed constant. Linear: scale * (q - zero), integers of 8 or 4 bits. Palette: an index a weight
into a table of values. What a linear form cannot express to the last bit (2 bits, a float offset, a codebook) becomes a palette,
whose entries are the very values that the weights have. Since iOS 18 both have one scale or table a block, before that a
table holds for the whole tensor and a scale for a channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..quantize.encoded import Encoded
from ..quantize.unpacked import Stored, Symmetric

_PALETTES = {17: (1, 2, 4, 6, 8), 18: (1, 2, 3, 4, 6, 8)}
"""Bits of an index, by the release of iOS."""


@dataclass(frozen=True)
class Linear:
    """scale * (q - zero). q: integers of the weight's shape and `bits` 8 or 4, int8 or uint8 here.

    scale, zero: float32, of as many axes; an axis of length 1 or n says that so many scales share it equally.
    """

    q: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    bits: int

    def decoded(self) -> np.ndarray:
        """Return the weights, float32."""
        scale, zero = spread(self.scale, self.q.shape), spread(self.zero, self.q.shape)
        return (scale * (self.q.astype(np.float32) - zero)).astype(np.float32)

    def transposed(self) -> Linear:
        """Return the same of the transposed matrix."""
        return Linear(self.q.T, self.scale.T, self.zero.T, self.bits)


@dataclass(frozen=True)
class Palette:
    """points[block, indices]. indices: uint8 of the weight's shape. points: float32 (blocks along each axis..., 2 ** bits)."""

    indices: np.ndarray
    points: np.ndarray

    @property
    def bits(self) -> int:
        """Bits of an index."""
        return (self.points.shape[-1] - 1).bit_length()

    def decoded(self) -> np.ndarray:
        """Return the weights, float32."""
        tables = spread(self.points, (*self.indices.shape, self.points.shape[-1]))
        return np.take_along_axis(tables, self.indices[..., None].astype(np.intp), -1)[..., 0]

    def transposed(self) -> Palette:
        """Return the same of the transposed matrix."""
        return Palette(self.indices.T, self.points.transpose(1, 0, 2))


Form = Linear | Palette


def form_of(stored: Stored, ios: int) -> Form | str:
    """Return a stored weight in the form that Core ML of that release of iOS (17, 18) takes; in words, why there is none.

    Either has the stored weight's values: of a palette bit for bit, of integers but for the rounding of one float32 product.
    """
    if isinstance(stored, Symmetric):
        return _symmetric(stored)
    blocks = _blocks(stored)
    if blocks is None:
        return (
            f"its {len(stored.scale)} buckets of {stored.indices.shape[1]} weights cut across channels, and Core ML's blocks do "
            "not: use granularity `channel` or `tensor`"
        )
    if ios < 18 and sum(n > 1 for n in blocks) > 1:
        return "blocks inside a channel need iOS 18"
    one_block = len(stored.scale) == 1
    linear = _linear(stored, blocks, ios)
    if linear is not None:
        return linear
    if ios < 18 and not one_block:
        return f"{stored.bits}-bit weights with a range a channel need iOS 18; for iOS 17 use granularity `tensor`, or 8 bits"
    return _palette(stored, blocks, ios)


def _symmetric(stored: Symmetric) -> Linear:
    beside = [1] * stored.q.ndim
    if stored.axis is not None:
        beside[stored.axis] = -1
    scale = stored.scale.astype(np.float32).reshape(beside)
    return Linear(stored.q, scale, np.zeros_like(scale), 8)


def _blocks(stored: Encoded) -> tuple[int, ...] | None:
    """Return how many buckets there are along each axis; None when a bucket is no box of the tensor.

    A bucket is a run of the flattened tensor. It is a box when it holds whole trailing axes, and of the axis before these a whole
    fraction.
    """
    size = stored.indices.shape[1]
    if len(stored.scale) == 1:
        return (1,) * len(stored.shape)
    if stored.indices.size != stored.count:
        return None
    inner = 1
    for axis in reversed(range(len(stored.shape))):
        if size <= inner * stored.shape[axis]:
            along = inner * stored.shape[axis] // size
            fits = size % inner == 0 and along * size == inner * stored.shape[axis]
            return (*stored.shape[:axis], along, *(1 for _ in stored.shape[axis + 1 :])) if fits else None
        inner *= stored.shape[axis]
    return None


def _linear(stored: Encoded, blocks: tuple[int, ...], ios: int) -> Linear | None:
    """Return integers with scales: where zero points are whole, or for 8 bits, whose tables would outweigh the weights."""
    if stored.points is not None or stored.bits not in ((8,) if ios < 18 else (4, 8)):
        return None
    offset = np.zeros_like(stored.scale) if stored.offset is None else stored.offset
    constant = stored.scale == 0  # a bucket of one value, which is its offset: scale * (0 - zero) of zero = -1
    scale = np.where(constant, offset, stored.scale)
    indices = np.where(constant[:, None], 0, stored.indices)
    with np.errstate(divide="ignore", invalid="ignore"):
        zero = np.where(constant, np.float32(-1), -offset.astype(np.float64) / scale)
    zero = np.where(np.isfinite(zero), zero, 0)
    whole = np.rint(zero)
    exact = ((-scale * whole).astype(np.float32) == offset) & (whole >= 0) & (whole < 1 << stored.bits)
    if exact.all():
        zero = whole
    elif stored.bits != 8:
        return None
    q, zero = indices.astype(np.int16), zero.astype(np.float64)
    if stored.bits == 8:  # about zero, where half precision is finest
        q, zero = q - 128, zero - 128
    shaped = q.reshape(stored.shape).astype(np.int8 if stored.bits == 8 else np.uint8)
    return Linear(shaped, scale.astype(np.float32).reshape(blocks), zero.astype(np.float32).reshape(blocks), stored.bits)


def _palette(stored: Encoded, blocks: tuple[int, ...], ios: int) -> Palette:
    """Return tables with the values that decoded() computes, the same operations in the same order. Spare entries repeat the last."""
    points = np.arange(stored.levels, dtype=np.float32) if stored.points is None else stored.points
    values = points[None] * stored.scale[:, None]
    if stored.offset is not None:
        values = values + stored.offset[:, None]
    bits = next(n for n in _PALETTES[18 if ios >= 18 else 17] if 1 << n >= stored.levels)
    spare = np.repeat(values[:, -1:], (1 << bits) - values.shape[1], axis=1)
    tables = np.concatenate([values, spare], axis=1).astype(np.float32)
    indices = stored.indices.reshape(-1)[: stored.count].reshape(stored.shape)
    return Palette(indices, tables.reshape(*blocks, 1 << bits))


def spread(per_block: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Repeat what there is one of a block, so that it lies beside each element of `shape`."""
    for axis, (few, many) in enumerate(zip(per_block.shape, shape, strict=True)):
        if few not in (1, many):
            per_block = np.repeat(per_block, many // few, axis)
    return np.broadcast_to(per_block, shape)
