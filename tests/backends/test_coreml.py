"""Core ML packages: what they hold, what they compute, what is refused."""

import dataclasses
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from edgekd.backends import coreml, coreml_weights, mil, onnxruntime
from edgekd.backends.coreml_session import PROVIDER
from edgekd.errors import BadInput, Missing
from edgekd.export import onnx as export
from edgekd.export.check import assemble
from edgekd.export.graph import Graph, torch_runner
from edgekd.parity import compare
from edgekd.preprocess import Preprocessed
from edgekd.quantize import packed
from edgekd.quantize.encoded import Encoded
from edgekd.quantize.weights_only import quantize_weights
from edgekd.recipe import Preprocess, Scheme
from edgekd.targets import load_target

pytest.importorskip("coremltools", reason="Core ML packages are made by coremltools")

IOS17, IOS18 = load_target("iphone-ios17"), load_target("iphone-ios18")
SINGLE = dataclasses.replace(IOS18, precision="fp32")


class Net(nn.Module):
    """Convolutions of three kinds, each with a BatchNorm that is no identity, and a linear layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 6, 2, 2)
        self.head = nn.Linear(6, 5)
        for bn in (self.bn, self.bn2):
            (
                bn.weight.data.uniform_(0.5, 1.5),
                bn.bias.data.normal_(),
                bn.running_mean.normal_(),
                bn.running_var.uniform_(0.5, 2),
            )

    def forward(self, x):
        x = torch.relu(self.bn2(self.depthwise(torch.relu(self.bn(self.conv(x))))))
        return self.head(torch.relu(self.up(x)).mean((2, 3)))


WEIGHTS = ("conv.weight", "depthwise.weight", "up.weight", "head.weight")
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)


def graph_of(net):
    module = Preprocessed(net, Preprocess(mean=(0.2, 0.5, 0.7), std=(0.2, 0.3, 0.4))).eval()
    image = torch.from_numpy(IMAGES[:2])
    return Graph("model", module, ("image",), ("logits",), {"image": image}, {"image": {0: "batch"}})


def expected(net):
    return torch_runner([graph_of(net)])("model", {"image": IMAGES})["logits"]


def codebook(weights, per_channel):
    """Give each channel (or the tensor) a range, and all 16 learned points that lie nowhere in particular."""
    rows = weights.reshape(len(weights) if per_channel else 1, -1)
    low, span = rows.min(1), np.ptp(rows, axis=1).astype(np.float32)
    points = np.sort(np.random.default_rng(1).random(16)).astype(np.float32)
    indices = np.abs((rows - low[:, None])[..., None] / span[:, None, None] - points).argmin(-1).astype(np.uint8)
    return Encoded(indices, span, low, points, 16, weights.shape)


def baked(folder, per_channel=True):
    """Return (network with weights of learned points, the points, a variant of it)."""
    net, stored = Net().eval(), {}
    for name in WEIGHTS:
        stored[name] = codebook(net.get_parameter(name).detach().numpy(), per_channel)
        net.get_parameter(name).data = torch.from_numpy(stored[name].decoded())
    packed.write(graph_of(net), stored, folder / "model.onnx")
    return net, stored, SimpleNamespace(name="plain", graphs={"model": folder / "model.onnx"})


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    return baked(tmp_path_factory.mktemp("learned"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A network in full precision and its variant."""
    net, folder = Net().eval(), tmp_path_factory.mktemp("plain")
    export.write(graph_of(net), folder / "model.onnx")
    return net, SimpleNamespace(name="plain", graphs={"model": folder / "model.onnx"})


def converted(net, variant, target, folder):
    return coreml.convert(variant, target, folder, lambda: [graph_of(net)])["model"]


def palettes(path):
    """Return each palette of a saved program: (table, indices), as NumPy sees them in the file."""
    program = mil.read(path)
    of = [one.inputs for one in program.operations if one.kind == "constexpr_lut_to_dense"]
    return [(inputs["lut"][0].value, inputs["indices"][0].value) for inputs in of]


# --- codebooks ---------------------------------------------------------------------------------


def test_palettes_in_the_package_are_the_learned_points(learned, tmp_path):
    net, stored, variant = learned
    found = palettes(converted(net, variant, SINGLE, tmp_path))
    assert len(found) == 4
    for one in stored.values():
        values = (one.points[None] * one.scale[:, None] + one.offset[:, None]).astype(np.float32)
        assert any(t.dtype == np.float32 and np.array_equal(t.reshape(-1, 16), values) for t, _ in found)
        assert any(np.array_equal(i.reshape(one.indices.shape), one.indices) for _, i in found if i.size == one.count)


