"""Fixed shapes, for runtimes that take no others: a batch of one size in the file, any number of samples from outside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BadInput

if TYPE_CHECKING:
    import onnx

    from ..export.graph import Arrays

_FOLDED = ("Shape", "Slice", "Concat", "Gather", "Expand", "Unsqueeze", "Squeeze", "Cast", "Add", "Sub", "Mul")
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
    made = _inferred(made)
    while open_axes(made) and _fold(made):
        made = _inferred(made)
    return made


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnx

    del model.graph.value_info[:]  # says the dynamic sizes
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def _fold(model: onnx.ModelProto) -> bool:
    """Put constants in the place of the sizes of fixed shapes and of whole numbers that follow from them; say whether there were any.

    ONNX's inference follows such numbers into Reshape and Expand, and not into Slice.
    """
    from onnx import numpy_helper
    from onnx.reference import ReferenceEvaluator

    graph = model.graph
    version = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 20)
    known = {tensor.name: tensor for tensor in graph.initializer}
    shapes = {value.name: value.type.tensor_type.shape.dim for value in (*graph.input, *graph.value_info)}
    ends = {value.name for value in graph.output}
    found = 0
    for node in list(graph.node):
        if node.op_type not in _FOLDED or node.domain or len(node.output) != 1 or node.output[0] in ends:
            continue
        axes = shapes.get(node.input[0], ())
        if node.op_type == "Shape" and node.input[0] in shapes and all(axis.HasField("dim_value") for axis in axes):
            given = {node.input[0]: np.broadcast_to(np.float32(0), [axis.dim_value for axis in axes])}
        elif all(name in known for name in node.input if name):
            given = {name: numpy_helper.to_array(known[name]) for name in node.input if name}
        else:
            continue
        (value,) = ReferenceEvaluator(node, opsets={"": version}).run(None, given)
        if value.dtype != np.int64 and value.dtype != np.bool_:
            continue
        known[node.output[0]] = numpy_helper.from_array(np.ascontiguousarray(value), node.output[0])
        graph.initializer.append(known[node.output[0]])
        graph.node.remove(node)
        found += 1
    return found > 0


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
    if reason := grows(model):
        return f"takes fixed shapes alone, and {reason}"
    made = made or fix_batch(model)
    if node := next((node for node in model.graph.node if node.op_type in _SIZED_BY_VALUES), None):
        return (
            f"takes fixed shapes alone, and the size of what {node.name} ({node.op_type}) gives depends on the input's values"
        )
    if names := open_axes(made):
        return (
            f"takes fixed shapes alone, and {', '.join(names)} depends on the input: fix every axis but the batch, or say how "
            "long it gets (`Graph.longest`)"
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


def grows(model: onnx.ModelProto) -> str | None:
    """Say that a model is a decoder whose key-value cache no fixed shape holds; None where it is none."""
    if not any(value.name.startswith("past_key_values") for value in model.graph.input):
        return None
    return (
        "a language model's key-value cache gets longer with every token, which edgekd does not cut into pieces of one length: choose a "
        "target that takes shapes which change, such as onnxruntime-cpu, browser or intel-cpu"
    )


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
