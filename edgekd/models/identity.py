"""What a model's reference stands for, wherever its files lie."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import imports
from ..run_folder import file_hash
from . import python_file

if TYPE_CHECKING:
    from .loaded import LoadedModel


def identity(model: LoadedModel) -> dict[str, Any]:
    """Return what makes the network, apart from its weights: reference, code and arguments, as JSON would give them back.

    Of files only the content counts: a project that was moved, or copied to another machine, has the same models, and one whose code
    was changed has others.
    """
    kind, colon, rest = model.reference.partition(":")
    reference, made_by = model.reference, []
    base = Path(rest or kind)
    if kind + colon == python_file.PREFIX:
        base, function = Path(rest.rpartition(":")[0]), rest.rpartition(":")[2]
        if base.is_file():
            reference, made_by = f"{python_file.PREFIX}{function}", imports.sources(base)
    elif base.is_dir():
        reference, made_by = kind if colon else "folder", list(base.glob("*config*.json"))
    code = {os.path.relpath(path, base): file_hash(path)[:16] for path in made_by}
    return {"reference": reference, "code": code, "arguments": model.arguments}
