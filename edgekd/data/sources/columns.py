"""Which column of a table holds the picture and which the class."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import BadInput
from ...names import nearest
from ...recipe import Data

_USUAL = {
    "image": ("image", "img", "picture", "image_path", "file_name", "filename", "file", "path", "pixels"),
    "label": ("label", "labels", "class", "target", "category", "fine_label", "digit"),
}


def columns(available: Sequence[str], data: Data, where: str) -> tuple[str, str]:
    """Return the names of the picture's and the class's columns. BadInput, naming the columns there, when one is missing."""
    return _column("image", available, data, where), _column("label", available, data, where)


def _column(kind: str, available: Sequence[str], data: Data, where: str) -> str:
    there = f"columns there: {', '.join(available)}"
    asked = getattr(data, kind)
    if asked is not None:
        if asked not in available:
            raise BadInput(f"data.{kind}: {where} has no column `{asked}`{nearest(asked, available)}; {there}")
        return str(asked)
    found = next((name for name in _USUAL[kind] if name in available), None)
    if found is None:
        raise BadInput(f"{where} has no column with a usual name for the {kind}; name it with data.{kind}; {there}")
    return found
