"""Quantized weights in an ONNX file: small integers, and the few nodes that expand them.

Uniform weights of 8, 4 and 2 bits are ONNX's own integers behind a DequantizeLinear. Its scale is per tensor or per channel,
or the weights lie as a matrix of one bucket a row. Everything else (codebooks, other widths) is packed bytes behind a function
that stands in the file (packing.py). ONNX Runtime computes the function once, on loading; a DequantizeLinear it leaves in the
graph and computes at every call, unless the file is made foldable().
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..export import onnx as export
from ..export.edit import every_node, set_nodes
from . import packing
from .encoded import Encoded

if TYPE_CHECKING:
    import onnx

    from ..export.graph import Graph

_TYPES = {8: ("UINT8", 13), 4: ("UINT4", 21), 2: ("UINT2", 25)}
"""bits -> (the type, the opset since which DequantizeLinear takes it)."""

_USUAL = 20  # the opset that export.write() exports at


def write(graph: Graph, encoded: Mapping[str, Encoded], path: Path, opset: int = 21) -> None:
    """Export `graph` to `path` with the named weights packed, and NAME.modules.json beside it.

    encoded: name in the network's state dict -> the weight as stored; graph.module has the very values of decoded(). Weights
    that this graph does not use are left out. opset: the highest that the runtime takes. Each file declares the lowest that
    its operations need: 20, for 4 bits 21, for 2 bits 25; where that is too high, these are packed bytes too.
    Raises BadInput when torch cannot export the network.
    """
    import onnx

    weights = _weights(graph, encoded)
    typed = {name for name, one in weights.items() if one.points is None and _TYPES.get(one.bits, ("", 99))[1] <= opset}
    opset = max([min(opset, _USUAL), *(_TYPES[weights[name].bits][1] for name in typed)])
    # Weights that are inputs during the export stay apart: else a BatchNorm would be folded into them.
    model = export.program(graph, opset, opened=list(weights)).model_proto
    modules = export.node_modules(graph, model)
    used = {name for node in every_node(model.graph) for name in node.input}
    for value in [value for value in model.graph.input if value.name in weights]:
        model.graph.input.remove(value)
    own = _rename(model)
    nodes: list[onnx.NodeProto] = []
    functions: dict[str, onnx.FunctionProto] = {}
    for name, one in weights.items():
        if name not in used:
            continue
        made, tensors = (_dequantized if name in typed else _unpacked)(own.get(name, name), one)
        if name not in typed:
            functions[made[0].op_type] = packing.function(one.bits, one.points is not None, opset)
        owner = export.own_name(name.rpartition(".")[0])
        modules |= {node.name: [owner] if owner else [] for node in made}
        nodes += made
        model.graph.initializer.extend(tensors)
    set_nodes(model, [*nodes, *model.graph.node])
    model.functions.extend(functions[key] for key in sorted(functions))
    if functions:
        model.opset_import.append(onnx.helper.make_opsetid(packing.DOMAIN, 1))
    least = onnx.helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)
    model.ir_version = max(model.ir_version, least)
    _slim(model)
    export.finish(graph, model, modules, path)


def foldable(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with each weight's DequantizeLinear as Cast, Sub and Mul: the same integers, the same values.

    ONNX Runtime keeps a DequantizeLinear for its int8 kernels, and so expands the weights at every call; Cast, Sub and Mul of
    constants it folds on loading, whoever loads the file. A model that quantizes activations keeps its own.
    """
    import onnx
    from onnx import helper, numpy_helper

    made = onnx.ModelProto.FromString(model.SerializeToString())
    graph = made.graph
    if any(node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear") for node in every_node(graph)):
        return made
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        attributes = {a.name: a.i for a in node.attribute}
        constant = all(name in tensors for name in node.input if name)
        if node.op_type != "DequantizeLinear" or not constant or attributes.get("block_size", 0):
            nodes.append(node)
            continue
        q, scale = (tensors[name] for name in node.input[:2])
        per_axis = list(scale.dims) not in ([], [1])
        beside = [1] * len(q.dims) if per_axis else []  # the shape that lays the scale along its axis
        if per_axis:
            beside[attributes.get("axis", 1)] = scale.dims[0]
        parts = {"s": numpy_helper.to_array(scale).reshape(beside)}
        if len(node.input) > 2 and node.input[2]:
            parts["z"] = numpy_helper.to_array(tensors[node.input[2]]).astype(parts["s"].dtype).reshape(beside)
        out = node.output[0]
        graph.initializer.extend(numpy_helper.from_array(values, f"{out}.{key}") for key, values in parts.items())
        nodes.append(helper.make_node("Cast", [q.name], [f"{out}.c"], name=f"{out}.c", to=scale.data_type))
        if "z" in parts:
            nodes.append(helper.make_node("Sub", [f"{out}.c", f"{out}.z"], [f"{out}.d"], name=f"{out}.d"))
        nodes.append(helper.make_node("Mul", [nodes[-1].output[0], f"{out}.s"], [out], name=node.name))
    set_nodes(made, nodes)
    needed = {name for node in every_node(graph) for name in node.input} | {value.name for value in graph.output}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in needed]:
        graph.initializer.remove(tensor)
    return made


