import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from edgekd.errors import BadInput
from edgekd.export import onnx as export
from edgekd.export.graph import Graph, torch_runner
from edgekd.quantize.variant import file_runner

MAKE = """
import hashlib, sys, pathlib, numpy, torch
from torch import nn
from edgekd.export import onnx
from edgekd.export.graph import Graph
from edgekd.quantize import Job, make, packed
from edgekd.quantize.encoded import Encoded
from edgekd.recipe import VariantRecipe
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
out = pathlib.Path(sys.argv[1])
onnx.write(Graph("model", net, ("x",), ("y",), {"x": torch.zeros(2, 1, 8, 8)}, {"x": {0: "batch"}}), out / "model.onnx")
rng = numpy.random.default_rng(0)
batches = [{"x": rng.normal(size=(4, 1, 8, 8)).astype("float32")} for _ in range(3)]
job = Job({"model": out / "model.onnx"}, (), lambda name, settings: batches)
for recipe in ({"name": "fp32", "method": "none"}, {"name": "w8", "weights": {"bits": 8}}, {"name": "int8", "weights": {"bits": 8}, "activations": {"bits": 8}}):
    make(VariantRecipe(**recipe), job, out / recipe["name"])
for bits in (4, 3):
    encoded = {}
    for name, parameter in net.named_parameters():
        if parameter.ndim > 1:
            shape, ranges = tuple(parameter.shape), numpy.ones(len(parameter), "float32")
            indices = rng.integers(0, 2**bits, (len(parameter), parameter[0].numel())).astype("uint8")
            encoded[name] = Encoded(indices, ranges, -ranges, None, 2**bits, shape)
            parameter.data = torch.from_numpy(encoded[name].decoded())
    packed.write(Graph("model", net, ("x",), ("y",), {"x": torch.zeros(2, 1, 8, 8)}, {"x": {0: "batch"}}), encoded, out / f"{bits}.onnx")
print(*sys.argv[1:])
"""  # fmt: skip


def contents(folder):
    return {
        str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.rglob("*")) if f.is_file()
    }


@pytest.mark.slow
def test_two_processes_write_the_same_bytes_and_nothing_else(tmp_path):
    made = []
    for seed in ("1", "2"):
        folder = tmp_path / f"somewhere {seed}"
        folder.mkdir()
        environment = os.environ | {"PYTHONHASHSEED": seed}
        ran = subprocess.run(
            [sys.executable, "-c", MAKE, str(folder)], env=environment, capture_output=True, text=True, check=True
        )
        assert ran.stdout == f"{folder}\n"  # the exporter and NNCF keep quiet: standard output belongs to --json
        made.append(contents(folder))
    assert len(made[0]) == 12
    assert made[0] == made[1]


def test_nothing_of_the_machine_is_in_the_file(trained):
    content = trained.source["model"].read_bytes()
    for word in (b"conftest", b"site-packages", b"stack_trace", os.getcwd().encode()):
        assert word not in content
    model = onnx.load_from_string(content)
    assert not any(node.op_type == "BatchNormalization" for node in model.graph.node)
    assert [i.version for i in model.opset_import if not i.domain] == [20]


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_any_batch_size_runs_and_agrees_with_torch(trained, batch):
    inputs = trained.task.inputs(trained.splits.test.take(np.arange(batch)))
    expected = torch_runner(list(trained.graphs))("model", inputs)["logits"]
    made = file_runner(trained.source)("model", inputs)["logits"]
    assert made.shape == (batch, 10)
    np.testing.assert_allclose(made, expected, atol=2e-5)


