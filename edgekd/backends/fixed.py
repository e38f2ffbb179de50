"""Fixed shapes, for runtimes that take no others: a batch of one size in the file, any number of samples from outside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BadInput

if TYPE_CHECKING:
    import onnx

    from ..export.graph import Arrays

_SIZED_BY_VALUES = ("NonZero", "Compress", "Unique")


def fix_batch(model: onnx.ModelProto, batch: int = 1) -> onnx.ModelProto:
    """Return the model with the first axis of its inputs set to `batch`, other dynamic axes to their greatest length where the file
    says it, and the shapes that follow.
    """
    import onnx

    made = onnx.ModelProto.FromString(model.SerializeToString())
    graph = made.graph
    lengths = _lengths(made) | dict.fromkeys(_batches(made), batch)
    for value in graph.input:
        for at, axis in enumerate(value.type.tensor_type.shape.dim):
            if axis.HasField("dim_value"):
                continue
            if at == 0:
                axis.dim_value = batch
            elif axis.dim_param in lengths:
                axis.dim_value = lengths[axis.dim_param]
    del graph.value_info[:]  # says the dynamic sizes
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(made, data_prop=True)


def _batches(model: onnx.ModelProto) -> set[str]:
    """Return the names of the first axes: a batch, wherever else they stand."""
    first = [value.type.tensor_type.shape.dim[0] for value in model.graph.input if value.type.tensor_type.shape.dim]
    return {axis.dim_param for axis in first if axis.dim_param}


def _lengths(model: onnx.ModelProto) -> dict[str, int]:
    from ..export.onnx import longest

    return longest(model)


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
        return (
            f"takes fixed shapes alone, and the shape of {', '.join(names)} depends on the input: fix every axis but the batch, or "
            "say how long it gets (`Graph.longest`)"
        )
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


def one_by_one(
    run: Callable[[Arrays], dict[str, np.ndarray]],
    inputs: Arrays,
    batch: int = 1,
    shapes: Mapping[str, Sequence[Any]] | None = None,
) -> dict[str, np.ndarray]:
    """Run any number of samples, n >= 1, through `run`, which takes `batch` at a time; the last are filled up with the last sample.

    shapes: input name -> the shape that `run` takes; what is shorter than that along an axis is filled up with zeros.
    """
    if shapes:
        inputs = filled(inputs, shapes)
    count = max(len(values) for values in inputs.values())
    parts = []
    for start in range(0, count, batch):
        at = np.minimum(np.arange(start, start + batch), count - 1)
        parts.append(run({name: np.ascontiguousarray(values[at]) for name, values in inputs.items()}))
    return {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}


def filled(inputs: Arrays, shapes: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
    """Return inputs with zeros behind them, as long as `shapes` say along every axis but the first. An axis with a name is left.

    Raises BadInput for one that is longer.
    """
    made = {}
    for name, values in inputs.items():
        values = np.asarray(values)
        lengths = [
            n if isinstance(n, int) and n > 0 else have for n, have in zip(shapes.get(name, ()), values.shape, strict=False)
        ]
        lengths = [*values.shape[:1], *lengths[1:]] if len(lengths) == values.ndim else list(values.shape)
        if any(have > length for have, length in zip(values.shape, lengths, strict=True)):
            raise BadInput(
                f"`{name}` is {values.shape}, and the file is made for {tuple(shapes[name])}: give less, such as fewer tokens"
            )
        made[name] = np.pad(values, [(0, length - have) for have, length in zip(values.shape, lengths, strict=True)])
    return made
