"""Each planted fault fails with the right `lost_at`; without it the same artifact passes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from edgekd.backends import Means, onnxruntime
from edgekd.export import artifact as artifacts
from edgekd.export import onnx as export
from edgekd.export.graph import Graph, torch_runner
from edgekd.preprocess import Preprocessed
from edgekd.quantize import make
from edgekd.quantize.variant import Variant, reference_runner
from edgekd.recipe import Gate, Preprocess, VariantRecipe
from edgekd.verify import Question, Verdict, verify

INT8 = {"name": "int8", "weights": {"bits": 8}, "activations": {"bits": 8}, "calibration": {"overflow_fix": "on"}}
RECIPES = {"fp32": {"name": "fp32", "method": "none"}, "int8": INT8, "w8": {"name": "w8", "weights": {"bits": 8}}}


@pytest.fixture(scope="module")
def variants(trained, tmp_path_factory) -> dict[str, Variant]:
    folder = tmp_path_factory.mktemp("variants")
    return {name: make(VariantRecipe(**recipe), trained.job, folder / name) for name, recipe in RECIPES.items()}


@pytest.fixture
def judge(trained, tmp_path):
    """Make an artifact of `shipped` and judge it as one of `variant`: the two differ when an exporter did something wrong."""

    def judge(variant: Variant, shipped: Variant | None = None, **changes) -> Verdict:
        made = artifact_of(trained, variant, shipped or variant, tmp_path / "artifact")
        question = Question(
            made, variant, trained.target, Gate(), trained.task, trained.splits.test, None, trained.student, trained.graphs,
            trained.source,
        )  # fmt: skip
        return verify(dataclasses.replace(question, **changes))

    return judge


def artifact_of(trained, variant: Variant, shipped: Variant, folder: Path) -> artifacts.Artifact:
    test = trained.splits.test
    golden = {"model": trained.task.inputs(test.take(np.arange(0, 80, 10)))}
    reference = reference_runner(variant, torch_runner(list(trained.graphs)))
    return artifacts.make(
        shipped, trained.target, folder, golden=golden, reference=reference, gate=Gate(), classes=trained.splits.classes
    )


def tampered(variant: Variant, folder: Path, tamper: Callable[[onnx.ModelProto], None]) -> Variant:
    """Return the variant with its graph changed by `tamper`."""
    model = onnx.load(str(variant.graphs["model"]))
    tamper(model)
    folder.mkdir(exist_ok=True)
    export.save(model, folder / "model.onnx")
    return dataclasses.replace(variant, folder=folder, graphs={"model": folder / "model.onnx"})


def change(model: onnx.ModelProto, name: str, how: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(how(values).astype(values.dtype), name))


def exported(trained, variant: Variant, folder: Path, module: torch.nn.Module) -> Variant:
    """Return the variant with the graph of another module."""
    (graph,) = trained.graphs
    export.write(Graph(graph.name, module, graph.inputs, graph.outputs, graph.example, graph.dynamic), folder / "model.onnx")
    return dataclasses.replace(variant, folder=folder, graphs={"model": folder / "model.onnx"})


def _zero(values: np.ndarray) -> np.ndarray:
    return values * 0


def _twice(values: np.ndarray) -> np.ndarray:
    return values * 2


def _reverse(values: np.ndarray) -> np.ndarray:
    return values[::-1]


# --- without a fault ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_a_healthy_artifact_passes(variants, judge, name):
    verdict = judge(variants[name])
    assert verdict.status == "passed", verdict.reason
    assert verdict.by == "runtime"
    assert verdict.lost_at is None
    assert verdict.first_divergence is None
    assert set(verdict.scores) == {"student", "variant", "file", "runtime"}
    assert verdict.samples == 359
    assert verdict.providers["CPUExecutionProvider"] > 5


# --- the exporter did something wrong: lost at the file ------------------------------------------


class BlueFirst(torch.nn.Module):
    """Channels swapped: the file takes BGR where the student takes RGB."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.module(image.flip(-1))


@pytest.mark.parametrize("mean", [(0.5, 0.5, 0.5), (0.303, 0.707, 0.252)], ids=["another", "one percent off"])
def test_wrong_mean_and_std_folded_in(trained, variants, judge, tmp_path, mean):
    wrong = Preprocessed(trained.model.module.net, Preprocess(mean=mean, std=trained.model.preprocess.std))
    verdict = judge(variants["fp32"], exported(trained, variants["fp32"], tmp_path, wrong))
    assert (verdict.status, verdict.lost_at) == ("failed", "file")
    assert verdict.first_divergence["module"] == "preprocessing"