def test_nodes_know_their_modules(trained):
    modules = export.modules_of(trained.source["model"])
    model = onnx.load(str(trained.source["model"]))
    layers = [modules[node.name][0] for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert layers == ["stem.conv", "depthwise.conv", "wide.conv", "residual.conv", "head"]
    assert set(layers) <= set(export.module_names(trained.source["model"]))
    assert "stem.bn" in export.module_names(trained.source["model"])


def test_each_node_is_named_after_what_it_makes(trained):
    model = onnx.load(str(trained.source["model"]))
    assert [node.name for node in model.graph.node] == [node.output[0] for node in model.graph.node]


def test_weights_can_stay_apart_as_inputs(trained):
    graph, names = trained.graphs[0], ["net.stem.conv.weight", "net.head.weight"]
    model = export.program(graph, opened=names).model_proto
    assert [value.name for value in model.graph.input] == ["image", *names]
    norms = [node.input[1] for node in model.graph.node if node.op_type == "BatchNormalization"]
    assert norms == ["net.stem.bn.weight"]  # the other layers' are folded into their convolutions
    modules = export.node_modules(graph, model)
    assert [modules[n.name][0] for n in model.graph.node if n.op_type in ("Conv", "BatchNormalization", "Gemm")] == [
        "stem.conv", "stem.bn", "depthwise.conv", "wide.conv", "residual.conv", "head",
    ]  # fmt: skip
    images = trained.task.inputs(trained.splits.test.take(np.arange(3)))
    weights = {name: graph.module.get_parameter(name).detach().numpy() for name in names}
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = torch_runner(list(trained.graphs))("model", images)["logits"]
    np.testing.assert_allclose(session.run(None, {**images, **weights})[0], expected, atol=2e-5)
    weights["net.head.weight"] = weights["net.head.weight"] * 2
    assert np.abs(session.run(None, {**images, **weights})[0] - expected).max() > 0.1


class Fixed(nn.Module):
    """A network that writes down the batch size that it was called with."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(2, 4) * 2


class Branching(nn.Module):
    """A network whose path depends on values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > 0 else x


@pytest.mark.parametrize("network", [Fixed(), Branching()], ids=["batch size fixed", "branch on values"])
def test_what_cannot_be_exported_is_bad_input(tmp_path, network):
    graph = Graph("model", network, ("x",), ("y",), {"x": torch.ones(2, 4)}, {"x": {0: "batch"}})
    with pytest.raises(BadInput, match="graph `model`"):
        export.write(graph, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("by", ["cause", "context"])
def test_an_interrupt_that_the_exporter_wrapped_stays_one(monkeypatch, by):
    def interrupted(*args, **options):
        try:
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt as pressed:
                if by == "cause":
                    raise RuntimeError("step 1") from pressed
                raise RuntimeError("step 1")  # noqa: B904
        except RuntimeError as error:
            raise torch.onnx.OnnxExporterError("Failed to export the model") from error

    monkeypatch.setattr(torch.onnx, "export", interrupted)
    graph = Graph("model", nn.Linear(2, 2), ("x",), ("y",), {"x": torch.zeros(2, 2)}, {"x": {0: "batch"}})
    with pytest.raises(KeyboardInterrupt):
        export.program(graph)


def test_weights_beyond_protobuf_go_beside(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_LARGEST_PROTOBUF", 1000)
    model = onnx.load(str(trained.source["model"]))
    for _ in range(2):  # written over, not appended to
        copied = onnx.ModelProto()
        copied.CopyFrom(model)
        for tensor in copied.graph.initializer:  # onnx leaves tensors below 1 kB inside
            assert tensor.raw_data
        export.save(copied, tmp_path / "model.onnx")
    files = export.files_of(tmp_path / "model.onnx")
    assert [f.name for f in files] == ["model.onnx", "model.onnx.data"]
    inputs = trained.task.inputs(trained.splits.test.take(np.arange(3)))
    together, apart = file_runner(trained.source)("model", inputs), file_runner({"model": files[0]})("model", inputs)
    np.testing.assert_array_equal(together["logits"], apart["logits"])
    assert sum(f.stat().st_size for f in files) < trained.source["model"].stat().st_size + 20_000


def test_the_side_file_is_plain_json(trained):
    told = json.loads(trained.source["model"].with_suffix(".modules.json").read_text())
    assert set(told) == {"modules", "nodes"}
