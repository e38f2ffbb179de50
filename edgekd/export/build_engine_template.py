#!/usr/bin/env python3
"""Build this artifact's TensorRT engines, on the device that they are to run on.

    python build_engine.py               (needs TensorRT 10 or 11 with its Python package, nothing else)
    python build_engine.py --rebuild     (even where a fitting engine lies here)

Each NAME.onnx becomes NAME.engine, and NAME.engine.json beside it says for which version of TensorRT, which GPU and which file.
An engine works on that version and that GPU alone: one that was built for others is never used, but built again.

Exit codes: 0 every engine is ready; 3 a file is wrong or cannot be built; 4 TensorRT, a GPU or its driver is missing.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

RIGHT, WRONG, MISSING = 0, 3, 4
MAJORS = (10, 11)
_TYPES = {
    "FLOAT": "float32", "HALF": "float16", "INT8": "int8", "INT32": "int32", "INT64": "int64", "UINT8": "uint8", "BOOL": "bool",
}  # fmt: skip


class Unavailable(RuntimeError):
    """TensorRT, a GPU or its driver is not here; the message says what to do."""


class Unbuildable(RuntimeError):
    """TensorRT does not take the file."""


def tensorrt() -> Any:
    """Import TensorRT. Raises Unavailable where it is missing, or of a version that this file was not written for."""
    try:
        trt: Any = importlib.import_module("tensorrt")
    except ImportError as error:
        raise Unavailable(
            f"TensorRT is not installed here ({error}); JetPack brings it, elsewhere: pip install tensorrt"
        ) from None
    version = str(getattr(trt, "__version__", "0"))
    if int(version.split(".")[0]) not in MAJORS:
        raise Unavailable(f"TensorRT {version}: these files are for TensorRT {' and '.join(map(str, MAJORS))}")
    return trt


class Cuda:
    """The few calls of the CUDA driver that running an engine takes: no other package is needed.

    name: of the GPU. capability: such as "8.7". Raises Unavailable without a driver or a GPU.
    """

    def __init__(self, library: Any = None) -> None:
        try:
            self._library = library or ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        except OSError as error:
            raise Unavailable(f"there is no NVIDIA driver here ({error})") from None
        device, context = ctypes.c_int(), ctypes.c_void_p()
        for step in (("cuInit", 0), ("cuDeviceGet", ctypes.byref(device), 0)):
            if getattr(self._library, step[0])(*step[1:]):
                raise Unavailable("there is no NVIDIA GPU here")
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)
        text = ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", text, 256, device)
        self.name = text.value.decode()
        numbers = []
        for attribute in (75, 76):  # compute capability, major and minor
            number = ctypes.c_int()
            self.call("cuDeviceGetAttribute", ctypes.byref(number), attribute, device)
            numbers.append(number.value)
        self.capability = f"{numbers[0]}.{numbers[1]}"

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the driver. Raises RuntimeError where it fails."""
        if code := getattr(self._library, name)(*arguments):
            raise RuntimeError(f"CUDA: {name} failed with error {code}")

    def stream(self) -> int:
        """Make a stream."""
        made = ctypes.c_void_p()
        self.call("cuStreamCreate", ctypes.byref(made), 0)
        return int(made.value or 0)

    def reserve(self, size: int) -> int:
        """Reserve memory on the GPU; return its address."""
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        return int(address.value)

    def free(self, address: int) -> None:
        """Give memory back."""
        self.call("cuMemFree_v2", ctypes.c_uint64(address))


def build(trt: Any, file: Path, profile: Any = None, workspace_mib: int = 0) -> bytes:
    """Build an engine from an ONNX file; return it serialized. Raises Unbuildable with what TensorRT says.

    Every tensor is computed in the type that the file gives it (a strongly typed network). profile: input name -> [smallest,
    usual, largest shape] for a file with dynamic axes. workspace_mib: memory for trying kernels out; 0: all that is free.
    """
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    # Since TensorRT 11 there are no other networks, and the flag is going away. Batches have been explicit since TensorRT 10.
    typed = 0 if int(trt.__version__.split(".")[0]) >= 11 else 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(file)):
        said = [str(parser.get_error(at)) for at in range(parser.num_errors)] or ["it does not say why"]
        raise Unbuildable(f"{file.name}: TensorRT cannot read it: {said[0]}")
    config = builder.create_builder_config()
    if hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default: 32-bit floats would lose 13 bits in silence
    if workspace_mib:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib << 20)
    if profile:
        chosen = builder.create_optimization_profile()
        for name, shapes in profile.items():
            chosen.set_shape(name, *(tuple(shape) for shape in shapes))
        config.add_optimization_profile(chosen)
    made = builder.build_serialized_network(network, config)
    if made is None:
        raise Unbuildable(f"{file.name}: TensorRT builds no engine from it; its messages above say why")
    return bytes(made)


