"""Tiny networks that the QNN tests share, written by hand."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekd.targets import Target

PIXELS = (8, 8, 3)


def target(**options) -> Target:
    """A Snapdragon 8 Gen 3 with other options."""
    return Target(
        "phone", "A phone", "qnn", device="phone", stores=("fp32", "w8a8", "w8a16"), precision="fp16", quantizer="qnn",
        limits={"opset": 21, "static": True, "operators_refused": ["Einsum"]}, options={"soc_model": 57} | options,
    )  # fmt: skip


def model(nodes, tensors, outputs=(10,), opset=20, axes=("batch",), dtype=TensorProto.UINT8):
    ends = [
        helper.make_tensor_value_info("image", dtype, [*axes, *PIXELS]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [*axes, *outputs]),
    ]
    weights = [numpy_helper.from_array(np.asarray(values), name) for name, values in tensors.items()]
    graph = helper.make_graph(
        [helper.make_node(*n[:3], name=f"n{i}", **n[3]) for i, n in enumerate(nodes)], "g", ends[:1], ends[1:], weights
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def convnet(between=(), tensors=None):
    """Bytes -> floats -> convolution -> ReLU -> mean -> linear; `between` are more nodes that make `c` from `r`."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    weights = {
        "scale": np.float32(1 / 64), "shift": np.float32(-2), "w": normal(12, 3, 3, 3) / 4, "b": normal(12),
        "plane": np.array([2, 3]), "m": normal(12, 10) / 3,
    }  # fmt: skip
    nodes = [
        ("Transpose", ["image"], ["t"], {"perm": [0, 3, 1, 2]}),
        ("Cast", ["t"], ["f"], {"to": TensorProto.FLOAT}),
        ("Mul", ["f", "scale"], ["scaled"], {}),
        ("Add", ["scaled", "shift"], ["x"], {}),
        ("Conv", ["x", "w", "b"], ["conv"], {"pads": [1, 1, 1, 1]}),
        ("Relu", ["conv"], ["r"], {}),
        *(between or [("Identity", ["r"], ["c"], {})]),
        ("ReduceMean", ["c", "plane"], ["pooled"], {"keepdims": 0}),
        ("MatMul", ["pooled", "m"], ["y"], {}),
    ]
    return model(nodes, weights | (tensors or {}))


def pictures(count, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (count, *PIXELS), dtype=np.uint8)


def save(made, folder, name="model"):
    onnx.checker.check_model(made)
    file = folder / f"{name}.onnx"
    onnx.save(made, file)
    return file
