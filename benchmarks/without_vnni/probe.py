"""What the kernels of the imported ONNX Runtime do, as one JSON line; with files given, what they make of pictures, into OUTPUT.npy.

python probe.py [PICTURES.npy FILE.onnx=OUTPUT.npy ...]
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from edgekd import host

SIDE, CALLS = 512, 40


def session(model: str | bytes) -> Any:
    """Load on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def product(right: np.ndarray, left: np.ndarray) -> tuple[Any, dict[str, np.ndarray]]:
    """Return a session that multiplies `left` by the constant `right` in their own types, and its inputs."""
    integers = right.dtype != np.float32
    kinds = [helper.np_dtype_to_tensor_dtype(left.dtype), TensorProto.INT32 if integers else TensorProto.FLOAT]
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger" if integers else "MatMul", ["left", "right"], ["y"])],
        "product",
        [helper.make_tensor_value_info("left", kinds[0], left.shape)],
        [helper.make_tensor_value_info("y", kinds[1], [left.shape[0], right.shape[1]])],
        [numpy_helper.from_array(right, "right")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return session(model.SerializeToString()), {"left": left}


def seconds(right: np.ndarray, left: np.ndarray) -> float:
    """Return the fastest of CALLS calls of a product."""
    made, inputs = product(right, left)
    best = float("inf")
    for _ in range(CALLS):
        begin = time.perf_counter()
        made.run(None, inputs)
        best = min(best, time.perf_counter() - begin)
    return best


def main() -> None:
    """Print what was seen."""
    made, inputs = product(np.full((4, 1), 127, np.int8), np.full((1, 4), 255, np.uint8))
    square = np.ones((SIDE, SIDE))
    told = {
        "sum_of_4_products_of_255_and_127": int(made.run(None, inputs)[0].item()),
        "exact": 4 * 255 * 127,
        f"u8_times_s8_{SIDE}_s": seconds(square.astype(np.int8), square.astype(np.uint8)),
        f"f32_times_f32_{SIDE}_s": seconds(square.astype(np.float32), square.astype(np.float32)),
        "flags": sorted(set(host.FLAGS) & host.cpu_flags()),
        "vnni": host.vnni(),
    }
    if sys.argv[1:]:
        pictures = np.load(sys.argv[1], allow_pickle=False)
        for file, _, out in (word.partition("=") for word in sys.argv[2:]):
            loaded = session(file)
            np.save(out, loaded.run(None, {loaded.get_inputs()[0].name: pictures})[0])
    print(json.dumps(told))


if __name__ == "__main__":
    main()
