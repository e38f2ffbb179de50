"""What gets timed: an artifact folder, a bare file of a runtime, or a folder of .onnx files that belong together."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BadInput, first_line
from ..targets import target_names


@dataclass(frozen=True)
class Thing:
    """One thing to time.

    label: names it, "TARGET/VARIANT" for an artifact. files: graph name -> main file.
    inputs: graph -> input name -> array (its first axis is cut or repeated to the batch); of graphs that are not in it they are
    made from what the graph declares.
    target: name of the target, for which things are compared. target_file: what `load_target` reads it from, for the backend;
    None for the backend's own defaults.
    control: the one the others of its target are compared with; where none is marked, the first without quantized nodes.
    threads: of the runtime for this thing alone; None: as many as the settings say.
    """

    label: str
    backend: str
    files: Mapping[str, Path]
    inputs: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    target: str | None = None
    control: bool = False
    target_file: str | None = None
    threads: int | None = None

    @property
    def file(self) -> Path:
        """The file of its first graph."""
        return next(iter(self.files.values()))

    @property
    def variant(self) -> str:
        """The short name used in sentences."""
        return self.label.rpartition("/")[2]


@dataclass(frozen=True)
class GraphFacts:
    """What a graph is made of, as far as it explains a speed."""

    inputs: tuple[dict[str, Any], ...]
    nodes: int
    conversions: int
    """QuantizeLinear, DynamicQuantizeLinear and DequantizeLinear nodes."""
    heavy: int
    """Nodes that do the arithmetic: convolutions and matrix products."""
    heavy_float: int
    """Those of them that take no quantized weights or activations."""
    weights_alone: bool = False
    """Integers hold weights only: all arithmetic is in floating point."""
    packed: bool = False
    """Most weights are stored in integers, whatever the arithmetic."""

    @property
    def quantized(self) -> bool:
        return self.conversions > 0 or self.heavy > self.heavy_float


HEAVY = {"Conv", "ConvTranspose", "MatMul", "Gemm", "Attention", "FusedConv", "FusedMatMul", "FusedGemm"}
HEAVY_INTEGER = {
    "QLinearConv",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
    "MatMulNBits",
    "QGemm",
    "DynamicQuantizeMatMul",
}


SUFFIXES = {
    ".onnx": "onnxruntime",
    ".ort": "onnxruntime_mobile",
    ".xml": "openvino",
    ".mlpackage": "coreml",
    ".engine": "tensorrt",
    ".plan": "tensorrt",
}
"""What a bare file ends in -> the backend that runs it."""

_GIVE = f"Give a run folder, RUN/targets/TARGET/VARIANT, a file that ends in {', '.join(SUFFIXES)}, or a folder of .onnx files"


def facts_of(thing: Thing) -> GraphFacts | None:
    """Return what all graphs of a thing are made of together, `inputs` of the first; None for files that are not ONNX."""
    if not all(file.suffix == ".onnx" for file in thing.files.values()):
        return None
    first, *others = (facts(file) for file in thing.files.values())
    for one in others:
        first = replace(
            first,
            **{name: getattr(first, name) + getattr(one, name) for name in ("nodes", "conversions", "heavy", "heavy_float")},
            weights_alone=first.weights_alone and one.weights_alone,
            packed=first.packed or one.packed,
        )
    return first


def interfaces(thing: Thing) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return graph -> {"inputs": [{name, dtype, shape}], "outputs": [...]}.

    Raises BadInput for a file that is missing, or that its backend cannot read.
    """
    from ..backends import backend_of

    for file in thing.files.values():
        if not file.exists():
            raise BadInput(f"{file}: no such file, wanted for {thing.label}")
    return {graph: backend_of(thing.backend).interface(file) for graph, file in thing.files.items()}


def facts(file: Path) -> GraphFacts:
    """Read what an ONNX file is made of, without its weights. Raises BadInput when it is not ONNX."""
    import onnx

    try:
        graph = onnx.load(str(file), load_external_data=False).graph
    except Exception as error:  # protobuf raises its own types
        raise BadInput(f"{file}: cannot be read as ONNX ({first_line(error)}); is it whole?") from None
    if not graph.output:
        raise BadInput(f"{file}: has no graph in it; is it whole?")
    weights = {tensor.name for tensor in graph.initializer}
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    kinds = [node.op_type for node in graph.node]
    heavy = [node for node in graph.node if node.op_type in HEAVY]
    heavy_float = [n for n in heavy if not any(made_by.get(i) == "DequantizeLinear" for i in n.input[:2])]
    integer = sum(kind in HEAVY_INTEGER for kind in kinds)
    return GraphFacts(
        inputs=tuple(_declared(value) for value in graph.input if value.name not in weights),
        nodes=len(kinds),
        conversions=sum(kind in {"QuantizeLinear", "DynamicQuantizeLinear", "DequantizeLinear"} for kind in kinds),
        heavy=len(heavy) + integer,
        heavy_float=len(heavy_float),
        weights_alone="DequantizeLinear" in kinds
        and not integer
        and not {"QuantizeLinear", "DynamicQuantizeLinear"} & set(kinds),
        packed=_packed(graph),
    )


