"""A folder of IDX files, the format of MNIST and its relatives: train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-..., also .gz.

Format: http://yann.lecun.com/exdb/mnist/ (two zero bytes, type, number of axes, big-endian sizes, then the bytes).
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from ...errors import BadInput
from ...recipe import Data
from ..records import Records, Source

_STEMS = {"train": ("train",), "validation": ("validation", "val"), "test": ("t10k", "test")}


def knows(source: str) -> bool:
    folder = Path(source)
    return folder.is_dir() and any("-idx3-ubyte" in f.name for f in folder.iterdir())


def files(data: Data) -> list[Path]:
    return [path for pair in _pairs(data).values() for path in pair]


def read(data: Data) -> Source:
    """Read every pair of images and labels in the folder. Raises BadInput for a missing, cut or foreign file."""
    splits = {}
    for role, (images_file, labels_file) in _pairs(data).items():
        images, labels = _array(images_file, 3), _array(labels_file, 1)
        if len(images) != len(labels):
            raise BadInput(
                f"{images_file} has {len(images)} pictures and {labels_file} {len(labels)} labels: they do not match"
            )
        splits[role] = _records(images, labels, images_file)
    return Source(splits)


def _records(images: np.ndarray, labels: np.ndarray, file: Path) -> Records:
    return Records(labels.astype(np.int64), lambda i: images[i], lambda i: f"{file}, picture {i}", images)


def _pairs(data: Data) -> dict[str, tuple[Path, Path]]:
    """Return role -> (images file, labels file)."""
    folder = Path(data.source)
    pairs = {}
    for role, usual in _STEMS.items():
        named = getattr(data, role)
        for stem in (named,) if named else usual:
            images = _first(folder, f"{stem}-images-idx3-ubyte")
            labels = _first(folder, f"{stem}-labels-idx1-ubyte")
            if images and labels:
                pairs[role] = (images, labels)
                break
            if images or labels:
                there, missing = ("images", "labels-idx1") if images else ("labels", "images-idx3")
                raise BadInput(f"{folder}: has the {there} of `{stem}`, but no {stem}-{missing}-ubyte[.gz]; add it")
        if named and role not in pairs:
            raise BadInput(f"{folder}: no {named}-images-idx3-ubyte[.gz], which data.{role} asks for")
    if "train" not in pairs:
        raise BadInput(f"{folder}: no train-images-idx3-ubyte[.gz]; name the files' first part with data.train")
    return pairs


def _first(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _array(file: Path, axes: int) -> np.ndarray:
    """Return the array in an IDX file of unsigned bytes."""
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (EOFError, OSError, zlib.error) as error:
        raise BadInput(f"{file}: damaged ({error}); fetch it again") from None
    if content[:4] != bytes((0, 0, 8, axes)):
        raise BadInput(f"{file}: not an IDX file of unsigned bytes with {axes} axes (starts with {content[:4].hex(' ')})")
    start = 4 + 4 * axes
    shape = struct.unpack(f">{axes}I", content[4:start]) if len(content) >= start else (0,) * axes
    if len(content) != start + math.prod(shape):
        raise BadInput(
            f"{file}: {len(content):,} bytes, where its header says {start + math.prod(shape):,}: cut off; fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
