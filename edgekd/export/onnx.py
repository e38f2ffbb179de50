"""Write a graph as ONNX: dynamic batch, BatchNorm folded into the convolution before it, the same bytes every time."""

from __future__ import annotations

import ast
import contextlib
import copy
import inspect
import io
import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInput
from .graph import Graph

if TYPE_CHECKING:
    import onnx
    import torch

_LARGEST_PROTOBUF = 1_900_000_000  # protobuf refuses 2 GiB; larger weights go to a file beside
_SCOPES = "pkg.torch.onnx.name_scopes"
_LONGEST = "edgekd.longest"
"""Key of a file's metadata: the lengths of `Graph.longest`."""


def write(graph: Graph, path: Path, opset: int = 20) -> None:
    """Export `graph` to `path`, and beside it NAME.modules.json: which torch modules each ONNX node came from.

    The module runs in evaluation mode. Raises BadInput when torch cannot export the network, or fixes an axis that is dynamic.
    """
    model = program(graph, opset).model_proto
    finish(graph, model, node_modules(graph, model), path)


def finish(graph: Graph, model: onnx.ModelProto, nodes: Mapping[str, list[str]], path: Path) -> None:
    """Check, strip and save a model made from `graph`, and NAME.modules.json beside it. nodes: node name -> modules."""
    import onnx

    _check_axes(graph, model)
    _name_axes(graph, model)
    strip(model)
    if graph.longest:
        model.metadata_props.add(key=_LONGEST, value=json.dumps(graph.longest))
    onnx.checker.check_model(model)
    save(model, path)
    modules = {"modules": _module_names(graph), "nodes": nodes}
    path.with_suffix(".modules.json").write_text(json.dumps(modules, indent=1) + "\n")


def program(graph: Graph, opset: int = 20, opened: Sequence[str] = ()) -> torch.onnx.ONNXProgram:
    """Run torch's exporter, quietly. Tensors keep the names of the exported program's nodes, and so do the ONNX nodes that make
    them. Raises BadInput.

    opened: weights, as in the module's state dict, that become inputs of the ONNX graph, after its own and under their names:
    so nothing is folded into them.
    """
    import torch

    module = graph.module.to("cpu").eval()
    axes: dict[str, dict[int, Any]] = {name: dict(of) for name, of in graph.dynamic.items()}
    if not any("+" in label for of in graph.dynamic.values() for label in of.values()):
        # A plain name binds its axes together. A sum of others (a cache's) is found out by torch itself, from names alone.
        axes = {name: {axis: torch.export.Dim(label) for axis, label in of.items()} for name, of in axes.items()}
    shapes: Any = tuple(axes.get(name) for name in graph.inputs)
    arguments: Any = tuple(_example(graph, name) for name in graph.inputs)
    if opened:
        shapes = (shapes, [None] * len(opened))
        arguments = (arguments, [module.get_parameter(name) for name in opened])
        module = _opened(module, opened)
    else:
        shapes = _as_parameters(module, shapes)
    try:
        with _quiet(), torch.no_grad():
            made = torch.onnx.export(
                module,
                arguments,
                input_names=[*graph.inputs, *opened],
                output_names=list(graph.outputs),
                dynamic_shapes=shapes,
                opset_version=opset,
                dynamo=True,
                verbose=False,
                external_data=False,
            )
    except Exception as error:  # the exporter runs the user's code and wraps whatever it meets, Ctrl-C too
        if any(isinstance(part, KeyboardInterrupt) for part in _chain(error)):
            raise KeyboardInterrupt from None
        reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise BadInput(
            f"torch cannot export graph `{graph.name}`: {reason[0]}\n"
            "Use operations with fixed control flow, and shapes that do not depend on the batch size"
        ) from error
    assert made is not None
    for node in made.model.graph:
        for value in node.outputs:  # named after torch's function, which an output of the graph may be called like, too
            if value.name in graph.outputs and value not in made.model.graph.outputs:
                value.name = f"{value.name}_inside"
        node.name = node.outputs[0].name
    return made


