"""Which column of a table holds the picture and which the class."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import BadInput
from ...names import nearest
from ...recipe import Data, Pairs

_USUAL = {
    "image": ("image", "img", "picture", "image_path", "file_name", "filename", "file", "path", "pixels"),
    "label": ("label", "labels", "class", "target", "category", "fine_label", "digit"),
    "text": ("text", "sentence", "caption", "content", "document", "line", "caption1", "anchor"),
    "sentence1": ("sentence1", "sentence_1", "text1", "first", "premise", "question1"),
    "sentence2": ("sentence2", "sentence_2", "text2", "second", "hypothesis", "question2"),
    "score": ("score", "similarity", "similarity_score", "label", "labels"),
    "input": ("input", "source", "question", "article", "document"),
    "output": ("output", "target", "answer", "summary", "highlights"),
}


def columns(available: Sequence[str], data: Data, where: str) -> tuple[str, str]:
    """Return the names of the picture's and the class's columns. BadInput, naming the columns there, when one is missing."""
    return column("image", available, data, where), column("label", available, data, where)


def column(kind: str, available: Sequence[str], data: Data | Pairs, where: str) -> str:
    """Return the column that holds the `kind` (a key of the recipe): the one named there, else one of a usual name. Raises BadInput."""
    there = f"columns there: {', '.join(available)}"
    asked = getattr(data, kind)
    if asked is not None:
        if asked not in available:
            raise BadInput(f"{section(data)}.{kind}: {where} has no column `{asked}`{nearest(asked, available)}; {there}")
        return str(asked)
    found = next((name for name in _USUAL[kind] if name in available), None)
    if found is None:
        raise BadInput(f"{where} has no column with a usual name for the {kind}; name it with {section(data)}.{kind}; {there}")
    return found


def section(data: Data | Pairs) -> str:
    """Return where a source stands in the recipe."""
    return "data.pairs" if isinstance(data, Pairs) else "data"
