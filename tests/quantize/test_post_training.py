import weakref

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.errors import BadInput
from edgekd.export.graph import torch_runner
from edgekd.parity import compare
from edgekd.quantize import Job, make, refuses
from edgekd.quantize import variant as variants
from edgekd.quantize.calibration import from_task
from edgekd.quantize.post_training import counts, folded, overflow_fix
from edgekd.quantize.variant import file_runner
from edgekd.recipe import Calibration, VariantRecipe
from edgekd.targets import Target

W8A8 = {"name": "int8", "weights": {"bits": 8}, "activations": {"bits": 8}}


def stored(file) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(str(file)).graph.initializer}


def test_int8_is_near_the_student_and_a_quarter_of_the_size(trained, tmp_path):
    made = make(VariantRecipe(**W8A8), trained.job, tmp_path)
    assert made.reference == "graph"
    told = made.facts["nodes"]["model"]
    correction = told.pop("bias_correction")
    assert told == {"heavy": 5, "int8": 5, "int8_weights": 0, "float": 0, "kept": [], "rounded": 0}
    assert correction["on"] == (correction["sqnr_db"]["on"] > correction["sqnr_db"]["off"])
    inputs = trained.task.inputs(trained.splits.test.take(np.arange(100)))
    near = compare(torch_runner(list(trained.graphs))("model", inputs), file_runner(made.graphs)("model", inputs))
    assert near.sqnr_db == pytest.approx(max(correction["sqnr_db"].values()), abs=3)  # other samples
    assert near.sqnr_db > 25
    weights = stored(made.graphs["model"])
    for name in ("stem.conv", "depthwise.conv", "wide.conv", "residual.conv", "head"):
        (q,) = (w for key, w in weights.items() if f"net.{name}.weight" in key and w.dtype == np.int8 and w.ndim > 1)
        assert np.abs(q).max() > 100


def test_it_can_be_read_back(trained, tmp_path):
    made = make(VariantRecipe(**W8A8), trained.job, tmp_path)
    assert made.facts["nodes"]["model"]["bias_correction"]
    again = variants.load(tmp_path)
    assert again == made
    assert again.record()["scheme"]["label"] == "w8a8"
    assert again.size_bytes == made.graphs["model"].stat().st_size


