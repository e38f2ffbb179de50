"""TensorRT on NVIDIA GPUs and Jetson: an ONNX file in the form that it wants, and build_engine.py, which builds the engine there.

An engine works on one version of TensorRT and one kind of GPU, so what ships is the file and not the engine.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BadInput, Missing, first_line
from ..targets import covers
from . import Means, onnxruntime
from .fixed import filled, fix_batch, grows, one_by_one, unfit
from .half import too_large

if TYPE_CHECKING:
    import onnx

    from ..export.graph import Arrays, Graph
    from ..quantize.variant import Variant
    from ..recipe import Scheme
    from ..targets import Target

PACKAGES = ("onnx", "onnxruntime")
IMPORTS = onnxruntime.IMPORTS
CHECK = Path(__file__).parent.parent / "export" / "check_parts" / "tensorrt.py"

_BUILDER = Path(__file__).parent.parent / "export" / "build_engine_template.py"
_BATCHES = (1, 1, 32)
"""Smallest, usual and largest batch that an engine is built for, unless options.batches says otherwise."""


def _rising(value: Any) -> str | None:
    right = isinstance(value, list) and len(value) == 3 and all(type(size) is int and size > 0 for size in value)
    return None if right and value == sorted(value) else "three rising numbers, smallest, usual and largest, such as [1, 8, 64]"


OPTIONS = {"batches": _rising, "workspace_mib": int}


class EngineSession:
    """An engine that was built here. providers: {"TensorRT": layers}."""

    def __init__(self, engine: Any, shapes: Mapping[str, Sequence[Any]]) -> None:
        self._engine, self._shapes = engine, shapes
        self.providers: dict[str, int] = dict(engine.providers)

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run any number of samples."""
        made: dict[str, np.ndarray] = self._engine(filled(inputs, self._shapes))
        return made


class WrittenSession:
    """The file's own arithmetic in ONNX Runtime on the CPU. It multiplies in 32 bits what the file stores in 16."""

    def __init__(self, session: onnxruntime.OnnxRuntimeSession, batch: int, shapes: Mapping[str, Sequence[Any]]) -> None:
        self._session, self._batch, self._shapes = session, batch, shapes
        self.providers = session.providers

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run any number of samples."""
        if not self._batch:
            return self._session.run(inputs)
        return one_by_one(self._session.run, inputs, self._batch, self._shapes)


def missing() -> str | None:
    """Say what must be installed here to convert: ONNX Runtime, for calibration and the file's own arithmetic. No TensorRT."""
    return onnxruntime.missing()


def executes(target: Target) -> Means:
    """Say how this machine can execute what is made for a target: with TensorRT and a GPU, an engine of its own."""
    from ..export import build_engine_template as builder

    get = "run build_engine.py and check.py on the device, and bring back what check.py --json says (edgekd verify --import)"
    if importlib.util.find_spec("tensorrt") is None:
        return Means(None, f"TensorRT is not installed here: {get}")
    try:
        builder.tensorrt()
        gpu = builder.Cuda().name
    except Exception as error:  # a stub package, a driver without its GPU: each fails in its own way
        return Means(None, f"{(str(error).splitlines() or [repr(error)])[0]}: {get}")
    away = target.elsewhere()
    told = f"an engine built for {gpu}" + (f" ({platform.machine()}): {away}" if away else "")
    return Means("runtime", told, seconds_are_the_devices=not away)


def refuses(scheme: Scheme, target: Target) -> str | None:
    """Say why this scheme cannot be stored for this target, and what to change; None when it can."""
    if covers(target.stores, scheme.label):
        return None
    weights, activations = scheme.weights, scheme.activations
    if weights is not None and weights.kind == "codebook":
        why = "TensorRT multiplies by no weights from a table"
    elif activations is not None and activations.bits != 8:
        why = f"TensorRT's integer layers take int8 activations, not {activations.bits} bits"
    elif weights is not None and (weights.bits < 8 or scheme.mixed):
        why = (
            "of weights below 8 bits TensorRT stores INT4 alone, symmetric, in blocks, for products and no convolutions, "
            "which edgekd does not write"
        )
    elif weights is not None and activations is None:
        why = "TensorRT expands int8 weights without int8 activations while it builds: the engine would be no smaller and no faster"
    else:
        why = f"it stores {', '.join(target.stores)}"
    return (
        f"{target.title} cannot store {scheme.label}: {why}. "
        "Use `method: ptq` with `weights: {bits: 8}` and `activations: {bits: 8}`, or full precision"
        + (", which runs in 16-bit floats" if target.precision == "fp16" else "")
    )


