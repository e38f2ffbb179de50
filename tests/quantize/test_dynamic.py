from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.errors import BadInput
from edgekd.quantize import Job, dynamic, make, opset_for, refuses
from edgekd.quantize import variant as variants
from edgekd.quantize.variant import file_runner
from edgekd.recipe import VariantRecipe
from edgekd.targets import all_targets, load_target

TOKENS, WIDTH = 200, 32


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def network(nodes, weights: dict[str, np.ndarray], ends=("ids", "y")) -> onnx.ModelProto:
    kinds = {"ids": TensorProto.INT64}
    values = [helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), None) for name in ends]
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "net", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: onnx.ModelProto, folder, exact: bool = True, **inputs: np.ndarray) -> np.ndarray:
    file = folder / "model.onnx"
    onnx.save(model, file)
    return next(iter(file_runner({"model": file}, exact=exact)("model", inputs).values()))


def stored(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def rounded(weights: np.ndarray, axis: int | None, most: int = 127) -> tuple[np.ndarray, np.ndarray]:
    """Return (whole numbers, scales that broadcast): symmetric, one scale for each index along `axis`."""
    others = None if axis is None else 1 - axis
    scale = np.maximum(np.abs(weights).max(axis=others, keepdims=axis is not None) / np.float32(most), 1e-30, dtype=np.float32)
    return np.rint(weights / scale), scale


def product(x: np.ndarray, weights: np.ndarray, axis: int | None = 1, most: int = 127) -> np.ndarray:
    """Return x w as dynamic quantization computes it: x scaled from its smallest to its largest value, 0 among them."""
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    step = np.float32((high - low) / 255)
    zero = np.clip(np.rint(-low / step), 0, 255)
    q = np.clip(np.rint(x / step) + zero, 0, 255) - zero
    w, scale = rounded(weights, axis, most)
    return (q.astype(np.int64) @ w.astype(np.int64)) * (step * scale)


def test_a_product_is_computed_on_integers_scaled_at_each_call(tmp_path):
    weights, bias = random(WIDTH, 8), random(8, seed=1)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], name="linear"),
        helper.make_node("Add", ["p", "b"], ["y"], name="bias"),
    ]
    made = dynamic.quantize(network(nodes, {"w": weights, "b": bias}, ("x", "y")), ())
    for seed, size in ((2, 1.0), (3, 100.0)):
        x = random(2, 5, WIDTH, seed=seed) * np.float32(size) + 1
        for exact in (True, False):
            np.testing.assert_allclose(run(made, tmp_path, exact, x=x), product(x, weights) + bias, rtol=1e-4, atol=1e-4 * size)
    assert {w.dtype for name, w in stored(made).items() if w.ndim == 2} == {np.dtype(np.int8)}


def test_the_runtime_takes_it_in_one_operator(tmp_path):
    """ONNX Runtime fuses what the file says in ONNX's own operators, so no kernel of its own is named there."""
    import onnxruntime as ort

    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], name="linear"),
        helper.make_node("Add", ["p", "b"], ["y"], name="bias"),
    ]
    made = dynamic.quantize(network(nodes, {"w": random(WIDTH, 8), "b": random(8)}, ("x", "y")), ())
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert [n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node] == ["DynamicQuantizeMatMul"]


@pytest.mark.parametrize(("attributes", "turned"), [({}, False), ({"transB": 1}, True)])
def test_a_gemm(tmp_path, attributes, turned):
    weights, bias, x = random(WIDTH, 8), random(8, seed=1), random(4, WIDTH, seed=2)
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="gemm", **attributes)
    stands = np.ascontiguousarray(weights.T) if turned else weights
    made = dynamic.quantize(network([node], {"w": stands, "b": bias}, ("x", "y")), ())
    np.testing.assert_allclose(run(made, tmp_path, x=x), product(x, weights) + bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attributes", [{"alpha": 0.5}, {"beta": 2.0}, {"transA": 1}])
def test_a_gemm_that_does_more_stays_in_floating_point(attributes):
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="gemm", **attributes)
    model = network([node], {"w": random(WIDTH, 8), "b": random(8)}, ("x", "y"))
    assert [n.op_type for n in dynamic.quantize(model, ()).graph.node] == ["Gemm"]


