"""What a source gives: pictures as they are stored and labels, before resizing, cutting and limiting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

ROLES = ("train", "validation", "test")

USUAL_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class Records:
    """One stored split.

    labels: one a sample, in the source's own words (int or str), or already positions in `Source.classes`.
    picture: position -> picture as stored. where: position -> file or row, for messages.
    array: all pictures at once, uint8 (N, H, W) or (N, H, W, C), where the source has them so.
    """

    labels: Sequence[Any] | np.ndarray
    picture: Callable[[int], Image | np.ndarray]
    where: Callable[[int], str]
    array: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Source:
    """Everything a source has. splits: role (train, validation, test) -> records; train is always there.

    classes: names in the order of the labels; None when they are to be read off the labels.
    identity: what tells this content from another's beyond `fingerprint(data)`, when the source knows.
    """

    splits: dict[str, Records]
    classes: tuple[str, ...] | None = None
    identity: str = field(default="")
