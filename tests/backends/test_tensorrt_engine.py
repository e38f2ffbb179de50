"""build_engine.py as it ships, and the session on it, on a TensorRT and a driver that record what they are asked."""

import ast
import ctypes
import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from backends import fake_tensorrt
from onnx import TensorProto, helper, numpy_helper

from edgekd.backends import tensorrt as backend
from edgekd.errors import BadInput, Missing
from edgekd.export import build_engine_template as builder
from edgekd.export import check
from edgekd.export.check_parts import tensorrt as part
from edgekd.targets import load_target

MATRIX = np.arange(12, dtype=np.float32).reshape(4, 3)
GPU, JETSON = load_target("nvidia-gpu"), load_target("jetson-orin-nano")


class Variant:
    def __init__(self, file):
        self.graphs = {"model": file}


@pytest.fixture
def source(tmp_path):
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", n]) for name, n in (("x", 4), ("y", 3))]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(MATRIX, "w")])
    (tmp_path / "source").mkdir()
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "source/m.onnx")
    return tmp_path / "source" / "m.onnx"


@pytest.fixture(params=["10.3.0", "11.4.1"])
def here(request, monkeypatch):
    """A machine with TensorRT and a GPU. Returns (what TensorRT is asked, the driver)."""
    calls, driver = [], fake_tensorrt.Driver()
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.module(request.param, calls))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    return calls, driver


def test_the_engine_is_built_by_the_calls_that_each_version_has(source, here, tmp_path):
    calls, _ = here
    file = backend.convert(Variant(source), GPU, tmp_path / "out")["model"]
    backend.load(file, GPU)
    strongly_typed = {"10.3.0": 1 << 1, "11.4.1": 0}[sys.modules["tensorrt"].__version__]
    assert calls == [
        ("Logger", 2),
        ("Builder",),
        ("create_network", strongly_typed),
        ("parse_from_file", str(file)),
        ("clear_flag", "TF32"),
        ("set_shape", "x", (1, 4), (8, 4), (64, 4)),
        ("add_optimization_profile",),
        ("build_serialized_network",),
        ("Logger", 2),
        ("Runtime",),
        ("deserialize_cuda_engine",),
    ]


def test_fixed_shapes_have_no_profile_and_the_workspace_is_bounded(source, here, tmp_path):
    calls, _ = here
    file = backend.convert(Variant(source), JETSON, tmp_path / "out")["model"]
    backend.load(file, JETSON)
    assert ("set_memory_pool_limit", "WORKSPACE", 1024 << 20) in calls
    assert not any(call[0] in ("set_shape", "add_optimization_profile") for call in calls)


@pytest.mark.parametrize(("target", "batches"), [(GPU, [64, 64, 22]), (JETSON, [1] * 150)])
def test_any_number_of_samples_runs(source, here, tmp_path, target, batches):
    calls, driver = here
    file = backend.convert(Variant(source), target, tmp_path / "out")["model"]
    session = backend.load(file, target)
    assert session.providers == {"TensorRT": 3}
    x = np.random.default_rng(0).normal(size=(150, 4)).astype(np.float32)
    made = session.run({"x": x, "unused": x})["y"]
    np.testing.assert_allclose(made, x @ MATRIX, rtol=5e-3, atol=0.02)  # the file has 16-bit floats
    assert [call[2][0] for call in calls if call[0] == "set_input_shape"] == batches
    assert ("execute_async_v3", 7) in calls
    assert driver.calls.count("cuStreamSynchronize") == len(batches)
    assert len(driver.buffers) == driver.calls.count("cuMemAlloc_v2") == 2  # one for each tensor, whatever the number of calls


def test_means_name_the_gpu(here):
    means = backend.executes(JETSON)
    assert means.by == "runtime"
    assert "Test GPU" in means.why
    assert not means.seconds_are_the_devices  # this is no Jetson


def shipped(source, folder):
    file = backend.convert(Variant(source), GPU, folder)["model"]
    assert sorted(f.name for f in folder.iterdir()) == ["build_engine.json", "build_engine.py", "model.onnx"]
    return file