def test_a_graph_that_nncf_stumbles_over_is_one_message(tmp_path):
    """It looks for the shape of what a convolution reads, and has none for a constant's."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4, 4, 4]) for name in ("x", "y")]
    told = {"w": np.ones((4, 4, 1, 1), np.float32), "b": np.ones(4, np.float32), "c": np.ones((1, 4, 4, 4), np.float32)}
    nodes = [
        helper.make_node("Conv", ["c", "w", "b"], ["one"], "of a constant"),
        helper.make_node("Conv", ["x", "w", "b"], ["other"], "of the input"),
        helper.make_node("Add", ["one", "other"], ["y"], "sum"),
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in told.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save(model, tmp_path / "model.onnx")
    batches = [{"x": np.ones((2, 4, 4, 4), np.float32)}]
    with pytest.raises(BadInput, match="NNCF cannot quantize this graph's activations"):
        make(
            VariantRecipe(**W8A8),
            Job({"model": tmp_path / "model.onnx"}, (), lambda name, settings: batches),
            tmp_path / "made",
        )


def test_the_overflow_fix_keeps_weights_to_7_bits(trained, tmp_path):
    made = make(VariantRecipe(**W8A8, calibration={"overflow_fix": "on"}), trained.job, tmp_path)
    weights = [w for w in stored(made.graphs["model"]).values() if w.dtype == np.int8 and w.ndim > 1 and w.shape[1] > 1]
    assert len(weights) == 4  # a depthwise channel sums 9 products of its own, which no kernel adds in pairs
    assert max(np.abs(w.astype(int)).max() for w in weights) <= 64
    assert made.facts["overflow_fix"] == {"on": True, "why": "as the recipe says"}


OLD = Target("old", "Old PC", "onnxruntime", architecture="x86_64", vnni=False)
NEW = Target("new", "New PC", "onnxruntime", architecture="x86_64", vnni=True)
ARM = Target("arm", "Board", "onnxruntime", architecture="aarch64")


@pytest.mark.parametrize(
    ("parts", "targets", "on"),
    [
        (W8A8, (OLD,), True),
        (W8A8, (NEW, ARM), False),
        (W8A8, (NEW, OLD), True),
        (W8A8 | {"calibration": {"overflow_fix": "off"}}, (OLD,), False),
        (W8A8 | {"calibration": {"overflow_fix": "on"}}, (NEW,), True),
        ({"name": "w8", "weights": {"bits": 8}}, (OLD,), False),
        ({"name": "fp32", "method": "none"}, (OLD,), False),
    ],
)
def test_when_the_overflow_fix_is_on(parts, targets, on):
    chosen, why = overflow_fix(VariantRecipe(**parts), targets)
    assert chosen == on
    assert why


def test_preprocessing_stays_in_floating_point(trained, tmp_path):
    made = make(VariantRecipe(**W8A8), trained.job, tmp_path)
    model = onnx.load(str(made.graphs["model"]))
    before = []
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            break
        if node.op_type != "DequantizeLinear":
            before.append(node.op_type)
    assert before[0] in ("Cast", "Transpose")
    assert before[-2:] == ["Sub", "Div"]


def test_a_normalisation_of_products_and_sums_stays_in_floating_point(tmp_path):
    """NNCF would store the sum as int8: 8 bits of 8 bits lose twice."""
    rng = np.random.default_rng(0)
    weights = {"by": np.float32(1 / 64), "less": np.float32(-2), "w": rng.normal(size=(4, 3, 3, 3)).astype(np.float32)}
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "by"], ["scaled"], name="scale"),
        helper.make_node("Add", ["scaled", "less"], ["shifted"], name="shift"),
        helper.make_node("Add", ["shifted", "scaled"], ["both"], name="both"),
        helper.make_node("Conv", ["both", "w"], ["y"], name="layer"),
    ]
    ends = [
        helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 3, 8, 8]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4, 6, 6]),
    ]
    initializers = [numpy_helper.from_array(np.asarray(v), key) for key, v in weights.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], initializers)
    file = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    batches = [{"image": rng.integers(0, 256, (8, 3, 8, 8), dtype=np.uint8)} for _ in range(4)]
    made = make(VariantRecipe(**W8A8), Job({"model": file}, (), lambda name, settings: batches), tmp_path / "v")
    kinds = [
        node.op_type
        for node in onnx.load(str(made.graphs["model"])).graph.node
        if node.input[0] not in stored(made.graphs["model"])
    ]
    assert kinds[:5] == ["Cast", "Mul", "Add", "Add", "QuantizeLinear"]


@pytest.mark.parametrize(
    ("keep", "floats"),
    [(("head",), 1), (("stem",), 1), (("stem", "head"), 2), (("*.conv",), 4), (("res*",), 1), (("stem.bn",), 1)],
)
def test_kept_modules_stay_in_floating_point(trained, tmp_path, keep, floats):
    made = make(VariantRecipe(**W8A8, keep=keep), trained.job, tmp_path)
    assert made.facts["nodes"]["model"]["float"] == floats
    assert made.facts["nodes"]["model"]["kept"]
    small = make(VariantRecipe(name="w8", weights={"bits": 8}, keep=keep), trained.job, tmp_path / "w8")
    assert small.facts["nodes"]["model"]["float"] == floats


@pytest.mark.parametrize("activations", [None, {"bits": 8}])
def test_an_unknown_module_to_keep_names_the_nearest(trained, tmp_path, activations):
    recipe = VariantRecipe(name="v", weights={"bits": 8}, activations=activations, keep=("hed",))
    with pytest.raises(BadInput, match=r"no module of the student is called `hed` \(did you mean `head`\?\)"):
        make(recipe, trained.job, tmp_path)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"weights": {"bits": 4}, "activations": {"bits": 8}}, "weights of 4 bits"),
        ({"weights": {"bits": 8, "group": 32}}, "groups of 32 weights"),
        ({"weights": {"bits": 8, "kind": "codebook"}}, "kind codebook"),
        ({"weights": {"bits": 8, "symmetric": False}}, "asymmetric weights"),
    ],
)
def test_what_ptq_cannot_do_is_refused_with_what_it_can(trained, tmp_path, parts, says):
    recipe = VariantRecipe(name="v", **parts)
    assert says in refuses(recipe)
    with pytest.raises(BadInput, match="ptq makes uniform 8-bit weights"):
        make(recipe, trained.job, tmp_path)


@pytest.mark.parametrize(("granularity", "symmetric"), [("tensor", False), ("channel", True)])
def test_granularity_and_symmetry_are_as_asked(trained, tmp_path, granularity, symmetric):
    recipe = VariantRecipe(
        name="v", weights={"bits": 8, "granularity": granularity}, activations={"bits": 8, "symmetric": symmetric}
    )
    parts = stored(make(recipe, trained.job, tmp_path).graphs["model"])
    of_weights = [v for key, v in parts.items() if key.startswith("scale_net.")]
    assert len(of_weights) == 5
    assert {scale.ndim for scale in of_weights} == ({0} if granularity == "tensor" else {1})
    first = parts["zero_point_div_1_1.unsigned"]  # of the normalised picture, which has negative values
    assert (first == 128) == symmetric


def test_memory_does_not_grow_with_the_samples(trained, tmp_path):
    """Counts the calibration batches that are alive at the same time."""
    most = {}
    for count in (4, 24):
        live: set[int] = set()
        seen = [0, 0]

        def batches(name, settings, count=count, live=live, seen=seen):
            for number in range(count):
                batch = trained.task.inputs(trained.splits.train.take(np.arange(8) + number))
                live.add(number)
                weakref.finalize(batch["image"], live.discard, number)
                seen[0], seen[1] = seen[0] + 1, max(seen[1], len(live))
                yield batch

        job = Job(trained.source, trained.job.targets, batches)
        make(VariantRecipe(**W8A8, calibration={"samples": 8 * count, "batch_size": 8}), job, tmp_path / str(count))
        assert seen[0] >= count
        most[count] = seen[1]
    assert most[24] <= most[4] <= 3


def test_calibration_takes_seeded_samples_without_repetition(trained):
    settings = Calibration(samples=50, batch_size=16)
    made = [b["image"] for b in from_task(trained.task, trained.splits.train, settings, seed=4)]
    assert [len(b) for b in made] == [16, 16, 16, 2]
    again = [b["image"] for b in from_task(trained.task, trained.splits.train, settings, seed=4)]
    other = [b["image"] for b in from_task(trained.task, trained.splits.train, settings, seed=5)]
    assert all((a == b).all() for a, b in zip(made, again, strict=True))
    assert not all((a == b).all() for a, b in zip(made, other, strict=True))
    few = list(from_task(trained.task, trained.splits.validation, Calibration(samples=10**6, batch_size=50), seed=0))
    assert sum(len(b["image"]) for b in few) == len(trained.splits.validation)


def test_without_calibration_samples_int8_says_so(trained, tmp_path):
    with pytest.raises(BadInput, match="need calibration samples"):
        make(VariantRecipe(**W8A8), Job(trained.source), tmp_path)


# --- a bare .onnx, no torch anywhere ---------------------------------------------------------------


@pytest.fixture
def bare(tmp_path):
    """Somebody else's file: Conv, BatchNormalization, Relu, GlobalAveragePool, MatMul, static batch of 1, float input."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    weights = {
        "w": normal(8, 3, 3, 3), "scale": 1 + 0.1 * normal(8), "shift": normal(8), "mean": normal(8),
        "variance": np.abs(normal(8)) + 0.5, "shape": np.array([1, 8]), "m": normal(8, 5),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv1"),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "variance"], ["b"], name="norm1"),
        helper.make_node("Relu", ["b"], ["r"], name="relu1"),
        helper.make_node("GlobalAveragePool", ["r"], ["g"], name="pool"),
        helper.make_node("Reshape", ["g", "shape"], ["f"], name="flat"),
        helper.make_node("MatMul", ["f", "m"], ["y"], name="classes"),
    ]
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5]),
    ]
    initializers = [numpy_helper.from_array(v, key) for key, v in weights.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "bare", ends[:1], ends[1:], initializers),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    file = tmp_path / "theirs.onnx"
    onnx.save(model, file)
    batches = [{"x": normal(1, 3, 8, 8)} for _ in range(12)]
    return file, batches


