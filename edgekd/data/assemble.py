"""From a source's records to three splits of pictures of one size."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ..errors import BadInput
from ..recipe import Data
from .classes import numbered
from .cut import cut
from .identity import fingerprint
from .pictures import Interpolation, Size, fit, fitted_size, is_gray
from .records import Records
from .sources import read
from .split import Pictures, PictureSplit, PictureSplits

_TEST_SEED = 20_201
"""The test samples are the same whatever the recipe's seed: no student is measured on what its teacher was trained on."""


def load(
    data: Data,
    size: Size | None,
    seed: int,
    channels: int | None = None,
    crop: float = 1.0,
    interpolation: Interpolation = "bilinear",
) -> PictureSplits:
    """Read the data and return its train, validation and test splits.

    size: (height, width) of every picture; None: as stored, which must then be the same for all.
    seed: decides which training samples become validation, where the source has no such split.
    channels: 1 (gray) or 3 (RGB); None: as stored. crop, interpolation: as in `recipe.Preprocess`.
    Raises BadInput for whatever is missing, empty, unreadable, or has a single class.
    """
    source = read(data)
    labels, classes = numbered(source)
    positions = _parts(labels, data, seed)
    first = source.splits["train"].picture(0)
    channels = channels or _channels(source.splits["train"])
    height, width = fitted_size(_stored_size(first), size, crop)
    gigabytes = sum(len(chosen) for _, chosen in positions.values()) * height * width * channels / 1e9
    identity = [fingerprint(data), source.identity, seed, height, width, channels, crop, interpolation]
    made: dict[str, PictureSplit] = {}
    for role, (origin, chosen) in positions.items():
        records = source.splits[origin]
        pictures = _Fitted(records, chosen, (height, width), channels, size is not None, crop, interpolation)
        made[role] = PictureSplit(
            name=role,
            classes=classes,
            fingerprint=_digest([role, classes, chosen.tolist(), *identity]),
            labels=labels[origin][chosen],
            image_shape=(height, width, channels),
            pictures=_in_memory(pictures, len(chosen)) if gigabytes <= data.in_memory_gb else pictures,
        )
    return PictureSplits(**made)


def _parts(labels: dict[str, np.ndarray], data: Data, seed: int) -> dict[str, tuple[str, np.ndarray]]:
    """Return, for each role, which stored split its samples come from and their positions there."""
    parts = {role: (role, np.arange(len(values))) for role, values in labels.items()}
    train, left = labels["train"], parts["train"][1]
    for role, share, cut_seed in (("test", data.test_fraction, _TEST_SEED), ("validation", data.validation_fraction, seed)):
        if role not in parts:
            count = max(1, round(share * len(train)))
            if count >= len(left):
                raise BadInput(f"data.source {data.source}: {len(train)} training samples are too few to cut {role} from")
            chosen, rest = cut(train[left], count, cut_seed)
            parts[role], left = ("train", left[chosen]), left[rest]
    parts["train"] = ("train", left)
    if data.limit is not None:
        for role, (origin, chosen) in parts.items():
            parts[role] = (origin, chosen[cut(labels[origin][chosen], data.limit, _TEST_SEED)[0]])
    if len(np.unique(train[parts["train"][1]])) < 2:
        raise BadInput(f"data.source {data.source}: the training split has one class only; a classifier needs two or more")
    return {role: parts[role] for role in ("train", "validation", "test")}


_MODE = {1: "gray", 3: "RGB"}


class _Fitted:
    """Stored pictures, fitted to one size as they are asked for."""

    def __init__(
        self,
        records: Records,
        chosen: np.ndarray,
        size: Size,
        channels: int,
        resize: bool,
        crop: float,
        interpolation: Interpolation,
    ) -> None:
        self.records, self.chosen, self.size, self.channels = records, chosen, size, channels
        self.resize, self.crop, self.interpolation = resize, crop, interpolation

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        stored = self.chosen[indices]
        array = self.records.array
        if array is not None and array.shape[1:3] == self.size and self.crop == 1:
            shaped = array[..., None] if array.ndim == 3 else array
            if shaped.shape[3] == self.channels:
                return shaped[stored]
        made = np.empty((len(stored), *self.size, self.channels), np.uint8)
        for row, position in enumerate(stored.tolist()):
            made[row] = self._one(position)
        return made

    def _one(self, position: int) -> np.ndarray:
        picture = self.records.picture(position)
        try:
            made = fit(picture, self.size if self.resize else None, self.channels, self.crop, self.interpolation)
        except (ValueError, OSError) as error:  # Pillow has no conversion from some modes, such as LAB
            raise BadInput(
                f"{self.records.where(position)}: cannot become {_MODE[self.channels]} ({error}); save it as such"
            ) from None
        if made.shape[:2] != self.size:
            (h, w), (stored_h, stored_w) = self.size, _stored_size(picture)
            raise BadInput(
                f"{self.records.where(position)}: a picture of {stored_h}x{stored_w} among pictures that make {h}x{w}; "
                "give `preprocess: {size: ...}` in the recipe, so that all are brought to one size"
            )
        return made


def _in_memory(pictures: Pictures, count: int) -> Pictures:
    """Return the same pictures, decoded once. Threads help: Pillow decodes outside the interpreter lock."""
    blocks = np.array_split(np.arange(count), max(1, count // 256))
    with ThreadPoolExecutor() as pool:
        whole = np.concatenate(list(pool.map(pictures, blocks)))
    return lambda indices: whole[indices]


def _stored_size(picture: Any) -> Size:
    return (picture.shape[0], picture.shape[1]) if isinstance(picture, np.ndarray) else (picture.height, picture.width)


def _channels(records: Records) -> int:
    """Return 1 when every picture looked at (up to 32, spread over the split) is gray, else 3."""
    looked_at = np.unique(np.linspace(0, len(records) - 1, 32).astype(int)).tolist()
    return 1 if all(is_gray(records.picture(i)) for i in looked_at) else 3


def _digest(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
