"""A Core ML program as it lies in an .mlpackage: its operations in order, its constants as NumPy arrays."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import BadInput
from ..coreml_package import read as read_package
from ..coreml_package import weights_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

_IN_BYTES = {
    "fp16": np.float16,
    "int8": np.int8,
    "uint8": np.uint8,
    "int16": np.int16,
    "uint16": np.uint16,
    "uint32": np.uint32,
}
_LISTED = {"fp32": np.float32, "fp64": np.float64, "int32": np.int32, "int64": np.int64, "bool": np.bool_}
_TYPES = {
    "FLOAT16": "fp16", "FLOAT32": "fp32", "FLOAT64": "fp64", "BOOL": "bool", "STRING": "str", "INT8": "int8", "INT16": "int16",
    "INT32": "int32", "INT64": "int64", "INT4": "int4", "UINT1": "uint1", "UINT2": "uint2", "UINT3": "uint3", "UINT4": "uint4",
    "UINT6": "uint6", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32",
}  # fmt: skip


@dataclass(frozen=True)
class Type:
    """The declared type of a value: dtype as Core ML calls it ("fp16", "int32", ...), shape with None for an axis of any size."""

    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Constant:
    """A constant: an array (integers below 8 bits as int8 or uint8), or a text. dtype: as Core ML calls it."""

    value: Any
    dtype: str


@dataclass(frozen=True)
class Operation:
    """One operation. inputs: parameter -> the names of values, or constants, one or (of a list parameter) several.

    outputs: name and type of each. name: what the converter called it.
    """

    kind: str
    name: str
    inputs: Mapping[str, list[str | Constant]]
    outputs: tuple[tuple[str, Type], ...]


@dataclass(frozen=True)
class Program:
    """A program: one function. inputs: name -> type. pictures: inputs that are images -> "gray" or "RGB"."""

    inputs: Mapping[str, Type]
    outputs: tuple[str, ...]
    operations: tuple[Operation, ...]
    constants: Mapping[str, Constant]
    pictures: Mapping[str, str] = field(default_factory=dict)


def read(path: Path) -> Program:
    """Read the program of an .mlpackage. Raises BadInput for what is no ML program, or not a whole one."""
    try:
        spec = read_package(path)
        if spec.WhichOneof("Type") != "mlProgram":
            raise ValueError(f"it holds a {spec.WhichOneof('Type')}, not an mlProgram")
        function = spec.mlProgram.functions["main"]
        block = function.block_specializations[function.opset]
        files = _Files(weights_folder(path))
        operations, constants = [], {}
        for told in block.operations:
            one = _operation(told, files)
            if one.kind == "const":
                (value,) = one.inputs["val"]
                assert isinstance(value, Constant)
                constants[one.outputs[0][0]] = value
            else:
                operations.append(one)
    except Exception as error:  # protobuf, the reader of weights and the file system have their own
        raise BadInput(f"{path}: cannot be read as a Core ML program ({(str(error) or repr(error)).splitlines()[0]})") from None
    pictures = {
        one.name: "gray" if "GRAY" in _color(one) else "RGB"
        for one in spec.description.input
        if one.type.WhichOneof("Type") == "imageType"
    }
    inputs = {value.name: _type(value.type) for value in function.inputs}
    return Program(inputs, tuple(block.outputs), tuple(operations), constants, pictures)


class _Files:
    """The blobs of constants beside a program, each opened once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, Any] = {}

    def read(self, name: str, offset: int, dtype: str) -> np.ndarray:
        from coremltools.libmilstoragepython import _BlobStorageReader

        file = name.rsplit("/", 1)[-1]
        if file not in self._open:
            self._open[file] = _BlobStorageReader(str(self._folder / file))
        called = "float" if dtype == "fp32" else dtype
        values = getattr(self._open[file], f"read_{called}_data")(offset)
        values = np.asarray(values)
        return values.view(np.float16) if dtype == "fp16" else values


def _operation(told: Any, files: _Files) -> Operation:
    inputs: dict[str, list[str | Constant]] = {}
    for key, argument in told.inputs.items():
        inputs[key] = [
            one.name if one.WhichOneof("binding") == "name" else _value(one.value, files) for one in argument.arguments
        ]
    name = ""
    for key, value in told.attributes.items():  # constants of operations older than iOS 18 stand here
        if key == "name":
            name = str(_value(value, files).value)
        else:
            inputs[key] = [_value(value, files)]
    if told.blocks:
        raise ValueError(f"operation {name} ({told.type}) has blocks of its own: branches and loops are not read")
    outputs = tuple((value.name, _type(value.type)) for value in told.outputs)
    return Operation(told.type, name, inputs, outputs)


def _type(told: Any) -> Type:
    from coremltools.proto import MIL_pb2

    if told.WhichOneof("type") != "tensorType":
        raise ValueError(f"values of {told.WhichOneof('type')} are not read")
    tensor = told.tensorType
    shape = tuple(int(d.constant.size) if d.WhichOneof("dimension") == "constant" else None for d in tensor.dimensions)
    return Type(_TYPES[MIL_pb2.DataType.Name(tensor.dataType)], shape)


def _value(told: Any, files: _Files) -> Constant:
    declared = _type(told.type)
    dtype, shape = declared.dtype, tuple(n or 0 for n in declared.shape)
    if told.WhichOneof("value") == "blobFileValue":
        return Constant(_shaped(files.read(told.blobFileValue.fileName, told.blobFileValue.offset, dtype), shape), dtype)
    tensor = told.immediateValue.tensor
    kind = tensor.WhichOneof("value")
    values = getattr(tensor, kind).values
    if dtype == "str":
        return Constant(str(values[0]) if shape == () else [str(v) for v in values], dtype)
    if kind != "bytes":
        return Constant(_shaped(np.array(list(values), (_LISTED | _IN_BYTES)[dtype]), shape), dtype)
    if dtype in _IN_BYTES:
        return Constant(_shaped(np.frombuffer(values, _IN_BYTES[dtype]), shape), dtype)
    bits = int(dtype.lstrip("uint"))
    stream = np.unpackbits(np.frombuffer(values, np.uint8), bitorder="little")[: int(np.prod(shape)) * bits].reshape(-1, bits)
    unsigned = np.packbits(stream, axis=1, bitorder="little")[:, 0]
    signed = ((unsigned.astype(np.int16) ^ 1 << bits - 1) - (1 << bits - 1)).astype(np.int8)
    return Constant(_shaped(unsigned if dtype.startswith("u") else signed, shape), dtype)


def _shaped(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return values[: int(np.prod(shape, dtype=np.int64))].reshape(shape)


def _color(described: Any) -> str:
    space = described.type.imageType
    return str(space.ColorSpace.Name(space.colorSpace))
