"""OpenVINO, on the device that the file was made for and no other."""

from __future__ import annotations

import errno
import time
from pathlib import Path
from typing import Any

NEEDS = ("numpy", "openvino")


def version() -> str:
    """Return OpenVINO's version. Raises ImportError where it is not installed."""
    import openvino

    return str(openvino.__version__)


def open_session(path: Path, threads: int) -> tuple[Any, float]:
    """Load one IR; return (call, seconds). Raises OSError where its device is not here: AUTO would fall back in silence."""
    import openvino as ov

    core = ov.Core()
    start = time.perf_counter()
    model = core.read_model(str(path))
    device = model.get_rt_info(["edgekd", "device"]).astype(str)
    here = sorted({name.partition(".")[0] for name in core.available_devices})
    if device not in here:
        raise OSError(
            errno.ENODEV,
            f"no {device} here: OpenVINO finds {', '.join(here) or 'nothing'}; on Linux an NPU needs Intel's driver",
        )
    settings = {"PERFORMANCE_HINT": "LATENCY"}
    if device == "CPU":  # else bfloat16 where the CPU can, and inputs quantized where weights are integers
        settings.update({"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"})
        if threads:
            settings["INFERENCE_NUM_THREADS"] = str(threads)
    compiled = core.compile_model(model, device, settings)
    request = compiled.create_infer_request()
    seconds = time.perf_counter() - start
    takes = [port.get_any_name() for port in compiled.inputs]
    gives = [min(port.get_node().output(0).get_names()) for port in compiled.outputs]

    class Call:
        providers = {device: len(compiled.get_runtime_model().get_ops())}  # noqa: RUF012 - a plain function could not have it

        def __call__(self, inputs: dict[str, Any]) -> dict[str, Any]:
            made = request.infer({name: inputs[name] for name in takes})
            return {name: values.copy() for name, values in zip(gives, made.to_tuple())}  # noqa: B905 - not in Python 3.8

    return Call(), seconds
