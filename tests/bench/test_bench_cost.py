"""FLOPs and bytes against counts by hand, written out beside each graph, and against PyTorch's own counter."""

from math import prod
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edgekd.bench import macs, shapes
from edgekd.bench.cost import Cost, cost
from edgekd.errors import BadInput
from edgekd.quantize import packing

FLOAT, BYTES = TensorProto.FLOAT, 4


def saved(path: Path, nodes: list, inputs: dict, outputs: dict, constants: dict, opset: int = 21, **more: object) -> Path:
    """Write a model. inputs, outputs: name -> (type, shape). constants: name -> array."""
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(n, *v) for n, v in inputs.items()],
        [helper.make_tensor_value_info(n, *v) for n, v in outputs.items()],
        [numpy_helper.from_array(np.asarray(v), n) if not isinstance(v, onnx.TensorProto) else v for n, v in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("edgekd", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, **more)
    onnx.save(model, path)
    return path


def zeros(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


def by_name(found: Cost) -> dict[str, int]:
    return {node.name: node.macs for node in found.nodes}


def test_a_strided_padded_grouped_convolution_with_bias(tmp_path: Path):
    file = saved(
        tmp_path / "conv.onnx",
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], "conv", strides=[2, 2], pads=[1, 1, 1, 1], group=2)],
        {"x": (FLOAT, ["n", 4, 9, 9])}, {"y": (FLOAT, ["n", 6, None, None])}, {"w": zeros(6, 2, 3, 3), "b": zeros(6)},
    )  # fmt: skip
    found = cost(file, {"x": (3, 4, 9, 9)})
    # 9 wide, padded to 11, kernel 3, stride 2: 5. Each output sees 2 channels (4 in 2 groups) of 3 x 3.
    values = 3 * 6 * 5 * 5
    assert found.macs == values * 2 * 3 * 3 == 8100
    assert found.flops == 2 * 8100 + values  # and the bias once an output
    assert found.int8_macs == 0
    assert found.weights_bytes == found.weights_read_bytes == (6 * 2 * 3 * 3 + 6) * BYTES == 456
    assert found.io_bytes == (3 * 4 * 81 + values) * BYTES == 5688
    assert found.activation_bytes == 0  # nothing lies between nodes
    (node,) = found.nodes
    assert (node.name, node.op, node.bytes) == ("conv", "Conv", 456 + 5688)
    assert cost(file, {"x": (1, 4, 9, 9)}).macs == 2700  # the batch is the caller's


def test_dilation_depthwise_and_transposed_convolution(tmp_path: Path):
    nodes = [
        helper.make_node("Conv", ["x", "d"], ["a"], "depthwise", group=8, dilations=[2, 2]),
        helper.make_node("ConvTranspose", ["a", "t"], ["y"], "up", strides=[2, 2], group=2),
    ]
    file = saved(
        tmp_path / "m.onnx", nodes, {"x": (FLOAT, [1, 8, 10, 10])}, {"y": (FLOAT, None)},
        {"d": zeros(8, 1, 3, 3), "t": zeros(8, 5, 2, 2)},
    )  # fmt: skip
    found = cost(file, {"x": (1, 8, 10, 10)})
    # a kernel of 3, dilated by 2, spans 5: 10 -> 6, with 9 products each; up: each of the 8 x 6 x 6 spreads to 5 channels x 2 x 2
    assert by_name(found) == {"depthwise": 8 * 6 * 6 * 9, "up": 8 * 6 * 6 * 5 * 4}
    assert found.activation_bytes == 2 * 8 * 6 * 6 * BYTES  # `a` is written once and read once
    assert found.io_bytes == (800 + 10 * 12 * 12) * BYTES  # 2 groups of 5 channels, 6 -> 12


def test_a_linear_layer_and_its_activation(tmp_path: Path):
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], "linear", transB=1),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("Reshape", ["r", "s"], ["y"], "view"),
    ]
    file = saved(
        tmp_path / "m.onnx", nodes, {"x": (FLOAT, ["n", 32])}, {"y": (FLOAT, None)},
        {"w": zeros(10, 32), "b": zeros(10), "s": np.array([-1, 2, 5])},
    )  # fmt: skip
    found = cost(file, {"x": (7, 32)})
    assert found.macs == 7 * 32 * 10
    assert found.flops == 2 * 7 * 32 * 10 + 7 * 10 + 7 * 10  # bias, relu; a view is free
    assert found.weights_bytes == (10 * 32 + 10) * BYTES + 3 * 8  # the new shape is stored too,
    assert found.weights_read_bytes == (10 * 32 + 10) * BYTES  # but is no weight that is read
    assert found.io_bytes == (7 * 32 + 7 * 10) * BYTES
    assert found.activation_bytes == 2 * 7 * 10 * BYTES  # h
    assert [node.name for node in found.nodes] == ["linear", "relu"]