def test_layers_that_read_the_same_quantize_it_once():
    nodes = [helper.make_node("MatMul", ["x", w], [f"y{w}"], name=w) for w in "qkv"]
    nodes.append(helper.make_node("Sum", ["yq", "yk", "yv"], ["y"], name="sum"))
    made = dynamic.quantize(network(nodes, {w: random(8, 8, seed=i) for i, w in enumerate("qkv")}, ("x", "y")), ())
    assert [n.op_type for n in made.graph.node].count("DynamicQuantizeLinear") == 1


def test_a_table_keeps_a_scale_a_row(tmp_path):
    table = random(TOKENS, WIDTH) * np.logspace(-3, 3, TOKENS, dtype=np.float32)[:, None]
    made = dynamic.quantize(
        network([helper.make_node("Gather", ["table", "ids"], ["y"], name="look up")], {"table": table}), ()
    )
    ids = np.array([[0, 7, 7], [199, 1, 3]])
    q, scale = rounded(table, 0)
    np.testing.assert_allclose(run(made, tmp_path, ids=ids), (q * scale)[ids], rtol=1e-6)
    assert sum(w.nbytes for w in stored(made).values()) == table.size + 4 * TOKENS


def test_a_small_table_is_left_alone():
    model = network([helper.make_node("Gather", ["table", "ids"], ["y"], name="look up")], {"table": random(2, WIDTH)})
    assert [n.op_type for n in dynamic.quantize(model, ()).graph.node] == ["Gather"]


@pytest.mark.parametrize("copied", [False, True])
def test_tied_embeddings_are_stored_once(tmp_path, copied):
    """An exporter leaves the output layer as the table's transpose, or as a copy of it turned around."""
    table = random(TOKENS, WIDTH)
    weights = {"table": table} | ({"head": np.ascontiguousarray(table.T)} if copied else {})
    nodes = [helper.make_node("Gather", ["table", "ids"], ["x"], name="look up")]
    if not copied:
        nodes.append(helper.make_node("Transpose", ["table"], ["head"], name="turn", perm=[1, 0]))
    nodes.append(helper.make_node("MatMul", ["x", "head"], ["y"], name="head"))
    made = dynamic.quantize(network(nodes, weights), ())
    assert sum(w.nbytes for w in stored(made).values()) == table.size + 2 * 4 * TOKENS  # scales: as a row and as a column
    q, scale = rounded(table, 0)
    ids = np.array([[5, 6]])
    x = (q * scale).astype(np.float32)[ids]
    np.testing.assert_allclose(run(made, tmp_path, ids=ids), product(x, table.T), rtol=1e-3, atol=1e-3)


def test_what_is_kept_stays_as_it_was(tmp_path):
    table = random(TOKENS, WIDTH)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"], name="look up"),
        helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
        helper.make_node("MatMul", ["h", "b"], ["y"], name="second"),
    ]
    model = network(nodes, {"table": table, "a": random(WIDTH, WIDTH), "b": random(WIDTH, 4)})
    made = dynamic.quantize(model, ("first", "look up"))
    found = stored(made)
    assert {"table", "a"} <= found.keys()
    assert "b" not in found
    assert [n.op_type for n in made.graph.node][:2] == ["Gather", "MatMul"]


def test_a_column_of_zeros_and_a_product_of_activations(tmp_path):
    """Any scale does for zeros; two activations have no weights to store."""
    weights = random(WIDTH, 4)
    weights[:, 1] = 0
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("MatMul", ["x", "h"], ["y"], name="second"),
    ]
    made = dynamic.quantize(network(nodes, {"w": weights}, ("x", "y")), ())
    x = random(WIDTH, WIDTH, seed=4)
    np.testing.assert_allclose(run(made, tmp_path, x=x), x @ product(x, weights), rtol=1e-3, atol=1e-3)


@pytest.fixture
def job(tmp_path):
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"], name="look up"),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="linear"),
    ]
    source = tmp_path / "source" / "model.onnx"
    source.parent.mkdir()
    onnx.save(network(nodes, {"table": random(TOKENS, WIDTH), "w": random(WIDTH, 8)}), source)
    return Job({"model": source}, (load_target("x86-64-vnni"),))