def _packed(graph: Any) -> bool:
    """Say whether integers of 8 bits and fewer hold more values than floats do: the shapes count, for the weights may lie elsewhere."""
    import onnx

    sizes: dict[bool, int] = {True: 0, False: 0}
    small = {
        getattr(onnx.TensorProto, name)
        for name in ("INT8", "UINT8", "INT4", "UINT4", "INT2", "UINT2")
        if hasattr(onnx.TensorProto, name)
    }
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
    for tensor in graph.initializer:
        if tensor.data_type in small | floats:
            sizes[tensor.data_type in small] += math.prod(tensor.dims)
    return sizes[True] > sizes[False]


def _declared(value: Any) -> dict[str, Any]:
    import onnx

    tensor = value.type.tensor_type
    shape = [axis.dim_value if axis.HasField("dim_value") else axis.dim_param or "?" for axis in tensor.shape.dim]
    return {
        "name": value.name,
        "dtype": np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name,
        "shape": shape,
    }


def thing_from(path: Path, label: str | None = None) -> Thing:
    """Return the thing to time at `path`: an artifact's folder (it has artifact.json), a bare file, or a folder of .onnx files.

    A bare file is run by the backend that its name tells, on inputs made from what it declares. Raises BadInput.
    """
    path = Path(path)
    if path.suffix in SUFFIXES and (path.is_file() or (path.suffix == ".mlpackage" and path.is_dir())):
        return Thing(label or path.stem, SUFFIXES[path.suffix], {"model": path})
    record = path if path.name == "artifact.json" else path / "artifact.json"
    if not record.is_file():
        if path.is_dir() and (graphs := sorted(path.glob("*.onnx"))):
            return Thing(label or path.name, "onnxruntime", {file.stem: file for file in graphs})
        raise BadInput(f"{path}: {'nothing here to time' if path.exists() else 'no such file or folder'}. {_GIVE}")
    try:
        told = json.loads(record.read_text(encoding="utf-8"))
        files = {name: record.parent / graph["file"] for name, graph in told["graphs"].items()}
        next(iter(files))
        named = label or f"{told['target']}/{told['variant']}"
        inputs: dict[str, dict[str, np.ndarray]] = {}
        for graph, described in told["graphs"].items():
            golden = golden_inputs(record.parent / "golden.npz", graph, [i["name"] for i in described["inputs"]])
            inputs |= {} if golden is None else {graph: golden}
        target = told["target"]
        # of a target file of the user's own, the artifact knows the name alone
        return Thing(named, told["backend"], files, inputs, target, target_file=target if target in target_names() else None)
    except (KeyError, TypeError, AttributeError, ValueError, StopIteration) as error:
        raise BadInput(f"{record}: damaged ({error!r}); make the artifact again with `edgekd export`") from None


def golden_inputs(file: Path, graph: str, names: list[str]) -> dict[str, np.ndarray] | None:
    """Return a graph's inputs out of golden.npz, stored there as GRAPH/in/NAME; None where one is not."""
    if not file.is_file():
        return None
    with np.load(file, allow_pickle=False) as stored:
        if any(f"{graph}/in/{name}" not in stored.files for name in names):
            return None
        return {name: stored[f"{graph}/in/{name}"] for name in names}


def fingerprint(thing: Thing) -> tuple[str, int]:
    """Return the SHA-256 over a thing's files (names and bytes, external weights of ONNX files included) and their bytes.

    For a single file it is that file's own SHA-256, the one in artifact.json.
    """
    found = sorted({f for main in thing.files.values() for f in parts(main)})
    missing = [f for f in found if not f.is_file()]
    if missing:
        raise BadInput(f"{missing[0]}: no such file, wanted for {thing.label}")
    digest, size = hashlib.sha256(), 0
    for file in found:
        if len(found) > 1:
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as opened:
            while piece := opened.read(1 << 22):
                digest.update(piece)
        size += file.stat().st_size
    return digest.hexdigest(), size


def parts(main: Path) -> list[Path]:
    """Return all files that a main file consists of: itself, those of a package folder, and weights that lie elsewhere."""
    if main.is_dir():
        return sorted(f for f in main.rglob("*") if f.is_file())
    if main.suffix == ".onnx":
        return [main, *weights_of(main)]
    beside = [main.with_suffix(".bin")] if main.suffix == ".xml" else []
    return [main, *sorted(main.parent.glob(f"{main.name}*.data")), *(file for file in beside if file.is_file())]


def weights_of(file: Path) -> list[Path]:
    """Return the files that an ONNX file keeps weights in, as it names them; [] for one that cannot be read (`facts` says why)."""
    import onnx

    try:
        graph = onnx.load(str(file), load_external_data=False).graph
    except Exception:  # protobuf raises its own types
        return []
    named = {e.value for tensor in graph.initializer for e in tensor.external_data if e.key == "location"}
    return sorted(file.parent / name for name in named)
