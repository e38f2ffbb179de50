"""OpenVINO on Intel processors: the CPU, executed here, and the NPU, where there is one."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BadInput, Missing
from . import Means, installed
from .fixed import fix_batch, one_by_one, unfit

if TYPE_CHECKING:
    import onnx

    from ..export.graph import Arrays, Graph
    from ..quantize.variant import Variant
    from ..recipe import Scheme
    from ..targets import Target

PACKAGES = ("onnx", "openvino")
IMPORTS = ("openvino",)
CHECK = Path(__file__).parent.parent / "export" / "check_parts" / "openvino.py"

DEVICES = ("CPU", "NPU")
"""AUTO, MULTI and HETERO would fall back to another device in silence."""
OPTIONS = {"device": DEVICES}
QUANTIZER = "fused"
"""The dialect of int8 files that targets get which name none (quantize/dialects)."""

# By itself OpenVINO computes in bfloat16 where the CPU can, and quantizes the inputs of layers whose weights are integers.
_AS_WRITTEN = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
_HEAVY = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
_BOOKKEEPING = ("Const", "Input", "Output")


class OpenVinoSession:
    """A compiled graph. providers: device -> nodes after the graph was simplified, heavy ones on int8 kernels under a name of their own."""

    def __init__(self, compiled: Any, device: str) -> None:
        self._request = compiled.create_infer_request()
        self._inputs = [port.get_any_name() for port in compiled.inputs]
        self.outputs = [_name(port) for port in compiled.outputs]
        shape = compiled.inputs[0].get_partial_shape() if self._inputs else None
        self._batch = shape[0].get_length() if shape and shape.is_static and len(shape) else 0
        static = [port for port in compiled.inputs if port.get_partial_shape().is_static]
        self._shapes = {port.get_any_name(): tuple(port.get_shape()) for port in static}
        kinds: Counter[str] = Counter()
        for node in compiled.get_runtime_model().get_ops():
            kind = str(node.get_rt_info()["layerType"].astype(str))
            if kind in _BOOKKEEPING:
                continue
            # of the inputs, not of the node: one that expands int8 weights and multiplies in float32 calls itself int8 too
            small = kind in _HEAVY and str(node.get_input_element_type(0).get_type_name()) in ("i8", "u8")
            kinds[f"{device} int8" if small else device] += 1
        self.providers: dict[str, int] = dict(sorted(kinds.items()))

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run any number of samples. Inputs that the graph does not have are left out."""
        given = {name: inputs[name] for name in self._inputs}
        return one_by_one(self._once, given, self._batch, self._shapes) if self._batch else self._once(given)

    def _once(self, inputs: Arrays) -> dict[str, np.ndarray]:
        made = self._request.infer({name: np.ascontiguousarray(values) for name, values in inputs.items()}, share_inputs=True)
        return {name: np.array(values) for name, values in zip(self.outputs, made.to_tuple(), strict=True)}


def missing() -> str | None:
    """Say what must be installed here to convert, and how to get it; None when all is here."""
    return installed.missing("openvino", "pip install 'edgekd[openvino]'")


def executes(target: Target) -> Means:
    """Say how this machine can execute what is made for a target: the runtime itself, where the target's device is here."""
    if reason := missing() or installed.broken("openvino"):
        return Means(None, reason)
    device = _device(target)
    if device not in (found := _available()):
        return Means(
            None, f"no {device} here (OpenVINO finds {', '.join(found) or 'nothing'}): run check.py on a machine that has one"
        )
    away = target.elsewhere()
    return Means("runtime", f"run on {platform.machine()} here: {away}" if away else "", seconds_are_the_devices=not away)


def refuses(scheme: Scheme, target: Target) -> str | None:
    """Say why this scheme cannot be stored for this target, and what to change; None when it can."""
    return target.lacks(scheme.label)


def refuses_graph(file: Path, target: Target) -> str | None:
    """Say which operator or shape of an ONNX file the target cannot take, and what to change; None when it can."""
    import onnx

    from . import openvino_ir, openvino_rules

    model = onnx.load(str(file))
    refused = set(target.limits.get("operators_refused", ()))
    if found := sorted({node.op_type for node in model.graph.node} & refused):
        return f"{target.title} has no {', '.join(found)}; use layers without, or leave this target out"
    if names := openvino_rules.miscounted(model):
        return (
            f"{target.title} averages wrongly in {names[0]} (AveragePool): its last window reaches beyond the padding; "
            "set `ceil_mode` or `count_include_pad` to False there, or leave this target out"
        )
    if target.static and (reason := unfit(model)):
        return f"{target.title} {reason}, or leave this target out"
    if missing() or installed.broken("openvino"):
        return None
    try:
        made = openvino_ir.read(fix_batch(model) if target.static else model, file.name)
    except BadInput as error:
        return f"{error}. Use layers that OpenVINO has, or leave {target.name} out"
    if target.static and (open_ends := openvino_rules.dynamic(made)):
        return f"{target.title} takes fixed shapes alone, and `{open_ends[0]}` depends on the input's values: use layers without, or leave this target out"
    device = _device(target)
    if device in _available():
        known = _core().query_model(made, device)
        strange = sorted({node.get_type_name() for node in made.get_ops() if node.get_friendly_name() not in known})
        if strange:
            return f"{target.title} has no {', '.join(strange)}; use layers without, or leave this target out"
    return None


