"""The shape of every tensor in an ONNX file, once the shapes of its inputs are given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import BadInput, first_line
from . import scenarios

if TYPE_CHECKING:
    import onnx

Shape = tuple[int, ...]

_SMALL = 256
"""Elements up to which a constant's values stay with the graph: shapes depend on those of small ones alone."""


_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16, 17: 8, 18: 8,
         19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2}  # fmt: skip
"""ONNX's number of an element type -> bits of one element."""


@dataclass(frozen=True)
class Shaped:
    """A graph whose functions are written out, without the bytes of its weights; shapes and types of its tensors by name.

    Tensors of a branch or a loop's body have their own: see `inner`. stored_bytes: of all constants in the file.
    how: what was done to find the shapes, in words.
    """

    graph: onnx.GraphProto
    shapes: Mapping[str, Shape]
    types: Mapping[str, int]
    stored_bytes: int
    how: str


def shaped(file: Path, shapes: Mapping[str, Sequence[int]]) -> Shaped:
    """Find the shapes in an ONNX file whose inputs have these `shapes` (input name -> lengths of its axes).

    By ONNX's shape inference, which follows the values of small integers too. What that leaves open (operators that ONNX
    doesn't know) is seen by running the graph once on ONNX Runtime where it is installed. Weights that lie in a file of their own
    are not read for it. Raises BadInput when the file is no ONNX, or the shapes don't fit its inputs.
    """
    import onnx
    import onnx.inliner
    import onnx.shape_inference

    try:
        model = onnx.load(str(file), load_external_data=False)
    except Exception as error:  # protobuf raises its own types
        raise BadInput(f"{file}: cannot be read as ONNX ({first_line(error)}); is it whole?") from None
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    _fix_inputs(model.graph, shapes, set(constants), file)
    stored = _stored_bytes(model.graph.initializer, [*model.graph.node, *(n for f in model.functions for n in f.node)])
    large = _set_aside(model.graph)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # what it cannot do is found out below
        inferred = model
    found, types = inner(inferred.graph)
    open_ends = [name for node in model.graph.node for name in node.output if name and name not in found]
    how = "inferred"
    if open_ends:
        seen = _run(model, large, open_ends, file)
        found |= {name: shape for name, (shape, _) in seen.items()}
        types |= {name: kind for name, (_, kind) in seen.items()}
        how = "inferred, and seen in a run" if seen else "inferred"
    return Shaped(inferred.graph, found, types, stored, how)


def inner(graph: onnx.GraphProto) -> tuple[dict[str, Shape], dict[str, int]]:
    """Return the shapes and the element types that a graph, or a branch of one, declares for its own tensors."""
    shapes, types = {}, {}
    for tensor in graph.initializer:
        shapes[tensor.name], types[tensor.name] = tuple(tensor.dims), tensor.data_type
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor_type = value.type.tensor_type
        if tensor_type.elem_type:
            types.setdefault(value.name, tensor_type.elem_type)
        if tensor_type.HasField("shape") and all(axis.HasField("dim_value") for axis in tensor_type.shape.dim):
            shapes.setdefault(value.name, tuple(axis.dim_value for axis in tensor_type.shape.dim))
    return shapes, types


