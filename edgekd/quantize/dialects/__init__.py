"""Dialects: int8 files as some runtimes want them, which their own rules make. One file each; a new one is a file plus a line here."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

    from ...export.graph import Arrays
    from ...recipe import Scheme, VariantRecipe
    from ...targets import Target

FUSED = "fused"
"""Of runtimes that compute an activation function with the layer before it, in integers, as OpenVINO does: NNCF's file as it comes.
The usual file is that one with what ONNX Runtime needs in order to compute in integers (rounded.py, kernels.py); ptq writes both.
"""

DIALECTS = {"qnn": "edgekd.quantize.dialects.qnn", "tensorrt": "edgekd.quantize.dialects.tensorrt"}


def wanted(scheme: Scheme, targets: Iterable[Target]) -> list[str]:
    """Return the dialects that a scheme's files are needed in: those of the targets that store it. Weights alone need none."""
    from ...targets import covers

    if scheme.activations is None:
        return []
    return sorted({target.quantizer for target in targets if target.quantizer and covers(target.stores, scheme.label)})


def quantize(dialect: str, source: Path, keep: list[str], batches: Iterable[Arrays], config: VariantRecipe) -> onnx.ModelProto:
    """Quantize the graph in `source` by the dialect's rules. keep: names of nodes that stay in floating point. batches: of
    calibration inputs, read as often as needed.
    """
    made: onnx.ModelProto = importlib.import_module(DIALECTS[dialect]).quantize(source, keep, batches, config)
    return made
