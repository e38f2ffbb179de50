"""What is written for TensorRT, and the rules that it is held to. Each fault is planted in a file that breaks none."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.backends import half
from edgekd.backends import tensorrt as backend
from edgekd.backends import tensorrt_rules as rules
from edgekd.errors import BadInput
from edgekd.parity import compare
from edgekd.quantize.variant import file_runner
from edgekd.recipe import Activations, Scheme, Weights
from edgekd.targets import load_target

GPU, JETSON = load_target("nvidia-gpu"), load_target("jetson-orin-nano")
FULL = dataclasses.replace(GPU, precision="fp32")


def model_of(nodes, inputs, outputs, weights, opset=20):
    ends = [[helper.make_tensor_value_info(name, *of) for name, of in side.items()] for side in (inputs, outputs)]
    tensors = [numpy_helper.from_array(np.asarray(values), name) for name, values in weights.items()]
    graph = helper.make_graph(nodes, "g", *ends, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


@pytest.fixture
def good():
    """A file that breaks no rule: bytes, a quantized convolution with a shortcut around it, in 16-bit floats."""
    rng = np.random.default_rng(0)
    weights = {
        "w.int8": rng.integers(-127, 128, (3, 3, 3, 3)).astype(np.int8),
        "w.scale": rng.uniform(0.01, 0.02, 3).astype(np.float16),
        "b": rng.normal(size=3).astype(np.float16),
        "s": np.float16(0.5),
        "z": np.int8(0),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["cast"], name="cast", to=TensorProto.FLOAT16),
        helper.make_node("Transpose", ["cast"], ["moved"], name="moved", perm=[0, 3, 1, 2]),
        helper.make_node("QuantizeLinear", ["moved", "s", "z"], ["moved.q"], name="moved.q"),
        helper.make_node("DequantizeLinear", ["moved.q", "s", "z"], ["moved.dq"], name="moved.dq"),
        helper.make_node("DequantizeLinear", ["w.int8", "w.scale"], ["w.dq"], name="w.dq", axis=0),
        helper.make_node("Conv", ["moved.dq", "w.dq", "b"], ["conv"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["conv", "moved.dq"], ["sum"], name="sum"),
        helper.make_node("Cast", ["sum"], ["y"], name="y", to=TensorProto.FLOAT),
    ]
    ends = {"image": (TensorProto.UINT8, ["batch", 6, 6, 3])}, {"y": (TensorProto.FLOAT, ["batch", 3, 6, 6])}
    return model_of(nodes, *ends, weights)


def tensor(model, name):
    return next(t for t in model.graph.initializer if t.name == name)


def put(model, name, values):
    tensor(model, name).CopyFrom(numpy_helper.from_array(np.asarray(values), name))


def node(model, name):
    return next(n for n in model.graph.node if n.name == name)


def insert(model, before, kind, inputs, output, **attributes):
    at = [n.name for n in model.graph.node].index(before)
    model.graph.node.insert(at, helper.make_node(kind, inputs, [output], name=output, **attributes))


def unsigned(model):
    put(model, "z", np.uint8(0))


def shifted(model):
    put(model, "z", np.int8(5))


def no_zero_point(model):
    del node(model, "moved.q").input[2]


def not_positive(model):
    put(model, "w.scale", np.array([0.01, 0, 0.01], np.float16))


def one_scale(model):
    put(model, "w.scale", np.float16(0.01))


def wrong_axis(model):
    node(model, "w.dq").attribute[0].i = 1


def scales_of_an_activation(model):
    put(model, "s", np.full(3, 0.5, np.float16))
    put(model, "z", np.zeros(3, np.int8))


def only_weights(model):
    node(model, "conv").input[0] = "moved"


def only_input(model):
    put(model, "w.int8", np.ones((3, 3, 3, 3), np.float16))
    node(model, "conv").input[1] = "w.int8"
    model.graph.node.remove(node(model, "w.dq"))


def no_dequantize(model):
    insert(model, "conv", "Identity", ["moved.q"], "aside")


def quantized_bias(model):
    put(model, "b", np.ones(3, np.int32))
    insert(model, "conv", "DequantizeLinear", ["b", "w.scale"], "b.dq", axis=0)
    node(model, "conv").input[2] = "b.dq"


def twice(model):
    insert(model, "conv", "QuantizeLinear", ["moved.dq", "s", "z"], "again.q")
    insert(model, "conv", "DequantizeLinear", ["again.q", "s", "z"], "again")
    node(model, "conv").input[0] = "again"


def unfused(model):
    insert(model, "sum", "Sigmoid", ["moved.dq"], "squashed")
    node(model, "sum").input[1] = "squashed"


def after_the_last(model):
    insert(model, "y", "QuantizeLinear", ["sum", "s", "z"], "sum.q")
    insert(model, "y", "DequantizeLinear", ["sum.q", "s", "z"], "sum.dq")
    model.graph.node.remove(node(model, "y"))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("sum.dq", TensorProto.FLOAT16, ["batch", 3, 6, 6]))


def moved_bytes(model):
    insert(model, "moved", "Transpose", ["image"], "turned", perm=[0, 2, 1, 3])


def newer(model):
    model.opset_import[0].version = 22


def unknown(model):
    insert(model, "y", "Det", ["sum"], "determinant")


def own_function(model):
    model.opset_import.append(helper.make_opsetid("edgekd", 1))
    model.graph.node.append(helper.make_node("Codebook4", ["b"], ["w"], name="w", domain="edgekd"))


def nan(model):
    put(model, "b", np.array([1, np.nan, 1], np.float16))


def infinite(model):
    put(model, "b", np.array([1, -np.inf, 1], np.float16))


def mixed_types(model):
    put(model, "b", np.ones(3, np.float32))


def four_bits(model):
    model.opset_import[0].version = 21
    model.graph.initializer.append(helper.make_tensor("q4", TensorProto.INT4, [3], [1, 2, 3]))
    insert(model, "conv", "DequantizeLinear", ["q4", "w.scale"], "b4", axis=0)
    node(model, "conv").input[2] = "b4"


def long_weights(model):
    put(model, "w.int8", np.ones((6, 6), np.int64))
    insert(model, "conv", "MatMul", ["w.int8", "w.int8"], "whole")


FAULTS = {
    unsigned: "UINT8",
    shifted: "is asymmetric (zero point 5)",
    no_zero_point: "has no zero point, which makes it UINT8",
    not_positive: "scales must be positive",
    one_scale: "has one scale for all weights",
    wrong_axis: "scaled along axis 1, its output channels are axis 0",
    scales_of_an_activation: "3 scales for an activation",
    only_weights: "only its weights is quantized",
    only_input: "only its input is quantized",
    no_dequantize: "no DequantizeLinear follows",
    quantized_bias: "so biases stay floats",
    twice: "values are rounded twice",
    unfused: "(Sigmoid) reads quantized values",
    after_the_last: "nothing is quantized after the last layer",
    moved_bytes: "lets a Cast alone do so",
    newer: "the file has opset 22",
    unknown: "no operator Det",
    own_function: "no operator Codebook4",
    nan: "constant `b` has NaN",
    infinite: "constant `b` has infinite values",
    mixed_types: "no valid ONNX",
    four_bits: "does not read weights of 2 and 4 bits",
    long_weights: "is INT64, and a layer multiplies by it",
}


def test_a_good_file_breaks_no_rule(good):
    onnx.checker.check_model(good, full_check=True)
    assert rules.broken(good, 20) == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_found(good, fault, tmp_path):
    fault(good)
    onnx.save(good, tmp_path / "model.onnx")
    found = backend.wrong(tmp_path / "model.onnx", GPU)
    assert any(FAULTS[fault] in what for what in found), found


def test_a_dynamic_axis_is_wrong_for_fixed_shapes(good, tmp_path):
    onnx.save(good, tmp_path / "model.onnx")
    assert backend.wrong(tmp_path / "model.onnx", GPU) == []
    (said,) = backend.wrong(tmp_path / "model.onnx", JETSON)
    assert "`image` has a dynamic axis" in said
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    assert "cannot be read as ONNX" in backend.wrong(tmp_path / "broken.onnx", GPU)[0]


@pytest.fixture
def source(tmp_path):
    """A network in full precision that asks for every kind of care: bytes, a normalisation, a big constant, a resize."""
    rng = np.random.default_rng(1)
    weights = {
        "w": rng.normal(size=(4, 3, 1, 1)).astype(np.float32),
        "gain": np.ones(4, np.float32),
        "huge": np.float32(1e6),
        "sizes": np.array([1, 1, 2, 2], np.float32),
        "axes": np.array([2, 3]),
    }
    nodes = [
        helper.make_node("Transpose", ["image"], ["moved"], name="moved", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["moved"], ["floats"], name="floats", to=TensorProto.FLOAT),
        helper.make_node("Conv", ["floats", "w"], ["conv"], name="conv"),
        helper.make_node("Resize", ["conv", "", "sizes"], ["large"], name="large", mode="nearest"),
        helper.make_node("ReduceMean", ["large", "axes"], ["mean"], name="mean", keepdims=0),
        helper.make_node("LayerNormalization", ["mean", "gain"], ["norm"], name="norm"),
        helper.make_node("Mul", ["norm", "huge"], ["big"], name="big"),
        helper.make_node("Div", ["big", "huge"], ["small"], name="small"),
        helper.make_node("Sigmoid", ["small"], ["y"], name="y"),
    ]
    ends = {"image": (TensorProto.UINT8, ["batch", 4, 4, 3])}, {"y": (TensorProto.FLOAT, ["batch", 4])}
    onnx.save(model_of(nodes, *ends, weights), tmp_path / "source.onnx")
    return tmp_path / "source.onnx"


def convert(source, target, folder):
    return backend.convert(SimpleNamespace(graphs={"model": source}), target, folder)["model"]


def pictures(count):
    return {"image": np.random.default_rng(2).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)}


def test_the_file_is_typed_as_it_is_computed(source, tmp_path):
    file = convert(source, GPU, tmp_path / "out")
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    assert rules.broken(model, 20) == []
    inferred = onnx.shape_inference.infer_shapes(model)
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*inferred.graph.value_info, *inferred.graph.output)}
    assert {kinds[name] for name in ("conv", "large")} == {TensorProto.FLOAT16}
    assert {kinds[name] for name in ("mean", "norm", "big", "small", "y")} == {TensorProto.FLOAT}  # sums, and 1e6
    assert model.graph.node[0].op_type == "Cast"
    assert list(model.graph.node[0].input) == ["image"]
    assert backend.interface(file)["inputs"] == [{"name": "image", "dtype": "uint8", "shape": ["batch", 4, 4, 3]}]
    inputs = pictures(7)
    wanted = file_runner({"source": source})("source", inputs)
    made = backend.load(file, GPU, exact=True).run(inputs)
    assert 50 < compare(wanted, made).sqnr_db < 100  # weights of 11 bits
    full = convert(source, FULL, tmp_path / "full")
    assert compare(wanted, backend.load(full, FULL, exact=True).run(inputs)).relative < 1e-6


def test_fixed_shapes_run_any_number_of_samples(source, tmp_path):
    file = convert(source, JETSON, tmp_path / "out")
    assert backend.interface(file)["inputs"][0]["shape"] == [1, 4, 4, 3]
    session = backend.load(file, JETSON, exact=True)
    assert session.providers.keys() == {"CPUExecutionProvider"}
    wanted = backend.load(convert(source, GPU, tmp_path / "gpu"), GPU, exact=True).run(pictures(3))
    np.testing.assert_allclose(session.run(pictures(3))["y"], wanted["y"], rtol=1e-3)
    assert backend.wrong(file, JETSON) == []
    for target, name in ((JETSON, "out"), (GPU, "gpu")):
        seen = backend.tensors(tmp_path / name / "model.onnx", target, pictures(3))
        assert list(seen)[-1] == "y"
        assert seen["conv"].dtype == np.float32
        assert seen["conv"].shape == (3, 4, 4, 4)


def test_values_beyond_16_bits_are_found_with_the_golden_inputs(source, tmp_path):
    file = convert(source, GPU, tmp_path / "out")
    np.savez(file.with_name("golden.npz"), **{"model/in/image": np.full((2, 4, 4, 3), 255, np.uint8), "other/in/x": np.ones(1)})
    assert backend.wrong(file, GPU) == []
    model = onnx.load(source)
    put(model, "w", np.full((4, 3, 1, 1), 500, np.float32))  # 500 * 255 * 3
    onnx.save(model, source)
    convert(source, GPU, tmp_path / "out")
    (said,) = backend.wrong(file, GPU)
    assert "`conv` passes 65504 for the golden inputs" in said


def test_the_same_input_gives_the_same_folder(source, tmp_path):
    for target in (GPU, JETSON):
        folders = [convert(source, target, tmp_path / f"{target.name}{at}").parent for at in range(2)]
        first, second = ({f.name: f.read_bytes() for f in folder.iterdir()} for folder in folders)
        assert first == second
        assert first.keys() == {"model.onnx", "build_engine.py", "build_engine.json"}
        told = json.loads(first["build_engine.json"])
        assert told["graphs"]["model"]["profile"] == (
            None if target.static else {"image": [[1, 4, 4, 3], [8, 4, 4, 3], [64, 4, 4, 3]]}
        )
        assert told["workspace_mib"] == (1024 if target is JETSON else 0)


def test_batches_that_make_no_sense_are_refused(source, tmp_path):
    with pytest.raises(BadInput, match="three rising numbers"):
        convert(source, dataclasses.replace(GPU, options={"batches": [8, 1, 64]}), tmp_path / "out")


def test_what_a_graph_may_not_have(source, tmp_path):
    assert backend.refuses_graph(source, GPU) is None
    assert "no Resize" in backend.refuses_graph(source, dataclasses.replace(GPU, limits={"operators_refused": ["Resize"]}))
    model = onnx.load(source)
    insert(model, "y", "Unique", ["small"], "unique")
    onnx.save(model, tmp_path / "unique.onnx")
    assert "has no Unique; use layers without" in backend.refuses_graph(tmp_path / "unique.onnx", GPU)
    model = onnx.load(source)
    model.opset_import[0].version = 22
    onnx.save(model, tmp_path / "new.onnx")
    assert "up to opset 20" in backend.refuses_graph(tmp_path / "new.onnx", GPU)


def graph_file(folder, nodes, outputs, weights=None):
    ends = {"x": (TensorProto.FLOAT, ["batch", 3])}, outputs
    onnx.save(
        model_of([helper.make_node(*n[:3], name=n[2][0], **n[3]) for n in nodes], *ends, weights or {}), folder / "m.onnx"
    )
    return folder / "m.onnx"


@pytest.mark.parametrize(
    ("nodes", "shape", "said"),
    [
        ([("NonZero", ["x"], ["n"], {}), ("Cast", ["n"], ["y"], {"to": 1})], [2, "found"], "what n (NonZero) gives depends"),
        ([("Range", ["zero", "sum", "one"], ["y"], {})], ["found"], "fixed shapes alone, and y depends"),
        ([("ReduceMax", ["x"], ["y"], {"keepdims": 0})], [], "output `y` has no batch axis"),
        ([("ReduceMax", ["x", "first"], ["y"], {"keepdims": 0})], [3], "output `y` has no batch axis"),
        ([("ReduceMax", ["x", "first"], ["m"], {}), ("Add", ["x", "m"], ["y"], {})], ["batch", 3], None),
    ],
)
def test_outputs_that_are_no_row_for_each_sample_need_a_target_of_any_shape(tmp_path, nodes, shape, said):
    if nodes[0][0] == "Range":
        nodes = [("ReduceSum", ["x"], ["sum"], {"keepdims": 0}), *nodes]
    constants = {"first": np.array([0]), "zero": np.float32(0), "one": np.float32(1)}
    file = graph_file(tmp_path, nodes, {"y": (TensorProto.FLOAT, shape)}, constants)
    assert backend.refuses_graph(file, GPU) is None
    told = backend.refuses_graph(file, JETSON)
    assert told is None if said is None else said in told


def test_what_is_no_row_for_each_sample_inside_a_network_of_fixed_shapes(tmp_path):
    """A single number, and as many as there are positive ones."""
    nodes = [
        ("NonZero", ["x"], ["where"], {}),
        ("Cast", ["where"], ["at"], {"to": TensorProto.FLOAT}),
        ("ReduceMax", ["at"], ["last"], {"keepdims": 0}),
        ("Neg", ["w"], ["minus"], {}),
        ("Add", ["x", "minus"], ["less"], {}),
        ("Add", ["less", "last"], ["y"], {}),
    ]
    source = graph_file(tmp_path, nodes, {"y": (TensorProto.FLOAT, ["batch", 3])}, {"w": np.float32([[1, 2, 3]])})
    file = convert(source, JETSON, tmp_path / "out")
    x = np.float32([[1, 1, 0], [0, 0, 1]])
    np.savez(file.with_name("golden.npz"), **{"model/in/x": x})
    assert backend.wrong(file, JETSON) == []
    made = backend.tensors(file, JETSON, {"x": x})
    assert made["minus"].tolist() == [[-1, -2, -3]]
    assert made["last"].tolist() == [1, 2]
    assert made["less"].tolist() == [[0, -1, -3], [-1, -2, -2]]
    assert "at" not in made


def test_branches_cannot_be_in_16_bits(tmp_path):
    ends = {"x": (TensorProto.FLOAT, [2])}, {"y": (TensorProto.FLOAT, [2])}
    body = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["n"])], "b", [], [helper.make_tensor_value_info("n", TensorProto.FLOAT, [2])]
    )
    node_ = helper.make_node("If", ["yes"], ["y"], name="branch", then_branch=body, else_branch=body)
    onnx.save(model_of([node_], *ends, {"yes": np.array(True)}), tmp_path / "m.onnx")
    assert "branches and loops" in backend.refuses_graph(tmp_path / "m.onnx", GPU)
    assert backend.refuses_graph(tmp_path / "m.onnx", FULL) is None


def test_an_output_that_the_network_goes_on_with_in_32_bits(tmp_path):
    """A second output that a mean is taken of: it is cast for the mean and cast as an output, under two names."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["conv"], name="conv"),
        helper.make_node("Relu", ["conv"], ["features"], name="features"),
        helper.make_node("ReduceMean", ["features"], ["mean"], name="mean", keepdims=0, axes=[2, 3]),
    ]
    ends = {"x": (TensorProto.FLOAT, [2, 1, 2, 2])}, dict.fromkeys(("features", "mean"), (TensorProto.FLOAT, None))
    onnx.save(model_of(nodes, *ends, {"w": np.array([1, -1], np.float32).reshape(2, 1, 1, 1)}, opset=13), tmp_path / "m.onnx")
    file = convert(tmp_path / "m.onnx", GPU, tmp_path / "out")
    names = [node.name for node in onnx.load(file).graph.node]
    assert len(set(names)) == len(names)
    x = np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2)
    made = backend.load(file, GPU, exact=True).run({"x": x})
    assert np.array_equal(made["features"], np.concatenate([x, 0 * x], 1))
    assert made["mean"].tolist() == [[1.5, 0], [5.5, 0]]


