"""Planted faults on every runtime that this machine has: an exporter that changed a layer never passes, and the layer is named."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import onnx
import pytest
import torch

from edgekd.backends import backend_of
from edgekd.errors import BadInput
from edgekd.export import artifact as artifacts
from edgekd.export import onnx as export
from edgekd.export.graph import Graph, torch_runner
from edgekd.quantize import make
from edgekd.quantize.variant import Variant, file_runner
from edgekd.recipe import Gate, VariantRecipe
from edgekd.targets import load_target
from edgekd.verify import Question, Verdict, verify

TARGETS = (
    "onnxruntime-cpu",
    "android-cpu",
    "intel-cpu",
    "intel-npu",
    "nvidia-gpu",
    "iphone-ios18",
    "snapdragon-8-gen-3",
    "browser",
)
NAMES_LAYERS = ("onnxruntime-cpu", "intel-cpu", "intel-npu", "nvidia-gpu", "iphone-ios18", "browser")
"""Those that give intermediate values, or ship the very graph."""
GATE = Gate(simulator_samples=24)


@pytest.fixture(scope="module")
def fp32(trained, tmp_path_factory) -> Variant:
    return make(VariantRecipe(name="fp32", method="none"), trained.job, tmp_path_factory.mktemp("fp32"))


@pytest.fixture
def judge(trained, fp32, tmp_path):
    """Make what the named target ships out of another network than the student, and judge it as the student's."""

    def judge(name: str, module: torch.nn.Module) -> Verdict:
        target = load_target(name)
        backend = backend_of(target.backend)
        if reason := backend.missing():
            pytest.skip(reason)
        if name != "nvidia-gpu" and name != "intel-npu" and not backend.executes(target).by:
            pytest.skip(backend.executes(target).why)
        (graph,) = trained.graphs
        theirs = Graph(graph.name, module, graph.inputs, graph.outputs, graph.example, graph.dynamic)
        export.write(theirs, tmp_path / "v" / "model.onnx")
        shipped = dataclasses.replace(fp32, folder=tmp_path / "v", graphs={"model": tmp_path / "v" / "model.onnx"})
        golden = {"model": trained.task.inputs(trained.splits.test.take(np.arange(0, 40, 10)))}
        made = artifacts.make(
            shipped, target, tmp_path / "made", golden=golden, reference=torch_runner([graph]), gate=GATE,
            classes=trained.splits.classes, graphs=lambda: [theirs],
        )  # fmt: skip
        split = trained.splits.test.at(np.arange(60))
        student = trained.task.evaluate(torch_runner([graph]), split)
        return verify(Question(made, fp32, target, GATE, trained.task, split, None, student, trained.graphs, trained.source))

    return judge


@pytest.mark.parametrize("name", TARGETS)
def test_the_student_itself_passes(judge, trained, name):
    verdict = judge(name, copy.deepcopy(trained.model.module))
    assert verdict.status == ("not_verified" if name in ("nvidia-gpu", "intel-npu") else "passed"), verdict.reason


@pytest.mark.parametrize("name", TARGETS)
def test_one_layer_changed_a_little_is_found(judge, trained, name):
    """Two filters swapped in the middle: the accuracy may hold, the outputs do not."""
    module = copy.deepcopy(trained.model.module)
    with torch.no_grad():
        weights = module.net.wide.conv.weight
        weights[:4] = weights[:4].flip(0)
    verdict = judge(name, module)
    assert verdict.status == "failed", verdict.reason
    assert verdict.lost_at in ("file", "runtime")
    if name in NAMES_LAYERS:
        assert verdict.first_divergence is not None, verdict.reason
        assert verdict.first_divergence["module"] in ("wide.conv", "wide.bn", "wide.act", "wide"), verdict.first_divergence


@pytest.mark.parametrize("name", TARGETS)
def test_a_nan_never_passes(judge, trained, name):
    module = copy.deepcopy(trained.model.module)
    with torch.no_grad():
        module.net.head.bias[3] = float("nan")
    try:
        verdict = judge(name, module)
    except BadInput:  # a backend may refuse to convert such a network
        return
    assert verdict.status == "failed", verdict.reason


@pytest.fixture(scope="module")
def int8(trained, tmp_path_factory):
    """The int8 variant in the forms that TensorRT and HTP want, and what is shipped of it."""
    targets = tuple(load_target(name) for name in ("nvidia-gpu", "jetson-orin-nano", "snapdragon-8-gen-3"))
    recipe = VariantRecipe(name="int8", method="ptq", weights={"bits": 8}, activations={"bits": 8})
    made = make(recipe, dataclasses.replace(trained.job, targets=targets), tmp_path_factory.mktemp("int8"))

    def shipped(name, folder):
        target = load_target(name)
        if reason := backend_of(target.backend).missing():
            pytest.skip(reason)
        variant = made.for_target(target)
        golden = {"model": trained.task.inputs(trained.splits.test.take(np.arange(0, 40, 10)))}
        artifact = artifacts.make(
            variant,
            target,
            folder,
            golden=golden,
            reference=file_runner(variant.graphs),
            gate=GATE,
            classes=trained.splits.classes,
        )
        split = trained.splits.test.at(np.arange(60))
        student = trained.task.evaluate(torch_runner(list(trained.graphs)), split)
        asked = Question(artifact, variant, target, GATE, trained.task, split, None, student, trained.graphs, trained.source)
        return artifact.graphs["model"], asked

    return shipped


@pytest.mark.parametrize("name", ["nvidia-gpu", "jetson-orin-nano"])
@pytest.mark.parametrize("layer", ["depthwise", "wide", "residual"])
def test_integers_changed_in_a_file_for_tensorrt_are_found_in_their_layer(int8, tmp_path, name, layer):
    file, asked = int8(name, tmp_path)
    model = onnx.load(file)
    (weights,) = (
        t for t in model.graph.initializer if layer in t.name and t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4
    )
    changed = onnx.numpy_helper.to_array(weights).copy()
    changed[:4] = 64
    weights.CopyFrom(onnx.numpy_helper.from_array(changed, weights.name))
    onnx.save(model, file)
    verdict = verify(asked)
    assert verdict.status == "failed"
    assert verdict.first_divergence["module"] == f"{layer}.conv"


def test_where_only_the_file_for_htp_is_damaged_no_layer_of_the_variant_is_named(int8, tmp_path):
    """Against the network before it was quantized a healthy variant has a first layer that departs, too."""
    file, asked = int8("snapdragon-8-gen-3", tmp_path)
    whole = file.read_bytes()
    assert verify(asked).status == "passed"
    for content in (whole[: len(whole) // 2], b""):
        file.write_bytes(content)
        verdict = verify(asked)
        assert verdict.status == "failed"
        assert verdict.first_divergence is None
        assert "first layer" not in verdict.reason
