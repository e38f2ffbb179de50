"""What ships inside the wheel (targets/, models/), read through one function."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def resource(name: str) -> Path:
    """Return the path of a file or folder that ships with edgekd, such as "models/digits". It may not exist."""
    packaged = _PACKAGE / "_resources" / name
    return packaged if packaged.exists() else _PACKAGE.parent / name


def listing(folder: str, pattern: str = "*") -> list[Path]:
    """Return the entries of a shipped folder that match `pattern`, sorted by name."""
    return sorted(resource(folder).glob(pattern))