def test_batchnorm_is_folded_before_quantization(bare):
    file, batches = bare
    model = folded(onnx.load(str(file)))
    assert [n.op_type for n in model.graph.node if n.op_type == "BatchNormalization"] == []
    expected = file_runner({"m": file})("m", batches[0])
    onnx.save(model, file.with_name("folded.onnx"))
    assert compare(expected, file_runner({"m": file.with_name("folded.onnx")})("m", batches[0])).relative < 1e-5


@pytest.mark.parametrize("activations", [None, {"bits": 8}])
def test_a_bare_file_is_quantized(bare, tmp_path, activations):
    file, batches = bare
    job = Job({"theirs": file}, (), lambda name, settings: batches)
    recipe = VariantRecipe(name="v", weights={"bits": 8}, activations=activations, calibration={"samples": 12, "batch_size": 1})
    made = make(recipe, job, tmp_path / "v")
    kind = "int8" if activations else "int8_weights"
    assert made.facts["nodes"]["theirs"][kind] == 2
    expected, y = file_runner({"m": file})("m", batches[0]), file_runner(made.graphs)("theirs", batches[0])
    assert 15 < compare(expected, y).sqnr_db < 80


def test_a_node_of_a_bare_file_can_be_kept(bare, tmp_path):
    file, batches = bare
    job = Job({"theirs": file}, (), lambda name, settings: batches)
    made = make(VariantRecipe(**W8A8, keep=("classes",)), job, tmp_path / "v")
    assert made.facts["nodes"]["theirs"]["float"] == 1
    with pytest.raises(BadInput, match=r"no node of theirs.onnx is called `clases` \(did you mean `classes`"):
        make(VariantRecipe(**W8A8, keep=("clases",)), job, tmp_path / "v2")


