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


# ---- the root mean square


def root_mean_square(divides: bool = False, squares: bool = False, swapped: bool = False, axes: int = -1) -> onnx.ModelProto:
    """x / sqrt(mean(x^2) + 0.01) g, as torch's exporter writes it, or in the ways that others do."""

    def node(kind, inputs, output, **told):
        nodes.append(
            helper.make_node(
                kind, inputs[::-1] if swapped and kind in ("Add", "Mul") else inputs, [output], name=output, **told
            )
        )
        return output

    nodes: list[onnx.NodeProto] = []
    square = node("Mul", ["x", "x"], "square") if squares else node("Pow", ["x", "two"], "square")
    root = node("Sqrt", [node("Add", [node("ReduceMean", [square, "axes"], "mean", keepdims=1), "epsilon"], "sum")], "root")
    plain = node("Div", ["x", root], "plain") if divides else node("Mul", ["x", node("Reciprocal", [root], "inverse")], "plain")
    node("Mul", ["g", plain], "y")
    stored = {"two": np.float32(2), "epsilon": np.float32(0.01), "axes": np.array([axes])}
    stored["g"] = np.random.default_rng(0).standard_normal(WIDTH).astype(np.float32)
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", WIDTH, WIDTH]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("divides", [True, False])
@pytest.mark.parametrize("squares", [True, False])
@pytest.mark.parametrize("swapped", [True, False])
def test_a_root_mean_square_becomes_one_node_of_the_same_numbers(divides, squares, swapped):
    made, count = ort_norm.fuse(root_mean_square(divides, squares, swapped))
    assert count == 1
    assert [node.op_type for node in made.graph.node] == [ort_norm.OPERATOR]
    assert {tensor.name for tensor in made.graph.initializer} == {"g"}
    x = np.random.default_rng(1).standard_normal((2, WIDTH, WIDTH)).astype(np.float32)
    g = numpy_helper.to_array(made.graph.initializer[0])
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 0.01) * g
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=1e-5, atol=1e-6)


def test_another_axis_stays():
    plain = root_mean_square(axes=1)
    assert ort_norm.fuse(plain) == (plain, 0)


@pytest.mark.parametrize(("name", "value"), [("two", 3.0), ("g", 1.0)])
def test_another_power_and_a_factor_that_is_no_row_stay(name, value):
    plain = root_mean_square()
    for tensor in plain.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(np.float32(value), name))
    assert ort_norm.fuse(plain) == (plain, 0)


def test_the_runtime_leaves_a_sum_and_a_root_mean_square_apart_by_itself(tmp_path):
    """Where it no longer does, `split` has to keep it from that too."""
    plain = model("Add", None)
    norm = plain.graph.node[2]
    norm.CopyFrom(helper.make_node(ort_norm.OPERATOR, ["s", "g"], ["y"], name="norm", axis=-1, epsilon=1e-5))
    assert loaded(plain, tmp_path) == ["MatMul", "Add", ort_norm.OPERATOR]