def refuses_graph(file: Path, target: Target) -> str | None:
    """Say which operator or rule of an ONNX file the target cannot take, and what to change; None when it can."""
    import onnx

    from . import tensorrt_rules

    model = onnx.load(str(file))
    if reason := grows(model):
        shapes = "fixed shapes alone" if target.static else "lengths from 1 to a known one"
        return f"{target.title} takes {shapes}, and {reason}"
    refused = {node.op_type for node in model.graph.node} & set(target.limits.get("operators_refused", ()))
    if found := sorted({*tensorrt_rules.operators(model), *refused}):
        return f"{target.title} has no {', '.join(found)}; use layers without, or leave this target out"
    used = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if used > target.opset:
        return f"{target.title} reads ONNX up to opset {target.opset}, and this file has {used}: export it with an older one"
    try:
        written = _written(model, target)
    except BadInput as error:
        return f"{target.title}: {error}, or leave this target out"
    if target.static and (reason := unfit(model, written)):
        return f"{target.title} {reason}, or leave this target out"
    said = [what for what in tensorrt_rules.broken(written, target.opset) if what.startswith("node ")]
    return f"{target.title}: {said[0]}" if said else None


def convert(variant: Variant, target: Target, folder: Path, graphs: Callable[[], Sequence[Graph]] = tuple) -> dict[str, Path]:
    """Write each graph as NAME.onnx, typed as it is to be computed, with build_engine.py and what that is to build.

    target.options: batches = [smallest, usual, largest] that the engine takes where shapes are not fixed, workspace_mib.
    """
    import onnx

    from ..export.onnx import files_of, save, strip

    made, told = {}, {}
    for name, source in variant.graphs.items():
        made[name] = folder / f"{name}.onnx"
        model = _written(onnx.load(str(source)), target)
        strip(model)
        save(model, made[name])
        if len(files_of(made[name])) > 1:
            raise BadInput(f"{source}: more than 2 GB of weights; the TensorRT backend writes one file a graph")
        digest = hashlib.sha256(made[name].read_bytes()).hexdigest()
        told[name] = {"file": made[name].name, "sha256": digest, "profile": _profile(model, target)}
    shutil.copyfile(_BUILDER, folder / "build_engine.py")
    record = {"schema": 1, "graphs": told, "workspace_mib": int(target.options.get("workspace_mib", 0))}
    (folder / "build_engine.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return made


def interface(file: Path) -> dict[str, list[dict[str, Any]]]:
    """Return a written file's {"inputs": [{name, dtype, shape}], "outputs": [...]}; a dynamic axis is its name."""
    return onnxruntime.interface(file)


def wrong(file: Path, target: Target) -> list[str]:
    """Return the rules of TensorRT that a written file breaks, in words; else what its golden inputs bring beyond 16-bit floats."""
    import onnx

    from . import tensorrt_rules

    try:
        model = onnx.load(str(file))
    except Exception as error:  # protobuf raises its own types
        return [f"{file.name}: cannot be read as ONNX ({first_line(error)})"]
    found = tensorrt_rules.broken(model, target.opset)
    if target.static and (axes := _dynamic(model)):
        found.append(f"input `{axes[0]}` has a dynamic axis, and {target.title} takes fixed shapes alone")
    return found or too_large(file, lambda inputs: tensors(file, target, inputs, half_alone=True))


def load(
    file: Path, target: Target | None = None, threads: int | None = None, exact: bool = False
) -> EngineSession | WrittenSession:
    """Load one graph: build its engine for the GPU here (minutes). threads: of the CPU, which computes nothing here.

    exact: the arithmetic as the file says it, in ONNX Runtime without optimisations, on the CPU: the integers and 16-bit
    constants of the file, multiplied and summed in 32-bit floats. Raises Missing without TensorRT or a GPU.
    """
    import onnx

    from ..export import build_engine_template as builder

    if exact:
        session = onnxruntime.load(file, threads=threads, exact=True)
        model = onnx.load(str(file), load_external_data=False)
        first = model.graph.input[0].type.tensor_type.shape.dim
        fixed = len(first) > 0 and first[0].HasField("dim_value")
        return WrittenSession(session, first[0].dim_value if fixed else 0, _shapes(file))
    if importlib.util.find_spec("tensorrt") is None:
        raise Missing("TensorRT is not installed here, and nothing else stands in for it: run build_engine.py on the device")
    beside = file.with_name("build_engine.json")
    told = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {"graphs": {}}
    profile = next((graph["profile"] for graph in told["graphs"].values() if graph["file"] == file.name), None)
    try:
        trt, cuda = builder.tensorrt(), builder.Cuda()
        built = builder.build(trt, file, profile, int(told.get("workspace_mib", 0)))
        return EngineSession(builder.Engine(trt, cuda, built), _shapes(file))
    except builder.Unavailable as error:
        raise Missing(str(error)) from None
    except builder.Unbuildable as error:
        raise BadInput(f"{file}: {error}") from None


def tensors(file: Path, target: Target, inputs: Arrays, half_alone: bool = False) -> dict[str, np.ndarray]:
    """Return every float tensor of the file's own arithmetic by name, in order of execution. half_alone: the 16-bit ones."""
    import onnx
    import onnxruntime as ort

    model = onnx.load(str(file))
    known = {value.name for value in model.graph.output}
    names = [name for node in model.graph.node for name in node.output if name and name not in known]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = [value.name for value in session.get_inputs()]
    order = [name for node in model.graph.node for name in node.output if name]

    def once(given: Arrays) -> dict[str, np.ndarray]:
        return dict(zip(order, session.run(order, {name: given[name] for name in wanted}), strict=True))

    made = _by_sample(model, once, inputs) if not _dynamic(model) else once(inputs)
    kinds = (np.float16,) if half_alone else (np.float16, np.float32)
    return {name: values.astype(np.float32) for name, values in made.items() if values.dtype in kinds}


def _by_sample(
    model: onnx.ModelProto, once: Callable[[Arrays], dict[str, np.ndarray]], inputs: Arrays
) -> dict[str, np.ndarray]:
    """Run the samples one by one and join what follows from them; a single number is one a sample. Left out: what differs in shape."""
    parts = [
        once({name: values[i : i + 1] for name, values in inputs.items()}) for i in range(len(next(iter(inputs.values()))))
    ]
    follows = set(inputs)
    for node in model.graph.node:
        if follows.intersection(node.input):
            follows.update(node.output)
    made = {}
    for name, first in parts[0].items():
        if name not in follows:
            made[name] = first
        elif all(part[name].shape == first.shape for part in parts):
            made[name] = np.concatenate([np.atleast_1d(part[name]) for part in parts])
    return made


def _written(model: onnx.ModelProto, target: Target) -> onnx.ModelProto:
    """Return the model as TensorRT is to read it: bytes cast first, 16-bit floats, one sample where shapes are fixed."""
    from ..quantize.keep import stem
    from .half import cast_first, to_half

    made = cast_first(model)
    typed = any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in made.graph.node)
    if target.precision == "fp16" and not typed:  # int8 files are typed where their scales are made, quantize/dialects
        made = to_half(made, stem(made))
    return fix_batch(made) if target.static else made


