import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekd.backends import onnxruntime as backend
from edgekd.errors import BadInput, Missing


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
