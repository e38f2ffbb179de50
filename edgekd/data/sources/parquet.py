"""A parquet file, or a folder of them named by split (test.parquet, data/train-00000-of-00002.parquet, test/0000.parquet)."""

from __future__ import annotations

from pathlib import Path

from ...errors import BadInput
from ...recipe import Data
from ..records import Source
from .dataset import quiet, records_of, shared_classes
from .split_names import assign, grouped


def knows(source: str) -> bool:
    path = Path(source)
    return path.suffix.lower() == ".parquet" or (path.is_dir() and next(path.rglob("*.parquet"), None) is not None)


def files(data: Data) -> list[Path]:
    return [file for group in _groups(data).values() for file in group]


def read(data: Data) -> Source:
    """Open the files with `datasets`, memory-mapped. Raises BadInput for a file that is not parquet, and missing columns."""
    import datasets

    groups = _groups(data)
    loaded = {}
    for role, name in assign(groups, data).items():
        try:
            with quiet():
                loaded[role] = datasets.Dataset.from_parquet([str(file) for file in groups[name]])
        except Exception as error:  # datasets wraps whatever pyarrow raises in errors of its own
            raise BadInput(f"{groups[name][0]}: cannot be read as parquet ({_cause(error)})") from None
    return Source(
        {role: records_of(dataset, data, f"{data.source} ({role})") for role, dataset in loaded.items()},
        shared_classes(loaded, data),
    )


def _groups(data: Data) -> dict[str, list[Path]]:
    path = Path(data.source)
    if path.is_dir():
        return grouped(path.rglob("*.parquet"), path, data)
    if not path.is_file():
        raise BadInput(f"data.source: no file {path}; correct the path")
    return {"train": [path]}


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
