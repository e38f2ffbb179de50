"""ONNX Runtime on the CPU."""

from __future__ import annotations

import platform
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import host
from ..errors import BadInput, Missing, first_line
from . import Means, installed, ort_cache

if TYPE_CHECKING:
    import onnx

    from ..export.graph import Arrays, Graph
    from ..quantize.variant import Variant
    from ..recipe import Scheme
    from ..targets import Target

PACKAGES = ("onnx", "onnxruntime")
IMPORTS = ("onnxruntime",)
OPTIONS: dict[str, Any] = {
    "attention": ("fused", "plain"),
    "weights": ("auto", "stored", "expanded"),
    "activations": ("float", "int8"),
}
"""attention: as one operator of ONNX Runtime's own, or as exported. weights: of products, where they alone are integers: multiplied as
they are stored (ort_nbits.py), or expanded on loading; auto: as stored in graphs that read a cache, token by token. activations: of products
by weights as stored: float32, or rounded to 8 bits a block, which is faster and no longer the variant's own arithmetic.
"""
CHECK = Path(__file__).parent.parent / "export" / "check_parts" / "onnxruntime.py"

_PROVIDER = "CPUExecutionProvider"
_SEVEN_BITS = 64
"""Products of 8 and 7 bits, summed in pairs, stay within 16 bits: 2 * 255 * 64 < 2**15."""


class OnnxRuntimeSession:
    """A graph loaded by ONNX Runtime. providers: execution provider -> nodes it took (after the graph was simplified).

    Of a file whose attention takes a cache with room in it, the cache grows in place from call to call (ort_cache.py).
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        self._inputs = [value.name for value in session.get_inputs()]
        self._outputs = [value.name for value in session.get_outputs()]
        taken: Counter[str] = Counter()
        for part in session.get_provider_graph_assignment_info():
            taken[part.ep_name] += len(part.get_nodes())
        self.providers: dict[str, int] = dict(sorted(taken.items()))
        self._cache = ort_cache.of(session)

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run once. Inputs that the graph does not have are left out."""
        if self._cache is not None:
            return self._cache.run(inputs)
        made = self._session.run(self._outputs, {name: inputs[name] for name in self._inputs})
        return dict(zip(self._outputs, made, strict=True))

    def bind(self, inputs: Arrays) -> Callable[[], list[np.ndarray]]:
        """Return a call that runs these very arrays and returns the outputs in order: what the clock times, no names looked up."""
        run, outputs = self._session.run, self._outputs
        feeds = {name: inputs[name] for name in self._inputs}
        return lambda: run(outputs, feeds)


def missing() -> str | None:
    """Say what is not installed here and how to get it; None when all is here."""
    return installed.missing("onnxruntime", "pip install 'edgekd[onnxruntime]'")


def executes(target: Target) -> Means:
    """Say how this machine can execute what is made for a target: the same runtime, on this processor."""
    if reason := missing():
        return Means(None, reason)
    away = target.elsewhere()
    return Means("runtime", f"run on {platform.machine()} here: {away}" if away else "", seconds_are_the_devices=not away)


def refuses(scheme: Scheme, target: Target) -> str | None:
    """Say why this scheme cannot be stored for this target, and what to change; None when it can."""
    return target.lacks(scheme.label)


def refuses_graph(file: Path, target: Target) -> str | None:
    """Say which operator of an ONNX file the target refuses, and what to change; None when it takes all."""
    import onnx

    refused = set(target.limits.get("operators_refused", ()))
    found = sorted({node.op_type for node in onnx.load(str(file), load_external_data=False).graph.node} & refused)
    if not found:
        return None
    return f"{target.title} has no {', '.join(found)}; use layers without, or leave this target out"


def convert(variant: Variant, target: Target, folder: Path, graphs: Callable[[], Sequence[Graph]] = tuple) -> dict[str, Path]:
    """Write the variant's ONNX files, with operators of ONNX Runtime's own where those are faster and give the same (ort_form.py).

    Weights alone in integers are multiplied as they are stored (ort_nbits.py), or made so that the runtime expands them once, on loading,
    not at every call. A file in which nothing changes is copied.
    """
    import onnx

    from ..export.onnx import files_of, save
    from ..quantize.packed import foldable
    from . import ort_attention, ort_flash, ort_form, ort_gather, ort_grouped, ort_joint, ort_nbits, ort_norm, ort_shared

    made = {}
    for name, source in variant.graphs.items():
        made[name] = folder / source.name
        model = onnx.load(str(source))
        alone = variant.scheme.weights is not None and variant.scheme.activations is None
        steps: dict[str, ort_form.Step] = {}
        if target.backend == "onnxruntime":
            steps[ort_norm.OPERATOR] = ort_norm.fuse
            steps[ort_gather.NAME] = ort_gather.fuse
            steps["Sum"] = ort_norm.split
            if target.options.get("attention") != "plain":
                steps[ort_grouped.OPERATOR] = ort_grouped.fuse
                steps[ort_flash.NAME] = ort_flash.fuse
                steps[ort_shared.NAME] = ort_shared.fuse
                steps["MultiHeadAttention"] = ort_attention.fuse
        if alone and _as_stored(model, target):  # after what is judged more strictly than rounding lets
            rounded = target.options.get("activations") == "int8"
            steps[ort_form.ROUNDED if rounded else "MatMulNBits"] = partial(ort_nbits.fuse, level=4 if rounded else 1)
        if target.backend == "onnxruntime":
            steps[ort_joint.NAME] = ort_joint.fuse
        formed = ort_form.formed(model, steps, load)
        if alone:
            formed = foldable(formed)
        if formed is not model:
            save(formed, made[name])
            continue
        for file in files_of(source):
            shutil.copyfile(file, folder / file.name)
    return made