def test_channels_swapped(trained, variants, judge, tmp_path):
    verdict = judge(variants["fp32"], exported(trained, variants["fp32"], tmp_path, BlueFirst(trained.model.module)))
    assert (verdict.status, verdict.lost_at) == ("failed", "file")


class BatchStatistics(torch.nn.Module):
    """What BatchNorm does in training mode: normalise by the batch's own mean and variance."""

    def __init__(self, norm: torch.nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean((0, 2, 3), keepdim=True)
        variance = (x - mean).square().mean((0, 2, 3), keepdim=True)
        return (x - mean) / (variance + self.norm.eps).sqrt() * self.norm.weight.view(1, -1, 1, 1) + self.norm.bias.view(
            1, -1, 1, 1
        )


def test_batchnorm_exported_in_training_mode(trained, variants, judge, tmp_path):
    module = copy.deepcopy(trained.model.module)
    for block in (b for b in module.net.children() if hasattr(b, "bn")):
        block.bn = BatchStatistics(block.bn)
    verdict = judge(variants["fp32"], exported(trained, variants["fp32"], tmp_path, module))
    assert (verdict.status, verdict.lost_at) == ("failed", "file")


def test_write_exports_in_evaluation_mode_whatever_the_module_is_in(trained, variants, judge, tmp_path):
    module = copy.deepcopy(trained.model.module).train()
    assert judge(variants["fp32"], exported(trained, variants["fp32"], tmp_path, module)).status == "passed"


def test_the_file_of_another_student(trained, variants, judge, tmp_path, another):
    verdict = judge(variants["fp32"], exported(trained, variants["fp32"], tmp_path, another.module))
    assert (verdict.status, verdict.lost_at) == ("failed", "file")
    assert verdict.first_divergence["module"] == "stem.conv"


@pytest.fixture(scope="module")
def another(trained, fit):
    """Another student, as good as the first: accuracy alone cannot tell them apart."""
    return fit(trained.splits, seed=1, preprocess=trained.model.preprocess)


@pytest.mark.parametrize("name", RECIPES)
def test_class_order_permuted_in_the_file(variants, judge, tmp_path, name):
    def permute(model: onnx.ModelProto) -> None:
        head = next(n for n in model.graph.node if n.op_type == "Gemm")
        for tensor in [t.name for t in model.graph.initializer if "head" in t.name and t.dims and t.dims[0] == 10]:
            change(model, tensor, _reverse)
        assert head.output[0] == "logits"

    verdict = judge(variants[name], tampered(variants[name], tmp_path / "t", permute))
    assert (verdict.status, verdict.lost_at) == ("failed", "file")


def test_class_order_permuted_in_the_record(trained, variants, judge, tmp_path):
    made = artifact_of(trained, variants["fp32"], variants["fp32"], tmp_path)
    names = [*trained.splits.classes]
    names[3], names[5] = names[5], names[3]
    verdict = judge(variants["fp32"], artifact=dataclasses.replace(made, record={**made.record, "classes": names}))
    assert (verdict.status, verdict.lost_at) == ("failed", "file")
    assert "class 3 is `5`, in the data `3`" in verdict.reason


MODULE_OF = {
    "stem.conv": "net.stem.conv.weight", "depthwise.conv": "net.depthwise.conv.weight", "wide.conv": "net.wide.conv.weight",
    "residual.conv": "net.residual.conv.weight", "head": "net.head.weight",
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("part", ["weight", "bias"])
@pytest.mark.parametrize("module", MODULE_OF)
def test_one_tensor_of_the_file_zeroed(variants, judge, tmp_path, module, part, name):
    """Weights, and the biases that BatchNorm left, some of which accuracy does not need: the layer is named."""
    weight = MODULE_OF[module]
    bias = "net.head.bias" if module == "head" else f"{weight}_bias"
    stored = {"fp32": weight, "int8": f"q_output_{weight}_1", "w8": f"{weight}_int8"}
    tensor = stored[name] if part == "weight" else bias
    verdict = judge(variants[name], tampered(variants[name], tmp_path / "t", lambda model: change(model, tensor, _zero)))
    assert (verdict.status, verdict.lost_at) == ("failed", "file")
    assert verdict.first_divergence["module"] == module
    assert f"`{module}`" in verdict.reason


def test_logits_twice_as_large(variants, judge, tmp_path):
    """Accuracy does not move at all."""

    def double(model: onnx.ModelProto) -> None:
        change(model, "net.head.weight", _twice)
        change(model, "net.head.bias", _twice)

    verdict = judge(variants["fp32"], tampered(variants["fp32"], tmp_path / "t", double))
    assert verdict.scores["file"] == verdict.scores["student"]
    assert (verdict.status, verdict.lost_at) == ("failed", "file")
    assert verdict.first_divergence["module"] == "head"


@pytest.mark.parametrize("name", ["int8", "w8"])
def test_each_quantization_scale_off_by_two(variants, judge, tmp_path, name):
    model = onnx.load(str(variants[name].graphs["model"]))
    scales = [t.name for t in model.graph.initializer if "scale_" in t.name or t.name.endswith("_scale")]
    assert len(scales) >= 5
    for scale in scales:
        verdict = judge(variants[name], tampered(variants[name], tmp_path / "t", lambda m, s=scale: change(m, s, _twice)))
        assert (verdict.status, verdict.lost_at) == ("failed", "file"), scale


def test_a_file_replaced_after_it_was_made(trained, variants, judge, tmp_path):
    made = artifact_of(trained, variants["fp32"], variants["fp32"], tmp_path / "a")
    tampered(variants["fp32"], tmp_path / "a", lambda model: change(model, "net.head.bias", lambda b: b + 1e-7))
    verdict = judge(variants["fp32"], artifact=made)
    assert (verdict.status, verdict.lost_at) == ("failed", "file")
    assert "model.onnx is not the file that artifact.json describes" in verdict.reason


@pytest.mark.parametrize("content", [b"", b"not onnx", None], ids=["empty", "text", "truncated"])
def test_a_broken_file_is_a_verdict_and_no_crash(trained, variants, judge, tmp_path, content):
    made = artifact_of(trained, variants["fp32"], variants["fp32"], tmp_path / "a")
    file = made.graphs["model"]
    file.write_bytes(file.read_bytes()[:5000] if content is None else content)
    verdict = judge(variants["fp32"], artifact=made)
    assert (verdict.status, verdict.lost_at) == ("failed", "file")


def test_nan_weights(variants, judge, tmp_path):
    shipped = tampered(variants["fp32"], tmp_path / "t", lambda model: change(model, "net.head.bias", lambda b: b * np.nan))
    verdict = judge(variants["fp32"], shipped)
    assert (verdict.status, verdict.lost_at) == ("failed", "file")
    assert "NaN" in verdict.reason


# --- the quantizer did something wrong: lost at the variant --------------------------------------


@pytest.mark.parametrize(("name", "scale"), [("int8", "scale_net.head.weight_1"), ("w8", "net.head.weight_scale")])
def test_a_scale_of_the_variant_off_by_two(variants, judge, tmp_path, name, scale):
    """The logits double, accuracy hardly moves."""
    wrong = tampered(variants[name], tmp_path / "t", lambda model: change(model, scale, _twice))
    verdict = judge(wrong)
    assert verdict.drop < Gate().max_drop
    assert (verdict.status, verdict.lost_at) == ("failed", "variant")
    assert verdict.first_divergence["module"] == "head"


def test_a_variant_made_from_a_wrong_graph(trained, variants, judge, tmp_path):
    """Swapped channels in the graph that ptq started from: named in terms of torch."""
    export_of = exported(trained, variants["fp32"], tmp_path, BlueFirst(trained.model.module))
    job = dataclasses.replace(trained.job, source=export_of.graphs)
    variant = make(VariantRecipe(**INT8), job, tmp_path / "int8")
    verdict = judge(variant, source=export_of.graphs)
    assert (verdict.status, verdict.lost_at) == ("failed", "variant")
    assert verdict.first_divergence["module"] == "preprocessing"


# --- the student itself --------------------------------------------------------------------------


def test_a_student_worse_than_its_teacher(trained, variants, judge):
    better = dataclasses.replace(trained.student, score=1.0, per_sample=np.ones_like(trained.student.per_sample))
    verdict = judge(variants["fp32"], teacher=better)
    assert (verdict.status, verdict.lost_at) == ("failed", "student")
    drop = 1 - trained.student.score
    assert verdict.drop == pytest.approx(drop)
    assert verdict.interval[0] < drop < verdict.interval[1]
    verdict = judge(variants["fp32"], teacher=better, gate=Gate(max_drop=drop + 0.01))
    assert verdict.status == "passed", verdict.reason


# --- what cannot be verified never passes ----------------------------------------------------------


def test_a_device_that_nothing_here_executes_is_not_verified(variants, judge, monkeypatch):
    monkeypatch.setattr("edgekd.backends.onnxruntime.executes", lambda target: Means(None, "it has no runtime here"))
    verdict = judge(variants["fp32"])
    assert (verdict.status, verdict.by, verdict.reason) == ("not_verified", None, "it has no runtime here")
    assert not verdict.passed
    assert "runtime" not in verdict.scores
    assert verdict.parity["file"]["relative"] < 1e-5, "what can be checked without is checked"


def test_the_runtime_of_another_device_runs_here_and_says_so(trained, variants, judge):
    phone = dataclasses.replace(trained.target, title="A phone", device="phone", architecture="aarch64")
    verdict = judge(variants["fp32"], target=phone)
    assert (verdict.status, verdict.by) == ("passed", "runtime")
    assert "A phone is another device (phone)" in verdict.reason


def test_a_missing_runtime_is_not_verified(variants, judge, monkeypatch):
    monkeypatch.setattr("edgekd.backends.onnxruntime.missing", lambda: "onnxruntime is not installed here: pip install it")
    verdict = judge(variants["fp32"])
    assert verdict.status == "not_verified"
    assert verdict.reason.startswith("onnxruntime is not installed here")


# --- what every stage agrees on may be wrong all the same -------------------------------------------


def test_nan_that_every_stage_has_does_not_pass(trained, variants, tmp_path):
    module = copy.deepcopy(trained.model.module)
    with torch.no_grad():
        module.net.head.bias[3] = float("nan")
    (graph,) = trained.graphs
    theirs = Graph(graph.name, module, graph.inputs, graph.outputs, graph.example, graph.dynamic)
    variant = exported(trained, variants["fp32"], tmp_path, module)
    test = trained.splits.test
    golden = {"model": trained.task.inputs(test.take(np.arange(4)))}
    made = artifacts.make(
        variant, trained.target, tmp_path / "a", golden=golden, reference=torch_runner([theirs]), gate=Gate(),
        classes=trained.splits.classes,
    )  # fmt: skip
    student = trained.task.evaluate(torch_runner([theirs]), test)
    gate = Gate(max_drop=1.0)
    verdict = verify(
        Question(made, variant, trained.target, gate, trained.task, test, None, student, (theirs,), trained.source)
    )
    assert (verdict.status, verdict.lost_at) == ("failed", "student")
    assert "the student's `logits` has NaN" in verdict.reason


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_golden_outputs_that_are_not_the_variants_fail(trained, variants, tmp_path, name):
    """A device that is not here is judged by nothing else."""
    made = artifact_of(trained, variants[name], variants[name], tmp_path / "a")
    with np.load(made.folder / "golden.npz") as stored:
        arrays = {key: stored[key] * np.float32(2 if "/out/" in key else 1) for key in stored.files}
    arrays = {key: values.astype(np.uint8) if "/in/" in key else values for key, values in arrays.items()}
    artifacts.write_npz(made.folder / "golden.npz", arrays)
    made = dataclasses.replace(made, record={**made.record, "files": artifacts.describe(made.folder)})
    verdict = verify(
        Question(
            made,
            variants[name],
            trained.target,
            Gate(),
            trained.task,
            trained.splits.test,
            None,
            trained.student,
            trained.graphs,
            trained.source,
        )
    )
    assert (verdict.status, verdict.lost_at) == ("failed", "file")
    assert "golden outputs of `model` are not the variant's" in verdict.reason


def test_a_machine_without_memory_says_nothing_of_a_file(judge, variants, monkeypatch):
    """No verdict is made, which a resumed run would keep; any other error of the runtime is the file's."""
    words = "Failed to allocate memory for requested buffer of size 8589934592"

    opens = onnxruntime.load

    def load(file: Path, *options: object, **more: object) -> object:
        if file.parent.name == "artifact":
            raise RuntimeError(words)
        return opens(file, *options, **more)

    monkeypatch.setattr("edgekd.backends.onnxruntime.load", load)
    with pytest.raises(RuntimeError, match="buffer of size"):
        judge(variants["int8"])
    words = "node Conv_3 is wrong"
    verdict = judge(variants["int8"])
    assert verdict.status == "failed"
    assert "node Conv_3 is wrong" in verdict.reason
