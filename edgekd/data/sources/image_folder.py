"""A folder with one folder of pictures a class, or with such folders below train/, validation/ and test/."""

from __future__ import annotations

import os
from pathlib import Path

from ...errors import BadInput
from ...recipe import Data
from ..pictures import decode
from ..records import ROLES, USUAL_NAMES, Records, Source
from .split_names import assign

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}


def knows(source: str) -> bool:
    return Path(source).is_dir()


def files(data: Data) -> list[Path]:
    return [path for folder in _split_folders(data).values() for paths in _classes(folder).values() for path in paths]


def read(data: Data) -> Source:
    """Find the pictures; the class is the folder's name. Raises BadInput for a folder without classes or pictures."""
    splits = {role: _records(folder) for role, folder in _split_folders(data).items()}
    return Source(splits)


def _split_folders(data: Data) -> dict[str, Path]:
    """Return role -> folder of class folders."""
    root = Path(data.source)
    folders = _folders(root)
    known = {name for role in ROLES for name in USUAL_NAMES[role]} | {getattr(data, role) for role in ROLES}
    if any(folder.name in known or folder.name.lower() in known for folder in folders):
        roles = assign([folder.name for folder in folders], data)
        return {role: root / name for role, name in roles.items()}
    asked = next((role for role in ROLES if getattr(data, role)), None)
    if asked:
        raise BadInput(f"data.{asked}: {root} has no folder `{getattr(data, asked)}`")
    return {"train": root}


def _classes(root: Path) -> dict[str, list[Path]]:
    """Return class name -> pictures, both sorted."""
    classes = {folder.name: _pictures(folder) for folder in _folders(root)}
    if not any(classes.values()):
        loose = sum(1 for f in root.iterdir() if f.suffix.lower() in _SUFFIXES)
        found = f"{loose} pictures, but not in class folders" if loose else "no pictures"
        raise BadInput(f"{root}: {found}; put each class's pictures in a folder of its name: {root.name}/CLASS/picture.png")
    for name, paths in classes.items():
        if _shown(root / name) != str(root / name):
            raise BadInput(f"{_shown(root / name)}: the folder names a class, and its name is not UTF-8; rename it")
        if not paths:
            raise BadInput(f"{root / name}: a class folder without pictures; fill it or remove it")
    return classes


def _records(root: Path) -> Records:
    samples = [(path, name) for name, paths in _classes(root).items() for path in paths]

    def where(position: int) -> str:
        return _shown(samples[position][0])

    return Records([name for _, name in samples], lambda i: decode(samples[i][0], where(i)), where)


def _shown(path: Path) -> str:
    """Return a path that can be printed: names on a disk are bytes, and need not be UTF-8."""
    return os.fsencode(path).decode("utf-8", errors="replace")


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and not path.name.startswith("."))