class Engine:
    """An engine, ready to run. Called with input name -> NumPy array, returns output name -> array; any number of samples.

    providers: {"TensorRT": layers of the engine}.
    """

    def __init__(self, trt: Any, cuda: Any, serialized: bytes) -> None:
        self._trt, self._cuda = trt, cuda
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        self._engine = self._runtime.deserialize_cuda_engine(serialized)
        if self._engine is None:
            raise Unbuildable("TensorRT cannot load the engine; build it again with --rebuild")
        self._context = self._engine.create_execution_context()
        self._stream = cuda.stream()
        names = [self._engine.get_tensor_name(at) for at in range(self._engine.num_io_tensors)]
        given = trt.TensorIOMode.INPUT
        self.inputs = [name for name in names if self._engine.get_tensor_mode(name) == given]
        self.outputs = [name for name in names if name not in self.inputs]
        self.providers = {"TensorRT": int(getattr(self._engine, "num_layers", 0))}
        self._memory: dict[str, tuple[int, int]] = {}

    def __call__(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Run, in parts of the largest batch that the engine was built for."""
        import numpy as np

        shape = tuple(self._engine.get_tensor_shape(self.inputs[0]))
        most = shape[0]
        if most == -1:
            most = next(iter(self._engine.get_tensor_profile_shape(self.inputs[0], 0)[2]))
        count = len(inputs[self.inputs[0]])
        parts = []
        for start in range(0, count, most):
            stop = min(start + most, count)
            at = np.arange(start, start + most if shape[0] != -1 else stop).clip(max=count - 1)
            parts.append(self._once(np, {name: inputs[name][at] for name in self.inputs}))
        return {name: np.concatenate([part[name] for part in parts])[:count] for name in self.outputs}

    def _once(self, np: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        for name, values in inputs.items():
            values = np.ascontiguousarray(values, self._type(name))
            if not self._context.set_input_shape(name, tuple(values.shape)):
                raise RuntimeError(f"the engine takes no `{name}` of shape {tuple(values.shape)}")
            address = self._place(name, values.nbytes)
            self._cuda.call(
                "cuMemcpyHtoD_v2", ctypes.c_uint64(address), ctypes.c_void_p(values.ctypes.data), ctypes.c_size_t(values.nbytes)
            )
        made = {}
        for name in self.outputs:
            made[name] = np.empty(tuple(self._context.get_tensor_shape(name)), self._type(name))
            self._place(name, made[name].nbytes)
        if not self._context.execute_async_v3(self._stream):
            raise RuntimeError("TensorRT does not run the engine; its messages above say why")
        self._cuda.call("cuStreamSynchronize", ctypes.c_void_p(self._stream))
        for name, values in made.items():
            address = self._memory[name][0]
            self._cuda.call(
                "cuMemcpyDtoH_v2", ctypes.c_void_p(values.ctypes.data), ctypes.c_uint64(address), ctypes.c_size_t(values.nbytes)
            )
        return made

    def _type(self, name: str) -> str:
        return _TYPES[self._engine.get_tensor_dtype(name).name]

    def _place(self, name: str, size: int) -> int:
        """Give a tensor memory on the GPU, and tell the engine where."""
        address, room = self._memory.get(name, (0, -1))
        if room < size:
            if room >= 0:
                self._cuda.free(address)
            address = self._cuda.reserve(size)
            self._memory[name] = (address, size)
        self._context.set_tensor_address(name, address)
        return address


def misfit(engine: Path, file: Path, version: str, gpu: str) -> str:
    """Say why an engine that lies here cannot be used; "" when it can. gpu: name and compute capability."""
    if not engine.is_file():
        return "there is none yet"
    try:
        told = json.loads(engine.with_name(f"{engine.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "nothing says what it was built for"
    here = {"tensorrt": version, "gpu": gpu, "onnx_sha256": sha256(file), "engine_sha256": sha256(engine)}
    for key, value in here.items():
        if not isinstance(told, dict) or told.get(key) != value:
            return f"its {key} is {told.get(key) if isinstance(told, dict) else None}, here it is {value}"
    return ""


def ready(file: Path, rebuild: bool = False, say: Any = print) -> bytes:
    """Return the serialized engine of one ONNX file, built now unless a fitting one lies beside it.

    Raises Unavailable, Unbuildable, and ValueError for a file that is not the one build_engine.json describes.
    """
    told = json.loads(file.with_name("build_engine.json").read_text(encoding="utf-8"))
    graph = next((graph for graph in told["graphs"].values() if graph["file"] == file.name), None)
    if graph is None or sha256(file) != graph["sha256"]:
        raise ValueError(
            f"{file.name}: damaged or replaced (its SHA-256 is not that of build_engine.json); copy the folder again"
        )
    trt, cuda = tensorrt(), Cuda()
    gpu = f"{cuda.name} ({cuda.capability})"
    engine = file.with_suffix(".engine")
    reason = "asked for" if rebuild else misfit(engine, file, str(trt.__version__), gpu)
    if not reason:
        return engine.read_bytes()
    say(f"{engine.name}: building for TensorRT {trt.__version__} on {gpu}: {reason}")
    start = time.perf_counter()
    made = build(trt, file, graph["profile"], int(told.get("workspace_mib", 0)))
    record = {
        "tensorrt": str(trt.__version__),
        "gpu": gpu,
        "onnx_sha256": sha256(file),
        "engine_sha256": hashlib.sha256(made).hexdigest(),
        "seconds": round(time.perf_counter() - start, 3),
    }
    engine.write_bytes(made)
    engine.with_name(f"{engine.name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return made


def sha256(file: Path) -> str:
    """Return a file's SHA-256."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def main() -> int:
    """Parse the command line, build what is not ready; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rebuild", action="store_true", help="build even where a fitting engine lies here")
    options = parser.parse_args()
    here = Path(__file__).resolve().parent
    try:
        told = json.loads((here / "build_engine.json").read_text(encoding="utf-8"))
        for graph in told["graphs"].values():
            made = ready(here / graph["file"], options.rebuild)
            print(f"{Path(graph['file']).with_suffix('.engine')}: ready, {len(made)} bytes")
    except Unavailable as error:
        print(error, file=sys.stderr)
        return MISSING
    except (Unbuildable, ValueError, KeyError, OSError) as error:
        print(f"WRONG {error}", file=sys.stderr)
        return WRONG
    return RIGHT


if __name__ == "__main__":
    sys.exit(main())
