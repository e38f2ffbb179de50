"""Variants whose weights were quantized in torch: scored with their own weights, judged through their file, faults planted in it."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from edgekd import models
from edgekd.export import artifact as artifacts
from edgekd.export import onnx as export
from edgekd.export.graph import torch_runner
from edgekd.quantize import make
from edgekd.quantize.variant import Variant, load, reference_runner
from edgekd.recipe import Gate, VariantRecipe
from edgekd.verify import Question, verify

RECIPES = {
    "w4": {"method": "round-to-nearest", "weights": {"bits": 4}},
    "w3g64": {"method": "round-to-nearest", "weights": {"bits": 3, "group": 64}},
    "w8": {"method": "round-to-nearest", "weights": {"bits": 8, "granularity": "tensor"}, "keep": ["stem"]},
}


@pytest.fixture(scope="module")
def variants(trained, tmp_path_factory) -> dict[str, Variant]:
    folder = tmp_path_factory.mktemp("variants")
    made = {name: make(VariantRecipe(name=name, **recipe), trained.job, folder / name) for name, recipe in RECIPES.items()}
    assert all(load(variant.folder) == variant for variant in made.values())
    return made


@pytest.fixture
def judge(trained, tmp_path):
    def judge(variant: Variant, shipped: Variant | None = None):
        own = models.restore(variant.folder, like=trained.model)
        graphs = trained.task.graphs(own, trained.splits)
        golden = {"model": trained.task.inputs(trained.splits.test.take(np.arange(0, 80, 10)))}
        made = artifacts.make(
            shipped or variant, trained.target, tmp_path / "artifact", golden=golden,
            reference=reference_runner(variant, torch_runner(graphs)), gate=Gate(), classes=trained.splits.classes,
        )  # fmt: skip
        question = Question(
            made, variant, trained.target, Gate(), trained.task, trained.splits.test, None, trained.student, tuple(graphs),
            trained.source,
        )  # fmt: skip
        return verify(question)

    return judge


def tampered(variant: Variant, folder: Path, tensor: str, how) -> Variant:
    model = onnx.load(str(variant.graphs["model"]))
    (stored,) = (t for t in model.graph.initializer if t.name == tensor)
    values = numpy_helper.to_array(stored)
    if values.dtype.kind == "f":
        stored.CopyFrom(numpy_helper.from_array(how(values).astype(values.dtype), tensor))
    else:
        stored.raw_data = bytes(len(stored.raw_data))
    folder.mkdir()
    export.save(model, folder / "model.onnx")
    return dataclasses.replace(variant, folder=folder, graphs={"model": folder / "model.onnx"})


@pytest.mark.parametrize("name", RECIPES)
def test_a_healthy_one_passes_scored_with_its_own_weights(trained, variants, judge, name):
    verdict = judge(variants[name])
    assert verdict.status == "passed", verdict.reason
    net = copy.deepcopy(trained.model.module)
    with torch.no_grad():
        for key, values in models.restore(variants[name].folder, like=trained.model).module.net.state_dict().items():
            net.net.state_dict()[key].copy_(values)
    batch = trained.splits.test.take(np.arange(len(trained.splits.test)))
    with torch.inference_mode():
        logits = net(torch.from_numpy(batch["image"])).numpy()
    assert verdict.scores["variant"] == pytest.approx(float((logits.argmax(1) == batch["label"]).mean()))
    assert verdict.scores["student"] == trained.student.score
    for stage in ("file", "runtime"):
        assert verdict.parity[stage]["relative"] < 1e-5
    assert verdict.parity["variant"]["sqnr_db"] < 60  # the quantized network, not the student


@pytest.mark.parametrize("layer", ["stem.conv", "depthwise.conv", "residual.conv", "head"])
def test_zeroed_integers_are_found_at_their_layer(variants, judge, tmp_path, layer):
    verdict = judge(variants["w4"], tampered(variants["w4"], tmp_path / "t", f"{layer}.weight.q", None))
    assert (verdict.status, verdict.lost_at) == ("failed", "file")
    assert verdict.first_divergence["module"] == layer


@pytest.mark.parametrize(("name", "tensor"), [("w4", "wide.conv.weight.scale"), ("w3g64", "wide.conv.weight.r")])
def test_scales_off_by_a_percent_are_found_at_their_layer(variants, judge, tmp_path, name, tensor):
    verdict = judge(variants[name], tampered(variants[name], tmp_path / "t", tensor, lambda scales: scales * 1.01))
    assert (verdict.status, verdict.lost_at) == ("failed", "file")
    assert verdict.first_divergence["module"] == "wide.conv"


def test_outputs_that_have_nothing_to_do_with_the_students_fail(trained, judge, tmp_path):
    coarse = make(VariantRecipe(name="w1", method="round-to-nearest", weights={"bits": 1}), trained.job, tmp_path / "w1")
    verdict = judge(coarse)
    assert (verdict.status, verdict.lost_at) == ("failed", "variant")
    assert "their error against the student's" in verdict.reason