def _weights(graph: Graph, encoded: Mapping[str, Encoded]) -> dict[str, Encoded]:
    """Return parameter name in graph.module -> how it is stored. Of names that share a tensor, one."""
    import torch

    parameters = dict(graph.module.named_parameters(remove_duplicate=False))
    names = {name: name for name in parameters} | {export.own_name(name): name for name in parameters}
    stored: dict[int, Encoded] = {}
    for name, one in encoded.items():
        if name not in names:
            raise ValueError(f"graph `{graph.name}` has no weight `{name}`")
        parameter = parameters[names[name]]
        if not torch.equal(parameter.detach().cpu(), torch.from_numpy(one.decoded())):
            raise ValueError(f"graph `{graph.name}`: the values of `{name}` are not those it is stored as; bake() them first")
        if one.count:
            stored[id(parameter)] = one
    return {name: stored[id(p)] for name, p in graph.module.named_parameters() if id(p) in stored}


def _unpacked(name: str, one: Encoded) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Return the call that makes weight `name` from packed bytes, and its constants."""
    from onnx import helper, numpy_helper

    parts = {"q": packing.pack(one.indices, one.bits), "r": np.stack([one.scale, _offset(one)], axis=1)}
    if one.points is not None:
        parts["p"] = one.points
    call = helper.make_node(
        packing.function_name(one.bits, one.points is not None),
        [f"{name}.{key}" for key in parts],
        [name],
        name=name,
        domain=packing.DOMAIN,
        buckets=list(one.indices.shape),
        shape=list(one.shape),
    )
    return [call], [numpy_helper.from_array(values, f"{name}.{key}") for key, values in parts.items()]


def _dequantized(name: str, one: Encoded) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Return the nodes that make weight `name` from ONNX's own integers by DequantizeLinear, and their constants.

    DequantizeLinear takes whole zero points alone, so the offset is added after it, unless it is a whole multiple of the scale.
    """
    from onnx import helper, numpy_helper

    whole, per_channel = len(one.scale) == 1, one.indices.size == one.count and len(one.scale) == one.shape[0]
    as_it_is = whole or per_channel
    shape = one.shape if as_it_is else one.indices.shape
    indices = one.indices.reshape(-1)[: one.count] if as_it_is else one.indices
    beside = () if whole else (len(one.scale),)  # the shape of the scale
    tensors = [_integers(f"{name}.q", indices, one.bits, shape)]
    tensors += [numpy_helper.from_array(one.scale.reshape(beside), f"{name}.scale")]
    nodes: list[onnx.NodeProto] = []

    def then(operation: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operation, inputs, [output], name=output, **attributes))
        return output

    axis = {} if whole else {"axis": 0}
    zeros = _zero_points(one) if as_it_is else None
    if zeros is not None:
        tensors.append(_integers(f"{name}.zero", zeros, one.bits, beside))
        then("DequantizeLinear", [tensor.name for tensor in tensors], name, **axis)
        return nodes, tensors
    scaled = then("DequantizeLinear", [tensor.name for tensor in tensors], f"{name}.q_", **axis)
    # Older ONNX Runtimes get DequantizeLinear -> Reshape wrong (their issue 28491): the Add stays in between, of zeros too.
    offset = _offset(one).reshape(() if whole else (-1,) + (1,) * (len(shape) - 1))
    tensors.append(numpy_helper.from_array(offset, f"{name}.offset"))
    if as_it_is:
        then("Add", [scaled, f"{name}.offset"], name)
        return nodes, tensors
    last = then("Add", [scaled, f"{name}.offset"], f"{name}.m")
    if one.indices.size != one.count:
        ends = {"line": [-1], "start": [0], "end": [one.count]}
        tensors += [numpy_helper.from_array(np.array(values), f"{name}.{key}") for key, values in ends.items()]
        last = then("Reshape", [last, f"{name}.line"], f"{name}.l")
        last = then("Slice", [last, f"{name}.start", f"{name}.end"], f"{name}.s")
    tensors.append(numpy_helper.from_array(np.array(one.shape), f"{name}.shape"))
    then("Reshape", [last, f"{name}.shape"], name)
    return nodes, tensors


