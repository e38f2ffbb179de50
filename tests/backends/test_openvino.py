import dataclasses
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgekd import host
from edgekd.backends import openvino as backend
from edgekd.divergence import file_tensors
from edgekd.errors import BadInput, Missing
from edgekd.export import check
from edgekd.export.graph import Graph
from edgekd.parity import compare
from edgekd.quantize import packed
from edgekd.quantize.encoded import Encoded
from edgekd.quantize.weights_only import quantize_weights
from edgekd.recipe import Activations, Scheme, Weights
from edgekd.targets import Target, load_target

openvino = pytest.importorskip("openvino", reason="openvino is not installed: pip install 'edgekd[openvino]'")

CPU, NPU = load_target("intel-cpu"), load_target("intel-npu")
no_npu = pytest.mark.skipif("NPU" in backend._available(), reason="there is an NPU here")


def save(path, nodes, inputs, outputs, weights, opset=20):
    """Write an ONNX file. inputs, outputs: name -> (type, shape); weights: name -> array."""
    ends = [[helper.make_tensor_value_info(name, *of) for name, of in side.items()] for side in (inputs, outputs)]
    tensors = [numpy_helper.from_array(np.asarray(values), name) for name, values in weights.items()]
    graph = helper.make_graph(nodes, "g", *ends, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), path)
    return path


def converted(file, target, folder):
    return backend.convert(SimpleNamespace(graphs={"model": file}), target, folder)["model"]


@pytest.fixture
def convnet(tmp_path):
    """Bytes (n, 8, 8, 3) -> 5 numbers, and the same in NumPy."""
    rng = np.random.default_rng(0)
    kernel, matrix = (rng.normal(size=size).astype(np.float32) for size in ((4, 3, 1, 1), (4, 5)))
    nodes = [
        helper.make_node("Transpose", ["image"], ["moved"], name="moved", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["moved"], ["floats"], name="floats", to=TensorProto.FLOAT),
        helper.make_node("Conv", ["floats", "kernel"], ["conv"], name="conv"),
        helper.make_node("Relu", ["conv"], ["relu"], name="relu"),
        helper.make_node("ReduceMean", ["relu", "axes"], ["mean"], name="mean", keepdims=0),
        helper.make_node("MatMul", ["mean", "matrix"], ["logits"], name="logits"),
    ]
    ends = {"image": (TensorProto.UINT8, ["batch", 8, 8, 3])}, {"logits": (TensorProto.FLOAT, ["batch", 5])}
    weights = {"kernel": kernel, "matrix": matrix, "axes": np.array([2, 3])}
    pictures = rng.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    relu = np.maximum(pictures.astype(np.float64) @ kernel[:, :, 0, 0].T, 0)
    (tmp_path / "source").mkdir()
    file = save(tmp_path / "source" / "model.onnx", nodes, *ends, weights)
    return SimpleNamespace(file=file, inputs={"image": pictures}, relu=relu, logits=relu.mean((1, 2)) @ matrix)


def test_the_cpu_computes_what_numpy_does(convnet, tmp_path):
    file = converted(convnet.file, CPU, tmp_path / "out")
    assert sorted(f.name for f in file.parent.iterdir()) == ["model.bin", "model.xml"]
    assert backend.interface(file) == {
        "inputs": [{"name": "image", "dtype": "uint8", "shape": ["batch", 8, 8, 3]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 5]}],
    }
    for exact in (False, True):
        session = backend.load(file, CPU, threads=1, exact=exact)
        np.testing.assert_allclose(session.run(convnet.inputs | {"unused": 1})["logits"], convnet.logits, rtol=1e-5)
        assert list(session.providers) == ["CPU"]
        assert session.providers["CPU"] >= 3
    assert backend.wrong(file, CPU) == []
    assert backend.refuses_graph(convnet.file, CPU) is None


def test_the_same_input_gives_the_same_bytes(convnet, tmp_path):
    files = [converted(convnet.file, CPU, tmp_path / name) for name in "ab"]  # OpenVINO counts what it makes in a process
    for suffix in (".xml", ".bin"):
        first, second = (file.with_suffix(suffix).read_bytes() for file in files)
        assert first == second


