import dataclasses
import hashlib
import json
import runpy
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from edgekd.backends import backend_of
from edgekd.errors import BadInput
from edgekd.export import artifact as artifacts
from edgekd.export.check import assemble
from edgekd.export.check_template import digest
from edgekd.export.graph import torch_runner
from edgekd.quantize import make
from edgekd.quantize.variant import reference_runner
from edgekd.recipe import Gate, VariantRecipe

RECIPES = {
    "fp32": {"name": "fp32", "method": "none"},
    "int8": {"name": "int8", "weights": {"bits": 8}, "activations": {"bits": 8}, "calibration": {"overflow_fix": "on"}},
}


@pytest.fixture
def ship(trained, tmp_path):
    """Make an artifact: (recipe name, folder name) -> Artifact."""

    def ship(name: str, folder: str = "artifact", **changes) -> artifacts.Artifact:
        variant = make(VariantRecipe(**RECIPES[name]), trained.job, tmp_path / f"{folder} variant")
        golden = {"model": trained.task.inputs(trained.splits.test.take(np.array([0, 100, 200, 300])))}
        told = {"gate": Gate(), "task": "image-classification", "classes": trained.splits.classes, **changes}
        reference = reference_runner(variant, torch_runner(list(trained.graphs)))
        return artifacts.make(variant, trained.target, tmp_path / folder, golden=golden, reference=reference, **told)

    return ship