def test_products_of_batches_broadcast(tmp_path: Path):
    file = saved(
        tmp_path / "m.onnx", [helper.make_node("MatMul", ["a", "b"], ["y"])],
        {"a": (FLOAT, [5, 1, 3, 4]), "b": (FLOAT, [2, 4, 6])}, {"y": (FLOAT, None)}, {},
    )  # fmt: skip
    found = cost(file, {})
    assert found.macs == 5 * 2 * 3 * 4 * 6
    assert found.io_bytes == (5 * 3 * 4 + 2 * 4 * 6 + 5 * 2 * 3 * 6) * BYTES


B, T, D, H = 2, 5, 12, 3


def attention_by_hand() -> tuple[int, int]:
    """Return (MACs of the scores and the sums of values, elements of the scores): heads of D / H numbers."""
    scores = B * H * T * T
    return scores * (D // H) + scores * (D // H), scores


def test_an_attention_layer(tmp_path: Path):
    """q, k, v and output by one product each, heads by reshape and transpose, as exporters write it."""
    nodes = []
    for part in "qkv":
        order = [0, 2, 3, 1] if part == "k" else [0, 2, 1, 3]
        nodes += [
            helper.make_node("MatMul", ["x", f"w{part}"], [f"{part}0"], f"to_{part}"),
            helper.make_node("Add", [f"{part}0", f"b{part}"], [f"{part}1"], f"add_{part}"),
            helper.make_node("Reshape", [f"{part}1", "apart"], [f"{part}2"]),
            helper.make_node("Transpose", [f"{part}2"], [part], f"turn_{part}", perm=order),
        ]
    nodes += [
        helper.make_node("MatMul", ["q", "k"], ["s0"], "scores"),
        helper.make_node("Mul", ["s0", "scale"], ["s1"], "scaled"),
        helper.make_node("Softmax", ["s1"], ["p"], "softmax", axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["c0"], "values"),
        helper.make_node("Transpose", ["c0"], ["c1"], "turn_c", perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["c1", "together"], ["c"]),
        helper.make_node("MatMul", ["c", "wo"], ["y"], "out"),
    ]
    constants = {f"w{part}": zeros(D, D) for part in "qkvo"} | {f"b{part}": zeros(D) for part in "qkv"}
    constants |= {"apart": np.array([0, 0, H, D // H]), "together": np.array([0, 0, D]), "scale": np.float32(0.5)}
    file = saved(tmp_path / "m.onnx", nodes, {"x": (FLOAT, ["n", "t", D])}, {"y": (FLOAT, None)}, constants)
    found = cost(file, {"x": (B, T, D)})
    inner, scores = attention_by_hand()
    x = B * T * D
    assert found.macs == 4 * x * D + inner
    assert found.flops == 2 * found.macs + 3 * x + scores + scores  # three biases, the scale, the softmax
    assert found.weights_read_bytes == (4 * D * D + 3 * D + 1) * BYTES
    assert found.io_bytes == 2 * x * BYTES
    # Each written and read once: q0 k0 v0, q1 k1 v1, q k v, c0, c1 (all of x's size), s0 s1 p. And x is read by three, of which one
    # reading is the input's.
    assert found.activation_bytes == (2 * 11 * x + 2 * 3 * scores + 2 * x) * BYTES


@pytest.mark.parametrize("layout", ["3d", "4d", "microsoft", "grouped"])
def test_attention_as_one_operator_counts_the_same(tmp_path: Path, layout: str):
    inner, scores = attention_by_hand()
    apart = [B, H, T, D // H] if layout == "4d" else [B, T, D]
    given = dict.fromkeys("qkv", (FLOAT, apart))
    if layout == "microsoft":
        node = helper.make_node("MultiHeadAttention", ["q", "k", "v"], ["y"], domain="com.microsoft", num_heads=H)
    elif layout == "grouped":  # two of the heads ask the same keys; 3 tokens lie in the cache
        given = {"q": (FLOAT, [B, T, 16]), "k": (FLOAT, [B, T, 8]), "v": (FLOAT, [B, T, 8])}
        given |= {"pk": (FLOAT, [B, 1, 3, 8]), "pv": (FLOAT, [B, 1, 3, 8]), "n": (6, [B]), "m": (6, [])}
        node = helper.make_node(
            "GroupQueryAttention", ["q", "k", "v", "pk", "pv", "n", "m"], ["y", "ok", "ov"], domain="com.microsoft", num_heads=2,
            kv_num_heads=1,
        )  # fmt: skip
        inner, scores = 2 * B * 2 * T * (T + 3) * 8, B * 2 * T * (T + 3)
    else:
        heads = {} if layout == "4d" else {"q_num_heads": H, "kv_num_heads": H}
        node = helper.make_node("Attention", ["q", "k", "v"], ["y"], **heads)
    file = saved(tmp_path / "m.onnx", [node], given, {"y": (FLOAT, None)}, {}, opset=23)
    model = onnx.load(file)
    if layout == "grouped":  # random lengths of a cache cannot be run: the file says the shapes
        for name, shape in (("y", [B, T, 16]), ("ok", [B, 1, T + 3, 8]), ("ov", [B, 1, T + 3, 8])):
            model.graph.value_info.append(helper.make_tensor_value_info(name, FLOAT, shape))
        onnx.save(model, file)
    found = cost(file, {})
    assert found.notes == ()
    assert (found.macs, found.flops) == (inner, 2 * inner + scores)


def quantized_convolution(path: Path, kind: type = np.uint8) -> Path:
    """x -> Q -> DQ -> Conv(DQ(w), DQ(b)) -> Relu -> Q -> DQ -> y, dynamic batch."""
    like = zeros(1, dtype=kind)[0]
    constants = {"xs": np.float32(0.1), "xz": like, "ys": np.float32(0.1), "yz": like}
    constants |= {"wq": zeros(4, 3, 3, 3, dtype=np.int8), "ws": np.ones(4, np.float32), "wz": zeros(4, dtype=np.int8)}
    constants |= {"bq": zeros(4, dtype=np.int32), "bs": np.ones(4, np.float32)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["x8"], "qx"),
        helper.make_node("DequantizeLinear", ["x8", "xs", "xz"], ["xd"], "dx"),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], "dw", axis=0),
        helper.make_node("DequantizeLinear", ["bq", "bs"], ["bd"], "db", axis=0),
        helper.make_node("Conv", ["xd", "wd", "bd"], ["c"], "conv"),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("QuantizeLinear", ["r", "ys", "yz"], ["y8"], "qy"),
        helper.make_node("DequantizeLinear", ["y8", "ys", "yz"], ["y"], "dy"),
    ]
    return saved(path, nodes, {"x": (FLOAT, ["n", 3, 6, 6])}, {"y": (FLOAT, None)}, constants)


def test_integers_around_a_convolution(tmp_path: Path):
    found = cost(quantized_convolution(tmp_path / "m.onnx"), {"x": (2, 3, 6, 6)})
    x, y = 2 * 3 * 36, 2 * 4 * 16
    assert found.macs == found.int8_macs == y * 27
    # bias and relu; quantizing and the way back are one operation an element, of weights none (they are constant)
    assert found.flops == 2 * y * 27 + y + y + (x + x) + (y + y)
    weights = 4 * 27 + 4 * 4 + 4 + 4 * 4 + 4 * 4  # int8; its scales and zeros; int32 bias and its scales
    ends = (4 + 1) * 2  # scale and zero of x and y
    assert found.weights_bytes == found.weights_read_bytes == weights + ends
    assert found.io_bytes == (x + y) * BYTES
    # between nodes: x8 (a byte) written and read; c in float, as a Relu and not a QuantizeLinear follows; y8 written and read
    assert found.activation_bytes == 2 * x + 2 * y * BYTES + 2 * y


def test_sixteen_bits_are_not_int8(tmp_path: Path):
    found = cost(quantized_convolution(tmp_path / "m.onnx", np.uint16), {"x": (1, 3, 6, 6)})
    assert (found.macs, found.int8_macs) == (4 * 16 * 27, 0)


@pytest.mark.parametrize(
    "operator", ["MatMulInteger", "QLinearMatMul", "DynamicQuantizeMatMul", "QLinearConv", "weights alone"]
)
def test_which_products_are_of_integers(tmp_path: Path, operator: str):
    constants = {"w": zeros(8, 6, dtype=np.int8), "s": np.float32(1), "z": np.int8(0)}
    given = {"x": (TensorProto.INT8, [5, 8])}
    if operator == "MatMulInteger":
        nodes = [helper.make_node(operator, ["x", "w"], ["y"])]
    elif operator == "QLinearMatMul":
        nodes = [helper.make_node(operator, ["x", "s", "z", "w", "s", "z", "s", "z"], ["y"])]
    elif operator == "QLinearConv":
        constants["w"], given = zeros(6, 8, 1, 1, dtype=np.int8), {"x": (TensorProto.INT8, [1, 8, 5, 1])}
        nodes = [helper.make_node(operator, ["x", "s", "z", "w", "s", "z", "s", "z"], ["y"])]
    elif operator == "DynamicQuantizeMatMul":
        given = {"x": (FLOAT, [5, 8])}
        nodes = [helper.make_node(operator, ["x", "w", "s", "z"], ["y"], domain="com.microsoft")]
    else:
        given = {"x": (FLOAT, [5, 8])}
        nodes = [helper.make_node("DequantizeLinear", ["w", "s", "z"], ["f"]), helper.make_node("MatMul", ["x", "f"], ["y"])]
    kind = {"MatMulInteger": TensorProto.INT32, "QLinearMatMul": TensorProto.INT8, "QLinearConv": TensorProto.INT8}
    found = cost(saved(tmp_path / "m.onnx", nodes, given, {"y": (kind.get(operator, FLOAT), None)}, constants), {})
    assert found.notes == ()
    assert found.macs == 5 * 8 * 6
    assert found.int8_macs == (0 if operator == "weights alone" else 5 * 8 * 6)
    assert 8 * 6 <= found.weights_read_bytes <= 8 * 6 + 15  # one byte each, scales and zeros


@pytest.mark.parametrize("level", [0, 4])
def test_four_bits_by_matmulnbits(tmp_path: Path, level: int):
    blocks = 64 // 32
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", K=64, N=6, bits=4, block_size=32, accuracy_level=level
    )
    constants = {"w": zeros(6, blocks, 16, dtype=np.uint8), "s": zeros(6 * blocks)}
    found = cost(
        saved(tmp_path / "m.onnx", [node], {"x": (FLOAT, ["n", 5, 64])}, {"y": (FLOAT, None)}, constants), {"x": (2, 5, 64)}
    )
    assert found.macs == 2 * 5 * 64 * 6
    assert found.int8_macs == (found.macs if level == 4 else 0)
    assert found.weights_bytes == found.weights_read_bytes == 6 * 64 // 2 + 12 * BYTES


def test_weights_of_four_bits_that_a_function_expands_are_read_in_float(tmp_path: Path):
    """Our packed weights: the runtime computes the function once, on loading."""
    packed = packing.pack(np.zeros((6, 32), np.uint8), 4)
    nodes = [
        helper.make_node("Uniform4", ["q", "r"], ["w"], domain="edgekd", buckets=[6, 32], shape=[12, 16]),
        helper.make_node("MatMul", ["x", "w"], ["y"], "product"),
    ]
    function = packing.function(4, False, 20)
    file = saved(
        tmp_path / "m.onnx", nodes, {"x": (FLOAT, ["n", 12])}, {"y": (FLOAT, None)}, {"q": packed, "r": zeros(6, 2)}, opset=20,
        functions=[function],
    )  # fmt: skip
    found = cost(file, {"x": (5, 12)})
    assert found.notes == ()
    assert (found.macs, found.flops) == (5 * 12 * 16, 2 * 5 * 12 * 16)
    inside = sum(  # the few numbers of the function itself
        prod(a.t.dims) for node in function.node for a in node.attribute if a.HasField("t")
    )
    assert found.weights_bytes == 6 * 32 // 2 + 6 * 2 * BYTES + inside
    assert found.weights_read_bytes == 12 * 16 * BYTES
    assert found.activation_bytes == 0


def test_four_bits_by_dequantizelinear_are_read_as_stored(tmp_path: Path):
    codes = onnx.TensorProto(name="q", data_type=TensorProto.UINT4, dims=[12, 16], raw_data=bytes(96))
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["f"], axis=0),
        helper.make_node("Add", ["f", "o"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    file = saved(
        tmp_path / "m.onnx", nodes, {"x": (FLOAT, [5, 12])}, {"y": (FLOAT, None)}, {"q": codes, "s": zeros(12), "o": zeros(12, 1)}
    )  # fmt: skip
    found = cost(file, {})
    assert found.weights_bytes == 96 + 48 + 48
    assert found.weights_read_bytes == 96 + 48 + 48
    assert found.int8_macs == 0


def test_of_a_table_only_the_rows_looked_up_are_read(tmp_path: Path):
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], "embed"),
        helper.make_node("MatMul", ["e", "w"], ["y"], "out"),
    ]
    constants = {"table": zeros(1000, 8), "w": zeros(8, 3)}
    file = saved(tmp_path / "m.onnx", nodes, {"ids": (TensorProto.INT64, ["n", "t"])}, {"y": (FLOAT, None)}, constants)
    found = cost(file, {"ids": (2, 5)})
    assert found.weights_bytes == (8000 + 24) * BYTES
    assert found.weights_read_bytes == (2 * 5 * 8 + 24) * BYTES
    assert found.io_bytes == 10 * 8 + 2 * 5 * 3 * BYTES


