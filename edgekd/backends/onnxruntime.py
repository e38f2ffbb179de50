"""ONNX Runtime on the CPU."""

from __future__ import annotations

import importlib.util
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BadInput, Missing
from ..targets import covers

if TYPE_CHECKING:
    from ..export.graph import Arrays
    from ..quantize.variant import Variant
    from ..recipe import Scheme
    from ..targets import Target

_PROVIDER = "CPUExecutionProvider"


class OnnxRuntimeSession:
    """A graph loaded by ONNX Runtime. providers: execution provider -> nodes it took (after the graph was simplified)."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._inputs = [value.name for value in session.get_inputs()]
        self._outputs = [value.name for value in session.get_outputs()]
        taken: Counter[str] = Counter()
        for part in session.get_provider_graph_assignment_info():
            taken[part.ep_name] += len(part.get_nodes())
        self.providers: dict[str, int] = dict(sorted(taken.items()))

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run once. Inputs that the graph does not have are left out."""
        made = self._session.run(self._outputs, {name: inputs[name] for name in self._inputs})
        return dict(zip(self._outputs, made, strict=True))


def missing() -> str | None:
    """Say what is not installed here and how to get it; None when all is here."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime is not installed here: pip install 'edgekd[onnxruntime]'"
    return None


def refuses(scheme: Scheme, target: Target) -> str | None:
    """Say why this scheme cannot be stored for this target, and what to change; None when it can."""
    if covers(target.stores, scheme.label):
        return None
    return f"{target.title} cannot store {scheme.label}: it stores {', '.join(target.stores)}. Change the variant's bits or the target"


def convert(variant: Variant, target: Target, folder: Path) -> dict[str, Path]:
    """Copy the variant's ONNX files, which are what the runtime reads. Weights alone in integers are made so that it expands them
    once, on loading, not at every call.
    """
    import onnx

    from ..export.onnx import files_of, save
    from ..quantize.packed import foldable

    made = {}
    for name, source in variant.graphs.items():
        made[name] = folder / source.name
        if variant.scheme.weights and not variant.scheme.activations:
            save(foldable(onnx.load(str(source))), made[name])
            continue
        for file in files_of(source):
            shutil.copyfile(file, folder / file.name)
    return made


def load(file: Path, target: Target | None = None, threads: int | None = None, exact: bool = False) -> OnnxRuntimeSession:
    """Load one graph file; threads: of one operation (every core when None).

    exact: every optimisation off, so that quantized layers compute in floating point on the values that the file stores.
    That is the reference which ARM and the web agree with, and x86 without VNNI does not. Raises BadInput for a broken file.
    """
    if reason := missing():
        raise Missing(reason)
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if exact:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return OnnxRuntimeSession(ort.InferenceSession(str(file), options, providers=[_PROVIDER]))
    except Exception as error:  # the binding's exceptions share no base
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInput(f"{file}: ONNX Runtime cannot load it: {reason}") from None