def _as_parameters(module: torch.nn.Module, shapes: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return one entry for each parameter of forward(): those that its `*past` takes belong together."""
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    at = kinds.index(inspect.Parameter.VAR_POSITIONAL) if inspect.Parameter.VAR_POSITIONAL in kinds else len(shapes)
    return (*shapes[:at], shapes[at:]) if at < len(shapes) else shapes


def _opened(module: torch.nn.Module, names: Sequence[str]) -> torch.nn.Module:
    """Return the same module, called with (its arguments, the named weights). Its parts keep their names."""
    import torch

    class Opened(type(module)):  # type: ignore[misc]
        def forward(self, arguments: tuple[torch.Tensor, ...], weights: list[torch.Tensor]) -> Any:
            return torch.func.functional_call(module, dict(zip(names, weights, strict=True)), arguments)

    same = copy.copy(module)
    same.__dict__.pop("forward", None)  # one that was put on the instance would hide ours
    same.__class__ = Opened
    return same


def _chain(error: BaseException | None) -> list[BaseException]:
    """Return an exception and all that it came from, by cause and by context."""
    found: list[BaseException] = []
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and one not in found:
            found.append(one)
            waiting += [one.__cause__, one.__context__]
    return found


def longest(model: onnx.ModelProto) -> dict[str, int]:
    """Return axis name -> its greatest length, as `Graph.longest` says it; {} for a model whose axes may be of any."""
    told = next((entry.value for entry in model.metadata_props if entry.key == _LONGEST), "{}")
    return {str(axis): int(length) for axis, length in json.loads(told).items()}


def strip(model: onnx.ModelProto) -> None:
    """Remove what differs between machines or says nothing to a runtime: stack traces, metadata of others, documentation."""
    kept = [(entry.key, entry.value) for entry in model.metadata_props if entry.key == _LONGEST]
    del model.metadata_props[:]
    for key, value in kept:
        model.metadata_props.add(key=key, value=value)
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        weights = {tensor.name for tensor in graph.initializer}
        shapes = [value for value in graph.value_info if value.name not in weights]
        del graph.value_info[:]
        graph.value_info.extend(shapes)
        for part in (graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
            part.ClearField("doc_string")
            if hasattr(part, "metadata_props"):
                del part.metadata_props[:]
        graphs += [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    for function in model.functions:
        function.ClearField("doc_string")
        del function.metadata_props[:]
        for node in function.node:
            node.ClearField("doc_string")
            del node.metadata_props[:]


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model deterministically: one file, or weights beside it in NAME.data when protobuf's 2 GB are not enough."""
    import onnx

    path.parent.mkdir(parents=True, exist_ok=True)
    if model.ByteSize() < _LARGEST_PROTOBUF:
        path.write_bytes(model.SerializeToString(deterministic=True))
        return
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)  # onnx appends
    onnx.save_model(model, str(path), save_as_external_data=True, all_tensors_to_one_file=True, location=f"{path.name}.data")


def files_of(path: Path) -> list[Path]:
    """Return the file(s) that make up the ONNX model at `path`: itself, and the external weights it names."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    beside = {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}
    return [path, *(path.parent / name for name in sorted(beside))]


def modules_of(path: Path) -> dict[str, list[str]]:
    """Return ONNX node name -> the torch modules it computes, innermost first; {} for a file that edgekd did not export."""
    beside = path.with_suffix(".modules.json")
    return json.loads(beside.read_text())["nodes"] if beside.is_file() else {}


def module_names(path: Path) -> list[str]:
    """Return every module name of the network exported to `path`; [] for a file that edgekd did not export."""
    beside = path.with_suffix(".modules.json")
    return json.loads(beside.read_text())["modules"] if beside.is_file() else []


def own_name(module: str) -> str:
    """Return a module's name inside the user's network: edgekd's wrapper, which preprocesses, calls that `net`."""
    return module.removeprefix("net.") if module != "net" else ""


def node_modules(graph: Graph, model: onnx.ModelProto) -> dict[str, list[str]]:
    """Map a fresh export's nodes to the modules they compute.

    The owner of a weight comes first (a folded BatchNorm leaves its name on the convolution's node), then the innermost module.
    """
    names = {name for name, _ in graph.module.named_modules()}
    nodes: dict[str, list[str]] = {}
    for node in model.graph.node:
        owners = [name.rpartition(".")[0] for name in node.input]
        scopes = next((p.value for p in node.metadata_props if p.key == _SCOPES), "[]")
        scope = [s for s in ast.literal_eval(scopes) if s in names]
        found = [o for o in owners if o in names] + scope[-1:]
        nodes[node.name] = list(dict.fromkeys(own_name(name) for name in found if own_name(name)))
    return nodes


def _module_names(graph: Graph) -> list[str]:
    return sorted({own_name(name) for name, _ in graph.module.named_modules()} - {""})


def _check_axes(graph: Graph, model: onnx.ModelProto) -> None:
    declared = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input}
    for name, axes in graph.dynamic.items():
        for axis, label in axes.items():
            if not declared[name][axis].dim_param:
                fixed = declared[name][axis].dim_value
                raise BadInput(
                    f"graph `{graph.name}`: the {label} axis of `{name}` came out fixed at {fixed}: the network's code uses "
                    "the size it was called with. Use sizes of -1 in view and reshape"
                )


def _name_axes(graph: Graph, model: onnx.ModelProto) -> None:
    """Give dynamic axes the graph's own names for them, wherever they stand: torch does so only where nothing but inputs is dynamic."""
    declared = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input}
    names = {declared[name][axis].dim_param: label for name, axes in graph.dynamic.items() for axis, label in axes.items()}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        for one in value.type.tensor_type.shape.dim:
            if one.dim_param:
                one.dim_param = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), one.dim_param)


def _example(graph: Graph, name: str) -> torch.Tensor:
    """The example, doubled along a dynamic axis of size 1: torch would take a 1 for a constant."""
    example = graph.example[name]
    for axis in graph.dynamic.get(name, {}):
        if example.shape[axis] == 1:
            example = example.repeat_interleave(2, dim=axis)
    return example


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes out of the terminal; errors come as exceptions."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