def test_recurrent_layers(tmp_path: Path):
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=5, direction="bidirectional")
    file = saved(
        tmp_path / "m.onnx", [node], {"x": (FLOAT, [7, "n", 3])}, {"y": (FLOAT, None)}, {"w": zeros(2, 20, 3), "r": zeros(2, 20, 5)}
    )  # fmt: skip
    # 7 steps, 2 of a batch, 2 directions, 4 gates of 5, each a product with 3 inputs and 5 states
    assert cost(file, {"x": (7, 2, 3)}).macs == 7 * 2 * 2 * 4 * 5 * (3 + 5)


@pytest.mark.parametrize(
    ("equation", "shapes", "expected"),
    [
        ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)], (2 * 3 * 4 * 5, 0)),
        ("...ij,...jk", [(7, 2, 3, 4), (2, 4, 5)], (7 * 2 * 3 * 4 * 5, 0)),
        ("ij,ij->ij", [(3, 4), (3, 4)], (0, 12)),
        ("ij->i", [(3, 4)], (0, 12)),
        ("ij->ji", [(3, 4)], (0, 0)),
        ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)], (2 * 3 * 4 + 2 * 4 * 5, 0)),
    ],
)
def test_einsum(equation: str, shapes: list, expected: tuple[int, int]):
    assert macs.einsum(equation, shapes) == expected


