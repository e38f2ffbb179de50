"""First divergence: which layer's output departs first between a model and the file made from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .parity import compare

if TYPE_CHECKING:
    import onnx

    from .export.graph import Arrays, Graph

SAMPLES = 4
"""Every tensor of the network is held for so many samples."""


@dataclass(frozen=True)
class Divergence:
    """Where two graphs part: the ONNX node, the torch module that it computes (None when not known), and by how much."""

    module: str | None
    node: str
    operation: str
    tensor: str
    relative: float | None
    sqnr_db: float | None
    reason: str | None

    def __str__(self) -> str:
        """Say it in words."""
        node = f"ONNX node {self.node} ({self.operation})" if self.operation else f"tensor {self.node}"
        return f"{f'`{self.module}`, ' if self.module else ''}{node}"

    def record(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def torch_tensors(graph: Graph, inputs: Arrays, opset: int = 20) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Run a torch graph operation by operation.

    Return (tensor name -> value, ONNX node name -> modules). The names are those of the exporter, so a healthy file has the
    same ones.
    """
    import torch

    from .export.onnx import node_modules, program

    made = program(graph, opset)
    exported: Any = made.exported_program
    given = iter(graph.inputs)
    arguments: list[Any] = []
    for spec in exported.graph_signature.input_specs:
        if spec.kind.name == "USER_INPUT":
            arguments.append(torch.as_tensor(inputs[next(given)]))
        else:
            arguments.append(exported.state_dict.get(spec.target, exported.constants.get(spec.target)))
    seen: dict[str, np.ndarray] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, torch.Tensor) and n.op == "call_function":
                seen[n.name] = value.float().numpy()
            return value

    with torch.inference_mode():
        outputs = Recorder(exported.graph_module).run(*arguments)
    for name, value in zip(graph.outputs, outputs[-len(graph.outputs) :], strict=True):
        seen[name] = value.float().numpy()
    return seen, node_modules(graph, made.model_proto)


def file_tensors(file: Path, inputs: Arrays) -> dict[str, np.ndarray]:
    """Run an ONNX file in exact arithmetic; return every floating-point tensor in it, by name, as float32."""
    import onnx
    import onnxruntime as ort

    model = onnx.load(str(file))
    known = {value.name for value in model.graph.output}
    for node in model.graph.node:
        for name in node.output:
            if name and name not in known:
                model.graph.output.append(onnx.ValueInfoProto(name=name))
                known.add(name)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    wanted = {value.name for value in session.get_inputs()}
    made = session.run(names, {name: values for name, values in inputs.items() if name in wanted})
    kinds = (np.float16, np.float32)
    return {n: v.astype(np.float32) for n, v in zip(names, made, strict=True) if getattr(v, "dtype", None) in kinds}


def first(
    reference: Mapping[str, np.ndarray],
    file: Path,
    inputs: Arrays,
    modules: Mapping[str, list[str]],
    *,
    max_error: float | None = None,
    min_sqnr_db: float | None = None,
) -> Divergence | None:
    """Return the first node of `file`, in the order of execution, whose output departs from the reference's tensor of that name.

    Departs: by more than max_error relative to the tensor's largest value, or with less than min_sqnr_db; give the one that the
    file's precision explains. None when no common tensor does.
    """
    import onnx

    from .quantize.keep import stem

    made = file_tensors(file, inputs)
    model = onnx.load(str(file), load_external_data=False)
    before_the_network = set(stem(model))
    for node in model.graph.node:
        for name in node.output:
            if name not in reference or name not in made:
                continue
            apart = compare({name: reference[name]}, {name: made[name]})
            far = max_error is not None and not apart.relative <= max_error
            if far or (min_sqnr_db is not None and not apart.sqnr_db >= min_sqnr_db):
                told = apart.record()
                module = _module(node, model, modules) or ("preprocessing" if node.name in before_the_network else None)
                return Divergence(module, node.name, node.op_type, name, told["relative"], told["sqnr_db"], told["reason"])
    return None


def first_of(
    reference: Mapping[str, np.ndarray],
    made: Mapping[str, np.ndarray],
    modules: Mapping[str, list[str]],
    *,
    max_error: float | None = None,
    min_sqnr_db: float | None = None,
    model: onnx.ModelProto | None = None,
) -> Divergence | None:
    """Return the first tensor of `made`, in its order, that departs from the reference's of that name; see `first`.

    modules: name of the node that makes a tensor -> its modules. model: the file, where a runtime's file is ONNX.
    """
    nodes = {name: node for node in (model.graph.node if model else ()) for name in node.output}
    for name, values in made.items():
        if name not in reference or reference[name].shape != values.shape:
            continue
        apart = compare({name: reference[name]}, {name: values})
        far = max_error is not None and not apart.relative <= max_error
        if far or (min_sqnr_db is not None and not apart.sqnr_db >= min_sqnr_db):
            told = apart.record()
            module, node, kind = next(iter(modules.get(name, [])), None), name, ""
            if model is not None and name in nodes:
                module, node, kind = _module(nodes[name], model, modules), nodes[name].name, nodes[name].op_type
            return Divergence(module, node, kind, name, told["relative"], told["sqnr_db"], told["reason"])
    return None


def _module(node: onnx.NodeProto, model: onnx.ModelProto, modules: Mapping[str, list[str]]) -> str | None:
    """Name the module of a node. One that quantization put in belongs to the layer it feeds (weights) or comes from (activations)."""
    makers = {name: other for other in model.graph.node for name in other.output}
    takers = {name: other for other in reversed(model.graph.node) for name in other.input}
    constant = {tensor.name for tensor in model.graph.initializer}
    for other in model.graph.node:
        if constant.issuperset(filter(None, other.input)):
            constant.update(other.output)
    on = takers if node.output[0] in constant else makers
    reached: onnx.NodeProto | None = node
    while reached is not None and reached.name not in modules:
        reached = on.get(reached.output[0] if on is takers else reached.input[0])
    return next(iter(modules[reached.name]), None) if reached is not None else None
