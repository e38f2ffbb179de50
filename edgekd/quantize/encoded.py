"""A quantized weight tensor as it is stored: a small integer a weight, and what turns the integers back into numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Encoded:
    """One quantized tensor: weight i of bucket b is scale[b] * value(indices[b, i]) + offset[b].

    value(j) is points[j] where there is a codebook, else j itself.
    indices: uint8 (buckets, size), each below `levels`; the flattened tensor row by row. A last bucket that is not full is
    padded with copies of its last index.
    scale: float32 (buckets,). offset: float32 (buckets,); None where it is zero throughout.
    points: float32 (levels,), rising, or None. levels: how many values a weight can take, 2 to 256.
    shape: of the tensor.
    """

    indices: np.ndarray
    scale: np.ndarray
    offset: np.ndarray | None
    points: np.ndarray | None
    levels: int
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Weights in the tensor, padding not counted."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def bits(self) -> int:
        """Bits that an index takes when packed."""
        return max(1, (self.levels - 1).bit_length())

    def decoded(self) -> np.ndarray:
        """Return the weights, float32 of the tensor's shape."""
        values = (self.points[self.indices] if self.points is not None else self.indices.astype(np.float32)) * self.scale[
            :, None
        ]
        if self.offset is not None:
            values = values + self.offset[:, None]
        return values.reshape(-1)[: self.count].reshape(self.shape).astype(np.float32)
