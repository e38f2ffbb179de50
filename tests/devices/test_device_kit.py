"""Kits: what travels, that it runs elsewhere with nothing but numpy and the runtime, and what is believed of what comes back."""

import ast
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekd.backends import onnxruntime as full
from edgekd.bench import kits, suite
from edgekd.bench.things import Thing, thing_from
from edgekd.bench.timing import Known, know
from edgekd.devices import kit_backends, kit_main, packing
from edgekd.errors import BadInput
from edgekd.recipe import Bench

QUICK = Bench(min_seconds=0.1, min_count=20, interval=0.9, max_seconds=5, threads=1, streams=(2,), roofline=False)


def start(kit: Path, folder: Path, *arguments: str, python: str = sys.executable, **around: str) -> subprocess.Popen:
    """Start a kit in a folder, on a machine that has an edgekd of its own, which is not to be touched."""
    other = folder / "other" / "edgekd"
    other.mkdir(parents=True, exist_ok=True)
    (other / "__init__.py").write_text("raise SystemExit('another edgekd')")
    (folder / "edgekd").mkdir(exist_ok=True)
    (folder / "edgekd" / "__init__.py").write_text("raise SystemExit('another edgekd')")
    (folder / "tmp").mkdir(exist_ok=True)
    clean = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(other.parent),
        "TMPDIR": str(folder / "tmp"),
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    return subprocess.Popen(
        [python, str(kit), *arguments],
        cwd=folder,
        env={**clean, **around},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen) -> tuple[int, str, str]:
    """Return (exit code, output, errors) of a process that ends by itself."""
    out, errors = process.communicate(timeout=120)
    return process.returncode, out, errors


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[Known]]:
    """A kit of two products and one thing whose runtime no device of ours has, and the record of its run: (kit, record, known)."""
    from devices.conftest import write_product

    folder = tmp_path_factory.mktemp("kit")
    known = know(
        [thing_from(write_product(folder / "small.onnx")), thing_from(write_product(folder / "wide.onnx", 96, beside=True))]
    )
    engine = folder / "gpu.engine"
    engine.write_bytes(b"an engine")
    interfaces = known[0].interfaces
    absent = Known(Thing("gpu", "tensorrt", {"model": engine}, control=True), None, interfaces, "0" * 64, 9, "single-stream")
    kit = folder / "clock.pyz"
    told = kits.write([*known, absent], QUICK, kit)
    assert told == {"kit": str(kit), "things": ["small", "wide", "gpu"], "needs": ["numpy", "onnxruntime", "tensorrt"]}
    there = tmp_path_factory.mktemp("there")
    code, out, errors = finished(start(kit, there, "-o", "made.json"))
    assert code == 0, errors
    assert "2 of 2 measured; take it in with: edgekd bench --import made.json" in out
    assert "timing 2 in alternation" in errors
    assert "left out: gpu" in errors
    assert not list((there / "tmp").iterdir())
    return kit, there / "made.json", [*known, absent]


def test_same_things_same_bytes(carried, tmp_path):
    """Written again, a kit is the same to the byte; it starts by itself."""
    kit, _, known = carried
    kits.write(known, QUICK, tmp_path / "again.pyz")
    assert (tmp_path / "again.pyz").read_bytes() == kit.read_bytes()
    assert kit.read_bytes().startswith(b"#!/usr/bin/env python3\n")
    assert kit.stat().st_mode & 0o111


GENERIC = {"Callable", "Mapping", "Sequence", "Iterator", "Iterable", "dict", "list", "tuple", "set", "frozenset", "type"}