def test_palettes_in_half_precision_are_the_nearest_halves_of_the_learned_points(learned, tmp_path):
    net, stored, variant = learned
    found = palettes(converted(net, variant, IOS18, tmp_path))
    for one in stored.values():
        values = (one.points[None] * one.scale[:, None] + one.offset[:, None]).astype(np.float32).astype(np.float16)
        assert any(t.dtype == np.float16 and np.array_equal(t.reshape(-1, 16), values) for t, _ in found)


def test_a_palette_a_tensor_is_stored_for_ios_17(tmp_path):
    net, stored, variant = baked(tmp_path, per_channel=False)
    path = converted(net, variant, dataclasses.replace(IOS17, precision="fp32"), tmp_path)
    tables = [table for table, _ in palettes(path)]
    for one in stored.values():
        assert any(np.array_equal(t, (one.points * one.scale[0] + one.offset[0]).astype(np.float32)) for t in tables)
    assert compare({"logits": expected(net)}, coreml.load(path, SINGLE).run({"image": IMAGES})).sqnr_db > 110


def test_outputs_are_torchs(learned, tmp_path):
    net, _, variant = learned
    reference = {"logits": expected(net)}
    path = converted(net, variant, SINGLE, tmp_path)
    assert compare(reference, coreml.load(path, SINGLE, exact=True).run({"image": IMAGES})).sqnr_db > 110
    path = converted(net, variant, IOS18, tmp_path)
    assert compare(reference, coreml.load(path, IOS18, exact=True).run({"image": IMAGES})).sqnr_db > 50
    session = coreml.load(path, IOS18)
    assert 45 < compare(reference, session.run({"image": IMAGES})).sqnr_db < 90  # rounded to half precision, so not equal
    assert session.providers == {PROVIDER: len(mil.read(path).operations)}
    assert coreml.wrong(path, IOS18) == []


def test_two_points_swapped_are_caught(learned, tmp_path, monkeypatch):
    net, _, variant = learned
    form_of = coreml_weights.form_of

    def swapped(stored, ios):
        form = form_of(stored, ios)
        points = form.points.copy()
        points[..., [7, 8]] = points[..., [8, 7]]
        return dataclasses.replace(form, points=points)

    monkeypatch.setattr("edgekd.backends.coreml_weights.form_of", swapped)
    path = converted(net, variant, SINGLE, tmp_path)
    assert compare({"logits": expected(net)}, coreml.load(path, SINGLE).run({"image": IMAGES})).sqnr_db < 40


def test_batch_norm_is_not_folded_into_stored_weights(learned, tmp_path):
    net, _stored, variant = learned
    operations = mil.read(converted(net, variant, IOS18, tmp_path)).operations
    assert sum(one.kind == "batch_norm" for one in operations) == 2
    made = {name for one in operations if one.kind.startswith("constexpr_") for name, _ in one.outputs}
    heavy = [one for one in operations if one.kind in ("conv", "conv_transpose", "linear")]
    assert len(heavy) == 4
    assert all(one.inputs["weight"][0] in made for one in heavy)


def test_a_weight_that_the_network_changes_before_use_stays_as_it_is_stored(tmp_path, learned):
    class Standardized(Net):
        def forward(self, x):
            w = self.conv.weight
            x = torch.relu(self.bn(nn.functional.conv2d(x, w - w.mean((1, 2, 3), keepdim=True), padding=1)))
            x = torch.relu(self.bn2(self.depthwise(x)))
            return self.head(torch.relu(self.up(x)).mean((2, 3)))

    net = Standardized().eval()
    net.load_state_dict(learned[0].state_dict())
    path = converted(net, learned[2], SINGLE, tmp_path)
    assert len(palettes(path)) == 4
    assert compare({"logits": expected(net)}, coreml.load(path, SINGLE).run({"image": IMAGES})).sqnr_db > 110


def test_a_stored_weight_that_is_not_in_the_network_is_named(tmp_path, learned):
    with pytest.raises(BadInput, match=r"graph `model`: the stored weight `conv\.weight`"):
        converted(Net().eval(), learned[2], IOS18, tmp_path)