def test_bytes_are_cast_before_all_that_reads_them(tmp_path):
    nodes = [
        helper.make_node("Shape", ["image"], ["shape"], name="shape"),
        helper.make_node("Reshape", ["image", "shape"], ["same"], name="same"),
        helper.make_node("Cast", ["same"], ["a"], name="a", to=TensorProto.FLOAT),
        helper.make_node("Cast", ["same"], ["b"], name="b", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["a", "b"], ["y"], name="y"),
    ]
    model = model_of(nodes, {"image": (TensorProto.UINT8, ["n", 2])}, {"y": (TensorProto.FLOAT, ["n", 2])}, {})
    made = half.cast_first(model)
    onnx.checker.check_model(made, full_check=True)
    assert [n.op_type for n in made.graph.node] == ["Cast", "Shape", "Reshape", "Mul"]
    onnx.save(made, tmp_path / "m.onnx")
    image = np.array([[3, 250]], np.uint8)
    assert file_runner({"m": tmp_path / "m.onnx"})("m", {"image": image})["y"].tolist() == [[9, 62500]]


@pytest.mark.parametrize(
    ("weights", "activations", "said"),
    [
        ({"bits": 4, "kind": "codebook"}, None, "no weights from a table"),
        ({"bits": 4}, None, "INT4 alone, symmetric, in blocks"),
        ({"bits": 2}, None, "below 8 bits"),
        ({"bits": 4, "granularity": "group", "group": 64}, None, "INT4 alone"),
        ({"bits": 8}, None, "expands int8 weights"),
        ({"bits": 8}, 16, "not 16 bits"),
        ({"bits": 8}, 8, None),
        (None, None, None),
    ],
)
def test_what_it_stores_and_what_to_change(weights, activations, said):
    scheme = Scheme(weights=weights and Weights(**weights), activations=activations and Activations(bits=activations))
    told = backend.refuses(scheme, JETSON)
    if said is None:
        assert told is None
    else:
        assert said in told
        assert "Use `method: ptq` with `weights: {bits: 8}` and `activations: {bits: 8}`" in told
