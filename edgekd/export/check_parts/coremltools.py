"""Core ML on a Mac, through coremltools. On other systems there is no Core ML."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

NEEDS = ("numpy", "pillow", "coremltools")


def version() -> str:
    """Return the versions of coremltools and macOS. Raises ImportError where Core ML does not exist, or one is not installed."""
    if sys.platform != "darwin":
        raise ImportError("Core ML exists on Apple's systems alone: copy this folder to a Mac and run check.py there")
    import platform

    import coremltools
    import PIL  # noqa: F401

    return f"{coremltools.__version__} (macOS {platform.mac_ver()[0]})"


def open_session(path: Path, threads: int) -> tuple[Any, float]:
    """Load one package (threads are Core ML's own affair); return (call, seconds). A call takes any number of samples."""
    version()
    import coremltools as ct
    import numpy as np
    from PIL import Image

    start = time.perf_counter()
    model = ct.models.MLModel(str(path))
    seconds = time.perf_counter() - start
    described = {one.name: one.type for one in model.get_spec().description.input}

    def handed(name: str, value: Any) -> Any:
        """One sample, as Core ML takes it: pictures, (1, H, W, C), as images."""
        if described[name].WhichOneof("Type") == "imageType":
            return Image.fromarray(value[0, :, :, 0], "L") if value.shape[3] == 1 else Image.fromarray(value[0], "RGB")
        return value.astype(np.float32 if value.dtype.kind == "f" else np.int32)

    def call(inputs: dict[str, Any]) -> dict[str, Any]:
        parts = []
        for i in range(max(len(values) for values in inputs.values())):
            parts.append(model.predict({name: handed(name, inputs[name][i : i + 1]) for name in described}))
        return {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}

    return call, seconds
