"""check.py: one file from a template and a part, and what it tells of the device."""

import ast
import errno
import hashlib
import json
import re
import subprocess
import sys
import types

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekd import host
from edgekd.backends import onnxruntime as backend
from edgekd.export import artifact as artifacts
from edgekd.export import check, check_template
from edgekd.quantize.variant import Variant
from edgekd.recipe import Gate, Scheme
from edgekd.targets import load_target

PARTS = sorted(check.TEMPLATE.with_name("check_parts").glob("[!_]*.py"))


def doubling(file, batch="batch"):
    """Write an ONNX file that doubles x and adds 1: outputs known without any runtime."""
    two, one = (helper.make_tensor(name, TensorProto.FLOAT, [], [value]) for name, value in (("two", 2.0), ("one", 1.0)))
    nodes = [helper.make_node("Mul", ["x", "two"], ["m"], name="m"), helper.make_node("Add", ["m", "one"], ["y"], name="y")]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 2]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "doubling", ends[:1], ends[1:], [two, one])
    file.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    return file


X = np.array([[1, 2], [3, 4.5], [0, -7]], np.float32)


def ship(folder, batch="batch", factor=1.0):
    """Make an artifact of it; its golden outputs are 2x + 1, `factor` times."""
    variant = Variant("fp32", "none", Scheme(), folder / "v", {"model": doubling(folder / "v" / "model.onnx", batch)}, "graph")
    return artifacts.make(
        variant,
        load_target("onnxruntime-cpu"),
        folder / "a",
        golden={"model": {"x": X}},
        reference=lambda name, inputs: {"y": (2 * inputs["x"] + 1) * np.float32(factor)},
        gate=Gate(),
    )


def run(folder, *options, code=0):
    command = [sys.executable, "-I", str(folder / "check.py"), "--json", "--seconds", "0", *options]
    made = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert made.returncode == code, made.stderr
    return json.loads(made.stdout) if made.stdout else made.stderr


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.stem)
def test_each_part_makes_one_file_that_an_old_python_reads(part):
    text = check.assemble(part)
    tree = ast.parse(text, feature_version=(3, 8))
    assert "from __future__ import annotations" in text  # list[str] in a signature is an error in 3.8 without
    assert not re.search(r"^\s*(from|import) (edgekd|\.)", text, re.MULTILINE)
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert len(defined) == len(set(defined))
    assert {"open_session", "version", "main", "read_record"} <= set(defined)
    assert not re.search(r"no runtime opens|end of the runtime", text)  # nothing of the template's own part is left


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def version(): ...\ndef open_session(path, threads): ...", "needs NEEDS"),
        ("NEEDS = ('x',)\ndef version(): ...", "needs open_session"),
        ("NEEDS = ('x',)\ndef version(): ...\ndef open_session(p, t): ...\ndef main(): ...", "has main too"),
        ("from edgekd import x\nNEEDS = ('x',)\ndef version(): ...\ndef open_session(p, t): ...", "line 1 imports edgekd"),
        ("NEEDS = ('x',)\ndef version(): ...\ndef open_session(p, t):\n    from . import x", "line 4 imports edgekd"),
    ],
)
def test_a_part_that_would_not_work_on_a_device_is_refused(tmp_path, body, message):
    (tmp_path / "part.py").write_text(body)
    with pytest.raises(ValueError, match=message):
        check.assemble(tmp_path / "part.py")


def test_a_part_too_new_for_the_oldest_python_is_refused(tmp_path):
    source = "NEEDS = ('x',)\ndef version(): ...\ndef open_session(p, t):\n    match p:\n        case 1: pass"
    (tmp_path / "part.py").write_text(source)
    with pytest.raises(SyntaxError):
        check.assemble(tmp_path / "part.py")


def test_it_tells_what_ran_where_and_when(tmp_path):
    found = run(ship(tmp_path).folder, "--threads", "1")
    assert (found["schema"], found["artifact"], found["right"], found["problems"]) == (2, "onnxruntime-cpu/fp32", True, [])
    assert found["graphs"]["model"]["sqnr_db"] == 200
    assert (found["runtime"], found["threads"], found["emulator"]) == ("onnxruntime", 1, None)
    assert found["versions"].keys() == {"python", "numpy", "onnxruntime"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["when"])
    assert found["machine"]
    assert found["processor"]
    assert found["graphs"]["model"]["warm_count"] == 20
    assert found["vnni"] == (host.vnni() if "x86" in found["machine"] else None)


