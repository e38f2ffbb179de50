"""A network's arithmetic in 16-bit floats: every tensor of the ONNX file typed as what it is computed in.

For runtimes that compute in the types of the file (TensorRT's strongly typed networks, the only ones since TensorRT 11).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import BadInput

if TYPE_CHECKING:
    import onnx

    from ..export.graph import Arrays

LARGEST = 65504.0
"""The largest 16-bit float."""

SENSITIVE = frozenset(
    {"LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization", "LpNormalization", "CumSum"}
    | {
        "ReduceMean",
        "ReduceSum",
        "ReduceL1",
        "ReduceL2",
        "ReduceSumSquare",
        "ReduceProd",
        "ReduceLogSumExp",
        "Pow",
        "Exp",
        "Log",
    }
    | {"Range", "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike"}
)
"""Operations that sum many values or grow fast: they stay in 32 bits, with a Cast on either side."""

_WHOLE_INPUTS = {"Resize": {1, 2}}  # inputs that are 32-bit floats whatever the data is
_MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice")


def to_half(model: onnx.ModelProto, keep: Collection[str] = ()) -> onnx.ModelProto:
    """Return the model with its arithmetic in 16-bit floats; inputs and outputs keep their types.

    What stays in 32 bits: nodes named in `keep`, SENSITIVE operations, and nodes with a constant above LARGEST. A model that
    has 16-bit floats already keeps them. Raises BadInput for branches and loops.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    made = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = made.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    kinds |= {name: tensor.data_type for name, tensor in tensors.items()}
    nodes: list[onnx.NodeProto] = []
    halves: set[str] = set()  # tensors that are 16-bit from here on
    cast: dict[tuple[str, int], str] = {}
    small: dict[str, str] = {}

    def as_type(name: str, wanted: int) -> str:
        if (name, wanted) not in cast:
            cast[name, wanted] = f"{name}.{'half' if wanted == TensorProto.FLOAT16 else 'float'}"
            nodes.append(helper.make_node("Cast", [name], [cast[name, wanted]], name=cast[name, wanted], to=wanted))
        return cast[name, wanted]

    def halved(name: str) -> str:
        if name not in small:
            small[name] = f"{name}.half"
            graph.initializer.append(
                numpy_helper.from_array(numpy_helper.to_array(tensors[name]).astype(np.float16), small[name])
            )
        return small[name]

    for node in list(graph.node):
        if any(a.HasField("g") for a in node.attribute):
            raise BadInput(
                f"node {node.name} ({node.op_type}): branches and loops cannot be brought to 16-bit floats; use precision fp32"
            )
        floats = [name for name in (*node.input, *node.output) if name and kinds.get(name) == TensorProto.FLOAT]
        large = any(_largest(tensors[name]) > LARGEST for name in node.input if name in floats and name in tensors)
        if not floats or large or node.name in keep or node.op_type in SENSITIVE:
            for at, name in enumerate(node.input):
                if name in halves:
                    node.input[at] = as_type(name, TensorProto.FLOAT)
            nodes.append(node)
            continue
        for at, name in enumerate(node.input):
            if kinds.get(name) != TensorProto.FLOAT or name in halves or at in _WHOLE_INPUTS.get(node.op_type, ()):
                continue
            if node.op_type != "Cast":
                node.input[at] = halved(name) if name in tensors else as_type(name, TensorProto.FLOAT16)
        _retype(node)
        nodes.append(node)
        halves |= {name for name in node.output if kinds.get(name) == TensorProto.FLOAT}
    for value in graph.output:
        if value.name in halves:
            _rename(nodes, value.name, f"{value.name}.half")
            cast_back = f"{value.name}.out"  # a node inside that wants it in 32 bits has a Cast of its own
            nodes.append(helper.make_node("Cast", [f"{value.name}.half"], [value.name], name=cast_back, to=TensorProto.FLOAT))
    return _rebuilt(made, nodes)


def cast_first(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with pictures of bytes cast to floats before anything else reads them: TensorRT moves no bytes."""
    import onnx
    from onnx import TensorProto

    made = onnx.ModelProto.FromString(model.SerializeToString())
    nodes = list(made.graph.node)
    for value in made.graph.input:
        takers = [node for node in nodes if value.name in node.input]
        if value.type.tensor_type.elem_type != TensorProto.UINT8 or all(node.op_type == "Cast" for node in takers):
            continue
        first = f"{value.name}.cast"
        _rename_inputs(nodes, value.name, first)
        nodes.insert(0, onnx.helper.make_node("Cast", [value.name], [first], name=first, to=TensorProto.FLOAT))
        floats = {first}
        for node in nodes[1:]:
            if node.op_type in _MOVES and node.input[0] in floats:
                floats.update(node.output)
            elif node.op_type == "Cast" and node.input[0] in floats and node.attribute[0].i == TensorProto.FLOAT:
                _rename_inputs(nodes, node.output[0], node.input[0])
                floats.update(node.output)
        outputs = {other.name for other in made.graph.output}
        needless = {
            id(n) for n in nodes[1:] if n.op_type == "Cast" and n.input[0] in floats and n.attribute[0].i == TensorProto.FLOAT
        }
        nodes = [node for node in nodes if id(node) not in needless or node.output[0] in outputs]
    return _rebuilt(made, nodes)


def too_large(file: Path, tensors: Callable[[Arrays], Mapping[str, np.ndarray]]) -> list[str]:
    """Return the first tensor that passes LARGEST for the golden inputs beside a written file, in words; [] where there are none.

    tensors: gives every intermediate value of the file, in order of execution.
    """
    golden = file.with_name("golden.npz")
    if not golden.is_file():
        return []
    with np.load(golden, allow_pickle=False) as stored:
        begin = f"{file.stem}/in/"
        inputs = {key.removeprefix(begin): stored[key] for key in stored.files if key.startswith(begin)}
    if not inputs:
        return []
    for name, values in tensors(inputs).items():
        if not (np.abs(values) <= LARGEST).all():
            return [
                f"`{name}` passes {LARGEST:g} for the golden inputs, the largest 16-bit float: normalise before, or use fp32"
            ]
    return []


def _retype(node: onnx.NodeProto) -> None:
    """Turn the 32-bit floats among a node's attributes into 16-bit ones."""
    from onnx import TensorProto, numpy_helper

    for attribute in node.attribute:
        if attribute.name == "to" and node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        elif attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float16)))


def _largest(tensor: onnx.TensorProto) -> float:
    """Return the largest finite absolute value."""
    from onnx import numpy_helper

    values = np.abs(numpy_helper.to_array(tensor).astype(np.float64))
    return float(values[np.isfinite(values)].max(initial=0))


def _rename(nodes: list[onnx.NodeProto], old: str, new: str) -> None:
    for node in nodes:
        node.output[:] = [new if name == old else name for name in node.output]
    _rename_inputs(nodes, old, new)


def _rename_inputs(nodes: Collection[onnx.NodeProto], old: str, new: str) -> None:
    for node in nodes:
        node.input[:] = [new if name == old else name for name in node.input]


def _rebuilt(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    """Return the model with these nodes and no others, without constants that nobody takes and shapes that no longer hold."""
    import onnx

    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    graph = model.graph
    del graph.node[:]
    del graph.value_info[:]
    graph.node.extend(copies)
    needed = {name for node in copies for name in node.input} | {value.name for value in graph.output}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in needed]:
        graph.initializer.remove(tensor)
    return model
