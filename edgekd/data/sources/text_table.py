"""A csv or jsonl file (or a folder of them, named by split) with a picture's path and its class in each row."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from ...errors import BadInput
from ...recipe import Data
from ..pictures import decode
from ..records import Records, Source
from .columns import columns
from .split_names import assign, grouped

_SUFFIXES = {".csv", ".jsonl", ".ndjson"}


def knows(source: str) -> bool:
    path = Path(source)
    return path.suffix.lower() in _SUFFIXES or (path.is_dir() and any(f.suffix.lower() in _SUFFIXES for f in path.iterdir()))


def files(data: Data) -> list[Path]:
    """Return the tables and every picture they name."""
    tables = [table for group in _groups(data).values() for table in group]
    return [*tables, *(path for table in tables for path, _ in _rows(table, data))]


def read(data: Data) -> Source:
    """Read the tables. Picture paths are relative to their table. Raises BadInput for rows that are not whole."""
    groups = _groups(data)
    roles = assign(groups, data)
    return Source({role: _records(groups[name], data) for role, name in roles.items()})


def _groups(data: Data) -> dict[str, list[Path]]:
    path = Path(data.source)
    if path.is_dir():
        return grouped((f for f in path.iterdir() if f.suffix.lower() in _SUFFIXES), path, data)
    if not path.is_file():
        raise BadInput(f"data.source: no file {path}; correct the path")
    return {"train": [path]}


def _records(tables: list[Path], data: Data) -> Records:
    rows = [(path, label, f"{table}, row {n}") for table in tables for n, (path, label) in enumerate(_rows(table, data), 1)]
    return Records(
        [label for _, label, _ in rows], lambda i: decode(rows[i][0], f"{rows[i][2]}: {rows[i][0]}"), lambda i: rows[i][2]
    )


def _rows(table: Path, data: Data) -> list[tuple[Path, Any]]:
    """Return (picture path, label) of each row."""
    rows = rows_of(table)
    image, label = columns(list(rows[0]), data, str(table))
    found = []
    for number, row in enumerate(rows, 1):
        if not row.get(image) or not isinstance(row[image], str):
            raise BadInput(f"{table}, row {number}: no picture path in column `{image}`; fill it in or leave the row out")
        found.append((table.parent / row[image], row.get(label)))
    return found


def rows_of(table: Path) -> list[dict[str, Any]]:
    """Return the rows of a csv or jsonl file, column -> value. Raises BadInput for one without any."""
    rows = _csv(table) if table.suffix.lower() == ".csv" else _jsonl(table)
    if not rows:
        raise BadInput(f"{table}: has no rows")
    return rows


def _csv(table: Path) -> list[dict[str, Any]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{table}: not a UTF-8 csv file ({error})") from None


def _jsonl(table: Path) -> list[dict[str, Any]]:
    rows = []
    with table.open(encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise BadInput(f"{table}, line {number}: not JSON ({error})") from None
                if not isinstance(row, dict):
                    raise BadInput(f'{table}, line {number}: not a JSON object, such as {{"image": "a.png", "label": 0}}')
                rows.append(row)
    return rows
