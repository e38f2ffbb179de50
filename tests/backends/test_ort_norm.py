import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.backends import ort_norm

WIDTH = 8


def model(kind: str, shape: list[int] | None) -> onnx.ModelProto:
    """x + x @ w, or x + a constant of some shape, and a LayerNormalization after it."""
    other = "p" if shape is None else "c"
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], name="product"),
        helper.make_node(kind, ["x" if shape is None else "p", other], ["s"], name="sum"),
        helper.make_node("LayerNormalization", ["s", "g", "b"], ["y"], name="norm", axis=-1),
    ]
    rng = np.random.default_rng(0)
    stored = {"w": (WIDTH, WIDTH), "g": (WIDTH,), "b": (WIDTH,), "c": tuple(shape or (1,))}
    tensors = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), name) for name, s in stored.items()]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", "tokens", WIDTH]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def loaded(made: onnx.ModelProto, folder) -> list[str]:
    """Return the operators that ONNX Runtime makes of a model."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]


def test_the_runtime_leaves_them_apart(tmp_path):
    """Where it no longer fuses a sum with the LayerNormalization after it, there is nothing left to keep it from."""
    plain = model("Add", None)
    assert "SkipLayerNormalization" in loaded(plain, tmp_path)
    made, count = ort_norm.split(plain)
    assert count == 1
    assert loaded(made, tmp_path) == ["MatMul", "Sum", "LayerNormalization"]


def test_it_computes_the_same(tmp_path):
    plain = model("Add", None)
    x = np.random.default_rng(1).standard_normal((2, 3, WIDTH)).astype(np.float32)
    outputs = []
    for one in (plain, ort_norm.split(plain)[0]):
        session = ort.InferenceSession(one.SerializeToString(), providers=["CPUExecutionProvider"])
        outputs.append(session.run(None, {"x": x})[0])
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "shape"), [("Mul", None), ("Add", [WIDTH])])
def test_other_operators_and_biases_are_left_alone(kind, shape):
    plain = model(kind, shape)
    assert ort_norm.split(plain) == (plain, 0)
