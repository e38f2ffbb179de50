"""Records of a Hugging Face dataset: what the hub's and the parquet source share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import BadInput
from ...recipe import Data
from ..pictures import decode
from ..records import Records
from .columns import columns

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image


def records_of(dataset: Dataset, data: Data, where: str) -> Records:
    """Return the records of one split; pictures are decoded when asked for. where: names the split in messages.

    A picture is an Image feature, bytes, a {bytes, path} struct, a path, or rows of pixel values 0-255.
    """
    import datasets

    image, label = columns(dataset.column_names, data, where)
    if isinstance(dataset.features[image], datasets.Image):
        dataset = dataset.cast_column(image, datasets.Image(decode=False))
    pictures = dataset.select_columns([image])

    def place(position: int) -> str:
        return f"{where}, row {position}"

    def picture(position: int) -> Image | np.ndarray:
        return _picture(pictures[position][image], place(position))

    return Records(list(dataset[label]), picture, place)


@contextmanager
def quiet(warns: bool = False) -> Iterator[None]:
    """Keep what `datasets` prints out of the terminal: edgekd shows bars of its own, and errors come as exceptions.

    warns: keep its warnings, such as that the hub cannot be reached and a copy was taken.
    """
    import datasets

    shown, level = not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(level if warns else logging.CRITICAL)
    if shown:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if shown:
            datasets.enable_progress_bars()


def shared_classes(splits: dict[str, Dataset], data: Data) -> tuple[str, ...] | None:
    """Return the class names that the label column carries; None when it has plain values. BadInput when splits disagree."""
    import datasets

    named: dict[str, tuple[str, ...]] = {}
    for role, dataset in splits.items():
        feature = dataset.features[columns(dataset.column_names, data, f"{data.source} ({role})")[1]]
        if isinstance(feature, datasets.ClassLabel):
            named[role] = tuple(feature.names)
    if len(set(named.values())) > 1:
        raise BadInput(f"{data.source}: the splits {', '.join(named)} name their classes differently or in a different order")
    return next(iter(named.values())) if len(named) == len(splits) else None


def _picture(stored: Any, where: str) -> Image | np.ndarray:
    if isinstance(stored, dict) and ("bytes" in stored or "path" in stored):
        stored = stored.get("bytes") or stored.get("path")
    if isinstance(stored, bytes):
        return decode(stored, where)
    if isinstance(stored, str):
        return decode(Path(stored), f"{where}: {stored}")
    if stored is None:
        raise BadInput(f"{where}: no picture; leave the row out")
    return _pixels(stored, where)


def _pixels(stored: Any, where: str) -> np.ndarray:
    try:
        values = np.asarray(stored)
    except ValueError:
        values = np.asarray(0)
    fits = values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (1, 3))
    if not fits or values.dtype.kind not in "iuf" or not ((values >= 0) & (values <= 255)).all():
        raise BadInput(
            f"{where}: neither a picture nor its bytes, path or pixels (rows of 0-255); name the column with data.image"
        )
    if values.dtype.kind == "f" and not (values == values.round()).all():
        raise BadInput(f"{where}: pixels with fractions, whose black and white are not known; store them as integers 0-255")
    return values.astype(np.uint8)
