"""A user's own .onnx, no torch student: quantize, make an artifact, judge it."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgekd.export import artifact as artifacts
from edgekd.quantize import Job, make
from edgekd.quantize.variant import reference_runner
from edgekd.recipe import Gate, VariantRecipe
from edgekd.verify import Question, verify

RECIPES = {
    "fp32": {"name": "fp32", "method": "none"},
    "int8": {"name": "int8", "weights": {"bits": 8}, "activations": {"bits": 8}, "calibration": {"overflow_fix": "on"}},
}


@pytest.fixture
def bare(trained, tmp_path):
    """The same network as a file of unknown origin: no modules known, only batches of its input."""
    file = tmp_path / "theirs.onnx"
    file.write_bytes(trained.source["model"].read_bytes())
    batches = [{"image": trained.splits.train.take(np.arange(32) + i)["image"]} for i in range(0, 96, 32)]
    job = Job({"model": file}, (trained.target,), lambda name, settings: batches)

    def made(name: str) -> Question:
        variant = make(VariantRecipe(**RECIPES[name]), job, tmp_path / name)
        artifact = artifacts.make(
            variant, trained.target, tmp_path / f"{name} artifact", golden={"model": {"image": batches[0]["image"][:8]}},
            reference=reference_runner(variant, None), gate=Gate(),
        )  # fmt: skip
        return Question(artifact, variant, trained.target, Gate(), source={"model": file})

    return made


@pytest.mark.parametrize("name", RECIPES)
def test_without_data_parity_alone_decides_and_says_so(bare, name):
    verdict = verify(bare(name))
    assert verdict.status == "passed", verdict.reason
    assert verdict.scores == {}
    assert verdict.metric is None
    assert verdict.samples == 8
    assert "no labelled data" in verdict.reason


@pytest.mark.parametrize("name", RECIPES)
def test_with_data_the_metric_is_gated_too(bare, trained, name):
    question = dataclasses.replace(bare(name), task=trained.task, split=trained.splits.test)
    question.artifact.record["classes"][:] = trained.splits.classes
    verdict = verify(question)
    assert verdict.status == "passed", verdict.reason
    assert set(verdict.scores) == {"variant", "file", "runtime"}
    assert verdict.scores["runtime"] > 0.9


@pytest.mark.parametrize("name", RECIPES)
def test_a_changed_file_fails(bare, name):
    question = bare(name)
    file = question.artifact.graphs["model"]
    model = onnx.load(str(file))
    bias = next(t for t in model.graph.initializer if t.name == "net.head.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) * 0, bias.name))
    onnx.save(model, file)
    files = artifacts.describe(file.parent)
    artifact = dataclasses.replace(question.artifact, record={**question.artifact.record, "files": files})
    verdict = verify(dataclasses.replace(question, artifact=artifact))
    assert (verdict.status, verdict.lost_at) == ("failed", "file")
