"""A dataset of the Hugging Face hub, by its id."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import BadInput
from ...hub_access import prefer_cache_when_unreachable
from ...names import nearest
from ...recipe import Data, Pairs
from ..records import Source
from .columns import section
from .dataset import quiet, records_of, shared_classes
from .split_names import assign

if TYPE_CHECKING:
    from datasets import DatasetDict

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")


def knows(source: str) -> bool:
    return True


def files(data: Data) -> list[Path]:
    _check(data.source)
    return []


def read(data: Data) -> Source:
    """Fetch the dataset, or take it from the local cache. Raises BadInput when it is in neither place."""
    found = load(data)
    loaded = {role: found[name] for role, name in assign(found, data).items()}
    splits = {role: records_of(dataset, data, f"{data.source} ({role})") for role, dataset in loaded.items()}
    return Source(splits, shared_classes(loaded, data), "".join(dataset._fingerprint for dataset in loaded.values()))


def load(data: Data | Pairs) -> DatasetDict:
    """Fetch the dataset, or take it from the local cache: split -> rows. Raises BadInput when it is in neither place."""
    _check(data.source, section(data))
    import datasets

    prefer_cache_when_unreachable()
    try:
        with quiet(warns=True):
            return datasets.load_dataset(data.source, data.config)
    except Exception as error:  # datasets raises anything from ValueError to its own and requests' errors here
        raise BadInput(
            f"{section(data)}.source: `{data.source}`{nearest(data.source, ['digits'])} is no file or folder here, and the hub did not give it "
            f"({_first_line(error)}); correct the name, or get the files and give their path"
        ) from None


def _check(source: str, where: str = "data") -> None:
    if not _HUB_ID.match(source) or Path(source).is_file():
        kind = "is of no kind that edgekd reads" if Path(source).is_file() else "does not exist"
        raise BadInput(
            f"{where}.source: {source} {kind}; give digits, a hub id, a parquet, csv or jsonl file, "
            "or a folder of parquet or IDX files or of class folders with pictures"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
