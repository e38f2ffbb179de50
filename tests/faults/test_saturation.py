"""Full-range int8 on x86 without VNNI: sums of products saturate at 16 bits, and the runtime stage must say so.

Where this CPU has VNNI, the runtime stage runs under qemu on a processor without (real kernels of ONNX Runtime, only slow).
"""

from __future__ import annotations

import dataclasses
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from edgekd import host
from edgekd.backends import onnxruntime as backend
from edgekd.export import artifact as artifacts
from edgekd.export import onnx
from edgekd.export.graph import torch_runner
from edgekd.quantize import Job, make
from edgekd.quantize.calibration import from_task
from edgekd.recipe import Gate, VariantRecipe
from edgekd.verify import Question, verify

pytestmark = pytest.mark.slow

RUN = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 3
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
numpy.save(sys.argv[3], session.run(["logits"], {"image": numpy.load(sys.argv[2])})[0])
"""


class Emulated:
    """A session on an x86 CPU with AVX2 and no VNNI."""

    providers: ClassVar[dict[str, int]] = {"CPUExecutionProvider": 1}

    def __init__(self, file: Path, folder: Path) -> None:
        self.file, self.folder = file, folder

    def run(self, inputs):
        np.save(self.folder / "in.npy", inputs["image"])
        command = ["qemu-x86_64-static", "-cpu", "Haswell", sys.executable, "-c", RUN]
        subprocess.run(
            [*command, self.file, self.folder / "in.npy", self.folder / "out.npy"], check=True, capture_output=True, timeout=300
        )
        return {"logits": np.load(self.folder / "out.npy")}


@pytest.fixture
def without_vnni(monkeypatch, tmp_path):
    """Make the runtime stage compute as a CPU without VNNI does, and the host say that it is one."""
    if platform.machine() != "x86_64":
        pytest.skip(f"{platform.machine()} sums int8 products in 32 bits")
    if not host.vnni():
        return
    if not shutil.which("qemu-x86_64-static"):
        pytest.skip(
            "this CPU has VNNI, where int8 does not saturate, and qemu-user-static is not installed to emulate one without"
        )
    native = backend.load

    def load(file, target=None, threads=None, exact=False):
        return native(file, target, threads, exact) if exact else Emulated(file, tmp_path)

    monkeypatch.setattr(backend, "load", load)
    monkeypatch.setattr(host, "vnni", lambda: False)


class Brightening(nn.Module):
    """A layer whose weights share a sign and whose inputs are large: every pair of products passes 16 bits at full range."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.blur = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        nn.init.constant_(self.blur.weight, 1 / 27)
        self.spread = nn.Conv2d(8, 3, 1, bias=False)
        nn.init.constant_(self.spread.weight, 1 / 8)
        for layer in (self.blur, self.spread):
            layer.weight.requires_grad_(False)  # training would give them signs
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x - self.spread(torch.relu(self.blur(x + 3))))


@pytest.fixture(scope="module")
def bright(trained, fit, tmp_path_factory):
    """A student with that layer."""
    model = fit(trained.splits, seed=0, preprocess=trained.model.preprocess, epochs=6, wrap=Brightening)
    (graph,) = trained.task.graphs(model, trained.splits)
    source = {"model": tmp_path_factory.mktemp("bright") / "model.onnx"}
    onnx.write(graph, source["model"])
    student = trained.task.evaluate(torch_runner([graph]), trained.splits.test)
    return dataclasses.replace(
        trained, model=model, graphs=(graph,), source=source, student=student,
        job=Job(source, (trained.target,), lambda _, settings: from_task(trained.task, trained.splits.train, settings, 0)),
    )  # fmt: skip


def judged(student, overflow_fix: str, folder: Path):
    recipe = VariantRecipe(
        name="int8", weights={"bits": 8}, activations={"bits": 8}, calibration={"overflow_fix": overflow_fix}
    )
    variant = make(recipe, student.job, folder / "variant")
    golden = {"model": student.task.inputs(student.splits.test.take(np.arange(4)))}
    made = artifacts.make(
        variant, student.target, folder / "artifact", golden=golden, gate=Gate(), classes=student.splits.classes,
        reference=backend_runner(variant),
    )  # fmt: skip
    return variant, verify(
        Question(
            made, variant, student.target, Gate(), student.task, student.splits.test, None, student.student, student.graphs,
            student.source,
        )
    )  # fmt: skip


def backend_runner(variant):
    from edgekd.quantize.variant import reference_runner

    return reference_runner(variant, None)


def test_saturating_int8_is_lost_at_the_runtime(bright, without_vnni, tmp_path):
    _, verdict = judged(bright, "off", tmp_path)
    assert (verdict.status, verdict.lost_at) == ("failed", "runtime")
    assert "overflow_fix" in verdict.reason
    assert verdict.parity["runtime"]["sqnr_db"] < Gate().min_sqnr_db


def test_the_overflow_fix_is_chosen_there_and_passes(bright, without_vnni, tmp_path):
    variant, verdict = judged(bright, "auto", tmp_path)
    assert variant.facts["overflow_fix"]["on"]
    assert "VNNI" in variant.facts["overflow_fix"]["why"]
    assert verdict.status == "passed", verdict.reason
