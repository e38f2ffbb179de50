"""The work that is timed: a stack of equal layers, so that 5 % more layers are 5 % more work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LAYERS = 40
WIDTH = 256
ROWS = 32


def stack(file: Path, layers: int = LAYERS, seed: int = 0) -> Path:
    """Write an ONNX file of `layers` products with a matrix of their own, each behind a ReLU: no layer can be merged away."""
    random = np.random.default_rng(seed)
    nodes, weights = [], []
    for i in range(layers):
        matrix = (random.standard_normal((WIDTH, WIDTH)) / np.sqrt(WIDTH / 2)).astype(np.float32)
        weights.append(numpy_helper.from_array(matrix, f"w{i}"))
        nodes += [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"y{i}"]), helper.make_node("Relu", [f"y{i}"], [f"x{i + 1}"])]
    graph = helper.make_graph(
        nodes,
        "stack",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, [ROWS, WIDTH])],
        [helper.make_tensor_value_info(f"x{layers}", TensorProto.FLOAT, [ROWS, WIDTH])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    return file
