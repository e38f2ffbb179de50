"""Core ML: an .mlpackage for iPhones and Macs. Converted anywhere, run on a Mac, and elsewhere by edgekd's own interpreter."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from ..errors import BadInput, Missing
from . import Means, installed
from .coreml_session import Interpreted, OnMac, handed, sample_of
from .fixed import grows, unfit

if TYPE_CHECKING:
    import torch

    from ..export.graph import Arrays, Graph
    from ..quantize.variant import Variant
    from ..recipe import Scheme
    from ..targets import Target
    from .coreml_program import Weight

PACKAGES = ("coremltools", "torch")
IMPORTS = ("coremltools",)
CHECK = Path(__file__).parent.parent / "export" / "check_parts" / "coremltools.py"

_IOS = {"iOS17": 17, "macOS14": 17, "iOS18": 18, "macOS15": 18}
"""Release, as coremltools calls it -> the release of iOS that has the same operations."""
OPTIONS = {"minimum_deployment_target": tuple(_IOS), "image_input": bool}


def missing() -> str | None:
    """Say what is not installed here and how to get it; None when all is here."""
    if sys.platform not in ("linux", "darwin"):
        return f"coremltools has no converter for {sys.platform}: use Linux or macOS"
    return installed.missing("coremltools", "pip install 'edgekd[coreml]'")


def executes(target: Target) -> Means:
    """Say how this machine can execute what is made for a target: Core ML on a Mac, the interpreter elsewhere."""
    if reason := missing():
        return Means(None, reason)
    if sys.platform == "darwin":
        return Means("runtime", "by Core ML on this Mac", seconds_are_the_devices=target.elsewhere() is None)
    return Means("reference", "by edgekd's interpreter of the saved MIL program; no Core ML runtime exists here")


def refuses(scheme: Scheme, target: Target) -> str | None:
    """Say why this scheme cannot be stored for this target, and what to change; None when it can."""
    weights = scheme.weights
    if scheme.activations:
        return (
            f"{target.title} cannot store {scheme.label}: edgekd writes no quantized activations for Core ML, which computes in "
            "float16; leave `activations` out"
        )
    if weights and weights.granularity == "group":
        return (
            f"{target.title} cannot store {scheme.label}: groups of {weights.group} weights of the flattened tensor cut across "
            "channels, and Core ML's blocks do not; use granularity `channel` or `tensor`"
        )
    if reason := target.lacks(scheme.label):
        return reason
    whole_bytes = weights is not None and weights.kind == "uniform" and not scheme.mixed and weights.bits == 8
    if weights and _ios(target) < 18 and weights.granularity == "channel" and not whole_bytes:
        return (
            f"{target.title} cannot store {scheme.label} with a scale a channel: before iOS 18 Core ML's palettes hold for a whole "
            "tensor; use granularity `tensor`, uniform weights of 8 bits, or the target of a newer release"
        )
    return None


def refuses_graph(file: Path, target: Target) -> str | None:
    """Say which operator of a full-precision ONNX file the target cannot take, and what to change; None when it can.

    coremltools converts torch programs, not ONNX, as `refuses_network` tries: what is known here is the target's list, shapes, and
    how pictures are resized.
    """
    import onnx

    from ..export.onnx import longest
    from .onnxruntime import interface as onnx_interface

    model = onnx.load(str(file), load_external_data=False)
    graph = model.graph
    refused = set(target.limits.get("operators_refused", ()))
    if found := sorted({node.op_type for node in graph.node} & refused):
        return f"{target.title} takes no {', '.join(found)}: use layers without, or leave this target out"
    for node in graph.node:
        told = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Resize" and (told.get("antialias") or told.get("mode") == b"cubic"):
            return (
                f"{target.title} cannot resize as {node.name or 'a Resize'} does (antialiased or cubic): give data and student the "
                "same size in `preprocess`"
            )
    if reason := grows(model):
        return f"{target.title} is given fixed shapes, and {reason}"
    known = longest(model)
    for one in onnx_interface(file)["inputs"]:
        if any(isinstance(n, str) and n not in known for n in one["shape"][1:]):
            return f"{target.title} is given fixed shapes, and those of `{one['name']}` depend on more than the batch: fix them"
    if reason := unfit(model):
        return f"{target.title} {reason}, or leave this target out"
    return None


def refuses_network(graph: Graph, target: Target) -> str | None:
    """Say which operation of a torch graph coremltools or the interpreter does not know; None when they know all.

    Converts it in full precision and runs it once: seconds, once for all targets of the same operations and types.
    """
    if missing():
        return None
    tried = _TRIED.setdefault(graph.module, {})
    key = (graph.name, _ios(target), target.precision, target.options.get("image_input"))
    if key not in tried:
        tried[key] = _trial(graph, target)
    reason = tried[key]
    return f"{target.title} cannot take it: {reason}; or leave this target out" if reason else None


_TRIED: WeakKeyDictionary[torch.nn.Module, dict[tuple[Any, ...], str | None]] = WeakKeyDictionary()


def _trial(graph: Graph, target: Target) -> str | None:
    from . import coreml_package

    with TemporaryDirectory() as folder:
        file = Path(folder) / f"{graph.name}.mlpackage"
        try:
            coreml_package.write(_program(graph, {}, target), file)
            load(file, exact=True).run({name: value[:1].cpu().numpy() for name, value in graph.example.items()})
        except BadInput as error:
            return str(error).removeprefix(f"{file}: ")
    return None


def convert(variant: Variant, target: Target, folder: Path, graphs: Callable[[], Sequence[Graph]]) -> dict[str, Path]:
    """Write each graph as NAME.mlpackage, for one sample a call. The same variant gives the same bytes.

    Raises BadInput for what Core ML cannot express or store, Missing without coremltools.
    """
    from . import coreml_package

    if reason := missing():
        raise Missing(reason)
    made = {}
    for graph in graphs():
        weights, folded = _weights(variant.graphs[graph.name], target)
        made[graph.name] = coreml_package.write(_program(graph, weights, target, folded), folder / f"{graph.name}.mlpackage")
        if lost := _lost(made[graph.name], weights):
            raise BadInput(f"graph `{graph.name}`: coremltools changed the stored weight `{lost}`; name its layer in `keep`")
    return made


def _program(graph: Graph, weights: dict[str, Weight], target: Target, folded: bool = False) -> Any:
    from . import coreml_program

    images = bool(target.options.get("image_input", False))
    return coreml_program.convert(
        graph, weights, _release(target), half=target.precision == "fp16", images=images, folded=folded
    )


def interface(file: Path) -> dict[str, list[dict[str, Any]]]:
    """Return {"inputs": [{name, dtype, shape}], "outputs": [...]} of an .mlpackage.

    A picture has `image` too, "RGB" or "gray": the program is handed an image of that size, as check.py does with an array of
    that dtype and shape.
    """
    from .mil import read

    program = read(file)
    inputs = []
    for name, one in program.inputs.items():
        told: dict[str, Any] = {"name": name, "dtype": _numpy(one.dtype), "shape": list(one.shape)}
        if name in program.pictures:
            _, channels, height, width = one.shape
            told |= {"dtype": "uint8", "shape": [1, height, width, channels], "image": program.pictures[name]}
        inputs.append(told)
    types = {name: of for operation in program.operations for name, of in operation.outputs}
    outputs = [{"name": n, "dtype": _numpy(types[n].dtype), "shape": list(types[n].shape)} for n in program.outputs]
    return {"inputs": inputs, "outputs": outputs}


def load(file: Path, target: Target | None = None, threads: int | None = None, exact: bool = False) -> Any:
    """Load an .mlpackage: into Core ML on a Mac, into the interpreter elsewhere, which rounds to float16 what is declared so.

    exact: into the interpreter, float32 throughout on the stored weights. Raises BadInput for a broken package or an operation
    that the interpreter does not know.
    """
    from .mil import read

    if reason := missing():
        raise Missing(reason)
    if sys.platform == "darwin" and not exact:
        from ..export.check_parts.coremltools import open_session

        return OnMac(open_session(file, threads or 0)[0], read(file))
    return Interpreted(read(file), exact)


def tensors(file: Path, target: Target, inputs: Arrays) -> dict[str, np.ndarray]:
    """Return every float value of a program by name, as it is computed in the declared types, in order of execution.

    Names are those of torch's exporter, but for sums and products, which it numbers otherwise when the batch is dynamic.
    """
    from .mil import read
    from .mil.run import Runner

    program = read(file)
    runner = Runner(program, exact=False)
    count = max(len(values) for values in inputs.values())
    parts: dict[str, list[np.ndarray]] = {}
    for i in range(count):
        for name, value in runner.values(handed({k: v[i : i + 1] for k, v in inputs.items()}, program)).items():
            own = name.removesuffix("_cast_fp16")
            if value.is_floating_point() and value.ndim and own.rstrip("0123456789_") not in _RENUMBERED:
                parts.setdefault(own, []).append(value.numpy())
    return {name: np.concatenate(values) for name, values in parts.items()}


_RENUMBERED = {"add", "sub", "mul", "div", "neg", "eq", "floordiv", "mod"}


def wrong(file: Path, target: Target) -> list[str]:
    """Return the numbers in a program that no device computes with: constants and values that are NaN, or beyond the declared type."""
    from .mil import read
    from .mil.checks import bad_constants, bad_values

    program = read(file)
    golden = sample_of(file, program)
    return [*bad_constants(program), *bad_values(program, handed(golden, program))]


def _numpy(dtype: str) -> str:
    return {"fp16": "float16", "fp32": "float32", "fp64": "float64"}.get(dtype, dtype)


def _release(target: Target) -> str:
    release = str(target.options.get("minimum_deployment_target", "iOS17"))
    if release not in _IOS:
        raise BadInput(
            f"{target.name}: options.minimum_deployment_target `{release}` is not known; there are {', '.join(_IOS)}"
        )
    return release


def _ios(target: Target) -> int:
    return _IOS[_release(target)]


def _weights(file: Path, target: Target) -> tuple[dict[str, Weight], bool]:
    """Return the weights that an ONNX file of a variant stores, as Core ML holds them, and whether BatchNorms are folded into them."""
    import onnx

    from ..quantize import unpacked
    from .coreml_program import Weight
    from .coreml_weights import Linear, form_of, spread

    found: dict[str, Weight] = {}
    folded = False
    for name, stored in unpacked.read(onnx.load(str(file))).items():
        form = form_of(stored, _ios(target))
        if isinstance(form, str):
            raise BadInput(f"{target.title} cannot store the weight `{name}`: {form}")
        if isinstance(stored, unpacked.Symmetric):  # rounded from what coremltools will fold itself
            folded = True
            assert isinstance(form, Linear)
            slack = 0.5001 * spread(form.scale, form.q.shape) + 1e-6 * np.abs(stored.decoded()).max(initial=0)
            found[name] = Weight(form, stored.decoded(), slack)
        else:
            found[name] = Weight(form, stored.decoded())
    return found, folded


def _lost(file: Path, weights: dict[str, Weight]) -> str | None:
    """Return the name of a weight that the written program does not hold as it should; None when all are there."""
    from .coreml_weights import Palette
    from .mil import read
    from .mil.run import Runner

    held = [value.numpy() for value in Runner(read(file), exact=True).stored().values()]
    for name, weight in weights.items():
        values = weight.form.decoded()
        ways = [values, values.T] if values.ndim == 2 else [values]
        near = 0.0 if isinstance(weight.form, Palette) else 2e-3 * float(np.abs(values).max(initial=0))
        with np.errstate(over="ignore"):
            known = [one for way in ways for one in (way, way.astype(np.float16).astype(np.float32))]
        if not any(h.shape == k.shape and (np.abs(h - k) <= near).all() for h in held for k in known):
            return name
    return None
