"""Qualcomm QNN: context binaries for a Snapdragon's HTP, compiled here for one named SoC, and run in Qualcomm's HTP simulator."""

from __future__ import annotations

import importlib.util
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BadInput, Missing
from ..targets import covers
from . import Means, installed
from . import onnxruntime as onnx_files
from .fixed import grows, one_by_one, unfit
from .qnn_binary import Soc, inspect, soc_of
from .qnn_worker import PROVIDER

if TYPE_CHECKING:
    import onnx

    from ..export.graph import Arrays, Graph
    from ..quantize.variant import Variant
    from ..recipe import Scheme
    from ..targets import Target
    from .qnn_process import Process

PACKAGES = ("onnx", "onnxruntime", "onnxruntime-qnn")
IMPORTS = ("onnxruntime", "onnxruntime_qnn", "ml_dtypes")
CHECK = Path(__file__).parent.parent / "export" / "check_parts" / "onnxruntime_qnn.py"

OPTIONS = {"soc_model": int, "htp_arch": int, "backend_path": str}
_SIGNED = (
    "activations are quantized to signed integers ({}), which HTP takes and computes wrong numbers from; "
    "quantize with method ptq for this target, which makes them unsigned"
)

interface = onnx_files.interface


class Simulated:
    """A compiled graph in the HTP simulator. providers: the provider -> the nodes that were compiled into the binary."""

    def __init__(self, process: Process, providers: dict[str, int], inputs: Sequence[dict[str, Any]]) -> None:
        self._process, self.providers = process, providers
        self._shapes = {value["name"]: value["shape"] for value in inputs}

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run any number of samples, one after the other."""
        given = {name: inputs[name] for name in self._shapes}
        return one_by_one(lambda one: self._process.ask(one, do="run")[1], given, shapes=self._shapes)


def missing() -> str | None:
    """Say what is not installed here and how to get it; None when all is here."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "Qualcomm's HTP compiler and simulator run on x86-64 Linux alone: convert and verify there, with onnxruntime-qnn"
    absent = [module.replace("_qnn", "-qnn") for module in IMPORTS if importlib.util.find_spec(module) is None]
    if absent:
        return f"{', '.join(absent)} not installed here: pip install {' '.join(absent)}"
    return next((reason for module in IMPORTS if (reason := installed.missing(module, ""))), None)


def executes(target: Target) -> Means:
    """Say how this machine can execute what is made for a target: in Qualcomm's simulator of the HTP."""
    if reason := missing():
        return Means(None, reason)
    return Means("simulator", "Qualcomm's HTP simulator on this machine; its seconds say nothing about the device")


def refuses(scheme: Scheme, target: Target) -> str | None:
    """Say why this scheme cannot be stored for this target, and what to change; None when it can."""
    if isinstance(soc := _soc(target), str):
        return f"{target.title}: {soc}"
    if covers(target.stores, scheme.label):
        return None
    if scheme.weights and not scheme.activations:
        return (
            f"{target.title} stores no {scheme.label}: HTP's compiler expands weights that are quantized alone to float16, so the "
            "file would be as large as fp32's; quantize activations too (bits 8 or 16, method ptq)"
        )
    return target.lacks(scheme.label)


