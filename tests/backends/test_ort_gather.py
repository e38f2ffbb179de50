import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.backends import ort_gather


def model(first: tuple[int, ...] = (1, 0, 2), last: tuple[int, ...] = (1, 0, 2), axis: int = -1) -> onnx.ModelProto:
    """x[:, places] as torch's exporter writes it."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["turned"], perm=first),
        helper.make_node("Unsqueeze", ["places", "axis"], ["column"]),
        helper.make_node("GatherND", ["turned", "column"], ["taken"], batch_dims=0),
        helper.make_node("Transpose", ["taken"], ["y"], perm=last),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "tokens", 4])
    places = helper.make_tensor_value_info("places", TensorProto.INT64, ["kept"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x, places], [y], [numpy_helper.from_array(np.array([axis]), "axis")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_places_along_the_tokens_are_taken_at_once():
    made, count = ort_gather.fuse(model())
    assert count == 1
    assert [node.op_type for node in made.graph.node] == ["Gather"]
    x = np.random.default_rng(0).standard_normal((2, 5, 4)).astype(np.float32)
    for one in (model(), made):
        session = ort.InferenceSession(one.SerializeToString(), providers=["CPUExecutionProvider"])
        for places in ([4, 0, 4], [2]):
            np.testing.assert_array_equal(session.run(None, {"x": x, "places": np.array(places)})[0], x[:, places])


@pytest.mark.parametrize("other", [{"first": (2, 0, 1)}, {"last": (0, 1, 2)}])
def test_other_axes_stay(other):
    plain = model(**other)
    assert ort_gather.fuse(plain) == (plain, 0)
