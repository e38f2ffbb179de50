"""An attention layer as torch's exporter writes it, for the tests of what ONNX Runtime's files are made into."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

BATCH, TOKENS, HEADS, SIZE = 2, 7, 3, 4
WIDTH = HEADS * SIZE
MASKED = -1e4


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def weights() -> dict[str, np.ndarray]:
    made = {f"w{part}": random(WIDTH, WIDTH, seed=i) for i, part in enumerate("qkv")}
    made |= {f"b{part}": random(WIDTH, seed=10 + i) for i, part in enumerate("qkv")}
    constants = {"root": np.float32(SIZE**0.5), "one": np.float32(1), "masked": np.float32(MASKED), "axes": np.array([1, 2])}
    shapes = {"heads": np.array([HEADS]), "size": np.array([SIZE]), "open": np.array([-1]), "width": np.array([WIDTH])}
    return made | constants | shapes


def nodes(mask: str = "padding", swapped: bool = False, biased: bool = True, times: bool = False) -> list[onnx.NodeProto]:
    """Return an attention layer as torch's exporter writes it. mask: padding, given (an input of four axes) or none."""

    def node(kind, inputs, output, **attributes):
        made.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    made: list[onnx.NodeProto] = []
    node("Shape", ["x"], "batch", start=0, end=1)
    node("Shape", ["x"], "tokens", start=1, end=2)
    node("Concat", ["batch", "open", "heads", "size"], "cut", axis=0)
    node("Concat", ["batch", "tokens", "width"], "joined", axis=0)
    for part, perm in zip("qkv", ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True):
        made_of = node("MatMul", ["x", f"w{part}"], f"{part}0")
        made_of = node("Add", [made_of, f"b{part}"], f"{part}1") if biased else made_of
        node("Transpose", [node("Reshape", [made_of, "cut"], f"{part}2")], part, perm=perm)
    scores = node("MatMul", ["q", "k"], "scores")
    scores = node("Mul", ["factor", scores], "scaled") if times else node("Div", [scores, "root"], "scaled")
    if mask == "padding":
        wide = node("Cast", [node("Unsqueeze", ["mask", "axes"], "wide")], "float", to=TensorProto.FLOAT)
        node("Mul", [node("Sub", ["one", wide], "less"), "masked"], "added")
    if mask != "none":
        scores = node("Add", ["added", scores] if swapped else [scores, "added"], "sums")
    shares = node("Softmax", [scores], "shares", axis=-1)
    node("Transpose", [node("MatMul", [shares, "v"], "weighted")], "back", perm=[0, 2, 1, 3])
    node("Reshape", ["back", "joined"], "y")
    return made


def network(layer: list[onnx.NodeProto], mask: str = "padding", **changed: np.ndarray) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "tokens", WIDTH])]
    if mask == "padding":
        values.append(helper.make_tensor_value_info("mask", TensorProto.INT64, ["batch", "tokens"]))
    if mask == "given":
        values.append(helper.make_tensor_value_info("added", TensorProto.FLOAT, ["batch", 1, "tokens", "tokens"]))
    output = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    stored = {**weights(), "factor": np.float32(0.3), **changed}
    graph = helper.make_graph(layer, "layer", values, output, [numpy_helper.from_array(v, n) for n, v in stored.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
