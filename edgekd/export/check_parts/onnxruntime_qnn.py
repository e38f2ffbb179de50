"""ONNX Runtime with QNN, on the Snapdragon itself: its HTP, and nothing on the CPU. On x86 Qualcomm's library simulates the HTP."""

from __future__ import annotations

import errno
import importlib
import platform
import time
from pathlib import Path
from typing import Any

NEEDS = ("numpy", "onnxruntime", "onnxruntime-qnn")
SIMULATED: dict[str, Any] = {}


def version() -> str:
    """Return the versions of ONNX Runtime and of QNN. Raises ImportError where one is not installed."""
    import onnxruntime

    qnn = importlib.import_module("onnxruntime_qnn")
    return f"{onnxruntime.__version__} with QNN {qnn.__version__}"


def about() -> dict[str, Any]:
    """Return what a session told of the HTP: that it is simulated."""
    return SIMULATED


def open_session(path: Path, threads: int) -> tuple[Any, float]:
    """Load one compiled graph; return (call, seconds). Runs one sample at a time, as it is compiled. Raises OSError without an HTP."""
    import numpy as np
    import onnxruntime as ort

    qnn = importlib.import_module("onnxruntime_qnn")
    provider = "QNNExecutionProvider"
    if not [device for device in ort.get_ep_devices() if device.ep_name == provider]:
        ort.register_execution_provider_library(provider, qnn.get_library_path())
    found = [device for device in ort.get_ep_devices() if device.ep_name == provider]
    npu = [device for device in found if device.device.type == ort.OrtHardwareDeviceType.NPU]
    devices = npu or found  # the simulator is a CPU, and so is an HTP on Linux, where ONNX Runtime lists no NPUs
    simulated = not npu and platform.machine().lower() in ("x86_64", "amd64")  # Qualcomm has none for ARM
    elsewhere = (
        "this machine has no HTP that QNN can reach; run check.py on the Snapdragon, in Python on Windows or Linux "
        "(on Android, load the .onnx file in the app with the onnxruntime-android-qnn package)"
    )
    if not devices:
        raise OSError(errno.ENODEV, elsewhere)
    if simulated:
        SIMULATED.update(emulator="HTP simulator", simulator=True)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.add_provider_for_devices(devices[:1], {"backend_path": qnn.get_qnn_htp_path(), "htp_performance_mode": "burst"})
    start = time.perf_counter()
    try:
        session = ort.InferenceSession(str(path), options)
    except Exception as error:
        if npu or simulated:
            raise
        raise OSError(errno.ENODEV, f"{elsewhere}: {' '.join(str(error).split())[:200]}") from None
    seconds = time.perf_counter() - start
    takes = [value.name for value in session.get_inputs()]
    gives = [value.name for value in session.get_outputs()]

    def call(inputs: dict[str, Any]) -> dict[str, Any]:
        count = len(inputs[takes[0]])
        made = [session.run(gives, {name: inputs[name][i : i + 1] for name in takes}) for i in range(count)]
        return {name: np.concatenate([outputs[i] for outputs in made]) for i, name in enumerate(gives)}

    taken: dict[str, int] = {}
    for part in session.get_provider_graph_assignment_info():
        taken[part.ep_name] = taken.get(part.ep_name, 0) + len(part.get_nodes())
    call.providers = taken  # type: ignore[attr-defined]
    return call, seconds