def form(file: Path) -> dict[str, int | str]:
    """Say which operators of ONNX Runtime's own a written file was given, and how often, or why not: {} for a plain one.

    `past_key_values`: where what may be given as the cache is not what the graph's axes say alone, in words.
    """
    from . import ort_form, ort_grouped

    told = ort_form.told(file)
    grouped = isinstance(told.get(ort_grouped.OPERATOR), int)
    return {**told, "past_key_values": ort_grouped.CONTRACT} if grouped else told


def _as_stored(model: onnx.ModelProto, target: Target) -> bool:
    """Say whether weights are multiplied as they are stored: it pays where a token at a time goes through them.

    Then reading them is most of the work. Over many tokens at once arithmetic is, and that is faster on weights that were expanded.
    """
    told = target.options.get("weights", "auto")
    cache = any(value.name.startswith("past") for value in model.graph.input)
    return target.backend == "onnxruntime" and (told == "stored" or (told == "auto" and cache))


def interface(file: Path) -> dict[str, list[dict[str, Any]]]:
    """Return an ONNX file's {"inputs": [{name, dtype, shape}], "outputs": [...]}; a dynamic axis is its name."""
    import onnx

    try:
        graph = onnx.load(str(file), load_external_data=False).graph
    except Exception as error:  # protobuf raises its own types
        reason = first_line(error)
        raise BadInput(f"{file}: cannot be read as ONNX ({reason})") from None
    weights = {tensor.name for tensor in graph.initializer}

    def described(value: Any) -> dict[str, Any]:
        tensor = value.type.tensor_type
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
        shape = [axis.dim_value if axis.HasField("dim_value") else axis.dim_param for axis in tensor.shape.dim]
        return {"name": value.name, "dtype": dtype, "shape": shape}

    inputs = [described(value) for value in graph.input if value.name not in weights]
    return {"inputs": inputs, "outputs": [described(value) for value in graph.output]}


def wrong(file: Path, target: Target) -> list[str]:
    """Return the int8 weights of more than 7 bits, where the device saturates their sums and this machine would not show it."""
    if target.saturates() is None or not host.vnni():
        return []
    import onnx

    wide = [name for name, largest in _int8_weights(onnx.load(str(file)).graph) if largest > _SEVEN_BITS]
    advice = "set calibration.overflow_fix to `on`"
    return [f"weights of {wide[0]} use more than 7 bits: {target.saturates()}; {advice}"] if wide else []


def _int8_weights(graph: onnx.GraphProto) -> Iterator[tuple[str, int]]:
    """Yield (node, largest absolute value) of each convolution or product of quantized activations and 8-bit weights."""
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type == "MatMulInteger" and node.input[1] in tensors:
            values = numpy_helper.to_array(tensors[node.input[1]])
            yield node.name, int(np.abs(values.astype(np.int32)).max(initial=0))
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        made = [makers.get(name) for name in node.input[:2]]
        if not all(m is not None and m.op_type == "DequantizeLinear" for m in made):
            continue
        stored = [tensors[m.input[0]] for m in made if m is not None and m.input[0] in tensors]
        for tensor in stored:
            if node.op_type == "Conv" and len(tensor.dims) > 1 and tensor.dims[1] == 1:
                continue  # depthwise: its kernels add up one product after the other, and NNCF leaves the weights 8 bits
            values = numpy_helper.to_array(tensor)
            if values.dtype == np.int8:
                yield node.name, int(np.abs(values.astype(np.int32)).max(initial=0))


def load(file: Path, target: Target | None = None, threads: int | None = None, exact: bool = False) -> OnnxRuntimeSession:
    """Load one graph file; threads: of one operation (every core when None).

    exact: every optimisation off, so that quantized layers compute in floating point on the values that the file stores.
    That is the reference which ARM and the web agree with, and x86 without VNNI does not: on such a host it also stands for a
    target that is no x86. Raises BadInput for a broken file.
    """
    if reason := missing():
        raise Missing(reason)
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if exact or (target is not None and target.saturates() is None and host.vnni() is False and target.elsewhere()):
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return OnnxRuntimeSession(ort.InferenceSession(str(file), options, providers=[_PROVIDER]))
    except Exception as error:  # the binding's exceptions share no base
        reason = first_line(error)
        raise BadInput(f"{file}: ONNX Runtime cannot load it: {reason}") from None
