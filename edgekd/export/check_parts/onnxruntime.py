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
    form = session.get_modelmeta().custom_metadata_map.get("edgekd.form", "")

    def call(inputs: dict[str, Any]) -> dict[str, Any]:
        if "GroupQueryAttention" in form and several_behind_a_cache(inputs):
            return row_by_row(call, inputs, "logits_to_keep")
        return dict(zip(gives, session.run(gives, {name: inputs[name] for name in takes})))  # noqa: B905 - not in Python 3.8

    return call, seconds


def several_behind_a_cache(inputs: dict[str, Any]) -> bool:
    """Say whether rows read several tokens each behind a cache: that operator takes those one row at a time."""
    own = [value for name, value in inputs.items() if name.startswith("past_key_values") and ".encoder." not in name]
    return bool(min(inputs["input_ids"].shape) > 1 and own[0].shape[2])


def row_by_row(call: Any, inputs: dict[str, Any], shared: str) -> dict[str, Any]:
    """Run each row alone. shared: the input that is one for all."""
    import numpy as np

    rows = len(inputs["input_ids"])
    made = [call({name: v if name == shared else v[row : row + 1] for name, v in inputs.items()}) for row in range(rows)]
    return {name: np.concatenate([one[name] for one in made]) for name in made[0]}
