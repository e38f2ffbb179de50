"""A TensorRT and a CUDA driver that record what is asked of them, and compute with ONNX Runtime: no GPU, the real call sequence.

It offers the API that each version documents, and nothing else: version 11 has no STRONGLY_TYPED flag and no precision flags.
"""

import ctypes
import enum
import types

import numpy as np
import onnx
import onnxruntime


class DataType(enum.Enum):
    FLOAT, HALF, INT8, INT32, INT64, UINT8, BOOL = range(7)


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


TYPES = {"tensor(float)": DataType.FLOAT, "tensor(uint8)": DataType.UINT8, "tensor(float16)": DataType.HALF}


class Driver:
    """libcuda: memory on "the GPU" is memory of this process."""

    def __init__(self, devices=1, name=b"Test GPU", capability=(8, 7)):
        self.devices, self.name, self.capability = devices, name, capability
        self.buffers, self.calls = {}, []

    def __getattr__(self, function):
        def call(*arguments):
            self.calls.append(function)
            own = getattr(type(self), f"_{function}", None)
            return own(self, *arguments) if own else 0

        return call

    def _cuDeviceGet(self, device, at):
        return 0 if at < self.devices else 101

    def _cuDeviceGetName(self, text, size, device):
        text.value = self.name
        return 0

    def _cuDeviceGetAttribute(self, number, attribute, device):
        number._obj.value = self.capability[attribute - 75]
        return 0

    def _cuStreamCreate(self, made, flags):
        made._obj.value = 7
        return 0

    def _cuMemAlloc_v2(self, address, size):
        buffer = ctypes.create_string_buffer(size.value)
        address._obj.value = ctypes.addressof(buffer)
        self.buffers[address._obj.value] = buffer
        return 0

    def _cuMemFree_v2(self, address):
        del self.buffers[address.value]
        return 0

    def _cuMemcpyHtoD_v2(self, to, source, size):
        ctypes.memmove(self.buffers[to.value], source, size.value)
        return 0

    def _cuMemcpyDtoH_v2(self, to, source, size):
        ctypes.memmove(to, self.buffers[source.value], size.value)
        return 0


def module(version, calls, broken=""):
    """Return a `tensorrt` of that version; what it is asked goes to the list `calls`. broken: what the parser says."""
    major = int(version.split(".")[0])
    trt = types.SimpleNamespace(__version__=version, DataType=DataType, TensorIOMode=TensorIOMode)

    def note(*call):
        calls.append(call)

    class Logger:
        WARNING = 2

        def __init__(self, severity):
            note("Logger", severity)

    class Network:
        file = None

    class Parser:
        def __init__(self, network, logger):
            self.network, self.num_errors = network, int(bool(broken))

        def parse_from_file(self, path):
            note("parse_from_file", path)
            self.network.file = path
            return not broken

        def get_error(self, at):
            return broken

    class Profile:
        def set_shape(self, name, least, usual, most):
            note("set_shape", name, least, usual, most)
            self.most = most

    class Config:
        profile = None

        def clear_flag(self, flag):
            note("clear_flag", flag)

        def set_memory_pool_limit(self, pool, size):
            note("set_memory_pool_limit", pool, size)

        def add_optimization_profile(self, profile):
            note("add_optimization_profile")
            self.profile = profile

    class Builder:
        def __init__(self, logger):
            note("Builder")

        def create_network(self, flags=0):
            note("create_network", flags)
            return Network()

        def create_builder_config(self):
            return Config()

        def create_optimization_profile(self):
            return Profile()

        def build_serialized_network(self, network, config):
            note("build_serialized_network")
            most = config.profile.most[0] if config.profile else 0
            with open(network.file, "rb") as file:
                return memoryview(most.to_bytes(4, "big") + file.read())

    class Context:
        def __init__(self, session, shapes):
            self.session, self.shapes, self.at = session, shapes, {}

        def set_input_shape(self, name, shape):
            note("set_input_shape", name, shape)
            fixed = self.shapes[name]
            self.given = shape
            return len(fixed) == len(shape) and all(f in (-1, n) for f, n in zip(fixed, shape, strict=True))

        def get_tensor_shape(self, name):
            return tuple(self.given[0] if n == -1 else n for n in self.shapes[name])

        def set_tensor_address(self, name, address):
            self.at[name] = address

        def execute_async_v3(self, stream):
            note("execute_async_v3", stream)
            inputs = {}
            for value in self.session.get_inputs():
                dtype = np.dtype(TYPES[value.type].name.lower().replace("float", "float32"))
                size = int(np.prod(self.given)) * dtype.itemsize
                inputs[value.name] = np.frombuffer(ctypes.string_at(self.at[value.name], size), dtype).reshape(self.given)
            for value, made in zip(self.session.get_outputs(), self.session.run(None, inputs), strict=True):
                ctypes.memmove(self.at[value.name], made.tobytes(), made.nbytes)
            return True

    class Engine:
        num_layers = 3

        def __init__(self, content):
            self.most, model = int.from_bytes(content[:4], "big"), content[4:]
            self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
            self.values = [*self.session.get_inputs(), *self.session.get_outputs()]
            graph = onnx.load_from_string(model).graph
            axes = {v.name: v.type.tensor_type.shape.dim for v in (*graph.input, *graph.output)}
            self.shapes = {k: tuple(a.dim_value if a.HasField("dim_value") else -1 for a in of) for k, of in axes.items()}
            self.num_io_tensors = len(self.values)

        def get_tensor_name(self, at):
            return self.values[at].name

        def get_tensor_mode(self, name):
            given = name in [value.name for value in self.session.get_inputs()]
            return TensorIOMode.INPUT if given else TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name):
            return TYPES[next(value.type for value in self.values if value.name == name)]

        def get_tensor_shape(self, name):
            return self.shapes[name]

        def get_tensor_profile_shape(self, name, at):
            return [(n, *self.shapes[name][1:]) for n in (1, 1, self.most)]

        def create_execution_context(self):
            return Context(self.session, self.shapes)

    class Runtime:
        def __init__(self, logger):
            note("Runtime")

        def deserialize_cuda_engine(self, content):
            note("deserialize_cuda_engine")
            return Engine(content) if len(content) > 10 else None

    trt.Logger, trt.OnnxParser, trt.Builder, trt.Runtime = Logger, Parser, Builder, Runtime
    trt.BuilderFlag = types.SimpleNamespace(TF32="TF32")
    trt.MemoryPoolType = types.SimpleNamespace(WORKSPACE="WORKSPACE")
    trt.NetworkDefinitionCreationFlag = types.SimpleNamespace(**({"STRONGLY_TYPED": 1} if major < 11 else {}))
    return trt
