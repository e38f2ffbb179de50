"""Class names and numbers: from a source's own labels to positions 0 .. classes-1."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import BadInput
from .records import Source


def numbered(source: Source) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Return each split's labels as int64 positions, and the class names in that order.

    With `source.classes` the labels are positions already. Else the names are the labels' own values, integers (also written
    as text) in numeric order, words in alphabetic order. Raises BadInput for an empty split, a label that is missing or out of
    range, and a class that the training split does not have.
    """
    for role, records in source.splits.items():
        if len(records) == 0:
            raise BadInput(f"the {role} split has no samples")
    if source.classes is not None:
        labels = {role: np.asarray(records.labels, dtype=np.int64) for role, records in source.splits.items()}
        for role, values in labels.items():
            for position in np.flatnonzero((values < 0) | (values >= len(source.classes)))[:1]:
                raise BadInput(
                    f"{source.splits[role].where(int(position))}: label {values[position]} is none of the {len(source.classes)} "
                    f"classes (-1 usually means a split without labels: name another with data.{role})"
                )
        return labels, source.classes
    return _from_values(source)


def _from_values(source: Source) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    words = {role: [_word(label) for label in records.labels] for role, records in source.splits.items()}
    for role, values in words.items():
        if "" in values:
            raise BadInput(f"{source.splits[role].where(values.index(''))}: no label; fill it in or leave the row out")
    known = set(words["train"])
    for role, values in words.items():
        for word in sorted(set(values) - known):
            where = source.splits[role].where(values.index(word))
            raise BadInput(f"{where}: class `{word}` is in the {role} split, but no training sample has it")
    classes = sorted(known, key=int) if all(_is_integer(word) for word in known) else sorted(known)
    number = {word: position for position, word in enumerate(classes)}
    return {role: np.array([number[w] for w in values], dtype=np.int64) for role, values in words.items()}, tuple(classes)


def _word(label: Any) -> str:
    if label is None or (isinstance(label, float) and label != label):
        return ""
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    return str(label).strip()


def _is_integer(word: str) -> bool:
    return word.removeprefix("-").isdecimal()
