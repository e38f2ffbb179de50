"""Three products of one tensor before an attention as one, in full precision and by 4 bits."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.backends import ort_joint

WIDTH, HEADS, GROUPS, SIZE = 32, 4, 2, 8


def model(bits: bool = False, rotary: bool = True, **changed: str) -> onnx.ModelProto:
    """Queries, keys and values of x and a GroupQueryAttention without a past. changed: product -> another input than x."""
    rng = np.random.default_rng(0)
    stored: dict[str, np.ndarray] = {"last": np.array([2], np.int32), "total": np.array([3], np.int32)}
    nodes = []
    for part, heads in (("q", HEADS), ("k", GROUPS), ("v", GROUPS)):
        outputs = heads * SIZE
        x = changed.get(part, "x")
        if bits:
            stored[f"{part}.w"] = rng.integers(0, 256, (outputs, 1, WIDTH // 2)).astype(np.uint8)
            stored[f"{part}.s"] = rng.uniform(0.1, 0.2, (outputs, 1)).astype(np.float32)
            told = {"K": WIDTH, "N": outputs, "bits": 4, "block_size": WIDTH, "accuracy_level": 1}
            taken = [x, f"{part}.w", f"{part}.s"]
            nodes.append(helper.make_node("MatMulNBits", taken, [part], name=part, domain="com.microsoft", **told))
        else:
            stored[f"{part}.w"] = rng.standard_normal((WIDTH, outputs)).astype(np.float32)
            nodes.append(helper.make_node("MatMul", [x, f"{part}.w"], [part], name=part))
    names = ["q", "k", "v"]
    if rotary:
        stored |= {"places": np.arange(3)[None], "cos": rng.standard_normal((3, SIZE // 2)).astype(np.float32)}
        for place, heads in ((0, HEADS), (1, GROUPS)):
            taken, names[place] = [names[place], "places", "cos", "cos"], f"{names[place]}.turned"
            nodes.append(helper.make_node("RotaryEmbedding", taken, [names[place]], domain="com.microsoft", num_heads=heads))
    attention = helper.make_node(
        "GroupQueryAttention", [*names, "", "", "last", "total"], ["y", "keys", "values"], name="attention", domain="com.microsoft",
        num_heads=HEADS, kv_num_heads=GROUPS,
    )  # fmt: skip
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "keys", "values")]
    begins = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, WIDTH]) for name in {"x", *changed.values()}]
    tensors = [numpy_helper.from_array(value, name) for name, value in stored.items()]
    graph = helper.make_graph([*nodes, attention], "g", begins, ends, tensors)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize("bits", [False, True])
@pytest.mark.parametrize("rotary", [False, True])
def test_the_joint_product_gives_the_same(bits: bool, rotary: bool) -> None:
    plain = model(bits, rotary)
    made, count = ort_joint.fuse(plain)
    assert count == 1
    kind = "MatMulNBits" if bits else "MatMul"
    assert [node.op_type for node in made.graph.node][:2] == [kind, "Split"]
    assert [node.op_type for node in made.graph.node].count(kind) == 1
    x = np.random.default_rng(1).standard_normal((1, 3, WIDTH)).astype(np.float32)
    outputs = []
    for one in (plain, made):
        session = ort.InferenceSession(one.SerializeToString(), providers=["CPUExecutionProvider"])
        outputs.append(session.run(None, {"x": x}))
    for expected, found in zip(*outputs, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_products_of_other_tensors_and_those_that_others_read_stay() -> None:
    for plain in (model(k="z"), model()):
        if len(plain.graph.input) == 1:
            plain.graph.output.append(helper.make_tensor_value_info("v", TensorProto.FLOAT, None))
        assert ort_joint.fuse(plain) == (plain, 0)
