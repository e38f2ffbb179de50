"""The files of the TensorRT dialect: numbers against NumPy, places against NVIDIA's guide."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.backends import tensorrt_rules as rules
from edgekd.errors import BadInput
from edgekd.parity import compare
from edgekd.quantize import Job, make
from edgekd.quantize.dialects import tensorrt as dialect
from edgekd.quantize.variant import file_runner
from edgekd.recipe import VariantRecipe
from edgekd.targets import load_target

CONFIG = VariantRecipe(name="int8", weights={"bits": 8}, activations={"bits": 8})


def graph_of(path, nodes, inputs, outputs, weights, opset=20):
    ends = [[helper.make_tensor_value_info(name, *of) for name, of in side.items()] for side in (inputs, outputs)]
    tensors = [numpy_helper.from_array(np.asarray(values), name) for name, values in weights.items()]
    graph = helper.make_graph(nodes, "g", *ends, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), path)
    return path


@pytest.fixture
def residual(tmp_path):
    """stem -> (wide, narrow) -> + stem -> pooled -> head: a shortcut around two convolutions, on bytes."""
    rng = np.random.default_rng(0)
    kernels = {"stem.w": (4, 3, 3, 3), "wide.w": (6, 4, 1, 1), "narrow.w": (4, 6, 1, 1)}
    weights = {name: (rng.normal(size=size) / 4).astype(np.float32) for name, size in kernels.items()}
    weights |= {"head.w": rng.normal(size=(5, 4)).astype(np.float32), "head.b": rng.normal(size=5).astype(np.float32)}
    weights |= {"255": np.float32(255), "axes": np.array([2, 3])}
    nodes = [
        helper.make_node("Transpose", ["image"], ["moved"], name="moved", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["moved"], ["floats"], name="floats", to=TensorProto.FLOAT),
        helper.make_node("Div", ["floats", "255"], ["scaled"], name="scaled"),
        helper.make_node("Conv", ["scaled", "stem.w"], ["stem"], name="stem"),
        helper.make_node("Relu", ["stem"], ["trunk"], name="trunk"),
        helper.make_node("Conv", ["trunk", "wide.w"], ["wide"], name="wide"),
        helper.make_node("Relu", ["wide"], ["inner"], name="inner"),
        helper.make_node("Conv", ["inner", "narrow.w"], ["narrow"], name="narrow"),
        helper.make_node("Add", ["narrow", "trunk"], ["sum"], name="sum"),
        helper.make_node("ReduceMean", ["sum", "axes"], ["pooled"], name="pooled", keepdims=0),
        helper.make_node("Gemm", ["pooled", "head.w", "head.b"], ["logits"], name="logits", transB=1),
    ]
    ends = {"image": (TensorProto.UINT8, ["batch", 10, 10, 3])}, {"logits": (TensorProto.FLOAT, ["batch", 5])}
    return graph_of(tmp_path / "model.onnx", nodes, *ends, weights)


def batches(count=2, seed=1):
    rng = np.random.default_rng(seed)
    return [{"image": rng.integers(0, 256, (8, 10, 10, 3), dtype=np.uint8)} for _ in range(count)]


def maker_of(model, name):
    return next(node for node in model.graph.node if name in node.output)


def test_pairs_stand_where_the_guide_puts_them(residual):
    made = dialect.quantize(residual, [], batches(), CONFIG)
    nodes = {node.name: node for node in made.graph.node}
    for name in ("stem", "wide", "narrow", "logits"):
        assert [maker_of(made, taken).op_type for taken in nodes[name].input[:2]] == ["DequantizeLinear"] * 2
    assert maker_of(made, nodes["sum"].input[0]).op_type == "Conv"  # the sum fuses with the convolution before it
    assert nodes["sum"].input[1] == nodes["wide"].input[0] == "trunk.dq"  # the shortcut is quantized, once for both
    assert [node.op_type for node in made.graph.node].count("QuantizeLinear") == 4
    assert made.graph.node[0].op_type == "Cast"  # TensorRT lets nothing else read bytes
    assert rules.broken(made, 20) == []


def test_of_two_convolutions_that_meet_the_shorter_way_is_the_shortcut(tmp_path):
    """The sum fuses with the last of the longer way, so what comes by the shorter one, a projection, is quantized."""
    rng = np.random.default_rng(7)
    weights = {name: rng.normal(size=(3, 3, 1, 1)).astype(np.float32) for name in ("a.w", "b.w", "p.w", "c.w")}
    nodes = [
        helper.make_node("Conv", ["x", "a.w"], ["a"], name="a"),
        helper.make_node("Conv", ["a", "b.w"], ["b"], name="b"),
        helper.make_node("Conv", ["x", "p.w"], ["p"], name="p"),
        helper.make_node("Add", ["p", "b"], ["sum"], name="sum"),
        helper.make_node("Conv", ["sum", "c.w"], ["y"], name="y"),
    ]
    ends = {"x": (TensorProto.FLOAT, ["n", 3, 4, 4])}, {"y": (TensorProto.FLOAT, ["n", 3, 4, 4])}
    file = graph_of(tmp_path / "m.onnx", nodes, *ends, weights)
    made = dialect.quantize(file, [], [{"x": rng.normal(size=(5, 3, 4, 4)).astype(np.float32)}], CONFIG)
    taken = next(node.input for node in made.graph.node if node.name == "sum")
    assert list(taken) == ["p.dq", "b"]
    assert rules.broken(made, 20) == []


def test_weights_and_scales_are_right_to_half_a_step(residual):
    made = dialect.quantize(residual, [], batches(), CONFIG)
    source = {t.name: numpy_helper.to_array(t) for t in onnx.load(residual).graph.initializer}
    stored = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    for name in ("stem.w", "wide.w", "narrow.w", "head.w"):
        q, w = stored[f"{name}.int8"], source[name]
        scale = next(v for key, v in stored.items() if key.startswith(f"{name}.scale"))
        assert scale.dtype == np.float16
        assert q.dtype == np.int8
        beside = scale.astype(np.float64).reshape(-1, *[1] * (w.ndim - 1))
        largest = np.abs(w).reshape(len(w), -1).max(1)
        assert (scale >= largest / 127).all()
        assert (scale <= largest / 127 * (1 + 2**-10)).all()
        assert (np.abs(q * beside - w) <= beside * 0.5001).all()
    kinds = {n.name: n.input for n in made.graph.node if n.op_type == "QuantizeLinear"}
    for taken in kinds.values():
        assert stored[taken[2]].dtype == np.int8
        assert stored[taken[2]] == 0


def test_the_outputs_are_near_and_nothing_else_is_quantized_that_is_kept(residual, tmp_path):
    source = onnx.load(residual)
    test = batches(3, seed=9)
    for keep in ([], ["wide"], ["stem", "wide", "narrow", "logits"]):
        made = dialect.quantize(residual, keep, batches(), CONFIG)
        onnx.save(made, tmp_path / "made.onnx")
        run = file_runner({"made": tmp_path / "made.onnx", "source": residual})
        near = compare(*({"y": np.concatenate([run(name, b)["logits"] for b in test])} for name in ("source", "made")))
        assert near.sqnr_db > (60 if len(keep) == 4 else 28)
        nodes = {node.name: node for node in made.graph.node}
        assert {n for n in ("stem", "wide", "narrow", "logits") if nodes[n].input[1].endswith(".dq")} == (
            {"stem", "wide", "narrow", "logits"} - set(keep)
        )
        assert rules.broken(made, 20) == []
    assert {node.op_type for node in source.graph.node} & {"QuantizeLinear"} == set()


def test_clipping_has_the_least_squared_error():
    values = np.abs(np.random.default_rng(3).standard_t(2, 100_000))  # far outliers
    largest = float(values.max())
    counts = np.histogram(values, dialect._BINS, (0, largest))[0]
    clip = dialect._clip_at(largest, counts)

    def error(limit):
        scale = limit / 127
        return np.square(values - np.minimum(np.rint(values / scale), 127) * scale).mean()

    assert clip < largest
    assert error(clip) < error(largest)
    assert error(clip) <= 1.05 * min(error(share * largest) for share in np.linspace(0.2, 1, 41))
    assert dialect._clip_at(0.0, np.zeros(dialect._BINS)) == 0


def test_scales_are_16_bit_floats_and_never_smaller():
    wanted = np.concatenate([10.0 ** np.random.default_rng(4).uniform(-9, 2, 1000), [0.0]])
    made = dialect._rounded_up(wanted)
    assert (made >= wanted).all()
    assert (made > 0).all()
    assert (made == made.astype(np.float16)).all()
    usual = wanted > 1e-4
    assert (made[usual] <= wanted[usual] * (1 + 2**-10)).all()


def test_attention_products_stay_in_floats_and_shared_weights_are_stored_once(tmp_path):
    rng = np.random.default_rng(5)
    w = rng.normal(size=(8, 8)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["q"], name="q"),
        helper.make_node("MatMul", ["q", "w"], ["k"], name="k"),
        helper.make_node("Transpose", ["k"], ["kt"], name="kt", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["products"], name="products"),
        helper.make_node("Softmax", ["products"], ["y"], name="y"),
    ]
    ends = {"x": (TensorProto.FLOAT, ["n", 4, 8])}, {"y": (TensorProto.FLOAT, ["n", 4, 4])}
    file = graph_of(tmp_path / "m.onnx", nodes, *ends, {"w": w})
    made = dialect.quantize(file, [], [{"x": rng.normal(size=(3, 4, 8)).astype(np.float32)}], CONFIG)
    nodes = {node.name: node for node in made.graph.node}
    assert not any(name.endswith(".dq") for name in nodes["products"].input)
    assert [t.name for t in made.graph.initializer if t.data_type == TensorProto.INT8 and t.dims] == ["w.int8"]
    assert rules.broken(made, 20) == []


def test_an_older_file_is_brought_to_an_opset_with_16_bit_pairs(tmp_path):
    rng = np.random.default_rng(6)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="y")]
    ends = {"x": (TensorProto.FLOAT, ["n", 8])}, {"y": (TensorProto.FLOAT, ["n", 4])}
    file = graph_of(tmp_path / "m.onnx", nodes, *ends, {"w": rng.normal(size=(8, 4)).astype(np.float32)}, opset=13)
    made = dialect.quantize(file, [], [{"x": rng.normal(size=(9, 8)).astype(np.float32)}], CONFIG)
    assert rules.broken(made, 20) == []
    assert made.opset_import[0].version == 19


def test_16_bit_activations_and_broken_calibration_are_refused(residual, tmp_path):
    with pytest.raises(BadInput, match=r"activations: \{bits: 8\}"):
        dialect.quantize(residual, [], batches(), VariantRecipe(name="v", weights={"bits": 8}, activations={"bits": 16}))
    model = onnx.load(residual)
    next(t for t in model.graph.initializer if t.name == "wide.w").raw_data = np.full(24, np.inf, np.float32).tobytes()
    onnx.save(model, tmp_path / "bad.onnx")
    with pytest.raises(BadInput, match="are not finite"):
        dialect.quantize(tmp_path / "bad.onnx", [], batches(), CONFIG)


def test_ptq_makes_this_dialect_for_a_jetson(residual, tmp_path):
    job = Job({"model": residual}, (load_target("jetson-orin-nano"),), lambda name, settings: batches())
    made = make(CONFIG, job, tmp_path / "v")
    file = made.for_target(load_target("jetson-orin-nano")).graphs["model"]
    assert file != made.graphs["model"]
    assert rules.broken(onnx.load(file), 20) == []
    assert rules.broken(onnx.load(made.graphs["model"]), 20) != []
    again = make(CONFIG, job, tmp_path / "w").for_target(load_target("jetson-orin-nano")).graphs["model"]
    assert file.read_bytes() == again.read_bytes()
