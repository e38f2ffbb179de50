import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgekd.backends.qnn_graph import signed_activations
from edgekd.errors import BadInput
from edgekd.parity import compare
from edgekd.quantize import Job, make
from edgekd.quantize.calibration import from_task
from edgekd.quantize.dialects import qnn
from edgekd.quantize.keep import quotients
from edgekd.quantize.variant import file_runner
from edgekd.recipe import Calibration, VariantRecipe
from edgekd.targets import load_target

pytest.importorskip("ml_dtypes")


def recipe(bits=8, **weights):
    return VariantRecipe(name="v", weights={"bits": 8} | weights, activations={"bits": bits})


@pytest.fixture(scope="module")
def batches(trained):
    return list(from_task(trained.task, trained.splits.train, Calibration(samples=96), seed=0))


def parts(model):
    """{weight or tensor that is dequantized: (integer type, number of scales)}."""
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return {
        node.input[0]: (tensors[node.input[2]].dtype.name, tensors[node.input[1]].size, node.input[0] in tensors)
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
    }


@pytest.mark.parametrize(("bits", "kind", "least"), [(8, "uint8", 25), (16, "uint16", 28)])
def test_activations_are_unsigned_and_convolutions_have_a_scale_a_channel(trained, batches, tmp_path, bits, kind, least):
    source = trained.source["model"]
    made = qnn.quantize(source, [], batches, recipe(bits))
    assert signed_activations(made) == []
    found = parts(made)
    assert {type_ for type_, _, constant in found.values() if not constant} == {kind}
    convolutions = [v for name, v in found.items() if name.startswith("net.") and "conv.weight_q" in name]
    assert [type_ for type_, _, _ in convolutions] == ["int8"] * 4
    assert sorted(scales for _, scales, _ in convolutions) == [16, 16, 32, 32]
    onnx.save(made, tmp_path / "q.onnx")
    inputs = trained.task.inputs(trained.splits.test.take(np.arange(60)))
    run = file_runner({"q": tmp_path / "q.onnx", "m": source})
    assert compare(run("m", inputs), run("q", inputs)).sqnr_db > least


def test_scales_and_zero_points_are_those_of_the_least_and_the_largest_value(tmp_path):
    """y = Conv(x): x in [-1, 3] -> scale 4 / 255, zero point round(255 / 4)."""
    w = np.array([[[[0.5]]], [[[-2.0]]]], np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv")
    ends = [helper.make_tensor_value_info(name, 1, ["batch", n, 2, 2]) for name, n in (("x", 1), ("y", 2))]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [numpy_helper.from_array(w, "w")])
    file = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    x = np.array([[[[-1, 0], [1, 3]]]], np.float32)
    made = qnn.quantize(file, [], [{"x": x, "unused": x}], recipe())
    tensors = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    assert tensors["x_scale"] == pytest.approx(4 / 255, rel=1e-6)
    assert tensors["x_zero_point"] == 64
    assert np.allclose(tensors["w_scale"].ravel(), np.array([0.5, 2]) / 127.5, rtol=0.005)
    assert tensors["w_quantized"].ravel().tolist() in ([127, -127], [127, -128])
    one = qnn.quantize(file, [], [{"x": x}], recipe(granularity="tensor"))
    tensors = {t.name: numpy_helper.to_array(t) for t in one.graph.initializer}
    assert tensors["w_quantized"].dtype == np.uint8
    assert tensors["w_scale"] == pytest.approx(2.5 / 255, rel=1e-6)


def test_the_preprocessing_and_what_is_kept_stay_in_floating_point(trained, batches):
    from edgekd.quantize.keep import kept_nodes

    source = trained.source["model"]
    keep = kept_nodes(("head",), onnx.load(str(source)), source)
    made = qnn.quantize(source, keep, batches, recipe())
    first = next(n for n in made.graph.node if n.op_type == "QuantizeLinear")
    assert first.input[0] == next(n for n in onnx.load(str(source)).graph.node if n.op_type == "Conv").input[0]
    makers = {name: n for n in made.graph.node for name in n.output}
    tensors = {t.name for t in made.graph.initializer}
    (head,) = (n for n in made.graph.node if n.op_type in ("Gemm", "MatMul"))
    assert head.input[1] in tensors
    convolutions = [n for n in made.graph.node if n.op_type == "Conv"]
    assert all(makers[n.input[1]].op_type == "DequantizeLinear" for n in convolutions)


def test_normalisations_and_grouped_transposed_convolutions_keep_one_scale(tmp_path):
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    tensors = {"c": normal(4, 4, 1, 1), "g": 1 + normal(6), "h": normal(6), "t": normal(4, 2, 2, 2)}
    nodes = [
        helper.make_node("Conv", ["x", "c"], ["a"], name="conv"),
        helper.make_node("LayerNormalization", ["a", "g", "h"], ["b"], name="norm", axis=-1),
        helper.make_node("ConvTranspose", ["b", "t"], ["y"], name="up", group=2, strides=[2, 2]),
    ]
    ends = [helper.make_tensor_value_info("x", 1, [1, 4, 6, 6]), helper.make_tensor_value_info("y", 1, [1, 4, 12, 12])]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(v, k) for k, v in tensors.items()])
    file = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    for bits in (8, 16):
        found = parts(qnn.quantize(file, [], [{"x": normal(1, 4, 6, 6)} for _ in range(4)], recipe(bits)))
        assert found["c_quantized"][:2] == ("int8", 4)
        assert found["g_quantized"][:2] == ("uint8", 1)
        assert found["t_quantized"][:2] == ("uint8", 1)


