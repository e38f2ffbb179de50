"""No quantization: the student as it is. The control that every other variant is compared with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from .variant import Variant

if TYPE_CHECKING:
    from ..recipe import VariantRecipe
    from . import Job


def refuses(config: VariantRecipe) -> str | None:
    """Nothing to refuse."""
    return None


def make(config: VariantRecipe, job: Job, folder: Path) -> Variant:
    """Copy the full-precision graphs."""
    from ..export.onnx import files_of

    graphs = {}
    for name, source in job.source.items():
        for file in files_of(source):
            shutil.copyfile(file, folder / file.name)
        graphs[name] = folder / source.name
    return Variant(config.name, "none", config.scheme, folder, graphs, reference="torch")