def convert(variant: Variant, target: Target, folder: Path, graphs: Callable[[], Sequence[Graph]] = tuple) -> dict[str, Path]:
    """Write each graph as NAME.xml and NAME.bin. Weights of up to 2, 4 and 8 bits take 2, 4 and 8 bits there, codebooks too."""
    import onnx

    from . import openvino_ir

    if reason := missing():
        raise Missing(reason)
    made = {}
    for name, source in variant.graphs.items():
        model: onnx.ModelProto = onnx.load(str(source))
        made[name] = folder / f"{name}.xml"
        network = openvino_ir.read(fix_batch(model) if target.static else model, source)
        openvino_ir.save(network, made[name], _device(target), half=target.precision == "fp16")
    return made


def interface(file: Path) -> dict[str, list[dict[str, Any]]]:
    """Return an IR's {"inputs": [{name, dtype, shape}], "outputs": [...]}; a dynamic axis is named `batch` (others `axisN`)."""
    model = _read(file)

    def described(port: Any) -> dict[str, Any]:
        shape = [
            axis.get_length() if axis.is_static else ("batch" if at == 0 else f"axis{at}")
            for at, axis in enumerate(port.get_partial_shape())
        ]
        return {"name": _name(port), "dtype": np.dtype(port.get_element_type().to_dtype()).name, "shape": shape}

    return {"inputs": [described(p) for p in model.inputs], "outputs": [described(p) for p in model.outputs]}


def load(file: Path, target: Target | None = None, threads: int | None = None, exact: bool = False) -> OpenVinoSession:
    """Compile one graph for the target's device (the CPU without one).

    exact: on the CPU in float32, with no int8 kernels: each FakeQuantize is taken apart into operations in floating point.
    Raises Missing where the device is not here: nothing else stands in for it. Raises BadInput for a broken file.
    """
    from .openvino_ir import unfused

    model = _read(file)
    device = "CPU" if exact or target is None else _device(target)
    if device not in (found := _available()):
        raise Missing(f"no {device} here: OpenVINO finds {', '.join(found) or 'nothing'}, and nothing else stands in for it")
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if device == "CPU":
        settings |= _AS_WRITTEN
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
    try:
        return OpenVinoSession(_core().compile_model(unfused(model) if exact else model, device, settings), device)
    except Exception as error:
        raise BadInput(f"{file}: OpenVINO cannot compile it for {device}: {_reason(error)}") from None


def tensors(file: Path, target: Target, inputs: Arrays) -> dict[str, np.ndarray]:
    """Return every floating-point tensor that follows from the inputs and has a name of the ONNX graph, in order of execution.

    Computed exactly, on the CPU. What OpenVINO fused away is not there.
    """
    import openvino as ov
    from openvino import opset13 as ops

    from .openvino_ir import unfused

    model = unfused(_read(file))
    reached: set[str] = set()
    found: dict[str, Any] = {}
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind == "Parameter" or any(port.get_node().get_friendly_name() in reached for port in node.input_values()):
            reached.add(node.get_friendly_name())
            if kind not in ("Parameter", "Result"):
                real = [port for port in node.outputs() if port.get_element_type().is_real() and port.get_names()]
                found |= {name: port for port in real for name in sorted(port.get_names())}
    seen = ov.Model([ops.result(port) for port in found.values()], model.get_parameters())
    session = OpenVinoSession(_core().compile_model(seen, "CPU", _AS_WRITTEN), "CPU")
    session.outputs = list(found)
    return session.run(inputs)


def wrong(file: Path, target: Target) -> list[str]:
    """Return the rules of the target that a written IR breaks, in words; else what its golden inputs bring beyond 16-bit floats."""
    from .half import too_large
    from .openvino_rules import broken

    try:
        found = broken(_read(file), target, _device(target))
        if found or target.precision != "fp16":
            return found
        return too_large(file, lambda inputs: tensors(file, target, inputs))
    except BadInput as error:
        return [str(error)]


def _device(target: Target | None) -> str:
    device = str(target.options.get("device", "CPU")) if target else "CPU"
    if device not in DEVICES:
        known = " and ".join(DEVICES)
        raise BadInput(
            f"{target.file if target else ''}: options.device `{device}`: edgekd compiles for {known} (AUTO would fall back in silence)"
        )
    return device


def _name(port: Any) -> str:
    """Return the ONNX name of a tensor; a result has the name that the ONNX file gave it."""
    node = port.get_node()
    names = node.output(0).get_names() if node.get_type_name() == "Result" else port.get_names()
    return min(names) if names else node.get_friendly_name()


def _read(file: Path) -> Any:
    if reason := missing() or installed.broken("openvino"):
        raise Missing(reason)
    try:
        return _core().read_model(str(file))
    except Exception as error:
        raise BadInput(f"{file}: OpenVINO cannot read it: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    from .openvino_ir import reason

    return reason(error)


def _available() -> list[str]:
    """Return the devices here: "NPU.0" counts as NPU."""
    return sorted({device.partition(".")[0] for device in _core().available_devices})


@cache
def _core() -> Any:
    import openvino as ov

    return ov.Core()