def test_its_identity_is_of_the_files_as_sha256sum_lists_them(tmp_path):
    folder = ship(tmp_path).folder
    found = run(folder)
    listed = [
        f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n"
        for n in ("artifact.json", "check.py", "golden.npz", "model.onnx")
    ]
    assert found["identity"] == hashlib.sha256("".join(listed).encode()).hexdigest()
    (folder / "golden.npz").unlink()
    assert run(folder, code=3)["files"]["golden.npz"] is None


def test_files_in_folders_are_checked_one_by_one(tmp_path):
    folder = ship(tmp_path).folder
    (folder / "model.mlpackage" / "Data").mkdir(parents=True)
    weight = folder / "model.mlpackage" / "Data" / "weight.bin"
    weight.write_bytes(b"weights")
    record = json.loads((folder / "artifact.json").read_text())
    told = {"path": "model.mlpackage/Data/weight.bin", "bytes": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}
    record["files"].append(told)
    record["sha256"] = check_template.digest(record)
    (folder / "artifact.json").write_text(json.dumps(record))
    assert run(folder)["right"]
    weight.write_bytes(b"Weights")
    assert run(folder, code=3)["problems"] == ["model.mlpackage/Data/weight.bin: damaged or replaced (SHA-256 differs)"]


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_fixed_batch_is_filled_up(tmp_path, batch):
    """ONNX Runtime refuses another batch size than the file's; the last of 3 samples fills a batch of 2."""
    found = run(ship(tmp_path, batch).folder)
    assert (found["right"], found["graphs"]["model"]["sqnr_db"]) == (True, 200)


def test_wrong_outputs_are_told_by_their_error(tmp_path):
    found = run(ship(tmp_path, factor=2).folder, code=3)  # the error is half of what is expected
    assert found["graphs"]["model"]["relative_error"] == pytest.approx(0.5)
    assert found["graphs"]["model"]["sqnr_db"] == pytest.approx(20 * np.log10(2))
    assert not found["right"]


def test_an_emulators_seconds_are_not_taken(tmp_path):
    found = run(ship(tmp_path).folder, "--emulator", "qemu-aarch64")
    assert (found["emulator"], found["seconds_are_the_devices"]) == ("qemu-aarch64", False)
    assert found["right"]
    assert not [key for key in found["graphs"]["model"] if key.endswith("_s") or key == "warm_count"]


def shipped_with(folder, part):
    """Make an artifact whose check.py has another part, so that its own record still describes it."""
    made = ship(folder)
    (folder / "part.py").write_text(f"NEEDS = ('numpy', 'toy')\n{part}")
    (made.folder / "check.py").write_text(check.assemble(folder / "part.py"))
    record = {**made.record, "files": artifacts.describe(made.folder)}
    record["sha256"] = check_template.digest(record)
    (made.folder / "artifact.json").write_text(json.dumps(record))
    return made.folder


TOY = """
def version(): return "1"
def open_session(path, threads):
    {before}
    def call(inputs):
        {during}
        return {{"y": 2 * inputs["x"] + 1}}
    return call, 0.0
"""


def test_what_a_runtime_prints_is_not_in_the_json(tmp_path):
    """Native code writes past sys.stdout."""
    folder = shipped_with(tmp_path, TOY.format(before="import os; os.write(1, b'# from native code'); print('hi')", during=""))
    assert run(folder)["right"]


def test_a_device_that_is_not_here_is_no_finding(tmp_path):
    """Exit code 4, one line, nothing on the standard output: a file that is right would be told wrong."""
    missing = "import errno; raise OSError(errno.ENODEV, 'no NPU here')"
    folder = shipped_with(tmp_path, TOY.format(before=missing, during=""))
    assert run(folder, code=4) == "no NPU here\n"
    other = TOY.format(before="raise OSError(2, 'no such file')", during="")
    assert run(shipped_with(tmp_path / "other", other), code=3)["problems"]