def test_reductions_count_what_goes_in_and_pools_each_window(tmp_path: Path):
    nodes = [
        helper.make_node("MaxPool", ["x"], ["a"], "pool", kernel_shape=[3, 3], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["a"], ["y"], "mean"),
    ]
    file = saved(tmp_path / "m.onnx", nodes, {"x": (FLOAT, [1, 2, 9, 9])}, {"y": (FLOAT, None)}, {})
    found = cost(file, {})
    assert {node.name: node.flops for node in found.nodes} == {"pool": 2 * 4 * 4 * 9, "mean": 2 * 4 * 4}


def test_shapes_that_are_computed_are_followed_and_cost_nothing(tmp_path: Path):
    """Reshape to (shape of x)[0], -1, as exporters write it."""
    nodes = [
        helper.make_node("Shape", ["x"], ["sx"]),
        helper.make_node("Gather", ["sx", "zero"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "zeros"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["to"], axis=0),
        helper.make_node("Reshape", ["x", "to"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"], "product"),
    ]
    constants = {"zero": np.array(0), "zeros": np.array([0]), "rest": np.array([-1]), "w": zeros(12, 4)}
    file = saved(tmp_path / "m.onnx", nodes, {"x": (FLOAT, ["n", 3, 4])}, {"y": (FLOAT, None)}, constants)
    assert shapes.shaped(file, {"x": (6, 3, 4)}).how == "inferred"  # without a run
    found = cost(file, {"x": (6, 3, 4)})
    assert [node.name for node in found.nodes] == ["product"]
    assert (found.macs, found.activation_bytes, found.weights_read_bytes) == (6 * 12 * 4, 0, 48 * BYTES)


def test_what_inference_does_not_know_is_seen_in_a_run(tmp_path: Path):
    nodes = [
        helper.make_node("Gelu", ["x"], ["g"], domain="com.microsoft"),
        helper.make_node("MatMul", ["g", "w"], ["y"], "product"),
    ]
    file = saved(tmp_path / "m.onnx", nodes, {"x": (FLOAT, ["n", 8])}, {"y": (FLOAT, None)}, {"w": zeros(8, 700)})
    assert shapes.shaped(file, {"x": (3, 8)}).how == "inferred, and seen in a run"
    found = cost(file, {"x": (3, 8)})
    assert (found.macs, found.notes) == (3 * 8 * 700, ())


def test_a_node_whose_shape_nobody_knows_is_named(tmp_path: Path):
    nodes = [
        helper.make_node("Mystery", ["x"], ["m"], "mystery", domain="edgekd"),
        helper.make_node("MatMul", ["m", "w"], ["y"], "product"),
        helper.make_node("MatMul", ["x", "w"], ["z"], "known"),
    ]
    file = saved(
        tmp_path / "m.onnx", nodes, {"x": (FLOAT, [3, 8])}, {"y": (FLOAT, None), "z": (FLOAT, None)}, {"w": zeros(8, 7)}
    )
    found = cost(file, {})
    assert by_name(found) == {"known": 3 * 8 * 7}
    assert any("product (MatMul) is not counted: the shape of `m` is not known" in note for note in found.notes)


def test_branches_and_loops(tmp_path: Path):
    def branch(name: str, width: int) -> onnx.GraphProto:
        weights = numpy_helper.from_array(zeros(8, width), "w")
        return helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], [f"{name}_y"], "inside")], name, [],
            [helper.make_tensor_value_info(f"{name}_y", FLOAT, [3, width])], [weights],
        )  # fmt: skip

    node = helper.make_node("If", ["c"], ["y"], "choice", then_branch=branch("a", 5), else_branch=branch("b", 50))
    file = saved(
        tmp_path / "m.onnx", [node], {"c": (TensorProto.BOOL, []), "x": (FLOAT, [3, 8])}, {"y": (FLOAT, [3, None])}, {}
    )
    found = cost(file, {})
    assert by_name(found) == {"choice/inside": 3 * 8 * 5}
    assert found.weights_bytes == (8 * 5 + 8 * 50) * BYTES
    assert found.weights_read_bytes == 8 * 5 * BYTES
    assert "choice (If): of an If the branch" in found.notes[0]