def test_an_engine_is_built_once_and_again_for_what_it_does_not_fit(source, here, tmp_path, monkeypatch):
    calls, driver = here
    file = shipped(source, tmp_path / "out")
    said = []
    first = builder.ready(file, say=said.append)
    told = json.loads((tmp_path / "out" / "model.engine.json").read_text())
    assert told["gpu"] == "Test GPU (8.7)"
    assert told["tensorrt"] == sys.modules["tensorrt"].__version__
    assert builder.ready(file, say=said.append) == first
    assert [call[0] for call in calls].count("build_serialized_network") == len(said) == 1
    assert "there is none yet" in said[0]

    driver.name = b"Other GPU"
    builder.ready(file, say=said.append)
    assert "its gpu is Test GPU (8.7), here it is Other GPU (8.7)" in said[1]
    monkeypatch.setattr(sys.modules["tensorrt"], "__version__", "10.9.9")
    sys.modules["tensorrt"].NetworkDefinitionCreationFlag.STRONGLY_TYPED = 1
    builder.ready(file, say=said.append)
    assert "its tensorrt is" in said[2]
    (tmp_path / "out" / "model.engine").write_bytes(b"damaged")
    builder.ready(file, say=said.append)
    assert "its engine_sha256 is" in said[3]
    (tmp_path / "out" / "model.engine.json").write_text("{")
    builder.ready(file, say=said.append)
    assert "nothing says what it was built for" in said[4]
    builder.ready(file, rebuild=True, say=said.append)
    assert "asked for" in said[5]
    assert len(said) == 6


def test_a_replaced_file_is_not_built(source, here, tmp_path):
    calls, _ = here
    file = shipped(source, tmp_path / "out")
    file.write_bytes(file.read_bytes() + b"\x00")
    with pytest.raises(ValueError, match="SHA-256"):
        builder.ready(file)
    assert calls == []


def test_what_the_parser_says_is_told(source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.module("10.3.0", [], broken="no importer for operator X"))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: fake_tensorrt.Driver())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(BadInput, match="no importer for operator X"):
        backend.load(shipped(source, tmp_path / "out"))


@pytest.mark.parametrize(
    ("version", "driver", "said"),
    [
        ("8.6.1", fake_tensorrt.Driver(), "TensorRT 8.6.1: these files are for TensorRT 10 and 11"),
        ("10.3.0", fake_tensorrt.Driver(devices=0), "no NVIDIA GPU here"),
        ("10.3.0", OSError("libcuda.so.1"), "no NVIDIA driver here"),
    ],
)
def test_what_is_missing_is_said(source, tmp_path, monkeypatch, version, driver, said):
    def library(name):
        if isinstance(driver, Exception):
            raise driver
        return driver

    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.module(version, []))
    monkeypatch.setattr(ctypes, "CDLL", library)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    means = backend.executes(GPU)
    assert means.by is None
    assert said in means.why
    with pytest.raises(Missing, match=said.replace("(", r"\(")):
        backend.load(shipped(source, tmp_path / "out"))


def test_without_tensorrt_it_is_not_executed(source, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "tensorrt" else name)
    means = backend.executes(JETSON)
    assert means.by is None
    assert "TensorRT is not installed here" in means.why
    assert "build_engine.py" in means.why
    file = shipped(source, tmp_path / "out")
    with pytest.raises(Missing, match="nothing else stands in"):
        backend.load(file)


def test_build_engine_py_stands_alone(source, tmp_path):
    """On a machine without TensorRT: exit code 4 and what to do, with nothing of edgekd to import."""
    shipped(source, tmp_path / "out")
    command = [sys.executable, "-I", tmp_path / "out" / "build_engine.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (4, "")
    assert "TensorRT is not installed here" in done.stderr
    text = (tmp_path / "out" / "build_engine.py").read_text()
    assert not [line for line in text.splitlines() if line.lstrip().startswith(("import ", "from ")) and "edgekd" in line]
    ast.parse(text, feature_version=(3, 8))


def test_build_engine_py_builds_and_says_what_is_wrong(source, here, tmp_path, monkeypatch, capsys):
    file = shipped(source, tmp_path / "out")
    monkeypatch.setattr(builder, "__file__", str(tmp_path / "out" / "build_engine.py"))
    monkeypatch.setattr(sys, "argv", ["build_engine.py"])
    assert builder.main() == 0
    assert "model.engine: ready" in capsys.readouterr().out
    assert (tmp_path / "out" / "model.engine").is_file()
    file.write_bytes(b"")
    assert builder.main() == 3
    assert "WRONG model.onnx: damaged or replaced" in capsys.readouterr().err


def test_the_part_of_check_py_builds_and_runs(source, here, tmp_path, monkeypatch):
    monkeypatch.undo()
    calls = []
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.module("10.3.0", calls))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: fake_tensorrt.Driver())
    file = shipped(source, tmp_path / "out")
    call, seconds = part.open_session(file, 0)
    np.testing.assert_allclose(call({"x": np.ones((2, 4), np.float32)})["y"], np.ones((2, 4)) @ MATRIX, rtol=1e-3)
    assert call.providers == {"TensorRT": 3}
    assert seconds >= 0
    part.open_session(file, 0)
    assert [c[0] for c in calls].count("build_serialized_network") == 1
    assert part.version() == "10.3.0"
    compile(check.assemble(backend.CHECK), "check.py", "exec")
