"""A task of another package: found through its entry point, without a line in edgekd."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import other_package
import pytest

from edgekd import data, plugins, recipe
from edgekd.errors import BadInput, Missing
from edgekd.plan import plan
from edgekd.tasks import image_classification

GRADED = """
from dataclasses import replace

import numpy as np

from edgekd.tasks import Metric
from edgekd.tasks.image_classification import ImageClassification


class Graded(ImageClassification):
    name = "graded"
    like = "image-classification"
    metric = Metric("mean distance", higher_is_better=False)

    def score(self, outputs, split):
        far = np.abs(outputs["logits"].argmax(axis=1) - split.labels).astype(np.float32)
        return replace(super().score(outputs, split), score=float(far.mean()), per_sample=far)


TASK = Graded()
"""
SETTINGS = ["task=graded", "quantize=[{name: fp32, method: none}]", "distill.epochs=2", "distill.views=1", "gate.max_drop=10"]


@pytest.fixture
def installed(tmp_path, monkeypatch):
    def install(text=GRADED, version="1.0"):
        site = other_package.put(tmp_path / version, "graded_pictures", text, plugins.TASKS, "graded", version)
        monkeypatch.syspath_prepend(str(site))
        plugins.found.cache_clear()
        sys.modules.pop("graded_pictures", None)
        return site

    yield install
    plugins.found.cache_clear()
    sys.modules.pop("graded_pictures", None)


def test_its_recipes_are_like_those_of_the_task_it_names(installed):
    with pytest.raises(BadInput, match=r"unknown task `graded`; there are image-classification, text-embedding"):
        recipe.load("models/digits", SETTINGS)
    installed()
    read = recipe.load("models/digits", SETTINGS)
    assert (read.task, read.like, read.reads_text) == ("graded", "image-classification", False)
    ours = recipe.load("models/digits", ["distill={}"])
    assert recipe.load("models/digits", ["task=graded", "distill={}"]).distill == ours.distill
    with pytest.raises(BadInput, match=r"data\.text: a recipe for graded does not read it"):
        recipe.load("models/digits", [*SETTINGS, "data.text=words"])
    with pytest.raises(BadInput, match=r"unknown task `graed` \(did you mean `graded`\?\); there are .*, graded$"):
        recipe.load("models/digits", ["task=graed"])


def test_one_that_does_not_say_what_it_is_like_is_named(installed):
    installed(GRADED.replace('like = "image-classification"', 'like = "pictures"'))
    with pytest.raises(
        BadInput, match=r"task `graded` \(of graded-pictures 1\.0\) must have `like`, one of image-classification"
    ):
        recipe.load("models/digits", SETTINGS)


def test_one_that_cannot_be_imported_is_named(installed):
    installed("import no_such_thing")
    with pytest.raises(Missing, match=r"graded-pictures 1\.0 announces `graded` .* cannot be imported .*no_such_thing"):
        recipe.load("models/digits", SETTINGS)


def test_another_version_of_it_makes_everything_again(installed, tmp_path):
    def steps():
        return {step.name: step.fingerprint for step in plan(recipe.load("models/digits", SETTINGS), tmp_path / "run").steps}

    installed()
    first = steps()
    assert steps() == first
    installed(version="1.1")
    second = steps()
    assert first.keys() == second.keys()
    assert not set(first.values()) & set(second.values())


@pytest.mark.slow
def test_it_decides_what_is_proven(installed, tmp_path):
    site, out = installed(), tmp_path / "run"
    words = [word for setting in (*SETTINGS, "bench.min_seconds=0.05", "bench.launches=1") for word in ("--set", setting)]
    there = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "edgekd", "compress", "models/digits", "-o", str(out), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=there)
    assert done.returncode == 0, done.stderr
    told = json.loads((out / "manifest.json").read_text())
    assert told["metric"] == {"name": "mean distance", "higher_is_better": False}
    test = data.load(recipe.load("models/digits").data, None, 0).test
    session = onnxruntime.InferenceSession(next((out / "targets").rglob("model.onnx")))
    logits = session.run(None, image_classification.TASK.inputs(test.take(np.arange(len(test)))))[0]
    (verdict,) = told["verdicts"].values()
    assert verdict["status"] == "passed"
    assert verdict["scores"]["runtime"] == pytest.approx(np.abs(logits.argmax(1) - test.labels).mean(), abs=1e-6)
    assert Path(out / "report.html").is_file()