def test_no_lower_precision_in_silence(tmp_path):
    """By itself OpenVINO multiplies in bfloat16 where the CPU can, and quantizes what meets 8-bit weights."""
    rng = np.random.default_rng(1)
    matrix, x = rng.normal(size=(512, 512)).astype(np.float32), rng.normal(size=(64, 512)).astype(np.float32)
    ends = {"x": (TensorProto.FLOAT, ["n", 512])}, {"y": (TensorProto.FLOAT, ["n", 512])}
    source = save(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"], name="y")], *ends, {"w": matrix})
    small = quantize_weights(onnx.load(source), [])
    onnx.save(small, tmp_path / "w8.onnx")
    (q,) = (numpy_helper.to_array(t) for t in small.graph.initializer if t.data_type == TensorProto.INT8)
    scale = np.abs(matrix).max(0) / np.float32(127)
    for name, wanted in (("m", x.astype(np.float64) @ matrix), ("w8", x.astype(np.float64) @ (q * scale))):
        file = converted(tmp_path / f"{name}.onnx", CPU, tmp_path / name)
        session = backend.load(file, CPU)
        assert np.abs(session.run({"x": x})["y"] - wanted).max() < 1e-6 * np.abs(wanted).max()
        assert list(session.providers) == ["CPU"]
    assert (tmp_path / "w8" / "model.bin").stat().st_size < matrix.nbytes / 4 + 4096


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, bias=False)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        return self.head(self.conv(x).flatten(1))