def test_a_variant_is_made_and_read_back(job, tmp_path):
    config = VariantRecipe(name="int8", method="dynamic")
    made = make(config, job, tmp_path / "v")
    assert made.scheme.label == "w8a8d"
    assert made.reference == "graph"
    told = made.facts["nodes"]["model"]
    assert told == {"heavy": 1, "int8": 1, "int8_weights": 0, "float": 0, "kept": []}
    assert variants.load(tmp_path / "v") == made


def test_weights_keep_to_7_bits_where_sums_saturate(job, tmp_path):
    job = replace(job, targets=(load_target("x86-64"),))
    made = make(VariantRecipe(name="int8", method="dynamic"), job, tmp_path / "v")
    q = stored(onnx.load(made.graphs["model"]))["w.columns"]
    assert np.abs(q.astype(int)).max() == 63
    np.testing.assert_array_equal(q, rounded(random(WIDTH, 8), 1, 63)[0])
    assert made.facts["overflow_fix"]["on"]


def test_one_scale_a_tensor(job, tmp_path):
    made = make(VariantRecipe(name="int8", method="dynamic", weights={"granularity": "tensor"}), job, tmp_path / "v")
    found = stored(onnx.load(made.graphs["model"]))
    assert found["w.columns.scale"].shape == found["table.rows.scale"].shape == ()
    q, scale = rounded(random(TOKENS, WIDTH), None)
    x = (q * scale).astype(np.float32)[np.array([[1, 2]])]
    made_of = file_runner(made.graphs)("model", {"ids": np.array([[1, 2]])})["y"]
    np.testing.assert_allclose(made_of, product(x, random(WIDTH, 8), None), rtol=1e-4, atol=1e-4)


def test_a_network_without_products_is_refused(job, tmp_path):
    config = VariantRecipe(name="int8", method="dynamic", keep=("linear",))
    with pytest.raises(BadInput, match="quantize `int8`: dynamic quantizes products with weights"):
        make(config, job, tmp_path / "v")


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"weights": {"bits": 4}}, "weights of 4 bits; dynamic makes uniform 8-bit weights"),
        ({"weights": {"group": 32}}, "groups of 32 weights"),
        ({"weights": {"symmetric": False}}, "asymmetric weights"),
        ({"activations": {"bits": 16}}, "activations of 16 bits"),
        ({"activations": {"symmetric": True}}, "leave `symmetric` out"),
        ({"calibration": {"samples": 10}}, "dynamic needs none"),
        ({"style": "exact"}, "`style` goes with quantized-distillation, not with dynamic"),
    ],
)
def test_what_it_cannot_do_is_told_at_once(parts, says):
    assert says in refuses(VariantRecipe(name="v", method="dynamic", **parts))


def test_the_scheme_follows_the_method():
    config = VariantRecipe(name="v", method="dynamic", calibration={"overflow_fix": "on"})
    assert config.scheme.label == "w8a8d"
    assert refuses(config) is None
    assert VariantRecipe(**config.model_dump()) == config
    assert VariantRecipe(name="v", method=["dynamic"]).scheme == config.scheme
    for parts in (
        {"method": "dynamic", "activations": {"dynamic": False}},
        {"method": "ptq", "activations": {"dynamic": True}},
    ):
        with pytest.raises(ValueError, match="by method `dynamic`, and by no other"):
            VariantRecipe(name="v", weights={"bits": 8}, **parts)


def test_targets_take_it_or_say_why_not():
    from edgekd.backends import backend_of

    scheme = VariantRecipe(name="v", method="dynamic").scheme
    answers = {target.name: backend_of(target.backend).refuses(scheme, target) for target in all_targets()}
    taken = {name for name, reason in answers.items() if reason is None}
    assert taken == {"android-cpu", "browser", "onnxruntime-cpu", "raspberry-pi-5", "x86-64", "x86-64-vnni"}
    assert "ONNX Runtime: use method ptq" in answers["intel-cpu"]
    assert all("w8a8d" in reason for reason in answers.values() if reason)
    assert opset_for([load_target("onnxruntime-cpu")], scheme) == 21
