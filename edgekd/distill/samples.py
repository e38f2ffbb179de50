"""From positions in a split to a batch on the device: take, move, augment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from .. import recipe

if TYPE_CHECKING:
    from ..data import Split


class Samples:
    """A split's samples as batches of tensors on a device.

    read() touches the disk and may run in another thread; batch() augments, seeded per sample and view, on the device.
    """

    def __init__(self, split: Split, augment: recipe.Augment, seed: int, device: torch.device | str) -> None:
        self.split, self.seed, self.device = split, seed, torch.device(device)
        self._augment = augment if augment != recipe.Augment() else None
        self._pinned = self.device.type == "cuda"

    def read(self, positions: np.ndarray) -> dict[str, torch.Tensor]:
        """Return the samples at those positions, in main memory."""
        batch = {name: torch.from_numpy(values) for name, values in self.split.take(positions).items()}
        return {name: tensor.pin_memory() for name, tensor in batch.items()} if self._pinned else batch

    def batch(self, read: dict[str, torch.Tensor], view: int) -> dict[str, torch.Tensor]:
        """Return what read() gave on the device, augmented as that view says."""
        batch = {name: tensor.to(self.device, non_blocking=True) for name, tensor in read.items()}
        if self._augment is not None:
            from ..augment import augment

            batch["image"] = augment(batch["image"], batch["index"], self._augment, self.seed, view)
        return batch
