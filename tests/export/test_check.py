"""check.py: one file from a template and a part, and what it tells of the device."""

import ast
import hashlib
import json
import re
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekd.backends import onnxruntime as backend
from edgekd.export import artifact as artifacts
from edgekd.export import check
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
    assert (found["schema"], found["artifact"], found["right"], found["problems"]) == (1, "onnxruntime-cpu/fp32", True, [])
    assert found["graphs"]["model"]["sqnr_db"] == 200
    assert (found["runtime"], found["threads"], found["emulator"]) == ("onnxruntime", 1, None)
    assert found["versions"].keys() == {"python", "numpy", "onnxruntime"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["when"])
    assert found["machine"]
    assert found["processor"]
    assert found["graphs"]["model"]["warm_count"] == 20


def test_its_identity_is_of_the_files_as_sha256sum_lists_them(tmp_path):
    folder = ship(tmp_path).folder
    found = run(folder)
    listed = [
        f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in ("check.py", "golden.npz", "model.onnx")
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


def test_the_part_of_onnx_runtime_is_the_backends():
    assert backend.CHECK in PARTS