def _profile(model: onnx.ModelProto, target: Target) -> dict[str, list[list[int]]] | None:
    """Return input name -> [smallest, usual, largest shape]; None where nothing is dynamic."""
    from ..export.onnx import longest

    batches = tuple(target.options.get("batches", _BATCHES))
    if len(batches) != 3 or list(batches) != sorted(batches) or batches[0] < 1:
        raise BadInput(f"{target.file}: options.batches {list(batches)} must be three rising numbers: smallest, usual, largest")
    if not _dynamic(model):
        return None
    lengths = {name: (1, max(1, most // 4), most) for name, most in longest(model).items()}
    weights = {tensor.name for tensor in model.graph.initializer}
    shapes = {}
    for value in model.graph.input:
        if value.name not in weights:
            axes = value.type.tensor_type.shape.dim
            shapes[value.name] = [
                [a.dim_value if a.HasField("dim_value") else lengths.get(a.dim_param, batches)[at] for a in axes]
                for at in range(3)
            ]
    return shapes


def _shapes(file: Path) -> dict[str, Sequence[Any]]:
    return {one["name"]: one["shape"] for one in interface(file)["inputs"]}


def _dynamic(model: onnx.ModelProto) -> list[str]:
    """Return the inputs that have a dynamic axis."""
    return [v.name for v in model.graph.input if any(not a.HasField("dim_value") for a in v.type.tensor_type.shape.dim)]