def not_in_38(tree: ast.AST) -> Iterator[str]:
    """Yield what the grammar of Python 3.8 takes and Python 3.8 does not run."""
    annotations = set()
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            if isinstance(getattr(node, name, None), ast.AST):
                annotations |= {id(inner) for inner in ast.walk(getattr(node, name))}
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            annotations |= {id(inner) for inner in ast.walk(node)}
    old = {
        name.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "typing"
        for name in node.names
    }
    for node in ast.walk(tree):
        generic = isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in GENERIC - old
        if generic and id(node) not in annotations:
            yield f"line {node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.Attribute) and node.attr in (
            "removeprefix",
            "removesuffix",
            "file_digest",
            "UTC",
            "bit_count",
        ):
            yield f"line {node.lineno}: {node.attr}"
        if isinstance(node, ast.Call) and any(word.arg == "strict" for word in node.keywords):
            yield f"line {node.lineno}: strict="
        if isinstance(node, ast.ImportFrom) and node.module == "functools" and any(name.name == "cache" for name in node.names):
            yield f"line {node.lineno}: functools.cache"


def test_python_3_8_could_run_it():
    """Every module is written in the language and the library of Python 3.8; what is sent first in that of 3.6."""
    for name, source in packing.code().items():
        assert not list(not_in_38(ast.parse(source, name, feature_version=(3, 8)))), name
    ast.parse((Path(kit_main.__file__).with_name("bootstrap.py")).read_text(), feature_version=(3, 6))
    assert list(not_in_38(ast.parse("x = list[int]\ndef f(a: list[int]) -> dict[str, int]: zip(a, a, strict=True)"))) == [
        "line 1: list[int]",
        "line 2: strict=",
    ]