@pytest.mark.parametrize("fill", [30.0, 0.0, None])
def test_a_padding_of_a_constant_becomes_zeros_and_a_sum(tmp_path, fill):
    rng = np.random.default_rng(0)
    tensors = {
        "c": rng.normal(size=(4, 4, 1, 1)),
        "p": np.array([0, 0, 1, 0, 0, 0, 2, 0]),
        "v": np.float32(fill or 0),
        "d": np.ones((4, 4, 1, 1)),
    }
    tensors = {key: np.asarray(v, np.int64 if key == "p" else np.float32) for key, v in tensors.items()}
    nodes = [
        helper.make_node("Conv", ["x", "c"], ["a"], name="first"),
        helper.make_node("Pad", ["a", "p", "v"][: 2 if fill is None else 3], ["b"], name="pad"),
        helper.make_node("Conv", ["b", "d"], ["y"], name="second"),
    ]
    ends = [helper.make_tensor_value_info(name, 1, ["batch", 4, n, 6]) for name, n in (("x", 6), ("y", 9))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(v, k) for k, v in tensors.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    made = qnn.padded_with_zeros(model)
    onnx.checker.check_model(made)
    onnx.save(made, tmp_path / "z.onnx")
    run = file_runner({"m": tmp_path / "m.onnx", "z": tmp_path / "z.onnx"})
    x = {"x": rng.normal(size=(3, 4, 6, 6)).astype(np.float32)}
    assert np.array_equal(run("m", x)["y"], run("z", x)["y"])
    assert [n.op_type for n in made.graph.node] == ["Conv", "Pad", *(["Add"] if fill else []), "Conv"]
    quantized = qnn.quantize(tmp_path / "m.onnx", [], [x], recipe())
    (pad,) = (n for n in quantized.graph.node if n.op_type == "Pad")
    stored = {t.name: numpy_helper.to_array(t) for t in quantized.graph.initializer}
    (to_float,) = (n for n in quantized.graph.node if n.output[0] == pad.input[2])
    assert stored[to_float.input[0]] == stored[to_float.input[2]]  # the padding is the zero point: 0


def test_the_quotients_of_linear_attention_stay_in_floating_point():
    make_node, info = helper.make_node, helper.make_tensor_value_info
    nodes = [
        make_node("Conv", ["x", "w"], ["q"], name="q"),
        make_node("Conv", ["x", "w"], ["k"], name="k"),
        make_node("MatMul", ["q", "k"], ["both"], name="both"),
        make_node("Slice", ["both", "zero", "one", "last"], ["top"], name="top"),
        make_node("Slice", ["both", "one", "two", "last"], ["bottom"], name="bottom"),
        make_node("Add", ["bottom", "eps"], ["safe"], name="safe"),
        make_node("Div", ["top", "safe"], ["y"], name="quotient"),
        make_node("Add", ["y", "q"], ["z"], name="residual"),
        make_node("Div", ["z", "eps"], ["out"], name="by a constant"),
    ]
    ends = [info("x", 1, [1, 4, 6, 6]), info("out", 1, None)]
    model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:]))
    assert sorted(quotients(model)) == ["both", "bottom", "quotient", "safe", "top"]


def test_without_samples_it_says_so(trained):
    with pytest.raises(BadInput, match="no calibration samples"):
        qnn.quantize(trained.source["model"], [], [], recipe())


def test_the_same_bytes_whatever_the_hash_seed(trained, tmp_path):
    code = (
        "import sys, hashlib, numpy as np; from pathlib import Path\n"
        "from edgekd.quantize.dialects import qnn; from edgekd.recipe import VariantRecipe\n"
        "x = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)\n"
        "v = VariantRecipe(name='v', weights={'bits': 8}, activations={'bits': 8})\n"
        "made = qnn.quantize(Path(sys.argv[1]), [], [{'image': x}], v)\n"
        "print(hashlib.sha256(made.SerializeToString(deterministic=True)).hexdigest())\n"
    )
    import os

    said = {
        subprocess.run(
            [sys.executable, "-c", code, str(trained.source["model"])],
            capture_output=True, text=True, check=True, env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(said) == 1


def test_ptq_makes_the_dialect_for_a_snapdragon(trained, batches, tmp_path):
    target = load_target("snapdragon-8-gen-3")
    job = Job(trained.source, (target,), lambda name, settings: batches)
    for bits in (8, 16):
        made = make(recipe(bits), job, tmp_path / str(bits))
        file = made.for_target(target).graphs["model"]
        assert signed_activations(onnx.load(str(file))) == []
        assert {v[0] for v in parts(onnx.load(str(file))).values() if not v[2]} == {f"uint{bits}"}
