"""Rewritings for ONNX Runtime's int8 kernels: the numbers stay exactly what they were."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from edgekd.quantize.kernels import make_unsigned, widen
from edgekd.quantize.variant import file_runner


def model_of(nodes, constants, shape, result):
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, result),
    ]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def outputs(model, x, file):
    file.write_bytes(model.SerializeToString())
    return file_runner({"m": file})("m", {"x": x})["y"]


def constants_of(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def pair(name, by):
    return [
        helper.make_node("QuantizeLinear", [name, "scale", by], [f"{name}.q"], f"{name}.q"),
        helper.make_node("DequantizeLinear", [f"{name}.q", "scale", by], [f"{name}.d"], f"{name}.d"),
    ]


def test_signed_activations_become_unsigned_and_stand_for_the_same(tmp_path):
    rng = np.random.default_rng(0)
    weights = rng.integers(-127, 128, (4, 3, 1, 1), dtype=np.int8)
    nodes = [
        *pair("x", "zero"),
        helper.make_node("DequantizeLinear", ["w", "scale", "none"], ["w.d"], "w.d"),
        helper.make_node("Conv", ["x.d", "w.d"], ["conv"], "conv"),
        *pair("conv", "zero"),
        helper.make_node("Reshape", ["conv.d", "shape"], ["flat"], "flat"),
        *pair("flat", "zero"),  # the left factor
        helper.make_node("Transpose", ["flat"], ["turned"], "turn", perm=[0, 2, 1]),
        *pair("turned", "other"),  # and the right one
        helper.make_node("MatMul", ["flat.d", "turned.d"], ["y"], "product"),
    ]
    told = {
        "scale": np.float32(0.02),
        "zero": np.int8(-7),
        "other": np.int8(5),
        "none": np.int8(0),
        "w": weights,
        "shape": [0, 4, -1],
    }
    before = model_of(nodes, told, ["n", 3, 4, 4], ["n", 4, 4])
    x = rng.normal(size=(2, 3, 4, 4)).astype(np.float32) * 2  # some beyond the range
    expected = outputs(before, x, tmp_path / "before.onnx")
    make_unsigned(before)
    np.testing.assert_array_equal(outputs(before, x, tmp_path / "after.onnx"), expected)
    made = constants_of(before)
    types = {node.name: made[node.input[2]].dtype for node in before.graph.node if node.op_type == "QuantizeLinear"}
    assert types == {"x.q": np.uint8, "conv.q": np.uint8, "flat.q": np.uint8, "turned.q": np.int8}
    assert made["w"].dtype == np.int8
    assert made["none"].dtype == np.int8


def test_constants_a_channel_become_as_wide_as_the_picture(tmp_path):
    told = {
        "mean": np.arange(3, dtype=np.float32).reshape(1, 3, 1, 1),
        "by": np.float32([2, 3, 4]).reshape(3, 1, 1),
        "half": np.float32(2),
    }
    nodes = [
        helper.make_node("Sub", ["x", "mean"], ["a"], "centre"),
        helper.make_node("Div", ["a", "by"], ["b"], "scale"),
        helper.make_node("Mul", ["b", "half"], ["c"], "halve"),
        helper.make_node("Add", ["c", "mean"], ["y"], "not named"),
    ]
    model = model_of(nodes, told, ["n", 3, 4, 6], ["n", 3, 4, 6])
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 6)).astype(np.float32)
    expected = outputs(model, x, tmp_path / "before.onnx")
    widen(model, ["centre", "scale", "halve"])
    np.testing.assert_array_equal(outputs(model, x, tmp_path / "after.onnx"), expected)
    made = constants_of(model)
    shapes = [made[node.input[1]].shape for node in model.graph.node]
    assert shapes == [(1, 3, 1, 6), (3, 1, 6), (), (1, 3, 1, 1)]


def test_pictures_of_two_widths_share_a_constant():
    mean = np.arange(3, dtype=np.float32).reshape(1, 3, 1, 1)
    nodes = [
        helper.make_node("Sub", ["x", "mean"], ["y"], "first"),
        helper.make_node("Slice", ["x", "start", "end", "axes"], ["left"], "cut"),
        helper.make_node("Sub", ["left", "mean"], ["z"], "second"),
    ]
    told = {"mean": mean, "start": [0], "end": [2], "axes": [3]}
    model = model_of(nodes, told, ["n", 3, 4, 6], ["n", 3, 4, 6])
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 3, 4, 2]))
    widen(model, ["first", "second"])
    made = constants_of(model)
    rows = [made[node.input[1]] for node in model.graph.node if node.op_type == "Sub"]
    assert [row.shape for row in rows] == [(1, 3, 1, 6), (1, 3, 1, 2)]
    assert all(np.array_equal(row, np.repeat(mean, row.shape[3], axis=3)) for row in rows)


def test_constants_stay_where_the_width_is_not_known():
    told = {"mean": np.zeros((1, 3, 1, 1), np.float32)}
    model = model_of([helper.make_node("Sub", ["x", "mean"], ["y"], "centre")], told, ["n", 3, "h", "w"], ["n", 3, "h", "w"])
    before = model.SerializeToString()
    widen(model, ["centre"])
    assert model.SerializeToString() == before
