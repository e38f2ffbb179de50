"""Fixed shapes, for runtimes that take no others: a batch of one size in the file, any number of samples from outside."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

    from ..export.graph import Arrays


def fix_batch(model: onnx.ModelProto, batch: int = 1) -> onnx.ModelProto:
    """Return the model with every dynamic axis of its inputs set to `batch`, and the shapes that follow from it."""
    import onnx

    made = onnx.ModelProto.FromString(model.SerializeToString())
    graph = made.graph
    for value in graph.input:
        for axis in value.type.tensor_type.shape.dim:
            if not axis.HasField("dim_value"):
                axis.dim_value = batch
    del graph.value_info[:]  # says the dynamic sizes
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(made, data_prop=True)


def one_by_one(run: Callable[[Arrays], dict[str, np.ndarray]], inputs: Arrays, batch: int = 1) -> dict[str, np.ndarray]:
    """Run any number of samples, n >= 1, through `run`, which takes `batch` at a time; the last are filled up with the last sample."""
    count = max(len(values) for values in inputs.values())
    parts = []
    for start in range(0, count, batch):
        at = np.minimum(np.arange(start, start + batch), count - 1)
        parts.append(run({name: np.ascontiguousarray(values[at]) for name, values in inputs.items()}))
    return {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}