def _zero_points(one: Encoded) -> np.ndarray | None:
    """Return whole zero points z of which offset = -scale * z, one a bucket; None where there are none."""
    with np.errstate(divide="ignore", invalid="ignore"):  # a scale of zero has none
        points = np.rint(-_offset(one) / one.scale)
    inside = (points >= 0) & (points < 1 << one.bits)
    same = (-one.scale * points).astype(np.float32) == _offset(one)
    return points.astype(np.uint8) if (inside & same).all() else None


def _offset(one: Encoded) -> np.ndarray:
    return np.zeros_like(one.scale) if one.offset is None else one.offset


def _integers(name: str, values: np.ndarray, bits: int, shape: tuple[int, ...]) -> onnx.TensorProto:
    """Return a tensor of ONNX's unsigned integers of 2, 4 or 8 bits."""
    import onnx

    data_type = onnx.TensorProto.DataType.Value(_TYPES[bits][0])
    data = packing.pack(values, bits)[: -(-values.size * bits // 8)]
    return onnx.TensorProto(name=name, data_type=data_type, dims=shape, raw_data=data.tobytes())


def _rename(model: onnx.ModelProto) -> dict[str, str]:
    """Name the network's tensors as its own state dict does, `net.0.bias` -> `0.bias`; return what was renamed."""
    names = {tensor.name for tensor in model.graph.initializer}
    names |= {name for node in every_node(model.graph) for name in (*node.input, *node.output)}
    own = {name: export.own_name(name) for name in names if export.own_name(name) not in names}
    for tensor in model.graph.initializer:
        tensor.name = own.get(tensor.name, tensor.name)
    for node in every_node(model.graph):
        node.input[:] = [own.get(name, name) for name in node.input]
    return own


def _slim(model: onnx.ModelProto) -> None:
    """Leave out what a reader knows without: the shapes of intermediate tensors, attributes that have their default value."""
    import onnx

    del model.graph.value_info[:]
    opsets = {imported.domain: imported.version for imported in model.opset_import}
    for node in model.graph.node:
        if node.domain:
            continue
        known = onnx.defs.get_schema(node.op_type, opsets[node.domain], node.domain).attributes
        for attribute in list(node.attribute):
            default = known[attribute.name].default_value
            value = onnx.helper.get_attribute_value(attribute)
            ones = attribute.name in ("strides", "dilations") and set(value) == {1}
            if ones or (default.type and onnx.helper.get_attribute_value(default) == value):
                node.attribute.remove(attribute)
