"""A split: labelled pictures that are taken by index."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

Pictures = Callable[[np.ndarray], np.ndarray]
"""Positions (n,) -> pictures, uint8 (n, H, W, C)."""


@dataclass(frozen=True)
class Split:
    """Labelled pictures of one size.

    classes: names in the order of the labels. fingerprint: changes when any picture, label or their order does.
    labels: int64 (N,). image_shape: height, width, channels.
    """

    name: str
    classes: tuple[str, ...]
    fingerprint: str
    labels: np.ndarray = field(repr=False)
    image_shape: tuple[int, int, int]
    pictures: Pictures = field(repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return samples: image uint8 (n, H, W, C), label int64 (n,), index int64 (n,). BadInput for an unreadable picture."""
        indices = np.asarray(indices, dtype=np.int64)
        return {"image": self.pictures(indices), "label": self.labels[indices], "index": indices}

    def at(self, indices: np.ndarray) -> Split:
        """Return the split of these samples alone, in this order."""
        indices = np.asarray(indices, dtype=np.int64)
        named = hashlib.sha256(f"{self.fingerprint} {indices.tolist()}".encode()).hexdigest()
        return replace(
            self, fingerprint=named, labels=self.labels[indices], pictures=lambda chosen: self.pictures(indices[chosen])
        )


@dataclass(frozen=True)
class Splits:
    """The three splits of one data set: fit on train, pick the epoch on validation, measure the gate on test."""

    train: Split
    validation: Split
    test: Split

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.train.image_shape