# --- integers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("target", [IOS17, IOS18], ids=["iOS17", "iOS18"])
def test_int8_weights_with_batch_norm_folded_in(plain, tmp_path, target, per_channel):
    net, source = plain
    model = quantize_weights(onnx.load(str(source.graphs["model"])), [], per_channel)
    onnx.save(model, tmp_path / "model.onnx")
    variant = SimpleNamespace(name="plain", graphs={"model": tmp_path / "model.onnx"})
    path = converted(net, variant, dataclasses.replace(target, precision="fp32"), tmp_path)
    reference = onnxruntime.load(tmp_path / "model.onnx", exact=True).run({"image": IMAGES})
    assert compare(reference, coreml.load(path, target).run({"image": IMAGES})).sqnr_db > 100
    assert compare(reference, {"logits": expected(net)}).sqnr_db < 60  # what it was quantized from is not the same
    operations = mil.read(path).operations
    data = {17: "quantized_data", 18: "data"}[coreml._ios(target)]
    stored = [one.inputs[data][0] for one in operations if one.kind.startswith("constexpr_")]
    assert [one.dtype for one in stored] == ["int8"] * 4
    written = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name.endswith("_int8")]
    for integers in written:
        assert any(np.array_equal(s.value, w) for s in stored for w in (integers, integers.T) if s.value.shape == w.shape)
    assert not any(one.kind == "batch_norm" for one in operations)