def _fix_inputs(graph: onnx.GraphProto, shapes: Mapping[str, Sequence[int]], constants: set[str], file: Path) -> None:
    """Write the given lengths into the inputs, and wherever else the graph names the same axes."""
    said: dict[str, set[int]] = {}
    for value in graph.input:
        if value.name in constants:
            continue
        axes = value.type.tensor_type.shape.dim
        given = shapes.get(value.name)
        if given is None:
            if all(axis.HasField("dim_value") for axis in axes):
                continue
            names = [axis.dim_param or "?" if not axis.HasField("dim_value") else axis.dim_value for axis in axes]
            raise BadInput(f"{file}: input `{value.name}` has axes {names}; say how long they are")
        declared = value.type.tensor_type.HasField("shape")
        fixed = [axis.dim_value if axis.HasField("dim_value") else None for axis in axes]
        if declared and (len(fixed) != len(given) or any(f not in (None, g) for f, g in zip(fixed, given, strict=True))):
            raise BadInput(f"{file}: input `{value.name}` has the shape {fixed} (None: any), not {list(given)}")
        if not declared:
            for _ in given:
                value.type.tensor_type.shape.dim.add()
        for axis, length in zip(value.type.tensor_type.shape.dim, given, strict=True):
            if axis.dim_param:
                said.setdefault(axis.dim_param, set()).add(length)
            axis.dim_value = length
    lengths = {name: values.pop() for name, values in said.items() if len(values) == 1}
    for value in (*graph.value_info, *graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in lengths:
                axis.dim_value = lengths[axis.dim_param]


def _set_aside(graph: onnx.GraphProto) -> set[str]:
    """Leave of each large constant its type and shape alone, as inference copies what is there; return their names."""
    import onnx

    large = set()
    for tensor in graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL or prod(tensor.dims) <= _SMALL:
            continue
        large.add(tensor.name)
        name, kind, dims = tensor.name, tensor.data_type, list(tensor.dims)
        tensor.Clear()
        tensor.name, tensor.data_type, tensor.data_location = name, kind, onnx.TensorProto.EXTERNAL
        tensor.dims.extend(dims)
        tensor.external_data.add(key="location", value="set aside")
    return large


def _run(model: onnx.ModelProto, large: set[str], names: Sequence[str], file: Path) -> dict[str, tuple[Shape, int]]:
    """Run the graph once on made inputs; return the shape and element type of the named tensors, nothing where it cannot run."""
    import onnx

    try:
        import onnxruntime as ort
    except ImportError:
        return {}
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    stored = (
        {tensor.name: tensor for tensor in onnx.load(str(file), load_external_data=False).graph.initializer} if large else {}
    )
    for tensor in whole.graph.initializer:
        if tensor.name in large:
            tensor.CopyFrom(stored[tensor.name])
    constants = {tensor.name for tensor in whole.graph.initializer}
    outputs = {value.name for value in whole.graph.output}
    whole.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in outputs)
    inputs: dict[str, np.ndarray] = {}
    for value in whole.graph.input:
        if value.name not in constants:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            shape = [axis.dim_value for axis in value.type.tensor_type.shape.dim]
            made = scenarios.random_inputs([{"name": value.name, "dtype": dtype, "shape": shape}], 1)
            inputs |= made if all(shape) else {value.name: np.empty(shape, dtype)}  # a cache may be empty
    options = ort.SessionOptions()
    options.log_severity_level = 4  # fatal
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # else the tensors may not exist
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(file.resolve().parent))
    try:
        session = ort.InferenceSession(whole.SerializeToString(), options, providers=["CPUExecutionProvider"])
        seen = session.run(list(names), inputs)
    except Exception:  # the binding's exceptions share no base; the caller names the nodes that stay open
        return {}
    return {
        name: (value.shape, onnx.helper.np_dtype_to_tensor_dtype(value.dtype))
        for name, value in zip(names, seen, strict=True)
        if value is not None and hasattr(value, "shape")
    }


def bodies(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """Yield (attribute, graph) of the branches or the body that a node holds."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.name, attribute.g


def bytes_of(shape: Shape, kind: int) -> int:
    """Return the bytes of a tensor of an ONNX element type; elements of 4 or 2 bits lie side by side."""
    return ceil(prod(shape) * _BITS.get(kind, 32) / 8)


def _stored_bytes(constants: Iterable[onnx.TensorProto], nodes: Iterable[onnx.NodeProto]) -> int:
    total = sum(bytes_of(tuple(tensor.dims), tensor.data_type) for tensor in constants)
    for node in nodes:
        if node.op_type == "Constant":
            total += sum(bytes_of(tuple(a.t.dims), a.t.data_type) for a in node.attribute if a.HasField("t"))
        total += sum(_stored_bytes(body.initializer, body.node) for _, body in bodies(node))
    return total
