"""Rows of text from whatever the user has: parquet, csv, jsonl or plain text files, folders of them named by split, or a hub id."""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ..errors import BadInput, first_line
from ..names import nearest
from ..recipe import Data, Pairs
from .records import ROLES, USUAL_NAMES
from .sources import hub
from .sources.columns import column, section
from .sources.dataset import quiet
from .sources.split_names import grouped
from .sources.text_table import rows_of

Columns = dict[str, list[Any]]
"""Key of the recipe (text, sentence1, ...) -> one value a row."""

_TABLES = (".parquet", ".csv", ".jsonl", ".ndjson")
_SUFFIXES = (*_TABLES, ".txt")
_LONGEST = 2**31 - 1
"""Characters that a cell of a csv file may have: the usual 131,072 are a chapter of a book."""


def files(data: Data | Pairs) -> list[Path]:
    """Return the files of a source in a fixed order; empty for a hub id. Raises BadInput."""
    return [file for group in (_groups(data) or {}).values() for file in group]


def read(data: Data | Pairs, kinds: Sequence[str], wanted: Collection[str] = ROLES, whole: bool = False) -> dict[str, Columns]:
    """Return role (train, validation, test) -> the columns of those kinds; every split that there is, under its usual name.

    A single split without a usual name is the training split. wanted: roles, of which alone the rows are read. whole: a plain
    text file is one row, not one for each line. Raises BadInput for a missing source, split or column.
    """
    groups = _groups(data)
    names = list(groups) if groups is not None else list(found := hub.load(data))
    made: dict[str, Columns] = {}
    for role, name in _roles(names, data).items():
        if role not in wanted:
            continue
        if groups is None:
            made[role] = _of_dataset(found[name], data, kinds, f"{data.source} ({name})")
        else:
            parts = [_of_file(file, data, kinds, whole) for file in groups[name]]
            made[role] = {kind: [value for part in parts for value in part[kind]] for kind in kinds}
    return made


def _groups(data: Data | Pairs) -> dict[str, list[Path]] | None:
    """Return split -> files; None for a hub id."""
    path, where = Path(data.source), section(data)
    if data.source == "digits":
        raise BadInput(
            f"{where}.source: digits are pictures, and this task reads text: give a {', '.join(_SUFFIXES)} file, a folder or a hub id"
        )
    if path.is_dir():
        found = [
            file
            for file in path.rglob("*")
            if file.suffix.lower() in _SUFFIXES
            and file.is_file()
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
        ]
        if not found:
            raise BadInput(f"{where}.source: no text in {path}: a folder holds {', '.join(_SUFFIXES)} files")
        tables = [file for file in found if file.suffix.lower() in _TABLES]
        return grouped(tables or found, path, data)  # beside tables, plain text is a README or a licence
    if path.is_file():
        if path.suffix.lower() not in _SUFFIXES:
            raise BadInput(f"{where}.source: {path} is of no kind that text is read from; give a {', '.join(_SUFFIXES)} file")
        return {"train": [path]}
    if path.suffix.lower() in _SUFFIXES or path.is_absolute():
        raise BadInput(f"{where}.source: no file or folder {path}; correct the path")
    return None


def _roles(names: Sequence[str], data: Data | Pairs) -> dict[str, str]:
    """Return role -> name of a stored split: as the recipe says, else by its usual name."""
    where, there = section(data), ", ".join(names)
    asked = {role: name for role in ROLES if (name := getattr(data, role, None)) is not None}
    roles = {}
    for role in ROLES:
        if role in asked and asked[role] not in names:
            raise BadInput(
                f"{where}.{role}: {data.source} has no split `{asked[role]}`{nearest(asked[role], names)}; there: {there}"
            )
        usual = [name for name in names if name.lower() in USUAL_NAMES[role] and name not in asked.values()]
        if role in asked or usual:
            roles[role] = asked.get(role) or usual[0]
    if not roles and len(names) == 1:
        roles["train"] = names[0]
    if len(set(roles.values())) < len(roles):
        raise BadInput(
            f"{where}: {data.source}: one split cannot play two roles: {roles}; what is learned cannot also be judged by"
        )
    if not roles:
        raise BadInput(f"{where}: which split of {data.source} is which? there: {there}; name them in the recipe")
    return roles


def _of_file(file: Path, data: Data | Pairs, kinds: Sequence[str], whole: bool = False) -> Columns:
    if file.suffix.lower() == ".parquet":
        import datasets

        try:
            with quiet():
                return _of_dataset(datasets.Dataset.from_parquet(str(file)), data, kinds, str(file))
        except BadInput:
            raise
        except Exception as error:  # datasets wraps whatever pyarrow raises in errors of its own
            raise BadInput(f"{file}: cannot be read as parquet ({first_line(error.__cause__ or error)})") from None
    if file.suffix.lower() == ".txt":
        if list(kinds) != ["text"]:
            raise BadInput(f"{file}: plain text has no columns; give a parquet, csv or jsonl file with {' and '.join(kinds)}")
        if asked := getattr(data, "text", None):
            raise BadInput(
                f"{section(data)}.text: {file} is plain text and has no columns, and so none called `{asked}`: leave it out"
            )
        text = _text(file)
        return {"text": [text] if whole else [line for line in map(str.strip, text.splitlines()) if line]}
    rows = _rows(file)
    named = {kind: column(kind, list(rows[0]), data, str(file)) for kind in kinds}
    return {kind: [row.get(name) for row in rows] for kind, name in named.items()}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{file}: not a UTF-8 text file ({error.reason} at byte {error.start}); save it as UTF-8") from None


def _rows(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a csv or jsonl file, column -> value. Raises BadInput for one that is not whole."""
    csv.field_size_limit(_LONGEST)
    if file.suffix.lower() != ".csv":
        _text(file)  # rows_of() puts other characters where bytes are no UTF-8, which would be learned from
    rows = rows_of(file)
    for number, row in enumerate(rows, 1):
        if None in row:  # what the csv module calls cells beyond the header: a comma in a text, which would be cut there
            raise BadInput(
                f"{file}, row {number}: more cells than the header has columns; put texts with commas in them in quotes"
            )
    return rows


def _of_dataset(dataset: Any, data: Data | Pairs, kinds: Sequence[str], where: str) -> Columns:
    named = {kind: column(kind, dataset.column_names, data, where) for kind in kinds}
    return {kind: list(dataset[name]) for kind, name in named.items()}
