import dataclasses
import json
from functools import partial

import numpy as np
import onnx
import pytest
from backends.attention_nets import network, nodes
from onnx import numpy_helper

from edgekd.backends import form_of, ort_form
from edgekd.backends import onnxruntime as backend
from edgekd.quantize import dynamic
from edgekd.quantize.variant import Variant
from edgekd.recipe import Scheme
from edgekd.targets import load_target


@pytest.fixture
def variant(tmp_path):
    """An attention layer in full precision."""
    folder = tmp_path / "variant"
    folder.mkdir()
    onnx.save(network(nodes()), folder / "model.onnx")
    return Variant("fp32", "none", Scheme(), folder, {"model": folder / "model.onnx"}, "torch")


def shipped(variant, folder, target=None):
    folder.mkdir()
    return backend.convert(variant, target or load_target("onnxruntime-cpu"), folder)["model"]


def test_what_is_fused_is_told(variant, tmp_path):
    file = shipped(variant, tmp_path / "made")
    assert backend.form(file) == {"MultiHeadAttention": 1}
    assert form_of("onnxruntime", file) == {"form": {"MultiHeadAttention": 1}}
    assert "MultiHeadAttention" in [node.op_type for node in onnx.load(file).graph.node]


def test_the_target_can_ask_for_the_plain_form(variant, tmp_path):
    target = load_target("onnxruntime-cpu")
    plain = dataclasses.replace(target, options={"attention": "plain"})
    file = shipped(variant, tmp_path / "made", plain)
    assert file.read_bytes() == variant.graphs["model"].read_bytes()
    assert form_of("onnxruntime", file) == {}


def test_the_web_gets_the_plain_form(variant, tmp_path):
    file = shipped(variant, tmp_path / "made", load_target("browser"))
    assert file.read_bytes() == variant.graphs["model"].read_bytes()


def wrong(model, by=0.01):
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for tensor in made.graph.initializer:
        if tensor.name == "bv":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(by), "bv"))
    return made, 2


def broken(model):
    made = onnx.ModelProto()
    made.CopyFrom(model)
    made.graph.node[0].op_type = "NoSuchOperator"
    return made, 1


@pytest.mark.parametrize(
    ("step", "says"), [(wrong, "left as it was: outputs differ by"), (broken, "the formed graph does not run")]
)
def test_a_form_that_computes_otherwise_does_not_ship_and_the_file_says_so(step, says, tmp_path):
    model = network(nodes())
    made = ort_form.formed(model, {"step": step}, backend.load)
    assert list(made.graph.node) == list(model.graph.node)
    onnx.save(made, tmp_path / "model.onnx")
    assert says in ort_form.told(tmp_path / "model.onnx")["step"]
    assert ort_form.formed(model, {"step": step}, backend.load) == made  # byte by byte the same file each time


def test_where_nothing_is_found_nothing_is_touched():
    model = network(nodes())
    assert ort_form.formed(model, {"step": lambda m: (m, 0)}, backend.load) is model


def test_the_trial_has_padding_in_it():
    """A mask that a form forgets would not show on sentences of one length."""
    made = ort_form.trial_inputs(
        [
            {"name": "attention_mask", "dtype": "int64", "shape": ["batch", "tokens"]},
            {"name": "x", "dtype": "float32", "shape": ["n", 4]},
        ]
    )
    assert made["attention_mask"].min(1).tolist() == [0, 1]
    assert made["x"].shape == (2, 4)


def test_rounding_at_each_call_is_judged_by_the_noise():
    """A difference in the last digit moves an activation to the next integer: the largest error says little there."""
    model = dynamic.quantize(network(nodes()), ())
    for by, told in ((0.01, "2"), (1.0, "left as it was: outputs differ by")):
        made = ort_form.formed(model, {"step": partial(wrong, by=by)}, backend.load)
        (said,) = (str(json.loads(p.value)["step"]) for p in made.metadata_props)
        assert told in said
