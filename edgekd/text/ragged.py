"""Rows of token ids of different lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """Rows of integers: values int32, all rows one after the other; ends int64 (rows + 1,), where each begins and ends."""

    values: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]] | Sequence[np.ndarray]) -> Ragged:
        """Put rows together."""
        lengths = [len(row) for row in rows]
        values = np.concatenate([np.empty(0, np.int32), *(np.asarray(row, np.int32) for row in rows)])
        return cls(values, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))

    def __len__(self) -> int:
        return len(self.ends) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Length of each row, int64 (rows,)."""
        return np.diff(self.ends)

    def row(self, position: int) -> np.ndarray:
        """Return one row."""
        return self.values[self.ends[position] : self.ends[position + 1]]

    def padded(self, positions: np.ndarray, pad: int, left: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Return rows as an array (n, longest of these), int64, and 1 where it has a value, int64; the rest is `pad`.

        left: padded before the row instead of after it.
        """
        lengths = self.lengths[positions]
        longest = max(int(lengths.max(initial=0)), 1)
        columns = np.arange(longest)
        offsets = columns[None] - ((longest - lengths)[:, None] if left else 0)
        inside = (offsets >= 0) & (offsets < lengths[:, None])
        at = np.clip(self.ends[:-1][positions][:, None] + offsets, 0, max(len(self.values) - 1, 0))
        ids = np.where(inside, self.values[at] if len(self.values) else pad, pad)
        return ids.astype(np.int64), inside.astype(np.int64)

    def at(self, positions: np.ndarray) -> Ragged:
        """Return some rows, in this order."""
        return Ragged.of([self.row(int(position)) for position in positions])