def test_weights_that_are_equal_are_all_placed(tmp_path):
    class Twins(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
            nn.init.zeros_(self.first.weight), nn.init.zeros_(self.second.weight)

        def forward(self, x):
            return self.head(x + self.second(x + self.first(x))).mean((2, 3))

    net = Twins().eval()
    export.write(graph_of(net), tmp_path / "float.onnx")
    onnx.save(quantize_weights(onnx.load(str(tmp_path / "float.onnx")), []), tmp_path / "model.onnx")
    path = converted(net, SimpleNamespace(name="plain", graphs={"model": tmp_path / "model.onnx"}), SINGLE, tmp_path)
    heavy = [one for one in mil.read(path).operations if one.kind == "conv"]
    made = {name for one in mil.read(path).operations if one.kind.startswith("constexpr_") for name, _ in one.outputs}
    assert len(heavy) == 3
    assert all(one.inputs["weight"][0] in made for one in heavy)


@pytest.mark.parametrize(("bits", "kind"), [(8, "linear"), (4, "palette"), (2, "palette")])
def test_uniform_weights_with_float_offsets(tmp_path, bits, kind):
    net, stored = Net().eval(), {}
    for name in WEIGHTS:
        weights = net.get_parameter(name).detach().numpy()
        rows = weights.reshape(len(weights), -1)
        scale = (np.ptp(rows, axis=1) / (2**bits - 1)).astype(np.float32)
        indices = np.clip(np.rint((rows - rows.min(1)[:, None]) / scale[:, None]), 0, 2**bits - 1).astype(np.uint8)
        stored[name] = Encoded(indices, scale, rows.min(1), None, 2**bits, weights.shape)
        net.get_parameter(name).data = torch.from_numpy(stored[name].decoded())
    packed.write(graph_of(net), stored, tmp_path / "model.onnx")
    variant = SimpleNamespace(name="plain", graphs={"model": tmp_path / "model.onnx"})
    path = converted(net, variant, SINGLE, tmp_path)
    assert len(palettes(path)) == (4 if kind == "palette" else 0)
    assert compare({"logits": expected(net)}, coreml.load(path, SINGLE).run({"image": IMAGES})).sqnr_db > 100
    size = (path / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size
    assert size < 14_000


# --- packages ----------------------------------------------------------------------------------


def test_the_same_network_gives_the_same_bytes(plain, tmp_path):
    net, variant = plain
    folders = [tmp_path / "a", tmp_path / "b"]
    made = [converted(net, variant, IOS17, folder) for folder in folders]
    contents = [{f.relative_to(p): f.read_bytes() for f in p.rglob("*") if f.is_file()} for p in made]
    assert contents[0] == contents[1]
    assert {str(f) for f in contents[0]} == {
        "Manifest.json",
        "Data/com.apple.CoreML/model.mlmodel",
        "Data/com.apple.CoreML/weights/weight.bin",
    }


def test_pictures_are_images_of_the_program(plain, tmp_path):
    net, variant = plain
    path = converted(net, variant, IOS17, tmp_path)
    told = coreml.interface(path)
    assert told["inputs"] == [{"name": "image", "dtype": "uint8", "shape": [1, 8, 8, 3], "image": "RGB"}]
    assert told["outputs"] == [{"name": "logits", "dtype": "float32", "shape": [1, 5]}]
    assert mil.read(path).inputs["image"].shape == (1, 3, 8, 8)
    made = coreml.load(path, IOS17, exact=True).run({"image": IMAGES})  # the order of colours and axes shows in the outputs
    assert compare({"logits": expected(net)}, made).sqnr_db > 55


def test_pictures_are_arrays_where_the_target_says_so(plain, tmp_path):
    net, variant = plain
    target = dataclasses.replace(IOS17, options={**IOS17.options, "image_input": False})
    path = converted(net, variant, target, tmp_path)
    assert coreml.interface(path)["inputs"] == [{"name": "image", "dtype": "int32", "shape": [1, 8, 8, 3]}]
    assert compare({"logits": expected(net)}, coreml.load(path, target, exact=True).run({"image": IMAGES})).sqnr_db > 55


def test_tensors_have_the_exporters_names(plain, tmp_path):
    from edgekd import divergence

    net, variant = plain
    path = converted(net, variant, IOS17, tmp_path)
    made = coreml.tensors(path, IOS17, {"image": IMAGES})
    reference, _ = divergence.torch_tensors(graph_of(net), {"image": IMAGES})
    common = [name for name in made if name in reference]
    assert len(common) >= 7
    assert common[-1] == "logits"
    assert all(compare({n: reference[n]}, {n: made[n]}).sqnr_db > 45 for n in common)


def test_a_nan_in_the_network_is_found_in_the_package(plain, tmp_path):
    net = Net().eval()
    net.head.weight.data[2, 1] = float("nan")
    said = coreml.wrong(converted(net, plain[1], IOS17, tmp_path), IOS17)
    assert len(said) == 2
    assert all("(linear)" in one and "NaN" in one for one in said)


def test_golden_inputs_are_what_is_run(plain, tmp_path):
    class Loud(Net):
        def forward(self, x):
            return super().forward(x * 30000 / 20000)

    path = converted(Loud().eval(), plain[1], IOS17, tmp_path)
    (said,) = coreml.wrong(path, IOS17)  # noise: some pixels are bright
    assert "(mul)" in said
    assert "beyond float16" in said
    np.savez(tmp_path / "golden.npz", **{"model/in/image": np.zeros_like(IMAGES)})
    assert coreml.wrong(path, IOS17) == []


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "weights", "activations", "said"),
    [
        (IOS17, {"bits": 4}, None, "newer release"),
        (IOS17, {"bits": 4, "kind": "codebook"}, None, "granularity `tensor`"),
        (IOS17, {"bits": 4, "granularity": "tensor"}, None, None),
        (IOS17, {"bits": 8}, None, None),
        (IOS18, {"bits": 4}, None, None),
        (IOS18, {"bits": 2, "kind": "codebook"}, None, None),
        (IOS18, {"bits": 4, "group": 256}, None, "groups of 256"),
        (IOS18, {"bits": 8}, {"bits": 8}, "leave `activations` out"),
        (IOS18, None, None, None),
    ],
)
def test_schemes(target, weights, activations, said):
    reason = coreml.refuses(Scheme(weights=weights, activations=activations), target)
    assert reason is None if said is None else said in reason


def test_mixed_bits_need_ios_18():
    scheme = Scheme(weights={"bits": 8}, mixed=(2, 4, 8))
    assert "newer release" in coreml.refuses(scheme, IOS17)
    assert coreml.refuses(scheme, IOS18) is None


def onnx_file(folder, nodes, batch="batch", length=4):
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [batch, length]) for n in ("x", "y")]
    model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:]))
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def test_graphs(tmp_path):
    assert coreml.refuses_graph(onnx_file(tmp_path, [helper.make_node("Relu", ["x"], ["y"])]), IOS17) is None
    said = coreml.refuses_graph(onnx_file(tmp_path, [helper.make_node("Unique", ["x"], ["y"])]), IOS17)
    assert "takes no Unique" in said
    resize = helper.make_node("Resize", ["x"], ["y"], name="shrink", antialias=1)
    assert "`preprocess`" in coreml.refuses_graph(onnx_file(tmp_path, [resize]), IOS17)
    open_length = onnx_file(tmp_path, [helper.make_node("Relu", ["x"], ["y"])], length="n")
    assert "`x`" in coreml.refuses_graph(open_length, IOS17)


