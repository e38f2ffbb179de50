"""The backends of a kit: on a device, this is edgekd.backends. Loads a file with a runtime that is installed there, and runs it.

ONNX Runtime as edgekd/backends/onnxruntime.py has it, written once more: that one needs onnx, Python 3.11 and a runtime that tells
who takes which node, and a device must need none of these; a test holds their outputs against each other. The other runtimes by the parts of check.py, which lie beside this file
there. numpy and the standard library alone, Python 3.8 and up.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

RUNTIMES = {
    "onnxruntime": ("onnxruntime",),
    "onnxruntime_mobile": ("onnxruntime",),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt",),
    "coreml": ("coremltools",),
    "qnn": ("onnxruntime", "onnxruntime_qnn"),
}
"""Backend -> the modules that it needs on the device."""

DISTRIBUTIONS = {
    "numpy": ("numpy",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-qnn", "onnxruntime-openvino", "onnxruntime-directml"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
    "coremltools": ("coremltools",),
    "onnxruntime_qnn": ("onnxruntime-qnn",),
}
"""Module -> what brings it, as pip calls it, the usual one first."""

PARTS = {"openvino": "openvino", "tensorrt": "tensorrt", "coreml": "coremltools", "qnn": "onnxruntime_qnn"}
"""Backend -> the part of check.py that opens its sessions."""

_PROVIDER = "CPUExecutionProvider"


def backend_of(name: str) -> Any:
    """Return the backend of that name: PACKAGES, and load(path, target, threads) -> session. Raises KeyError for one without."""
    return SimpleNamespace(
        PACKAGES=tuple(DISTRIBUTIONS[module][0] for module in RUNTIMES[name]),
        load=_onnxruntime
        if RUNTIMES[name] == ("onnxruntime",)
        else lambda path, target, threads: _by_part(name, path, threads),
    )


class OnnxRuntimeSession:
    """A graph loaded by ONNX Runtime. providers: execution provider -> nodes (0: this version does not tell how many)."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._inputs = [value.name for value in session.get_inputs()]
        self._outputs = [value.name for value in session.get_outputs()]
        self.providers = {_PROVIDER: 0}
        if hasattr(session, "get_provider_graph_assignment_info"):
            taken = {}  # type: dict[str, int]
            for part in session.get_provider_graph_assignment_info():
                taken[part.ep_name] = taken.get(part.ep_name, 0) + len(part.get_nodes())
            self.providers = taken or self.providers

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run once. Inputs that the graph does not have are left out."""
        return dict(zip(self._outputs, self._session.run(self._outputs, {name: inputs[name] for name in self._inputs})))  # noqa: B905

    def bind(self, inputs: Mapping[str, Any]) -> Callable[[], Any]:
        """Return a call that runs these very arrays: what the clock times, no names looked up."""
        run, outputs = self._session.run, self._outputs
        feeds = {name: inputs[name] for name in self._inputs}
        return lambda: run(outputs, feeds)


class Called:
    """A session of which the part of check.py gives the call alone."""

    def __init__(self, call: Callable[[Mapping[str, Any]], dict[str, Any]], name: str) -> None:
        self.run = call
        self.providers = dict(getattr(call, "providers", None) or {name: 0})


def _onnxruntime(path: Path, target: object, threads: int | None) -> OnnxRuntimeSession:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return OnnxRuntimeSession(ort.InferenceSession(str(path), options, providers=[_PROVIDER]))


def _by_part(name: str, path: Path, threads: int | None) -> Called:
    if path.suffix in (".engine", ".plan"):  # built for this very GPU
        engines = importlib.import_module(__name__ + ".build_engine")
        return Called(engines.Engine(engines.tensorrt(), engines.Cuda(), path.read_bytes()), name)
    call, _ = importlib.import_module(__name__ + ".part_" + PARTS[name]).open_session(path, threads or 0)
    return Called(call, name)