def test_counting_an_unquantized_graph(bare):
    assert counts(onnx.load(str(bare[0]))) == {"heavy": 2, "int8": 0, "int8_weights": 0, "float": 2}


def test_16_bit_activations_need_a_target_that_quantizes_by_rules_of_its_own(trained, tmp_path):
    recipe = VariantRecipe(name="v", method="ptq", weights={"bits": 8}, activations={"bits": 16})
    assert refuses(recipe) is None
    with pytest.raises(BadInput, match="quantize `v`: activations of 16 bits are for NPUs"):
        make(recipe, trained.job, tmp_path / "v")


def test_a_quotient_of_activations_stays_in_floating_point(tmp_path):
    """Linear attention divides by a sum that shares its product's scale; in integers that is off by far."""
    rng = np.random.default_rng(0)
    make_node, info = helper.make_node, helper.make_tensor_value_info
    nodes = [
        make_node("MatMul", ["x", "w"], ["a"], name="first"),
        make_node("MatMul", ["x", "v"], ["b"], name="second"),
        make_node("MatMul", ["a", "b"], ["both"], name="product"),
        make_node("ReduceSum", ["both", "last"], ["sum"], name="sum"),
        make_node("Div", ["both", "sum"], ["shares"], name="quotient"),
        make_node("MatMul", ["shares", "w"], ["y"], name="after"),
    ]
    weights = {name: np.abs(rng.normal(size=(8, 8))).astype(np.float32) for name in "wv"} | {"last": np.array([-1])}
    tensors = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    ends = [info("x", TensorProto.FLOAT, [8, 8]), info("y", TensorProto.FLOAT, [8, 8])]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    onnx.save(model, tmp_path / "model.onnx")
    batches = [{"x": np.abs(rng.normal(size=(8, 8))).astype(np.float32)} for _ in range(4)]
    job = Job({"model": tmp_path / "model.onnx"}, calibration=lambda graph, settings: batches)
    made = make(VariantRecipe(**W8A8), job, tmp_path / "int8")
    quantized = onnx.load(str(made.graphs["model"])).graph
    makers = {name: node for node in quantized.node for name in node.output}
    fed_by = {n.name: [makers[i].op_type for i in n.input if i in makers] for n in quantized.node}
    assert "DequantizeLinear" not in fed_by["quotient"] + fed_by["product"] + fed_by["sum"]
    assert fed_by["first"].count("DequantizeLinear") == fed_by["after"].count("DequantizeLinear") == 2


@pytest.mark.parametrize(("groups", "floats"), [(1, 0), (2, 1), (4, 0)])
def test_with_the_overflow_fix_no_sum_can_saturate(tmp_path, groups, floats):
    """NNCF leaves every convolution in groups its 8 bits; that is right for depthwise ones alone, the others stay in floats."""
    from edgekd.backends import onnxruntime

    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "v"], ["y"], name="grouped", group=groups),
    ]
    shapes = {"w": (4, 3, 3, 3), "v": (4, 4 // groups, 3, 3)}
    tensors = [numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name) for name, shape in shapes.items()]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, s, s]) for n, c, s in (("x", 3, 8), ("y", 4, 4))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "model.onnx")
    batches = [{"x": rng.normal(size=(1, 3, 8, 8)).astype(np.float32)} for _ in range(4)]
    job = Job({"model": tmp_path / "model.onnx"}, calibration=lambda graph, settings: batches)
    recipe = VariantRecipe(**W8A8, calibration={"overflow_fix": "on"})
    made = onnx.load(str(make(recipe, job, tmp_path / "int8").graphs["model"]))
    assert counts(made)["float"] == floats
    assert all(largest <= 64 for _, largest in onnxruntime._int8_weights(made.graph))
