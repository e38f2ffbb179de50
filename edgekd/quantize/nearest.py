"""Which of several quantized graphs lies nearest to the full-precision one, by their outputs for the calibration samples."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..parity import IDENTICAL_DB

if TYPE_CHECKING:
    import onnx

    from ..export.graph import Arrays


def sqnr_db(model: onnx.ModelProto, candidates: Mapping[str, onnx.ModelProto], batches: Iterable[Arrays]) -> dict[str, float]:
    """Return each candidate's signal-to-noise ratio in dB, in exact arithmetic. Batches are read once and not kept.

    All outputs of a graph count together, each weighed by its own size.
    """
    from ..export.onnx import save
    from .variant import file_runner

    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / name / "model.onnx" for name in ("", *candidates)}
        for name, file in files.items():
            save(candidates[name] if name else model, file)
        run = file_runner(files)
        noise, signal = dict.fromkeys(candidates, 0.0), 0.0
        for batch in batches:
            expected = run("", batch)
            signal += sum(float(np.square(r, dtype=np.float64).sum()) for r in expected.values())
            for name in candidates:
                made = run(name, batch)
                noise[name] += sum(float(np.square(made[key] - r, dtype=np.float64).sum()) for key, r in expected.items())
    return {name: _ratio(signal, noise[name]) for name in candidates}


def _ratio(signal: float, noise: float) -> float:
    if not math.isfinite(noise) or signal == 0:
        return -IDENTICAL_DB
    return IDENTICAL_DB if noise == 0 else round(10 * math.log10(signal / noise), 3)