@pytest.mark.parametrize("option", [(), ("--emulator", "qemu")])
def test_a_session_that_turns_out_simulated_is_not_timed(tmp_path, option):
    part = TOY.format(before="FOUND.update(emulator='NPU simulator', simulator=True)", during="")
    part = f"FOUND = {{}}\ndef about(): return FOUND\n{part}"
    found = run(shipped_with(tmp_path, part), *option)
    assert (found["emulator"], found["simulator"]) == ("qemu" if option else "NPU simulator", True)
    assert (found["right"], found["seconds_are_the_devices"]) == (True, False)
    assert not [key for key in found["graphs"]["model"] if key.endswith("_s") or key == "warm_count"]


def test_an_emulator_told_of_outlasts_a_part_that_sees_none(tmp_path):
    part = f"def about(): return {{'emulator': None}}\n{TOY.format(before='', during='')}"
    assert run(shipped_with(tmp_path, part), "--emulator", "qemu")["emulator"] == "qemu"


@pytest.mark.parametrize(
    ("kind", "machine", "creates", "expected"),
    [
        ("CPU", "x86_64", True, {"emulator": "HTP simulator", "simulator": True}),
        ("CPU", "aarch64", True, {}),  # ONNX Runtime lists no NPUs on Linux
        ("NPU", "ARM64", True, {}),
        ("CPU", "aarch64", False, "no HTP"),
        (None, "aarch64", True, "no HTP"),
        ("NPU", "ARM64", False, "another SoC"),
    ],
)
def test_qnn_without_an_htp_is_simulated_on_x86_alone(monkeypatch, tmp_path, kind, machine, creates, expected):
    from edgekd.export.check_parts import onnxruntime_qnn as part

    def session(*args):
        if not creates:
            raise RuntimeError("another SoC")
        return types.SimpleNamespace(get_inputs=list, get_outputs=list, get_provider_graph_assignment_info=list)

    device = types.SimpleNamespace(ep_name="QNNExecutionProvider", device=types.SimpleNamespace(type=kind))
    options = types.SimpleNamespace(add_session_config_entry=lambda *a: None, add_provider_for_devices=lambda *a: None)
    fake = types.SimpleNamespace(
        get_ep_devices=lambda: [device] if kind else [],
        register_execution_provider_library=lambda *a: None,
        OrtHardwareDeviceType=types.SimpleNamespace(NPU="NPU"),
        SessionOptions=lambda: options,
        InferenceSession=session,
    )
    qnn = types.SimpleNamespace(get_library_path=str, get_qnn_htp_path=str)
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    monkeypatch.setitem(sys.modules, "onnxruntime_qnn", qnn)
    monkeypatch.setattr(part, "SIMULATED", {})
    monkeypatch.setattr("platform.machine", lambda: machine)
    if isinstance(expected, str):
        with pytest.raises(OSError if expected == "no HTP" else RuntimeError, match=expected) as raised:
            part.open_session(tmp_path / "model.onnx", 1)
        assert getattr(raised.value, "errno", None) == (errno.ENODEV if expected == "no HTP" else None)
        return
    part.open_session(tmp_path / "model.onnx", 1)
    assert part.about() == expected


def test_a_page_that_finds_no_gpu_is_a_missing_device(monkeypatch, tmp_path):
    from edgekd.export.check_parts import onnxruntime_web as part

    def wait(self):
        raise RuntimeError("this browser finds no GPU for WebGPU (requestAdapter gave none)")

    (tmp_path / "check.html").write_text("")
    monkeypatch.setattr(part, "__file__", str(tmp_path / "check.py"))
    monkeypatch.setattr(part, "runtime_folder", lambda: tmp_path)
    monkeypatch.setattr(part, "PAGES", {})
    monkeypatch.setattr(part.Page, "wait", wait)
    with pytest.raises(OSError, match="no GPU") as raised:
        part.open_session(tmp_path / "model.onnx", 0)
    assert raised.value.errno == errno.ENODEV
    assert part.about() == {}
    next(iter(part.PAGES.values())).close()


def test_the_part_of_onnx_runtime_is_the_backends():
    assert backend.CHECK in PARTS
