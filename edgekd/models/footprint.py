"""How much memory a model takes, told by its files before any of it is loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import memory
from ..recipe import Model
from . import finished
from .saving import WEIGHTS

_FLOATS = ("F64", "F32", "F16", "BF16")
_LONGEST_HEADER = 100_000_000
"""Bytes, by the format's own rule."""


@contextmanager
def in_memory(config: Model, role: str) -> Iterator[None]:
    """Load a model inside this. Raises memory.OutOfMemory (a BadInput) where it does not fit.

    That is told before any of it is read, where its files say how large it is, else when an allocation fails.
    """
    need, there = bytes_needed(config, role), memory.available()
    ways = "close what else is running, take a machine with more memory, or choose a smaller model"
    if need is not None and need > there:
        raise memory.OutOfMemory(
            f"{role}: {config.model}: its weights take {memory.size(need)} of memory, and {memory.size(there)} are free, so it was not "
            f"loaded: {ways}"
        )
    with memory.guarded(f"{role}: {config.model}: while it was loaded", ways):
        yield


def bytes_needed(config: Model, role: str) -> int | None:
    """Return how many bytes a model's weights take at least; None where no file of it tells."""
    if role == "student" and config.weights is None and (config.teacher_layers is not None or config.arguments):
        return None  # it may be smaller than what it is made from
    # networks of transformers are loaded as float32, however they are stored; others as their makers make them
    width = 4 if config.model.startswith("hf:") else None
    found = [size for file in _files(config) if (size := bytes_of(file, width)) is not None]
    return sum(found) if found else None


def bytes_of(file: Path, width: int | None = None) -> int | None:
    """Return how many bytes the weights in a file take, without reading them; None where it does not tell.

    width: bytes of a floating-point number, where it is not loaded as it is stored.
    """
    try:
        if file.suffix != ".safetensors":
            return file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            told = json.loads(opened.read(min(length, _LONGEST_HEADER)))
        tensors = [tensor for name, tensor in told.items() if name != "__metadata__"]
        end = max((tensor["data_offsets"][1] for tensor in tensors), default=0)
        whole = file.stat().st_size >= 8 + length + end
        return sum(_bytes(tensor, width) for tensor in tensors) if whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # missing or damaged: what loads it says how
        return None


def _bytes(tensor: dict[str, Any], width: int | None) -> int:
    """Return the bytes of one entry of a safetensors header."""
    if width is not None and tensor["dtype"] in _FLOATS:
        return width * math.prod(tensor["shape"])
    first, end = tensor["data_offsets"]
    return int(end - first)


def _files(config: Model) -> list[Path]:
    """Return the files with a model's weights that lie on this machine."""
    if config.weights is not None:
        return [config.weights]
    kind, _, rest = config.model.partition(":")
    if kind != "hf":
        finished_in = finished.folder_of(config.model)
        return [finished_in / WEIGHTS] if finished_in else []
    folder = Path(rest) if Path(rest).is_dir() else _cached(rest)
    if folder is None:
        return []
    for name in (WEIGHTS, "pytorch_model.bin"):
        if (index := folder / f"{name}.index.json").is_file():
            return _shards(index)
        if (folder / name).is_file():
            return [folder / name]
    return []


def _shards(index: Path) -> list[Path]:
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [index.parent / name for name in sorted(set(names))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # damaged: transformers says how
        return []


def _cached(name: str) -> Path | None:
    """Return the folder of a hub id in the local cache; None where it is not there."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, "config.json")
    except ValueError:  # no hub id
        return None
    return Path(found).parent if isinstance(found, str) else None
