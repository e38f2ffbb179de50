"""Fixed shapes, for runtimes that take no others: a batch of one size in the file, any number of samples from outside."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

    from ..export.graph import Arrays

_SIZED_BY_VALUES = ("NonZero", "Compress", "Unique")


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


def open_axes(model: onnx.ModelProto) -> list[str]:
    """Return the inputs and outputs of a model from `fix_batch` whose shape is still not known."""
    ends = [*model.graph.input, *model.graph.output]
    weights = {tensor.name for tensor in model.graph.initializer}
    return [
        value.name
        for value in ends
        if value.name not in weights and not all(axis.HasField("dim_value") for axis in value.type.tensor_type.shape.dim)
    ]


def unfit(model: onnx.ModelProto, made: onnx.ModelProto | None = None) -> str | None:
    """Say why a model cannot be run sample by sample in fixed shapes; None when it can. made: the model after `fix_batch`."""
    made = made or fix_batch(model)
    if node := next((node for node in model.graph.node if node.op_type in _SIZED_BY_VALUES), None):
        return (
            f"takes fixed shapes alone, and the size of what {node.name} ({node.op_type}) gives depends on the input's values"
        )
    if names := open_axes(made):
        return f"takes fixed shapes alone, and {', '.join(names)} depends on the input: fix every axis but the batch"
    weights = {tensor.name for tensor in model.graph.initializer}
    batched = any(
        not value.type.tensor_type.shape.dim[0].HasField("dim_value")
        for value in model.graph.input
        if value.name not in weights and value.type.tensor_type.shape.dim
    )
    for value, fixed in zip(model.graph.output, made.graph.output, strict=True):
        declared = value.type.tensor_type.shape.dim
        known = fixed.type.tensor_type.HasField("shape")
        if (known and not fixed.type.tensor_type.shape.dim) or (batched and declared and declared[0].HasField("dim_value")):
            return f"takes one sample a call, and output `{value.name}` has no batch axis: return a row for each sample"
    return None


def one_by_one(run: Callable[[Arrays], dict[str, np.ndarray]], inputs: Arrays, batch: int = 1) -> dict[str, np.ndarray]:
    """Run any number of samples, n >= 1, through `run`, which takes `batch` at a time; the last are filled up with the last sample."""
    count = max(len(values) for values in inputs.values())
    parts = []
    for start in range(0, count, batch):
        at = np.minimum(np.arange(start, start + batch), count - 1)
        parts.append(run({name: np.ascontiguousarray(values[at]) for name, values in inputs.items()}))
    return {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}
