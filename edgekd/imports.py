"""Which files of a folder a Python file runs: itself and its neighbours that it imports, found by reading, not by running."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path


def sources(file: Path) -> list[Path]:
    """Return `file` and every .py file of its folder that it imports, directly or through another; sorted, no duplicates.

    A package counts with all of its files. Files that cannot be parsed count, and what they import does not.
    """
    folder, found, waiting = file.parent, set(), [file]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += [path for name in _imported(one) for path in _files(folder, name)]
    return sorted(found)


def _imported(file: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from [node.module] if node.module else [alias.name for alias in node.names]


def _files(folder: Path, name: str) -> list[Path]:
    top = name.split(".")[0]
    if (folder / top / "__init__.py").is_file() or (folder / top).is_dir():
        return sorted((folder / top).rglob("*.py"))
    return [folder / f"{top}.py"] if (folder / f"{top}.py").is_file() else []
