import dataclasses

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.backends import onnxruntime as backend
from edgekd.errors import BadInput, Missing
from edgekd.targets import Target


@pytest.fixture
def doubling(tmp_path):
    nodes = [helper.make_node("Add", ["x", "x"], ["y"], name="twice"), helper.make_node("Identity", ["y"], ["z"], name="same")]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in ("x", "z")]
    graph = helper.make_graph(nodes, "doubling", ends[:1], ends[1:])
    file = tmp_path / "doubling.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    return file


def test_it_runs_and_counts_nodes_by_provider(doubling):
    x = np.array([[1, 2], [3, 4.5]], np.float32)
    session = backend.load(doubling)
    assert session.run({"x": x, "unused": x})["z"].tolist() == [[2, 4], [6, 9]]
    assert session.providers == {"CPUExecutionProvider": 1}  # the Identity is optimised away
    assert backend.load(doubling, exact=True).providers == {"CPUExecutionProvider": 2}


def test_threads_and_exactness_reach_the_runtime(doubling, monkeypatch):
    import onnxruntime

    seen = []
    make = onnxruntime.InferenceSession

    def spy(path, options, providers):
        seen.append((options.intra_op_num_threads, options.graph_optimization_level, providers))
        return make(path, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    backend.load(doubling, threads=3)
    backend.load(doubling, exact=True)
    levels = onnxruntime.GraphOptimizationLevel
    assert seen == [(3, levels.ORT_ENABLE_ALL, ["CPUExecutionProvider"]), (0, levels.ORT_DISABLE_ALL, ["CPUExecutionProvider"])]


@pytest.mark.parametrize("content", [b"", b"not a graph"])
def test_a_broken_file_is_bad_input(tmp_path, content):
    file = tmp_path / "broken.onnx"
    file.write_bytes(content)
    with pytest.raises(BadInput, match=r"broken\.onnx: ONNX Runtime cannot load it"):
        backend.load(file)


def test_a_missing_runtime_says_how_to_get_it(doubling, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'edgekd[onnxruntime]'" in backend.missing()
    with pytest.raises(Missing, match="pip install"):
        backend.load(doubling)


@pytest.mark.parametrize(("groups", "says"), [(1, "weights of conv use more than 7 bits"), (4, None)])
def test_full_range_int8_is_found_for_a_device_that_saturates(tmp_path, monkeypatch, groups, says):
    """This machine computes it right, with VNNI: the rule has to find it. Depthwise convolutions don't saturate."""
    shape = [4, 4 // groups, 3, 3]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "s"], ["wd"]),
        helper.make_node("Conv", ["d", "wd"], ["y"], name="conv", group=groups),
    ]
    constants = [
        numpy_helper.from_array(np.float32(0.1), "s"),
        numpy_helper.from_array(np.uint8(0), "z"),
        numpy_helper.from_array(np.full(shape, 127, np.int8), "w"),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("x", "y")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:], constants), opset_imports=[helper.make_opsetid("", 20)]
    )
    onnx.save(model, tmp_path / "m.onnx")
    old = Target("old", "An old PC", "onnxruntime", architecture="x86_64", vnni=False)
    monkeypatch.setattr("edgekd.host.vnni", lambda: True)
    found = backend.wrong(tmp_path / "m.onnx", old)
    assert (found == []) if says is None else found[0].startswith(says)
    assert backend.wrong(tmp_path / "m.onnx", dataclasses.replace(old, vnni=True)) == []


@pytest.mark.parametrize(("target", "says"), [("x86-64", "weights of y.sums use more than 7 bits"), ("x86-64-vnni", None)])
def test_full_range_int8_is_found_where_activations_are_scaled_at_each_call(tmp_path, monkeypatch, target, says):
    from edgekd.quantize import dynamic
    from edgekd.targets import load_target

    monkeypatch.setattr(backend.host, "vnni", lambda: True)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("x", "y")]
    weights = numpy_helper.from_array(np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32), "w")
    plain = helper.make_model(
        helper.make_graph([node], "g", ends[:1], ends[1:], [weights]), opset_imports=[helper.make_opsetid("", 20)]
    )
    for most, expected in ((127, says), (63, None)):
        file = tmp_path / f"{most}.onnx"
        onnx.save(dynamic.quantize(plain, (), largest=most), file)
        found = backend.wrong(file, load_target(target))
        assert (expected in found[0]) if expected else not found
