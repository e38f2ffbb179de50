"""TensorRT, with an engine that build_engine.py beside this file builds for this very GPU when there is none."""

from __future__ import annotations

import errno
import importlib
import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

NEEDS = ("numpy", "tensorrt")


def version() -> str:
    """Return TensorRT's version. Raises ImportError where it is not installed."""
    return str(importlib.import_module("tensorrt").__version__)


def open_session(path: Path, threads: int) -> tuple[Any, float]:
    """Load the engine of one ONNX file; return (call, seconds). Building it, which takes minutes, is not counted.

    Raises OSError without a GPU or its driver.
    """
    spec = importlib.util.spec_from_file_location("build_engine", path.parent / "build_engine.py")
    assert spec is not None
    assert spec.loader is not None
    engines = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(engines)
    try:
        serialized = engines.ready(path, say=lambda text: print(text, file=sys.stderr))
    except engines.Unavailable as error:
        raise OSError(errno.ENODEV, str(error)) from None
    start = time.perf_counter()
    call = engines.Engine(engines.tensorrt(), engines.Cuda(), serialized)
    return call, time.perf_counter() - start
