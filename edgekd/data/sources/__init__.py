"""Sources, one file each: `knows(source)` says whether it is theirs, `read(data)` reads it, `files(data)` names its files.

A new one is a file plus a line here. The order matters: the first that knows a source has it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, cast

from ...recipe import Data
from ..records import Source


class Reader(Protocol):
    """A module of this folder."""

    def knows(self, source: str) -> bool:
        """Say whether `data.source` is of this kind. Looks at the disk at most."""

    def read(self, data: Data) -> Source:
        """Read labels and what it takes to get at the pictures. Raises BadInput."""

    def files(self, data: Data) -> list[Path]:
        """Return the files that the content depends on, in a fixed order. Raises BadInput."""


def read(data: Data) -> Source:
    """Read a source, whatever its kind. Raises BadInput."""
    return _reader(data).read(data)


def files(data: Data) -> list[Path]:
    """Return the files of a source in a fixed order; empty for a hub id. Raises BadInput."""
    return _reader(data).files(data)


def _reader(data: Data) -> Reader:
    from . import digits, hub, idx, image_folder, parquet, text_table

    readers = cast(list[Reader], [digits, idx, parquet, text_table, image_folder, hub])
    return next(reader for reader in readers if reader.knows(data.source))