class Does(nn.Module):
    """A network of one function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def refused(function, target=IOS18):
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 4, 6, 6)).astype(np.float32))
    graph = Graph("model", Does(function), ("x",), ("y",), {"x": x}, {"x": {0: "batch"}})
    return coreml.refuses_network(graph, target)


def test_networks_are_tried_before_they_are_trained():
    assert refused(lambda x: torch.roll(nn.functional.pixel_unshuffle(x, 2), 1, 2).std((2, 3))) is None  # indices of 16 bits
    said = refused(lambda x: nn.functional.pad(x, (1, 1, 1, 1), mode="circular"))
    assert said.startswith("iPhone with iOS 18 (Core ML) cannot take it: coremltools cannot convert operation `pad` (node pad)")
    assert "Pad mode" in said
    assert said.endswith("Replace that operation in the network; or leave this target out")
    assert "does not know non_zero" in refused(lambda x: x + (x > 0).nonzero().float().sum())


def test_a_network_is_tried_once_for_targets_of_the_same_operations(monkeypatch):
    tried = []
    monkeypatch.setattr(coreml, "_trial", lambda graph, target: tried.append(target.name))
    graph = graph_of(Net())
    for target in (IOS18, load_target("mac"), IOS17, IOS17, SINGLE):
        assert coreml.refuses_network(graph, target) is None
    assert tried == ["iphone-ios18", "iphone-ios17", "iphone-ios18"]
    coreml.refuses_network(graph_of(Net()), IOS18)
    assert len(tried) == 4


def test_all_targets_that_cannot_take_the_student_are_told_before_training():
    from edgekd import stages

    net = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1, padding_mode="circular"), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    task = SimpleNamespace(name="plain", graphs=lambda student, splits: [graph_of(net)])
    materials = SimpleNamespace(task=task, fresh_student=None, splits=None)
    targets = [load_target(name) for name in ("onnxruntime-cpu", "iphone-ios18", "raspberry-pi-5", "mac")]
    plan = SimpleNamespace(targets=targets)
    with pytest.raises(BadInput) as error:
        stages.check_graphs(plan, materials, targets)
    lines = [line for line in str(error.value).splitlines() if line.startswith("target `")]
    assert [line.partition(":")[0] for line in lines] == ["target `iphone-ios18`", "target `mac`"]
    assert all("operation `pad`" in line for line in lines)
    stages.check_graphs(plan, materials, targets[::2])


def test_outputs_without_a_row_for_each_sample_are_refused(tmp_path):
    largest = helper.make_node("ReduceMax", ["x"], ["y"], keepdims=0)
    model = onnx.load(onnx_file(tmp_path, [largest]))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "model.onnx")
    assert "output `y` has no batch axis" in coreml.refuses_graph(tmp_path / "model.onnx", IOS18)


def test_an_unknown_release_is_bad_input(plain, tmp_path):
    target = dataclasses.replace(IOS17, options={"minimum_deployment_target": "iOS3"})
    with pytest.raises(BadInput, match=r"iOS3.*iOS17"):
        converted(*plain, target, tmp_path)


def test_an_operation_that_coremltools_lacks_is_named(plain, tmp_path):
    class Odd(Net):
        def forward(self, x):
            return super().forward(torch.special.i0(x))

    with pytest.raises(BadInput, match=r"graph `model`.*i0.*Replace that operation"):
        converted(Odd().eval(), plain[1], IOS17, tmp_path)


# --- this machine ------------------------------------------------------------------------------


def test_a_machine_without_coremltools_says_how_to_get_it(plain, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install" in coreml.missing()
    assert coreml.executes(IOS17).by is None
    with pytest.raises(Missing, match="pip install"):
        converted(*plain, IOS17, tmp_path)


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac has Core ML itself")
def test_elsewhere_than_on_a_mac_it_is_the_interpreter_and_says_so(tmp_path):
    means = coreml.executes(IOS17)
    assert means.by == "reference"
    assert "interpreter" in means.why
    assert not means.seconds_are_the_devices
    part = {}
    exec(compile(coreml.CHECK.read_text(), str(coreml.CHECK), "exec"), part)
    with pytest.raises(ImportError, match="copy this folder to a Mac"):
        part["version"]()
    assert "Core ML" in assemble(coreml.CHECK)