def refuses_graph(file: Path, target: Target) -> str | None:
    """Say which operator or shape of a full-precision ONNX file the target cannot take, and what to change; None when it can.

    Asks Qualcomm's compiler where it is installed, with the CPU forbidden; else the target's list of operators.
    """
    import onnx

    from .qnn_graph import outside, prepared

    if isinstance(soc := _soc(target), str):
        return soc
    written = onnx.load(str(file))
    opset = max((entry.version for entry in written.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset > target.opset:
        return f"opset {opset} is above {target.opset}, the highest that {target.title} takes: export with a lower one"
    if reason := grows(written):
        return f"{target.title} takes fixed shapes alone, and {reason}"
    model = prepared(written)
    if reason := unfit(written, model):
        return f"{target.title} {reason}"
    advice = "use layers without, or leave this target out"
    if missing():
        found = outside(model, set(target.limits.get("operators_refused", ())))
        return f"{target.title} has no {', '.join(found)}; {advice}" if found else None
    try:
        _compile(model, target, soc, f"graph {file.stem}", None)
    except BadInput as error:
        return f"{target.title} cannot take it: {error}; {advice}"
    return None


def convert(variant: Variant, target: Target, folder: Path, graphs: Callable[[], Sequence[Graph]] = tuple) -> dict[str, Path]:
    """Compile the variant's graphs for the target's SoC: one ONNX file each, with the context binary in it.

    The same graph gives the same bytes. Raises BadInput for what HTP cannot take, Missing without Qualcomm's compiler.
    """
    import onnx

    from .qnn_graph import prepared, signed_activations

    if reason := missing():
        raise Missing(reason)
    if reason := refuses(variant.scheme, target):
        raise BadInput(reason)
    soc = _soc(target)
    assert isinstance(soc, Soc)
    made = {}
    for name, source in variant.graphs.items():
        model = onnx.load(str(source))
        if found := signed_activations(model):
            raise BadInput(f"{source}: {_SIGNED.format(found[0])}")
        made[name] = folder / source.name
        _compile(prepared(model), target, soc, f"graph {name} for {target.name}", made[name])
        if broken := wrong(made[name], target):
            raise BadInput(f"{made[name]}: {'; '.join(broken)}")
    return made


def wrong(file: Path, target: Target) -> list[str]:
    """Return what makes a written file unfit for the target: another SoC, parts outside HTP, signed activations."""
    import onnx

    from .qnn_graph import signed_activations

    if isinstance(soc := _soc(target), str):
        return [soc]
    context = inspect(file)
    found = []
    if not context.made_for:
        found.append("it holds no QNN context binary: it was not compiled for a Snapdragon")
        if names := signed_activations(onnx.load(str(file), load_external_data=False)):
            found.append(_SIGNED.format(names[0]))
    elif context.others:
        found.append(f"{', '.join(context.others)} lie outside the compiled part and would run on the CPU")
    for name, arch in context.made_for:
        if (name, arch) != (soc.name, soc.arch):
            found.append(
                f"it is compiled for {name} (v{arch}), and {target.title} is {soc.name} (v{soc.arch}): convert it again"
            )
    return found


def load(file: Path, target: Target | None = None, threads: int | None = None, exact: bool = False) -> Simulated | None:
    """Load a compiled graph into the HTP simulator, in a process of its own.

    exact: None, since nothing but HTP reads a context binary. Raises BadInput for a broken file, and for one made for another
    SoC, which the simulator would run without complaint.
    """
    if exact:
        return None
    if reason := missing():
        raise Missing(reason)
    from .qnn_process import Process

    context = inspect(file)
    if target is not None and (broken := wrong(file, target)):
        raise BadInput(f"{file}: {'; '.join(broken)}")
    options = {"soc_model": 0} | _asked(target) if target else {"soc_model": 0}
    process = Process(str(file))
    answer, _ = process.ask(do="load", file=str(file), options=options)
    nodes = dict(sorted(answer["nodes"].items()))
    if set(nodes) == {PROVIDER}:
        nodes[PROVIDER] = context.nodes  # the session counts a compiled graph as one
    return Simulated(process, nodes, interface(file)["inputs"])


def _soc(target: Target) -> Soc | str:
    unknown = sorted(set(target.options) - set(OPTIONS))
    if unknown:
        return f"its target file has an unknown option `{unknown[0]}`; QNN's are {', '.join(OPTIONS)}"
    return soc_of(target.options)


def _asked(target: Target) -> dict[str, Any]:
    return {key: target.options[key] for key in ("soc_model", "backend_path") if key in target.options}


def _compile(model: onnx.ModelProto, target: Target, soc: Soc, label: str, out: Path | None) -> None:
    """Compile a prepared model; without `out` only see whether HTP takes all of it. Raises BadInput."""
    import onnx

    from ..export.onnx import save
    from .qnn_process import Process

    with tempfile.TemporaryDirectory() as folder:
        source, compiled = Path(folder) / "graph.onnx", Path(folder) / "compiled.onnx"
        save(model, source)
        process = Process(label)
        try:
            answer, _ = process.ask(
                do="compile", file=str(source), options=_asked(target), out="" if out is None else str(compiled)
            )
        finally:
            process.end()
        if out is None:
            return
        made = onnx.load(str(compiled))
        _settle(made, {"edgekd.soc": soc.name, "edgekd.nodes": str(answer["nodes"].get(PROVIDER, 0))})
        save(made, out)


def _settle(model: onnx.ModelProto, facts: dict[str, str]) -> None:
    """Bring a context file to one form, whatever order ONNX Runtime's hash tables gave it, and note facts in it."""
    opsets = sorted((entry.domain, entry.version) for entry in model.opset_import if entry.domain in ("", "com.microsoft"))
    del model.opset_import[:]
    for domain, version in opsets:
        model.opset_import.add(domain=domain, version=version)
    for node in model.graph.node:
        ordered = sorted(node.attribute, key=lambda attribute: attribute.name)
        del node.attribute[:]
        node.attribute.extend(ordered)
    told = {entry.key: entry.value for entry in model.metadata_props} | facts
    del model.metadata_props[:]
    for key in sorted(told):
        model.metadata_props.add(key=key, value=told[key])