@pytest.mark.parametrize(
    ("bits", "stored_bits", "buckets", "codebook"),
    [
        (1, 2, "channel", False),
        (2, 2, 50, False),
        (2, 2, "tensor", True),
        (3, 4, 50, True),
        (4, 4, "channel", False),
        (4, 4, "tensor", True),
        (4, 4, 50, False),
        (5, 8, "channel", True),
        (8, 8, 50, False),
    ],
)
def test_weights_stay_small_and_exact(tmp_path, bits, stored_bits, buckets, codebook):
    rng = np.random.default_rng(bits)
    torch.manual_seed(0)
    net = Layers().eval()
    encoded = {}
    for name in ("conv.weight", "head.weight"):
        parameter = net.get_parameter(name)
        size = {"channel": parameter[0].numel(), "tensor": parameter.numel()}.get(buckets, buckets)
        indices = rng.integers(0, 2**bits, (-(-parameter.numel() // size), size)).astype(np.uint8)
        spare = indices.size - parameter.numel()
        indices.reshape(-1)[indices.size - spare :] = indices.reshape(-1)[parameter.numel() - 1]
        scale, offset = (rng.normal(size=len(indices)).astype(np.float32) / 2**bits for _ in range(2))
        points = np.sort(rng.random(2**bits)).astype(np.float32) if codebook else None
        encoded[name] = Encoded(indices, np.abs(scale), offset, points, 2**bits, tuple(parameter.shape))
        parameter.data = torch.from_numpy(encoded[name].decoded())
    x = torch.randn(4, 3, 4, 4)
    packed.write(Graph("model", net, ("x",), ("y",), {"x": x}, {"x": {0: "batch"}}), encoded, tmp_path / "model.onnx")
    file = converted(tmp_path / "model.onnx", CPU, tmp_path / "out")
    with torch.no_grad():
        wanted = net(x).numpy()
    np.testing.assert_allclose(backend.load(file, CPU).run({"x": x.numpy()})["y"], wanted, rtol=1e-5, atol=1e-5)
    constants = openvino.Core().read_model(file).get_ops()
    kinds = [c.get_element_type().get_type_name() for c in constants if c.get_type_name() == "Constant"]
    assert kinds.count(f"u{stored_bits}") == 2
    counts = [one.indices.size for one in encoded.values()]
    tables = sum(8 * len(one.scale) + (4 * len(one.points) if codebook else 0) for one in encoded.values())
    assert file.with_suffix(".bin").stat().st_size <= sum(-(-n * stored_bits // 8) for n in counts) + tables + 300


def test_many_small_integers_are_their_own(tmp_path):
    """OpenVINO would go on reading the memory of NumPy's array after it was freed."""
    rng = np.random.default_rng(3)
    indices = rng.integers(0, 16, (300, 400)).astype(np.uint8)
    scale = rng.uniform(0.01, 0.02, 300).astype(np.float32)
    net = nn.Linear(400, 300, bias=False).eval()
    one = Encoded(indices, scale, -8 * scale, None, 16, (300, 400))
    net.weight.data = torch.from_numpy(one.decoded())
    x = torch.randn(2, 400)
    packed.write(Graph("model", net, ("x",), ("y",), {"x": x}, {"x": {0: "batch"}}), {"weight": one}, tmp_path / "model.onnx")
    made = backend.load(converted(tmp_path / "model.onnx", CPU, tmp_path / "out"), CPU).run({"x": x.numpy()})["y"]
    wanted = x.numpy().astype(np.float64) @ ((indices.astype(np.float64) - 8) * scale[:, None]).T
    np.testing.assert_allclose(made, wanted, rtol=1e-4, atol=1e-4)
    codes = Encoded(indices[:, :100], scale, None, np.linspace(-1, 1, 16, dtype=np.float32), 16, (300, 100))
    net = nn.Linear(100, 300, bias=False).eval()
    net.weight.data = torch.from_numpy(codes.decoded())
    x = torch.randn(2, 100)
    packed.write(Graph("model", net, ("x",), ("y",), {"x": x}, {"x": {0: "batch"}}), {"weight": codes}, tmp_path / "model.onnx")
    made = backend.load(converted(tmp_path / "model.onnx", CPU, tmp_path / "out"), CPU).run({"x": x.numpy()})["y"]
    np.testing.assert_allclose(made, x.numpy() @ codes.decoded().T, rtol=1e-4, atol=1e-4)


@pytest.fixture
def int8(tmp_path):
    """A product of quantized activations and int8 weights that go to 127, with sums far above 16 bits, and the same in NumPy."""
    rng = np.random.default_rng(2)
    q = rng.integers(64, 128, (32, 6)).astype(np.int8)
    q[0] = 127
    scale, by = np.float32(0.25), rng.uniform(0.01, 0.02, 6).astype(np.float32)
    zero = np.uint8(3)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x.q"], name="x.q"),
        helper.make_node("DequantizeLinear", ["x.q", "scale", "zero"], ["x.dq"], name="x.dq"),
        helper.make_node("DequantizeLinear", ["q", "by"], ["w.dq"], name="w.dq", axis=1),
        helper.make_node("MatMul", ["x.dq", "w.dq"], ["y"], name="y"),
    ]
    ends = {"x": (TensorProto.FLOAT, ["n", 32])}, {"y": (TensorProto.FLOAT, ["n", 6])}
    file = save(tmp_path / "int8.onnx", nodes, *ends, {"q": q, "by": by, "scale": scale, "zero": zero})
    x = (rng.integers(-8, 600, (40, 32)) / np.float32(8)).astype(np.float32)  # many ties, some beyond the range
    stored = np.clip(np.rint(x / scale) + 3, 0, 255) - 3
    return SimpleNamespace(file=file, inputs={"x": x}, y=(stored * scale) @ (q.astype(np.float64) * by))


def test_int8_runs_on_int8_kernels_and_exactly_in_floats(int8, tmp_path):
    file = converted(int8.file, CPU, tmp_path / "out")
    exact, fast = backend.load(file, CPU, exact=True), backend.load(file, CPU)
    assert np.abs(exact.run(int8.inputs)["y"] - int8.y).max() < 1e-6 * np.abs(int8.y).max()
    assert exact.providers.keys() == {"CPU"}
    assert fast.providers["CPU int8"] == 1
    if host.vnni():  # without, sums saturate
        assert compare({"y": int8.y}, fast.run(int8.inputs)).sqnr_db > 35
    kinds = [
        c.get_element_type().get_type_name()
        for c in openvino.Core().read_model(file).get_ops()
        if c.get_type_name() == "Constant"
    ]
    assert kinds.count("i8") == 1


def test_full_range_int8_is_wrong_where_sums_saturate(int8, tmp_path, monkeypatch):
    file = converted(int8.file, CPU, tmp_path / "out")
    monkeypatch.setattr(host, "vnni", lambda: True)
    assert backend.wrong(file, CPU) == []
    (said,) = backend.wrong(file, dataclasses.replace(CPU, device="old PC", vnni=False))
    assert "more than 7 bits" in said
    assert "calibration.overflow_fix" in said


def test_saturating_kernels_are_seen_at_the_runtime_stage(int8, tmp_path):
    """OpenVINO's own kernels on an x86 without VNNI: this one, or one that qemu plays."""
    import shutil

    file = converted(int8.file, CPU, tmp_path / "out")
    np.save(tmp_path / "x.npy", int8.inputs["x"])
    code = (
        "import sys, numpy; from pathlib import Path; from edgekd.backends import openvino as b;"
        "numpy.save(sys.argv[3], b.load(Path(sys.argv[1]), threads=1).run({'x': numpy.load(sys.argv[2])})['y'])"
    )
    player = [] if not host.vnni() else ["qemu-x86_64-static", "-cpu", "Haswell"]
    if player and not shutil.which(player[0]):
        pytest.skip(
            "this CPU has VNNI, where int8 does not saturate, and qemu-user-static is not installed to play one without"
        )
    command = [*player, sys.executable, "-c", code, file, tmp_path / "x.npy", tmp_path / "y.npy"]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    assert compare({"y": int8.y}, {"y": np.load(tmp_path / "y.npy")}).sqnr_db < 25


def test_intermediate_values_have_their_onnx_names(convnet, int8, tmp_path):
    file = converted(convnet.file, CPU, tmp_path / "a")
    seen = backend.tensors(file, CPU, convnet.inputs)
    np.testing.assert_allclose(seen["relu"].transpose(0, 2, 3, 1), convnet.relu, rtol=1e-5, atol=1e-3)
    assert [name for name in seen if name in ("relu", "mean", "logits")] == ["relu", "mean", "logits"]
    seen = backend.tensors(converted(int8.file, CPU, tmp_path / "b"), CPU, int8.inputs)
    wanted = file_tensors(int8.file, int8.inputs)
    for name in ("x.dq", "y"):
        np.testing.assert_allclose(seen[name], wanted[name], rtol=1e-5)


@no_npu
def test_an_npu_that_is_not_here_is_not_replaced(convnet, tmp_path):
    means = backend.executes(NPU)
    assert means.by is None
    assert "no NPU here" in means.why
    file = converted(convnet.file, NPU, tmp_path / "out")
    with pytest.raises(Missing, match=r"no NPU here.*nothing else stands in"):
        backend.load(file, NPU)


def test_what_is_for_the_npu_has_fixed_shapes_and_16_bits(convnet, tmp_path):
    file = converted(convnet.file, NPU, tmp_path / "out")
    assert backend.interface(file)["inputs"][0]["shape"] == [1, 8, 8, 3]
    made = backend.load(file, NPU, exact=True).run(convnet.inputs)["logits"]  # five pictures, one at a time
    assert 40 < compare({"y": convnet.logits}, {"y": made}).sqnr_db < 90  # weights of 11 bits
    assert backend.wrong(file, NPU) == []
    dynamic = converted(convnet.file, dataclasses.replace(NPU, limits={}), tmp_path / "dynamic")
    assert any("takes fixed shapes alone" in said for said in backend.wrong(dynamic, NPU))
    assert [said for said in backend.wrong(file, CPU) if "is for NPU" in said]
    assert NPU.saturates() is None


def test_values_beyond_16_bits_are_found_with_the_golden_inputs(convnet, tmp_path):
    file = converted(convnet.file, NPU, tmp_path / "out")
    np.savez(file.with_name("golden.npz"), **{"model/in/image": convnet.inputs["image"]})
    assert backend.wrong(file, NPU) == []
    model = onnx.load(convnet.file)
    kernel = next(t for t in model.graph.initializer if t.name == "kernel")
    kernel.CopyFrom(numpy_helper.from_array(np.full((4, 3, 1, 1), 500, np.float32), "kernel"))
    onnx.save(model, tmp_path / "large.onnx")
    converted(tmp_path / "large.onnx", NPU, tmp_path / "out")
    (said,) = backend.wrong(file, NPU)
    assert "`conv` passes 65504" in said
    assert backend.wrong(converted(tmp_path / "large.onnx", CPU, tmp_path / "cpu"), CPU) == []


def test_a_shape_that_depends_on_values_is_refused_for_fixed_shapes(tmp_path):
    nodes = [
        helper.make_node("NonZero", ["x"], ["where"], name="where"),
        helper.make_node("Cast", ["where"], ["y"], name="y", to=TensorProto.FLOAT),
    ]
    file = save(tmp_path / "m.onnx", nodes, {"x": (TensorProto.FLOAT, ["n", 4])}, {"y": (TensorProto.FLOAT, None)}, {})
    assert "has no NonZero" in backend.refuses_graph(file, NPU)
    assert "fixed shapes alone" in backend.refuses_graph(file, dataclasses.replace(NPU, limits={"static": True}))
    assert backend.refuses_graph(file, CPU) is None


def test_an_operator_that_openvino_does_not_have_is_refused(tmp_path):
    nodes = [helper.make_node("Strange", ["x"], ["y"], name="y", domain="own")]
    file = save(tmp_path / "m.onnx", nodes, {"x": (TensorProto.FLOAT, [1])}, {"y": (TensorProto.FLOAT, [1])}, {})
    said = backend.refuses_graph(file, CPU)
    assert "own.Strange" in said
    assert "m.onnx" in said


@pytest.mark.parametrize(
    ("value", "half", "said"),
    [
        (np.nan, False, "has NaN"),
        (np.nan, True, "has NaN"),
        (-np.inf, True, "infinite values"),
        (1e5, True, "above the 65504"),
        (-np.inf, False, None),
        (1e5, False, None),
    ],
)
def test_constants_that_do_not_survive(convnet, tmp_path, value, half, said):
    model = onnx.load(convnet.file)
    kernel = next(t for t in model.graph.initializer if t.name == "kernel")
    values = numpy_helper.to_array(kernel).copy()
    values[0, 0, 0, 0] = value
    kernel.CopyFrom(numpy_helper.from_array(values, "kernel"))
    onnx.save(model, tmp_path / "bad.onnx")
    target = dataclasses.replace(CPU, precision="fp16") if half else CPU
    file = converted(tmp_path / "bad.onnx", dataclasses.replace(CPU, precision="fp32"), tmp_path / "out")
    found = backend.wrong(file, target)
    assert (said is None and not found) or (len(found) == 1 and said in found[0])


def test_auto_would_fall_back_in_silence():
    with pytest.raises(BadInput, match="AUTO"):
        backend.executes(Target("x", "X", "openvino", options={"device": "AUTO"}))


@pytest.mark.parametrize("content", [b"", b"not a graph"])
def test_a_broken_file_is_bad_input(tmp_path, content):
    file = tmp_path / "broken.xml"
    file.write_bytes(content)
    with pytest.raises(BadInput, match=r"broken\.xml: OpenVINO cannot read it"):
        backend.load(file)
    assert "cannot read" in backend.wrong(file, CPU)[0]


def test_what_a_target_stores():
    def scheme(bits, kind="uniform", activations=None):
        return Scheme(weights=Weights(bits=bits, kind=kind), activations=activations and Activations(bits=activations))

    for wanted in (Scheme(), scheme(2), scheme(4, "codebook"), scheme(8, activations=8)):
        assert backend.refuses(wanted, CPU) is None
    for wanted in (Scheme(), scheme(4), scheme(8), scheme(8, activations=8)):
        assert backend.refuses(wanted, NPU) is None
    for wanted in (scheme(2), scheme(4, "codebook"), scheme(8, activations=16)):
        assert "cannot store" in backend.refuses(wanted, NPU)


def test_the_part_of_check_py_runs_the_file(convnet, tmp_path):
    from edgekd.export.check_parts import openvino as part

    file = converted(convnet.file, CPU, tmp_path / "out")
    call, seconds = part.open_session(file, 1)
    np.testing.assert_allclose(call(convnet.inputs)["logits"], convnet.logits, rtol=1e-5)
    assert seconds > 0
    assert list(call.providers) == ["CPU"]
    compile(check.assemble(backend.CHECK), "check.py", "exec")


@no_npu
def test_the_part_of_check_py_replaces_no_npu(convnet, tmp_path):
    from edgekd.export.check_parts import openvino as part

    with pytest.raises(OSError, match="no NPU here"):
        part.open_session(converted(convnet.file, NPU, tmp_path / "out"), 1)


def test_a_broken_openvino_is_missing(convnet, tmp_path, monkeypatch):
    monkeypatch.setitem(backend.installed._tried, "openvino", "openvino cannot be imported")
    assert backend.missing() == "openvino cannot be imported"
    assert backend.executes(CPU) == backend.Means(None, "openvino cannot be imported")
    with pytest.raises(Missing, match="cannot be imported"):
        converted(convnet.file, CPU, tmp_path / "out")


def test_without_openvino(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install" in backend.missing()
    assert backend.executes(CPU).by is None
    with pytest.raises(Missing, match="pip install"):
        backend.load("model.xml")