def test_it_needs_numpy_alone(tmp_path):
    """All modules but the runtimes' can be imported from the archive where nothing but numpy and Python's own modules is found."""
    kit = tmp_path / "code.pyz"
    kit.write_bytes(packing.packed())
    program = """
import sys, importlib
sys.path.insert(0, sys.argv[1])
class Nothing:
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root not in sys.stdlib_module_names and root not in ("numpy", "edgekd", "mkl", "pickle5"):
            raise ModuleNotFoundError(f"it needs {name}", name=name)
sys.meta_path.insert(0, Nothing())
for name in sys.argv[2:]:
    module = importlib.import_module(name)
    assert module.__file__.startswith(sys.argv[1]), module.__file__
"""
    names = [name[:-3].replace("/", ".").replace(".__init__", "") for name in packing.code() if name != "__main__.py"]
    done = subprocess.run([sys.executable, "-I", "-c", program, str(kit), *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "edgekd.bench.worker" in names
    assert not any("torch" in name or "recipe" in name for name in names)


def test_help_says_what_is_in_it(carried, tmp_path):
    """--help works without numpy, and lists the things."""
    code, out, _ = finished(start(carried[0], tmp_path, "--help"))
    assert code == 0
    assert "small, wide, gpu" in " ".join(out.split())


def test_what_comes_back(carried, tmp_path):
    """A record becomes measurements whose medians are those of its raw samples; what was left out is said, with the reason."""
    _, file, known = carried
    record = json.loads(file.read_text())
    brought = kits.read(file)
    assert brought.address == f"imported: {os.uname().nodename}"
    assert brought.device["host"]["cores"] >= 1
    ((left_out),) = brought.skipped
    assert left_out["artifact"] == "gpu"
    assert left_out["reason"] == f"{sys.executable} -m pip install tensorrt"
    assert len(brought.cells) == 2
    for place, made in enumerate(brought.cells.values()):
        measurements, comparisons = made(tmp_path, "imported: there")
        told = record["cells"][place]["told"]["timed"]
        assert [one["artifact"] for one in measurements] == ["small", "wide"]
        for one, raw, thing in zip(measurements, told, known[:2], strict=True):
            calls = np.concatenate([block["nanoseconds"] for block in raw["blocks"]])
            assert one["warm"]["median_s"] == pytest.approx(np.median(calls) / 1e9)
            assert one["device"] == "imported: there"
            assert one["environment"]["artifact_sha256"] == thing.digest
            assert one["threads"] == 1
            assert one["streams"] == (None, 2)[place]
            assert (tmp_path / one["samples"]).is_file()
        assert comparisons[0]["control"] == "small"  # the marked control was left out
        assert comparisons[0]["device"] == "imported: there"


def test_into_one_report(carried, tmp_path):
    """Records of two devices stand in one bench.json, each under a name of its own; one given twice counts once."""
    first = carried[1]
    record = json.loads(first.read_text())
    record.pop("sha256")
    record["cells"][0]["told"]["timed"][0]["blocks"][0]["nanoseconds"][0] += 1
    second = tmp_path / "second.json"
    second.write_text(kit_main.sealed(record))
    brought = [kits.read(first), kits.read(second), kits.read(first)]
    told = suite.run(suite.Suite((), ()), tmp_path / "out", brought=brought)
    name = f"imported: {os.uname().nodename}"
    assert list(told["devices"]) == [name, f"{name} (2)"]
    assert [one["device"] for one in told["measurements"]] == [name] * 4 + [f"{name} (2)"] * 4
    assert {one["device"] for one in told["skipped"]} == set(told["devices"])
    assert len({one["samples"] for one in told["measurements"]}) == 8
    assert json.loads((tmp_path / "out" / "bench.json").read_text())["devices"] == told["devices"]


def resealed(file: Path, change) -> str:
    """Return a record after change(record), with a hash that fits."""
    record = json.loads(file.read_text())
    record.pop("sha256")
    change(record)
    return kit_main.sealed(record)


def told(record) -> dict:
    return record["cells"][0]["told"]["timed"][0]


EDITS = {
    "faster": lambda r: told(r)["blocks"][0]["nanoseconds"].__setitem__(0, -5),
    "words": lambda r: told(r)["blocks"][0].update(wall="long"),
    "fractions": lambda r: told(r)["blocks"][0]["nanoseconds"].__setitem__(0, 1.5),
    "yes": lambda r: told(r)["blocks"][0]["nanoseconds"].__setitem__(0, True),
    "huge": lambda r: told(r)["blocks"][0]["nanoseconds"].__setitem__(0, 10**400),
    "no blocks": lambda r: told(r).update(blocks=[]),
    "another thing": lambda r: told(r).update(label="else"),
    "no load": lambda r: told(r).pop("load_s"),
    "negative load": lambda r: told(r).update(load_s=-1.0),
    "no such cell": lambda r: r["cells"][0].update(place=7),
    "from the end": lambda r: r["cells"][0].update(place=-1),
    "no hash": lambda r: r["plan"]["things"][0].update(digest="../../etc"),
    "escape": lambda r: r.update(name="\x1b[2J"),
    "settings": lambda r: r["plan"]["settings"].update(min_count=-3),
    "no plan": lambda r: r.update(plan=[]),
    "cells": lambda r: r.update(cells={"a": 1}),
}


@pytest.mark.parametrize("edit", EDITS)
def test_nonsense_is_refused(carried, tmp_path, edit):
    """A record whose hash fits and whose content cannot be is refused with one line."""
    file = tmp_path / "made.json"
    file.write_text(resealed(carried[1], EDITS[edit]))
    with pytest.raises(BadInput, match="not what a kit writes") as caught:
        kits.read(file)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_damaged_edited_foreign_records(carried, tmp_path):
    """One message each for a file that was edited, cut off, is of another program or of another format."""
    text = carried[1].read_text()
    record = json.loads(text)
    number = str(told(record)["blocks"][0]["nanoseconds"][0])
    file = tmp_path / "made.json"
    for content, said in [
        (text.replace(number, number[:-1] + ("1" if number[-1] != "1" else "2"), 1), "damaged or edited"),
        (text[: len(text) // 2], "cut off"),
        ('{"checked": true}', "not what a kit writes"),
        ("[1, 2]", "not what a kit writes"),
        ("\x00\x01", "cut off"),
        ("[" * 100_000, "cut off"),
        (text.replace('"load_s": ', '"load_s": NaN, "x": ', 1), "NaN is no number"),
        (json.dumps({**record, "schema": 2}), "whose format is another"),
    ]:
        file.write_text(content)
        with pytest.raises(BadInput, match=said):
            kits.read(file)
    with pytest.raises(BadInput, match="cannot be read"):
        kits.read(tmp_path / "nowhere.json")


def test_labels_are_no_paths(carried, tmp_path):
    """A label that looks like a path leads nowhere: samples stay in their folder."""

    def change(record):
        for one in (record["plan"]["things"][0], told(record), record["cells"][1]["told"]["timed"][0]):
            one["label"] = "../../escaped"

    file = tmp_path / "made.json"
    file.write_text(resealed(carried[1], change))
    folder = tmp_path / "a" / "b" / "samples"
    for made in kits.read(file).cells.values():
        measurements, _ = made(folder, "imported: there")
        assert all((folder / one["samples"]).parent == folder and (folder / one["samples"]).is_file() for one in measurements)
    assert not list(tmp_path.rglob("escaped*"))


def test_damaged_kit(carried, tmp_path):
    """A kit whose model was changed on the way times nothing."""
    data = bytearray(carried[0].read_bytes())
    with zipfile.ZipFile(carried[0]) as archive:
        info = next(one for one in archive.infolist() if one.filename.endswith("small.onnx"))
        content = archive.read(info)
    at = bytes(data).index(content)
    data[at + len(content) // 2] ^= 1
    kit = tmp_path / "damaged.pyz"
    kit.write_bytes(data)
    code, _, errors = finished(start(kit, tmp_path))
    assert code == 2
    assert "damaged" in errors
    assert "copy it again" in errors
    assert not list(tmp_path.glob("*.json"))
    assert not list((tmp_path / "tmp").iterdir())


def test_without_numpy(carried, tmp_path):
    """Where numpy is missing, the command that brings it to that very Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    python = str(tmp_path / "bare" / "bin" / "python")
    code, _, errors = finished(start(carried[0], tmp_path, python=python))
    assert code == 4
    assert f"{python} -m pip install numpy" in errors


def test_interrupted(carried, tmp_path):
    """Ctrl-C while the first things are timed: nothing is written, nothing stays."""
    known = carried[2][:2]
    kits.write(known, replace_seconds(300), tmp_path / "long.pyz")
    process = start(tmp_path / "long.pyz", tmp_path)
    for line in process.stderr:
        if "alternation" in line:
            break
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    code, _, errors = finished(process)
    assert code == 130
    assert "nothing is written" in errors
    assert not list(tmp_path.glob("*.json"))
    assert not list((tmp_path / "tmp").iterdir())


def test_one_that_fails_stops_no_other(carried, tmp_path):
    """A thing that the runtime there refuses is left out, with what it said; the other is timed without it."""
    known = carried[2][0]
    odd = onnx.load(str(known.thing.file))
    odd.graph.node[0].op_type, odd.graph.node[0].domain = "NoSuchOperator", "nowhere"
    (tmp_path / "odd.onnx").write_bytes(odd.SerializeToString())
    broken = replace(known, thing=replace(known.thing, label="odd", files={"model": tmp_path / "odd.onnx"}))
    kits.write([broken, known], QUICK.model_copy(update={"streams": ()}), tmp_path / "two.pyz")
    code, _, errors = finished(start(tmp_path / "two.pyz", tmp_path, "-o", "two.json"))
    assert code == 0
    assert "odd: the process that timed it failed" in errors
    brought = kits.read(tmp_path / "two.json")
    ((left_out),) = brought.skipped
    assert left_out["artifact"] == "odd"
    assert "NoSuchOperator" in left_out["reason"]
    ((made),) = brought.cells.values()
    measurements, comparisons = made(tmp_path / "samples", brought.address)
    assert [one["artifact"] for one in measurements] == ["small"]
    assert comparisons == []


def replace_seconds(seconds: float) -> Bench:
    return QUICK.model_copy(update={"min_seconds": seconds, "max_seconds": 2 * seconds})


def test_what_cannot_travel(carried, tmp_path):
    """Things for browsers, of unknown backends, and weights outside of a model's folder are refused before anything is written."""
    known = carried[2][0]
    out = tmp_path / "kit.pyz"
    for backend, said in (("web", "for a browser"), ("other", "does not travel")):
        with pytest.raises(BadInput, match=said):
            kits.write([replace(known, thing=replace(known.thing, backend=backend))], QUICK, out)
    with pytest.raises(BadInput, match="nothing to time"):
        kits.write([], QUICK, out)
    with pytest.raises(BadInput, match="there is no folder"):
        kits.write([known], QUICK, tmp_path / "nowhere" / "kit.pyz")
    model = onnx.load(str(carried[2][-2].thing.file), load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../outside.weights"
    (tmp_path / "bad.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BadInput, match=r"weights lie at \.\./outside.weights"):
        packing.travelling({"things": [{"files": {"model": str(tmp_path / "bad.onnx")}}]})
    assert not out.exists()


def test_paths_stand_for_contents(carried):
    """What lies under one path there is one content; weights beside a model lie beside it there too."""
    _, _, known = carried
    jobs = [{"things": [{"files": {"model": str(known[at].thing.file)}, "inputs": None, "target": "x"}]} for at in (0, 1)]
    (job, small), (_, wide) = (packing.travelling(job) for job in jobs)
    assert not set(small) & set(wide)
    assert sorted(Path(name).name for name in wide) == ["wide.onnx", "wide.weights"]
    assert len({str(Path(name).parent) for name in wide}) == 1
    assert job["things"][0]["files"]["model"] in small
    assert job["things"][0]["target"] is None


def test_an_artifacts_other_files_travel(tmp_path):
    """All that artifact.json lists goes along, what only check.py reads stays."""
    for name in ("model.onnx", "build_engine.py", "build_engine.json", "golden.npz", "check.py", "note.txt"):
        (tmp_path / name).write_bytes(onnx.ModelProto().SerializeToString() if name == "model.onnx" else b"{}")
    listed = [
        {"path": name} for name in ("model.onnx", "build_engine.py", "build_engine.json", "golden.npz", "check.py", "../x")
    ]
    (tmp_path / "artifact.json").write_text(json.dumps({"files": listed}))
    _, files = packing.travelling({"things": [{"files": {"model": str(tmp_path / "model.onnx")}}]})
    assert sorted(Path(name).name for name in files) == ["build_engine.json", "build_engine.py", "model.onnx"]


def test_the_kits_backend_computes_the_same(carried):
    """On the device a file gives the outputs that it gives here; the bound call too."""
    file = carried[2][0].thing.file
    inputs = {"x": np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)}
    there, here = kit_backends.backend_of("onnxruntime").load(file, None, 1), full.load(file, threads=1)
    assert there.providers == here.providers
    np.testing.assert_array_equal(there.run(inputs)["y"], here.run(inputs)["y"])
    np.testing.assert_array_equal(there.bind(inputs)()[0], here.run(inputs)["y"])
    weights = onnx.numpy_helper.to_array(onnx.load(str(file)).graph.initializer[0])
    np.testing.assert_allclose(there.run(inputs)["y"], inputs["x"] @ weights, rtol=1e-4, atol=1e-4)


def test_hash_of_a_record():
    """The seal is the SHA-256 of the record without it, its keys in order."""
    made = json.loads(kit_main.sealed({"b": 1, "a": [2.5]}))
    assert made["sha256"] == hashlib.sha256(b'{"a": [2.5], "b": 1}').hexdigest()
