"""Which files make what a Python file defines: itself, the modules of the project that it imports, and the files that it names.

Found by reading, not by running.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

LONGEST = 200
"""Characters of a file's name; what is longer is text."""


def sources(file: Path) -> list[Path]:
    """Return `file` and every file that it depends on, directly or through another; sorted, no duplicates.

    These are modules of its folder (of folders that its text names, and of those above where it touches sys.path), however they are
    imported, if only their names stand in the text: `import a`, `importlib.import_module("a")`. A package counts with all of its
    Python files. And files whose names stand in the text, such as "width.json" in open(Path(__file__).parent / "configs" / "width.json"), unless it
    writes them. Not found: names that are put together while it runs. Files that cannot be parsed count, and what they import does not.
    """
    found: set[Path] = set()
    waiting = [file]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += _needed(_read(one), file.parent) if one.suffix == ".py" else []
    return sorted(found)


@dataclass
class _Text:
    """What stands in a Python file: names of modules imported, strings, and whether it changes where modules are looked for."""

    modules: set[str] = field(default_factory=set)
    strings: set[str] = field(default_factory=set)
    moves_path: bool = False


def _read(file: Path) -> _Text:
    made = _Text()
    written: set[str] = set()
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return made
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            made.modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            made.modules.update([node.module] if node.module else [alias.name for alias in node.names])
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and 0 < len(node.value) <= LONGEST:
            made.strings.add(node.value)
        elif isinstance(node, ast.Attribute) and node.attr == "path" and getattr(node.value, "id", None) == "sys":
            made.moves_path = True
        elif isinstance(node, ast.Call) and _writes(node):
            written.update(
                part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)
            )
    made.strings -= written  # what it writes is no part of it
    return made


def _writes(call: ast.Call) -> bool:
    """Say whether a call writes a file: open(..., "w"), path.write_text(...), torch.save(...) and their like."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name != "open":
        return name.startswith(("write_", "save", "dump")) or name in {"touch", "unlink"}
    given = [*call.args[:2], *(word.value for word in call.keywords if word.arg == "mode")]
    modes = [part.value for part in given if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return any(re.fullmatch("[rbt]*[wax+][rwaxbt+]*", mode) for mode in modes)


def _needed(text: _Text, folder: Path) -> Iterator[Path]:
    named = sorted({folder / string for string in text.strings if os.path.isdir(folder / string)} - {folder})
    elsewhere = [*named, *(folder.resolve().parents[:2] if text.moves_path else ())]
    for name in text.modules:
        top = name.split(".")[0]
        places = (_module(folder, top, plain=True), *(_module(place, top) for place in elsewhere))
        yield from next(filter(None, places), [])
    for string in text.strings:
        if string.isidentifier():
            yield from _module(folder, string)
        yield from (place / string for place in (folder, *named) if os.path.isfile(place / string))


def _module(folder: Path, name: str, plain: bool = False) -> list[Path]:
    """Return the files of a module or package in that folder. plain: a folder without __init__.py is a package, too."""
    if (folder / name / "__init__.py").is_file() or (plain and (folder / name).is_dir()):
        return list(_python_files(folder / name))
    return [folder / f"{name}.py"] if (folder / f"{name}.py").is_file() else []


def _python_files(package: Path) -> Iterator[Path]:
    """Yield a package's files, those behind symbolic links too."""
    seen: set[str] = set()
    for place, below, files in os.walk(package, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            below.clear()
            continue
        seen.add(real)
        yield from (Path(place) / name for name in files if name.endswith(".py"))