@pytest.mark.parametrize("name", RECIPES)
def test_an_artifact_says_all_that_a_device_needs(ship, trained, name):
    made = ship(name, preprocess={"host": [{"step": "decode"}], "graph": [{"step": "scale", "by": 1 / 255}]})
    record = json.loads((made.folder / "artifact.json").read_text())
    assert (record["schema"], record["target"], record["variant"], record["backend"]) == (
        1,
        "onnxruntime-cpu",
        name,
        "onnxruntime",
    )
    assert record["runtime"] == "onnxruntime"
    assert record["device"] == {"title": "CPU with ONNX Runtime", "kind": "local", "architecture": None, "vnni": None}
    told = json.dumps({k: v for k, v in record.items() if k != "sha256"}, sort_keys=True)
    assert record["sha256"] == hashlib.sha256(told.encode()).hexdigest()
    graph = record["graphs"]["model"]
    assert graph["inputs"] == [{"name": "image", "dtype": "uint8", "shape": ["batch", 8, 8, 3]}]
    assert graph["outputs"] == [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}]
    assert record["classes"] == list(trained.splits.classes)
    assert record["preprocess"]["host"] == [{"step": "decode"}]
    assert [f["path"] for f in record["files"]] == ["check.py", "golden.npz", "model.onnx"]
    for told in record["files"]:
        content = (made.folder / told["path"]).read_bytes()
        assert (told["bytes"], told["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    golden = record["golden"]
    assert (golden["samples"], golden["max_error"] is None, golden["min_sqnr_db"] is None) == (
        4,
        name == "int8",
        name == "fp32",
    )


def test_golden_holds_the_references_outputs(ship, trained):
    inputs, outputs = ship("fp32").golden()
    np.testing.assert_array_equal(inputs["model"]["image"], trained.splits.test.take(np.array([0, 100, 200, 300]))["image"])
    np.testing.assert_allclose(outputs["model"]["logits"], trained.student.outputs["logits"][[0, 100, 200, 300]], atol=1e-5)


def test_the_same_inputs_give_the_same_bytes(ship):
    one, two = ship("int8", "one"), ship("int8", "two")
    for file in sorted(one.folder.iterdir()):
        assert file.read_bytes() == (two.folder / file.name).read_bytes(), file.name
    with zipfile.ZipFile(one.folder / "golden.npz") as stored:
        assert {entry.date_time for entry in stored.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_it_can_be_read_back_and_damage_is_named(ship):
    made = ship("fp32")
    again = artifacts.load(made.folder)
    assert (again.graphs, again.variant) == (made.graphs, "fp32")
    assert artifacts.damage(again) is None
    (made.folder / "check.py").write_text("")
    assert artifacts.damage(again).startswith("check.py is not the file")
    (made.folder / "check.py").unlink()
    assert artifacts.damage(again) == "check.py is missing"


def test_a_folder_without_an_artifact_is_bad_input(tmp_path):
    with pytest.raises(BadInput, match=r"no artifact\.json here"):
        artifacts.load(tmp_path)
    for content in ("{", "[]", "{}"):
        (tmp_path / "artifact.json").write_text(content)
        with pytest.raises(BadInput, match="damaged"):
            artifacts.load(tmp_path)


def test_a_scheme_that_the_target_cannot_store_is_refused(ship, trained, tmp_path):
    variant = make(VariantRecipe(**RECIPES["int8"]), trained.job, tmp_path / "v")
    only_float = dataclasses.replace(trained.target, stores=("fp32",))
    with pytest.raises(BadInput, match="cannot store w8a8"):
        artifacts.make(variant, only_float, tmp_path / "a", golden={}, reference=reference_runner(variant, None), gate=Gate())


# --- check.py, as it runs on a device ----------------------------------------------------------------

ONLY_NUMPY_AND_ONNXRUNTIME = """
import importlib.abc, runpy, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(f"{name} is not on this device", name=name)
sys.meta_path.insert(0, Blocker())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
BLOCKED = {"torch", "edgekd", "onnx", "nncf", "pydantic", "datasets", "rich", "yaml", "transformers", "timm"}


def check(folder, *options, blocked=frozenset()):
    code = f"BLOCKED = {sorted(BLOCKED | blocked)}\n{ONLY_NUMPY_AND_ONNXRUNTIME}"
    command = [sys.executable, "-I", "-c", code, str(folder / "check.py"), "--seconds", "0.2", *options]
    return subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("name", RECIPES)
def test_check_needs_numpy_and_onnxruntime_alone(ship, name):
    made = check(ship(name).folder, "--json")
    assert (made.returncode, made.stderr) == (0, "")
    found = json.loads(made.stdout)
    assert found["right"]
    graph = found["graphs"]["model"]
    assert 0 < graph["warm_median_s"] < 1
    assert graph["warm_count"] >= 20
    assert ("warm_p90_s" in graph) == (graph["warm_count"] >= 100)
    assert graph["load_s"] > 0
    assert graph["first_call_s"] > 0


def test_check_talks_to_people(ship):
    made = check(ship("fp32").folder, "--threads", "1")
    assert made.returncode == 0
    assert "onnxruntime-cpu/fp32: all right" in made.stdout
    assert "warm median" in made.stdout


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("as_json", [True, False])
def test_check_finds_a_damaged_file(ship, name, as_json):
    made = ship(name)
    file = made.folder / "model.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    ran = check(made.folder, *(["--json"] if as_json else []))
    assert ran.returncode == 3
    assert "model.onnx: damaged" in ran.stdout
    assert "Traceback" not in ran.stderr


def test_check_finds_a_truncated_file(ship):
    made = ship("fp32")
    file = made.folder / "model.onnx"
    file.write_bytes(file.read_bytes()[:1000])
    ran = check(made.folder, "--json")
    assert ran.returncode == 3
    assert not json.loads(ran.stdout)["right"]


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"graphs": {"model": {}}}', '{"graphs": [], "files": 3}'])
@pytest.mark.parametrize("as_json", [True, False])
def test_check_without_a_whole_record_says_so(tmp_path, content, as_json):
    (tmp_path / "check.py").write_text(assemble(backend_of("onnxruntime").CHECK))
    if content is not None:
        (tmp_path / "artifact.json").write_text(content)
    ran = check(tmp_path, *(["--json"] if as_json else []))
    assert (ran.returncode, ran.stderr) == (3, "")
    assert "artifact.json: " in (json.loads(ran.stdout)["problems"][0] if as_json else ran.stdout)
    assert "copy the artifact's folder again" in ran.stdout


def test_an_error_without_words_is_told_by_its_type(tmp_path, monkeypatch):
    def fail(*args, **options):
        raise ValueError

    monkeypatch.setattr("onnx.load", fail)
    with pytest.raises(BadInput, match=r"cannot be read as ONNX \(ValueError\)"):
        backend_of("onnxruntime").interface(tmp_path / "m.onnx")
    (tmp_path / "check.py").write_text(assemble(backend_of("onnxruntime").CHECK))
    assert runpy.run_path(str(tmp_path / "check.py"))["first_line"](ValueError()) == "ValueError: no more is known"


@pytest.mark.parametrize(("name", "factor"), [("fp32", 1.001), ("int8", 2.0)])
def test_check_finds_wrong_outputs_in_whole_files(ship, name, factor):
    """The files are what artifact.json describes, yet the outputs are not the golden ones."""
    made = ship(name)
    with np.load(made.folder / "golden.npz") as stored:
        arrays = {key: stored[key] * np.float32(factor) if "/out/" in key else stored[key] for key in stored.files}
    artifacts.write_npz(made.folder / "golden.npz", arrays)
    record = json.loads((made.folder / "artifact.json").read_text())
    record["files"] = artifacts.describe(made.folder)
    record["sha256"] = digest(record)
    (made.folder / "artifact.json").write_text(json.dumps(record))
    ran = check(made.folder, "--json")
    assert ran.returncode == 3
    assert "golden" in json.loads(ran.stdout)["problems"][0]


@pytest.mark.parametrize(
    ("where", "value"), [(("golden", "min_sqnr_db"), None), (("files",), []), (("graphs",), {}), (("target",), "x86-64")]
)
def test_check_finds_a_changed_record(ship, where, value):
    """Without tolerances or files there would be nothing to be wrong."""
    made = ship("int8")
    record = inner = json.loads((made.folder / "artifact.json").read_text())
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    (made.folder / "artifact.json").write_text(json.dumps(record))
    ran = check(made.folder, "--json")
    assert (ran.returncode, json.loads(ran.stdout)["right"]) == (3, False)
    assert json.loads(ran.stdout)["problems"] == [
        "artifact.json: changed since it was made (its SHA-256 differs); copy the artifact's folder again"
    ]


def test_check_takes_a_record_that_was_only_written_anew(ship):
    made = ship("fp32")
    record = json.loads((made.folder / "artifact.json").read_text())
    (made.folder / "artifact.json").write_text(json.dumps(dict(reversed(record.items())), indent=4))
    assert check(made.folder).returncode == 0


def test_check_without_the_runtime_says_how_to_get_it(ship):
    ran = check(ship("fp32").folder, blocked={"onnxruntime"})
    assert ran.returncode == 4
    assert "pip install numpy onnxruntime" in ran.stderr


def test_what_a_backend_cannot_convert_is_named(trained, tmp_path, monkeypatch):
    def fail(*given):
        raise BadInput("the runtime lacks Foo")

    variant = make(VariantRecipe(name="fp32", method="none"), trained.job, tmp_path / "v")
    monkeypatch.setattr("edgekd.backends.onnxruntime.convert", fail)
    with pytest.raises(BadInput, match=r"^onnxruntime-cpu/fp32: the runtime lacks Foo$"):
        artifacts.make(variant, trained.target, tmp_path / "a", golden={}, reference=fail, gate=Gate())
