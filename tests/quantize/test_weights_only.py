import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper, numpy_helper

from edgekd.quantize.variant import file_runner
from edgekd.quantize.weights_only import quantize_weights, symmetric_int8


def test_numbers_worked_by_hand():
    q, scale = symmetric_int8(np.array([[1.27, -0.635], [0.2, 2.54]], np.float32), axis=0)
    np.testing.assert_allclose(scale, [0.01, 0.02], rtol=1e-6)
    assert q.tolist() == [[127, -64], [10, 127]]  # -63.5 to the nearest even
    q, scale = symmetric_int8(np.array([[1.27, -0.635], [0.2, 2.54]], np.float32), axis=None)
    assert scale.shape == ()
    assert q.tolist() == [[64, -32], [10, 127]]


@settings(deadline=None)
@given(arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 6)), elements=st.floats(-8, 8, width=32)))
def test_the_error_is_at_most_half_a_step(weights):
    q, scale = symmetric_int8(weights, axis=0)
    assert np.abs(q * scale[:, None] - weights).max() <= scale.max() / 2 * (1 + 1e-5)
    assert np.abs(q.astype(int)).max() <= 127


CASES = {
    "Conv": ((6, 2, 3, 3), {}, [1, 2, 8, 8], 0),
    "ConvTranspose": ((2, 6, 3, 3), {}, [1, 2, 8, 8], 1),
    "Gemm": ((6, 4), {"transB": 1}, [1, 4], 0),
    "Gemm plain": ((4, 6), {}, [1, 4], 1),
    "MatMul": ((4, 6), {}, [1, 3, 4], 1),
}


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_each_operation_computes_with_the_rounded_weights(tmp_path, case, per_channel):
    shape, attributes, x_shape, axis = CASES[case]
    rng = np.random.default_rng(0)
    weights = rng.normal(size=shape).astype(np.float32)
    if per_channel:  # channels of very different sizes: a scale along the wrong axis would show
        weights *= (10.0 ** np.arange(shape[axis], dtype=np.float32)).reshape(
            [-1 if i == axis else 1 for i in range(len(shape))]
        )

    def model(w: np.ndarray) -> onnx.ModelProto:
        node = helper.make_node(case.split()[0], ["x", "w"], ["y"], name="layer", **attributes)
        ends = [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        ]
        graph = helper.make_graph([node], "one", ends[:1], ends[1:], [numpy_helper.from_array(w, "w")])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    others = tuple(i for i in range(len(shape)) if i != axis) if per_channel else None
    step = np.abs(weights).max(axis=others, keepdims=True) / 127
    rounded = (np.round(weights / step) * step).astype(np.float32)
    made = quantize_weights(model(weights), [], per_channel)
    onnx.save(made, tmp_path / "made.onnx")
    onnx.save(model(rounded), tmp_path / "expected.onnx")
    x = {"x": rng.normal(size=x_shape).astype(np.float32)}
    y, expected = (file_runner({"m": tmp_path / f"{name}.onnx"})("m", x)["y"] for name in ("made", "expected"))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert [t.name for t in made.graph.initializer] == ["w_int8", "w_scale"]
    assert [t.name for t in quantize_weights(model(weights), ["layer"], per_channel).graph.initializer] == ["w"]


@pytest.mark.parametrize(("rows", "quantized"), [(400, True), (3, False)])
def test_a_table_that_is_looked_up_has_a_scale_a_row(tmp_path, rows, quantized):
    table = (
        np.random.default_rng(0).normal(size=(rows, 16)).astype(np.float32)
        * np.logspace(-2, 2, rows, dtype=np.float32)[:, None]
    )
    node = helper.make_node("Gather", ["table", "ids"], ["y"], name="look up")
    ends = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, [3]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
    ]
    graph = helper.make_graph([node], "one", ends[:1], ends[1:], [numpy_helper.from_array(table, "table")])
    made = quantize_weights(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), ())
    onnx.save(made, tmp_path / "model.onnx")
    ids = np.array([0, 2, rows - 1])
    found = file_runner({"model": tmp_path / "model.onnx"})("model", {"ids": ids})["y"]
    step = np.abs(table).max(axis=1, keepdims=True) / 127
    expected = np.rint(table / step) * step if quantized else table
    np.testing.assert_allclose(found, expected[ids], rtol=1e-5)
    assert ("DequantizeLinear" in [n.op_type for n in made.graph.node]) == quantized


def test_a_table_that_is_the_output_layer_too(tmp_path):
    table = np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)
    nodes = [
        helper.make_node("Transpose", ["table"], ["head"], name="turn", perm=[1, 0]),
        helper.make_node("Gather", ["table", "ids"], ["x"], name="look up"),
        helper.make_node("MatMul", ["x", "head"], ["y"], name="out"),
    ]
    ends = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, [3]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
    ]
    graph = helper.make_graph(nodes, "one", ends[:1], ends[1:], [numpy_helper.from_array(table, "table")])
    made = quantize_weights(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), ())
    onnx.save(made, tmp_path / "model.onnx")
    found = file_runner({"model": tmp_path / "model.onnx"})("model", {"ids": np.array([0, 2, 7])})["y"]
    step = np.abs(table).max(axis=1, keepdims=True) / 127
    rounded = np.rint(table / step) * step
    np.testing.assert_allclose(found, rounded[[0, 2, 7]] @ rounded.T, rtol=1e-4, atol=1e-4)
    assert [t.dims for t in made.graph.initializer if t.data_type == TensorProto.INT8] == [[300, 16]]
