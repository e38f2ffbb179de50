"""Every way of making a text encoder small, through the whole pipeline."""

import json

import numpy as np
import onnx
import pytest
import tiny_texts
from onnx import numpy_helper
from safetensors.numpy import load_file

from edgekd import pipeline
from edgekd.plan import plan

VARIANTS = [
    {"name": "fp32", "method": "none"},
    {"name": "dynamic", "method": "dynamic", "keep": ["encoder.layer.1.output"]},
    {"name": "int8", "method": "ptq", "weights": {"bits": 8}, "activations": {"bits": 8}},
    {"name": "w8", "method": "ptq", "weights": {"bits": 8}},
    {"name": "rtn4", "method": "round-to-nearest", "weights": {"bits": 4, "group": 16, "symmetric": True}},
    {"name": "qd4", "method": "quantized-distillation", "weights": {"bits": 4, "group": 16}, "training": {"epochs": 1}},
    {"name": "dq4", "method": "differentiable", "weights": {"bits": 4, "group": 16}, "training": {"epochs": 1}},
]


pytestmark = pytest.mark.exhaustive  # seven variants, three of them trained


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A BERT of two of its teacher's three layers, with its embeddings as a product of two matrices, in seven variants."""
    folder = tmp_path_factory.mktemp("texts")
    words = (*tiny_texts.WORDS, *(f"word{number}" for number in range(600)))  # a table that is worth quantizing
    teacher = tiny_texts.bert(folder / "teacher", words=words)
    student = {"model": "teacher", "teacher_layers": [0, 2], "arguments": {"embedding_rank": 16}}
    recipe = tiny_texts.recipe(
        folder, teacher, student, quantize=VARIANTS, targets=["onnxruntime-cpu"], gate={"max_drop": 1.0, "min_variant_sqnr_db": 3},
        bench={"launches": 1, "max_seconds": 1, "min_seconds": 0.05, "min_count": 5, "interval": None, "roofline": False},
    )  # fmt: skip
    made = pipeline.run(plan(recipe, folder / "run"))
    return made, folder / "run"


def stored(file) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(str(file)).graph.initializer}


@pytest.mark.parametrize("name", [variant["name"] for variant in VARIANTS])
def test_each_variant_passes(run, name):
    verdict = json.loads((run[1] / "verdicts" / "onnxruntime-cpu" / name / "verdict.json").read_text())
    assert verdict["status"] == "passed", verdict


@pytest.mark.parametrize("name", ["dynamic", "w8"])
def test_the_table_is_stored_in_int8(run, name):
    sizes = {
        n: w.dtype
        for n, w in stored(run[1] / "variants" / name / "model.onnx").items()
        if w.shape[:1] == (623,) and w.ndim == 2
    }
    assert np.dtype(np.int8) in sizes.values()
    assert all(w.dtype != np.float32 or w.shape[1] == 1 for w in stored(run[1] / "variants" / name / "model.onnx").values() if w.shape[:1] == (623,) and w.ndim == 2)  # fmt: skip


def test_what_is_kept_stays_in_floating_point(run):
    kinds = {n.name: n.op_type for n in onnx.load(str(run[1] / "variants" / "dynamic" / "model.onnx")).graph.node}
    assert (
        list(kinds.values()).count("MatMulInteger") == 1 + 2 * 6 - 1
    )  # the embedding's product, six a layer, one of them kept
    facts = json.loads((run[1] / "variants" / "dynamic" / "variant.json").read_text())["facts"]["nodes"]["model"]
    assert facts["int8"] == 12
    assert facts["kept"]


PARTS = ("embeddings.word_embeddings.0.weight", "embeddings.word_embeddings.1.weight", "encoder.layer.0.output.dense.weight")


@pytest.mark.parametrize("name", ["rtn4", "qd4", "dq4"])
def test_weights_made_in_torch_have_sixteen_levels_a_group(run, name):
    """The factorised table too, and the product behind it, which are modules of an nn.Sequential."""
    weights = load_file(run[1] / "variants" / name / "model.safetensors")
    for part in PARTS:
        assert max(len(np.unique(group)) for group in weights[part].reshape(-1, 16)) <= 16


def test_symmetric_weights_are_the_nearest_of_their_levels(run):
    made, student = (load_file(run[1] / part / "model.safetensors") for part in ("variants/rtn4", "student"))
    for part in PARTS:
        groups = student[part].reshape(-1, 16)
        step = np.maximum(groups.max(1, keepdims=True) / 7, -groups.min(1, keepdims=True) / 8)
        expected = np.rint(groups / np.where(step > 0, step, 1)).clip(-8, 7) * step
        np.testing.assert_allclose(made[part].reshape(-1, 16), expected, atol=1e-6)


def test_attention_ships_as_one_node_and_the_record_says_so(run):
    for name in ("fp32", "dynamic"):
        record = json.loads((run[1] / "targets" / "onnxruntime-cpu" / name / "artifact.json").read_text())
        assert record["graphs"]["model"]["form"] == {"Sum": 5, "MultiHeadAttention": 2}
