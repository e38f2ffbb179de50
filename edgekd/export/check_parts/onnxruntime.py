"""ONNX Runtime on the device's CPU."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

NEEDS = ("numpy", "onnxruntime")


def version() -> str:
    """Return ONNX Runtime's version. Raises ImportError where it is not installed."""
    import onnxruntime

    return str(onnxruntime.__version__)


def open_session(path: Path, threads: int) -> tuple[Any, float]:
    """Load one graph file; return (call, seconds)."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    start = time.perf_counter()
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    seconds = time.perf_counter() - start
    takes = [value.name for value in session.get_inputs()]
    gives = [value.name for value in session.get_outputs()]

    def call(inputs: dict[str, Any]) -> dict[str, Any]:
        return dict(zip(gives, session.run(gives, {name: inputs[name] for name in takes})))  # noqa: B905 - not in Python 3.8

    return call, seconds
