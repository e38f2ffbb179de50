import numpy as np
import onnx
import pytest
from backends.attention_nets import BATCH, HEADS, MASKED, SIZE, TOKENS, WIDTH, network, nodes, random, weights
from onnx import helper, numpy_helper

from edgekd.backends import ort_attention
from edgekd.quantize import dynamic
from edgekd.quantize.variant import file_runner


def attention(x: np.ndarray, added: np.ndarray, scale: float, biased: bool = True) -> np.ndarray:
    """Compute softmax(q k^T scale + added) v head by head. added: (batch, tokens, tokens)."""
    w = {name: value.astype(np.float64) for name, value in weights().items()}
    q, k, v = (x @ w[f"w{part}"] + w[f"b{part}"] * biased for part in "qkv")
    y = np.empty_like(q)
    for head in range(HEADS):
        at = slice(head * SIZE, (head + 1) * SIZE)
        scores = q[..., at] @ k[..., at].transpose(0, 2, 1) * scale + added
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        y[..., at] = shares / shares.sum(-1, keepdims=True) @ v[..., at]
    return y


def run(model: onnx.ModelProto, folder, exact: bool = True, **inputs: np.ndarray) -> np.ndarray:
    onnx.save(model, folder / "model.onnx")
    return file_runner({"model": folder / "model.onnx"}, exact=exact)("model", inputs)["y"]


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


PADDED = np.array([[1] * TOKENS, [1] * 4 + [0] * (TOKENS - 4)])


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("mask", ["padding", "given", "none"])
def test_attention_becomes_one_node_of_the_same_numbers(tmp_path, mask, biased, swapped):
    made, count = ort_attention.fuse(network(nodes(mask, swapped, biased), mask))
    assert count == 1
    assert "Softmax" not in kinds(made)
    assert kinds(made).count("MatMul") == 1  # of queries, keys and values together
    x = random(BATCH, TOKENS, WIDTH, seed=5)
    given: dict[str, np.ndarray] = {"x": x}
    added = np.zeros((BATCH, TOKENS, TOKENS))
    if mask == "padding":
        given["mask"] = PADDED
        added = added + (1 - PADDED[:, None]) * MASKED
    if mask == "given":
        given["added"] = random(BATCH, 1, TOKENS, TOKENS, seed=6)
        added = given["added"][:, 0]
    for exact in (True, False):
        np.testing.assert_allclose(
            run(made, tmp_path, exact, **given), attention(x, added, SIZE**-0.5, biased), rtol=1e-4, atol=1e-5
        )


def test_a_factor_that_is_not_the_usual_one(tmp_path):
    made, count = ort_attention.fuse(network(nodes(times=True)))
    assert count == 1
    x = random(BATCH, TOKENS, WIDTH, seed=5)
    expected = attention(x, (1 - PADDED[:, None]) * MASKED + np.zeros((1, TOKENS, 1)), 0.3)
    np.testing.assert_allclose(run(made, tmp_path, x=x, mask=PADDED), expected, rtol=1e-4, atol=1e-5)


def test_int8_products_are_joined_as_they_are(tmp_path):
    plain = dynamic.quantize(network(nodes()), ())
    made, count = ort_attention.fuse(plain)
    assert count == 1
    assert kinds(made).count("MatMulInteger") == kinds(made).count("DynamicQuantizeLinear") == 1
    tensors = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    before = {t.name: numpy_helper.to_array(t) for t in plain.graph.initializer}
    np.testing.assert_array_equal(tensors["y.weights"], np.concatenate([before[f"w{part}.columns"] for part in "qkv"], axis=1))
    x = random(BATCH, TOKENS, WIDTH, seed=5)
    given = {"x": x, "mask": PADDED}
    np.testing.assert_allclose(run(made, tmp_path, **given), run(plain, tmp_path, **given), rtol=1e-4, atol=1e-5)


def test_projections_of_several_inputs_are_left_alone(tmp_path):
    """Cross-attention reads its keys from elsewhere: the products stay, the rest becomes one node."""
    layer = nodes(mask="none")
    for node in layer:
        if node.name in ("k0", "v0"):
            node.input[0] = "source"
    layer.insert(0, helper.make_node("Neg", ["x"], ["source"], name="source"))
    plain = network(layer, "none")
    made, count = ort_attention.fuse(plain)
    assert count == 1
    assert kinds(made).count("MatMul") == 3
    x = random(BATCH, TOKENS, WIDTH, seed=5)
    np.testing.assert_allclose(run(made, tmp_path, x=x), run(plain, tmp_path, x=x), rtol=1e-4, atol=1e-5)


def changed(name: str, **attributes) -> list[onnx.NodeProto]:
    layer = nodes(mask="none")
    for node in layer:
        if node.name == name:
            del node.attribute[:]
            node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
    return layer


@pytest.mark.parametrize(
    "layer",
    [
        changed("shares", axis=1),
        changed("q", perm=[0, 2, 3, 1]),
        changed("back", perm=[0, 1, 2, 3]),
        [node for node in nodes(mask="none") if node.op_type != "Softmax"],
    ],
    ids=["softmax over queries", "queries turned", "heads not joined", "no softmax"],
)
def test_what_is_no_attention_is_left_as_it_was(layer):
    model = network(layer, "none")
    assert ort_attention.fuse(model) == (model, 0)


def test_heads_that_are_not_constant_are_left_alone():
    layer = nodes(mask="none")
    for node in layer:
        if node.name == "cut":
            node.input[2] = "tokens"
    model = network(layer, "none")
    assert ort_attention.fuse(model) == (model, 0)


def test_the_same_model_gives_the_same_bytes():
    first, second = (ort_attention.fuse(network(nodes()))[0].SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
