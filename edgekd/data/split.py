"""A split: samples that are taken by index."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, Self, TypeVar

import numpy as np

Pictures = Callable[[np.ndarray], np.ndarray]
"""Positions (n,) -> pictures, uint8 (n, H, W, C)."""


class Split(Protocol):
    """Samples of any kind. classes: names in the order of the labels, () where samples have none.

    fingerprint: changes when any sample or their order does.
    """

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def lengths(self) -> np.ndarray | None:
        """How long each sample is, where a batch costs as much as its longest; None where all are alike."""

    def __len__(self) -> int: ...

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return samples: arrays with the samples along the first axis, `index` int64 (n,) among them. Raises BadInput."""

    def at(self, indices: np.ndarray) -> Self:
        """Return the split of these samples alone, in this order."""


@dataclass(frozen=True)
class PictureSplit:
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

    @property
    def lengths(self) -> None:
        return None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return samples: image uint8 (n, H, W, C), label int64 (n,), index int64 (n,). BadInput for an unreadable picture."""
        indices = np.asarray(indices, dtype=np.int64)
        return {"image": self.pictures(indices), "label": self.labels[indices], "index": indices}

    def at(self, indices: np.ndarray) -> Self:
        """Return the split of these samples alone, in this order."""
        indices = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            fingerprint=fingerprint_at(self, indices),
            labels=self.labels[indices],
            pictures=lambda chosen: self.pictures(indices[chosen]),
        )


def fingerprint_at(split: Split, indices: np.ndarray) -> str:
    """Return the fingerprint of some samples of a split."""
    return hashlib.sha256(f"{split.fingerprint} {indices.tolist()}".encode()).hexdigest()


S = TypeVar("S", bound=Split)


@dataclass(frozen=True)
class Splits(Generic[S]):
    """The three splits of one data set: fit on train, pick the epoch on validation, measure the gate on test."""

    train: S
    validation: S
    test: S

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.classes


@dataclass(frozen=True)
class PictureSplits(Splits[PictureSplit]):
    """Three splits of pictures of one size."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.train.image_shape