def test_weights_beside_the_file_are_not_read(tmp_path: Path):
    file = saved(
        tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (FLOAT, ["n", 64])}, {"y": (FLOAT, None)},
        {"w": zeros(64, 64)},
    )  # fmt: skip
    onnx.save(onnx.load(file), file, save_as_external_data=True, location="m.data", size_threshold=0)
    (tmp_path / "m.data").unlink()
    found = cost(file, {"x": (2, 64)})
    assert (found.macs, found.weights_bytes) == (2 * 64 * 64, 64 * 64 * BYTES)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"input `x` has axes \['n', 8\]; say how long they are"),
        ({"x": (2, 9)}, r"input `x` has the shape \[None, 8\] \(None: any\), not \[2, 9\]"),
        ({"x": (2, 8, 1)}, r"not \[2, 8, 1\]"),
    ],
)
def test_shapes_that_do_not_fit(tmp_path: Path, given: dict, message: str):
    file = saved(
        tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], {"x": (FLOAT, ["n", 8])}, {"y": (FLOAT, None)}, {}
    )
    with pytest.raises(BadInput, match=message):
        cost(file, given)


def test_what_is_no_onnx(tmp_path: Path):
    (tmp_path / "m.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(BadInput, match="cannot be read as ONNX"):
        cost(tmp_path / "m.onnx", {})


class Block(nn.Module):
    """A residual bottleneck with a depthwise convolution and squeeze-and-excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width), nn.Hardswish(),
            nn.Conv2d(4 * width, 4 * width, 5, padding=2, groups=4 * width), nn.ReLU(),
        )  # fmt: skip
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4 * width, 8, 1), nn.ReLU(), nn.Conv2d(8, 4 * width, 1))
        self.last = nn.Conv2d(4 * width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.body(x)
        return x + self.last(h * self.gate(h).sigmoid())


def test_a_whole_network_against_pytorchs_counter(tmp_path: Path):
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(), Block(16), nn.MaxPool2d(2), Block(16),
        nn.Conv2d(16, 32, 3, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    ).eval()  # fmt: skip
    file = tmp_path / "net.onnx"
    batch = torch.export.Dim("batch")
    example = torch.zeros(2, 3, 48, 48)
    torch.onnx.export(net, (example,), file, dynamo=True, dynamic_shapes=({0: batch},), external_data=False, verbose=False)
    name = onnx.load(file).graph.input[0].name
    for size in (1, 5):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(example[:1].repeat(size, 1, 1, 1))
        found = cost(file, {name: (size, 3, 48, 48)})
        assert 2 * found.macs == counter.get_total_flops()
        assert found.notes == ()
