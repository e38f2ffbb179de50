"""What tells one data set from another, without reading all of it: the key of every cached stage."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from ..recipe import Data
from ..run_folder import file_hash
from . import text_rows
from .sources import files as picture_files

_READ_AT_MOST = 256_000_000
"""Bytes that are hashed in 0.2 s; more than that is told apart by sizes and times of change, which a copy does not keep."""

_OPEN_AT_MOST = 256


def fingerprint(data: Data, text: bool = False) -> str:
    """Return a hash of the data: of the content where it is small, of (path, size, time of change) where it is large.

    text: its rows are text, not pictures. A hub id is told apart by its name and configuration. Needs neither torch nor `datasets`.
    Raises BadInput for a missing source.
    """
    told = data.model_dump(mode="json", exclude={"source": True, "in_memory_gb": True, "pairs": {"source"}})
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    _add(digest, data.source, text_rows.files(data) if text else picture_files(data))
    if text and data.pairs:
        _add(digest, data.pairs.source, text_rows.files(data.pairs))
    return digest.hexdigest()[:32]


def _add(digest: hashlib._Hash, source: str, found: list[Path]) -> None:
    """Add one source to a hash: its files, wherever they lie, or its name where it has none."""
    sizes = {path: path.stat().st_size for path in found if path.is_file()}
    read = len(sizes) <= _OPEN_AT_MOST and sum(sizes.values()) <= _READ_AT_MOST
    root = Path(os.path.commonpath([path.parent for path in found])) if found else Path()
    digest.update(b"" if found else source.encode())
    for path, size in sizes.items():
        name = os.fsencode(path.relative_to(root).as_posix())  # bytes as on the disk, UTF-8 or not
        digest.update(b"\n%b %d " % (name, size))
        digest.update(bytes.fromhex(file_hash(path)) if read else str(path.stat().st_mtime_ns).encode())
