"""ONNX Runtime's mobile format: the same bytes each time, the same outputs, and the operators that a reduced build needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.backends import onnxruntime as desktop
from edgekd.backends import onnxruntime_mobile as backend
from edgekd.backends import ort_file
from edgekd.errors import BadInput
from edgekd.quantize import packed
from edgekd.quantize.variant import Variant
from edgekd.recipe import Scheme
from edgekd.targets import load_target

ANDROID = load_target("android-cpu")


def model(file: Path) -> Path:
    """Write y = relu(conv(x, w)) with an If behind it: relu is fused into the convolution, If has graphs of its own."""
    w = np.array([[[[2.0]]], [[[-1.0]]]], np.float32)
    one = helper.make_tensor("one", TensorProto.FLOAT, [], [1.0])
    add = helper.make_graph(
        [helper.make_node("Add", ["r", "one"], ["t"])],
        "then",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
    )
    neg = helper.make_graph(
        [helper.make_node("Neg", ["r"], ["e"])], "else", [], [helper.make_tensor_value_info("e", TensorProto.FLOAT, None)]
    )
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("If", ["choose"], ["y"], name="if", then_branch=add, else_branch=neg),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 2, 2])
    choose = helper.make_tensor_value_info("choose", TensorProto.BOOL, [])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2, 2, 2])
    graph = helper.make_graph(nodes, "g", [x, choose], [y], [numpy_helper.from_array(w, "w"), one])
    file.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    return file


@pytest.fixture
def shipped(tmp_path):
    """Convert it: the .ort file."""
    variant = Variant("fp32", "none", Scheme(), tmp_path, {"model": model(tmp_path / "v" / "model.onnx")}, "graph")
    (tmp_path / "a").mkdir()
    return backend.convert(variant, ANDROID, tmp_path / "a")["model"]


def test_it_computes_what_the_graph_says(shipped):
    session = backend.load(shipped, ANDROID, threads=1)
    x = np.array([[[[1, -2], [3, 0]]], [[[0.5, 0], [-1, 4]]]], np.float32)
    relu = np.maximum(np.concatenate([2 * x, -x], axis=1), 0)
    np.testing.assert_array_equal(session.run({"x": x, "choose": np.array(True), "unused": x})["y"], relu + 1)
    np.testing.assert_array_equal(session.run({"x": x, "choose": np.array(False)})["y"], -relu)
    assert session.providers == {"CPUExecutionProvider": 4}  # FusedConv, If, Add, Neg
    assert backend.load(shipped, ANDROID, exact=True) is None


def test_its_interface_is_the_graphs(shipped, tmp_path):
    assert backend.interface(shipped) == desktop.interface(tmp_path / "v" / "model.onnx")
    assert backend.interface(shipped)["inputs"][1] == {"name": "choose", "dtype": "bool", "shape": []}


CONVERT = "import sys; from pathlib import Path; from edgekd.backends import ort_file; ort_file.write(*map(Path, sys.argv[1:]))"


def test_the_same_graph_gives_the_same_bytes(tmp_path):
    """In other processes too: ONNX Runtime's hash tables differ from one to the next."""
    source = model(tmp_path / "m.onnx")
    for i in range(3):
        subprocess.run([sys.executable, "-c", CONVERT, source, tmp_path / f"{i}.ort"], check=True, timeout=60)
    ort_file.write(source, tmp_path / "3.ort")
    assert len({(tmp_path / f"{i}.ort").read_bytes() for i in range(4)}) == 1


def test_putting_it_in_order_twice_changes_nothing(shipped):
    content = shipped.read_bytes()
    assert ort_file.canonical(content) == content


def test_the_operators_are_those_that_onnx_runtimes_own_tool_finds(shipped, tmp_path):
    from onnxruntime.tools.ort_format_model import create_config_from_models

    create_config_from_models([shipped], tmp_path / "theirs.config", False)
    theirs = [line for line in (tmp_path / "theirs.config").read_text().splitlines() if not line.startswith("#")]
    ours = shipped.with_name("required_operators.config").read_text().splitlines()
    assert sorted(ours) == sorted(theirs)
    assert "com.microsoft;1;FusedConv" in ours


def test_a_list_that_lacks_an_operator_is_wrong(shipped):
    assert backend.wrong(shipped, ANDROID) == []
    listed = shipped.with_name("required_operators.config")
    listed.write_text(listed.read_text().replace("com.microsoft;1;FusedConv\n", "").replace("Neg", "Abs"))
    assert backend.wrong(shipped, ANDROID) == [
        "required_operators.config lacks ai.onnx;13;Neg, com.microsoft;1;FusedConv: a build reduced to it cannot run model.ort"
    ]
    listed.unlink()
    assert "is missing beside model.ort" in backend.wrong(shipped, ANDROID)[0]


@pytest.mark.parametrize("damage", ["empty", "not one", "cut", "onnx"])
def test_a_damaged_file_is_bad_input(shipped, tmp_path, damage):
    content = {"empty": b"", "not one": b"nothing at all", "cut": shipped.read_bytes()[:200]}
    shipped.write_bytes(content.get(damage, (tmp_path / "v" / "model.onnx").read_bytes()))
    with pytest.raises(BadInput, match=r"model\.ort"):
        backend.load(shipped, ANDROID)


def test_a_graph_that_cannot_be_loaded_is_bad_input(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"nothing")
    with pytest.raises(BadInput, match=r"m\.onnx: ONNX Runtime cannot write it as \.ort"):
        ort_file.write(tmp_path / "m.onnx", tmp_path / "m.ort")


def test_weights_alone_in_integers_are_refused_with_what_to_do():
    told = backend.refuses(Scheme.model_validate({"weights": {"bits": 4}}), ANDROID)
    assert "cannot store w4" in told
    assert "w8a8" in told
    assert backend.refuses(Scheme(), ANDROID) is None
    assert backend.refuses(Scheme.model_validate({"weights": {"bits": 8}, "activations": {"bits": 8}}), ANDROID) is None


def test_why_packed_weights_are_refused(tmp_path):
    """Of a convolution they take 4 bytes each in an .ort file, or cannot be read back."""
    q = helper.make_tensor("q", TensorProto.UINT4, [64, 64, 1, 1], np.zeros(4096, np.uint8))
    scale = numpy_helper.from_array(np.ones((), np.float32), "s")
    expand = helper.make_node("DequantizeLinear", ["q", "s"], ["w"])
    nodes = [expand, helper.make_node("Conv", ["x", "w"], ["y"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 64, 3, 3]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [q, scale])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(packed.foldable(made), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").stat().st_size < 4096
    ort_file.write(tmp_path / "m.onnx", tmp_path / "m.ort")
    assert (tmp_path / "m.ort").stat().st_size > 4 * 4096
    onnx.save(made, tmp_path / "m.onnx")
    ort_file.write(tmp_path / "m.onnx", tmp_path / "m.ort")
    with pytest.raises(BadInput, match="Unsupported tensor data type"):
        backend.load(tmp_path / "m.ort", ANDROID)


def test_it_runs_here_and_says_where():
    means = backend.executes(ANDROID)
    assert means.by == "runtime"
    assert "aarch64" in means.why
    assert not means.seconds_are_the_devices
