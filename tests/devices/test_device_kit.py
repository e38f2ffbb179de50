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
from edgekd.bench import cost, kit_reading, kits, stage, suite, threads
from edgekd.bench.things import Thing, thing_from
from edgekd.bench.timing import Known, know
from edgekd.devices import kit_backends, kit_main, packing
from edgekd.errors import BadInput
from edgekd.recipe import Bench

QUICK = Bench(min_seconds=0.1, min_count=20, interval=0.9, max_seconds=5, launches=1, threads=1, streams=(2,), roofline=False)

BRIEF = ["bench.min_seconds=0.1", "bench.min_count=20", "bench.interval=null", "bench.launches=1", "bench.roofline=false"]


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


def test_each_number_of_threads_in_one_kit(tmp_path):
    """A thing that is timed with one and with two threads there has both numbers in the report here."""
    from devices.conftest import write_product

    kit = tmp_path / "clock.pyz"
    stage.write_kit([write_product(tmp_path / "small.onnx")], kit, BRIEF, threads=(1, 2))
    code, _, errors = finished(start(kit, tmp_path, "-o", "made.json"))
    assert code == 0, errors
    told = suite.run(suite.Suite((), ()), tmp_path / "out", brought=[kits.read(tmp_path / "made.json")])
    assert [(m["artifact"], m["threads"]) for m in told["measurements"]] == [("small (1 thread)", 1), ("small (2 threads)", 2)]


def resealed(file: Path, change) -> str:
    """Return a record after change(record), with a hash that fits."""
    record = json.loads(file.read_text())
    record.pop("sha256")
    change(record)
    return kit_main.sealed(record)


def told(record) -> dict:
    return record["cells"][0]["told"]["timed"][0]


def block(record) -> dict:
    return told(record)["blocks"][0]


def cell(record) -> dict:
    return record["plan"]["cells"][0]


def one_long(record) -> None:
    """Make many blocks of one call and one of many: filled up, they would be a hundred thousand times the file."""
    for number, one in enumerate(told(record)["blocks"]):
        one["nanoseconds"] = [5] * (1000 if not number else 1)


def sustained(record, blocks: int) -> None:
    cell(record)["scenario"] = "sustained"
    for one in record["cells"][0]["told"]["timed"]:
        one["stopped_by"] = "minutes"
        one["blocks"] = one["blocks"][:blocks]


def rated(**wrong) -> dict:
    """Return rates as rates.measure tells them, with what is wrong in them."""
    right = {
        "threads": 1,
        "float32_flops": 1e9,
        "runtime_float32_flops": None,
        "runtime_int8_ops": None,
        "last_level_bytes": None,
    }
    return {**right, "bandwidth": [[32768, 1e9]], "load_average": 0.0, **wrong}


TIMED = "cells[0].told.timed[0]"
EDITS = {
    "faster": (f"{TIMED}.blocks[0].nanoseconds[0]", lambda r: block(r)["nanoseconds"].__setitem__(0, -5)),
    "words": (f"{TIMED}.blocks[0].wall", lambda r: block(r).update(wall="long")),
    "fractions": (f"{TIMED}.blocks[0].nanoseconds[0]", lambda r: block(r)["nanoseconds"].__setitem__(0, 1.5)),
    "yes": (f"{TIMED}.blocks[0].nanoseconds[0]", lambda r: block(r)["nanoseconds"].__setitem__(0, True)),
    "huge": (f"{TIMED}.blocks[0].nanoseconds[0]", lambda r: block(r)["nanoseconds"].__setitem__(0, 10**400)),
    "ragged": (f"{TIMED}.blocks[1].nanoseconds", lambda r: told(r)["blocks"][1]["nanoseconds"].append(5)),
    "one long": (f"{TIMED}.blocks[1].nanoseconds", one_long),
    "no launch": (f"{TIMED}.blocks[0].launch", lambda r: block(r).pop("launch")),
    "launch": (f"{TIMED}.blocks[0].launch", lambda r: block(r).update(launch=False)),
    "calls": (f"{TIMED}.calls", lambda r: told(r).update(calls="many")),
    "settle": (f"{TIMED}.settle", lambda r: told(r).update(settle=-1)),
    "no stopped_by": (f"{TIMED}.stopped_by", lambda r: told(r).pop("stopped_by")),
    "stopped_by": (f"{TIMED}.stopped_by", lambda r: told(r).update(stopped_by="\x1b[2J")),
    "other stopped_by": (f"{TIMED}.stopped_by", lambda r: told(r).update(stopped_by="minutes")),
    "one sustained block": (f"{TIMED}.blocks", lambda r: sustained(r, 1)),
    "no finished": ("cells[1].told.timed[0].blocks[0].finished", lambda r: r["cells"][1]["told"]["timed"][0]["blocks"][0].pop("finished")),
    "back in time": (f"{TIMED}.blocks[1].at", lambda r: told(r)["blocks"][1].update(at=block(r)["at"] - 1)),
    "some joules": (f"{TIMED}.blocks[0].joules", lambda r: block(r).update(joules=-1.0)),
    "joules of one": (f"{TIMED}.blocks[1].joules", lambda r: told(r)["blocks"][1].update(joules=None if block(r)["joules"] is not None else 1.0)),
    "marks": (f"{TIMED}.blocks[0].marks", lambda r: block(r).update(marks=[1])),
    "marks of one": (f"{TIMED}.blocks[1].marks", lambda r: told(r)["blocks"][1].update(marks={"a": [1]})),
    "short marks": (f"{TIMED}.blocks[0].marks", lambda r: [one.update(marks={"a": [1]}) for one in told(r)["blocks"]]),
    "tokens": (f"{TIMED}.blocks[0].marks", lambda r: [one.update(marks={"tokens": [[1]] * len(one["nanoseconds"])}) for one in told(r)["blocks"]]),
    "no tokens": (f"{TIMED}.blocks[0].marks", lambda r: r["plan"]["things"][0].update(scenario="generation")),
    "no blocks": (f"{TIMED}.blocks", lambda r: told(r).update(blocks=[])),
    "another thing": ("cells[0].told.timed", lambda r: told(r).update(label="else")),
    "no load": (f"{TIMED}.load_s", lambda r: told(r).pop("load_s")),
    "negative load": (f"{TIMED}.load_s", lambda r: told(r).update(load_s=-1.0)),
    "providers": (f"{TIMED}.providers", lambda r: told(r).update(providers=["CPU"])),
    "energy": ("cells[0].told.energy", lambda r: r["cells"][0]["told"].update(energy=[])),
    "notes": ("cells[0].told.around.notes[0]", lambda r: r["cells"][0]["told"]["around"].update(notes=["\x1b]0;x\x07"])),
    "around": ("cells[0].told.around", lambda r: r["cells"][0]["told"]["around"].update(more={"a": ["\x00"]})),
    "watched": ("cells[0].told.watched[0]", lambda r: r["cells"][0]["told"].update(watched=[5])),
    "neither": ("cells[0]", lambda r: r["cells"][0].pop("told")),
    "error": ("cells[0].error", lambda r: (r["cells"][0].pop("told"), r["cells"][0].update(error=["no"]))),
    "reason": ("skipped[0].reason", lambda r: r["skipped"][0].update(reason=5)),
    "no such cell": ("cells[0].place", lambda r: r["cells"][0].update(place=7)),
    "from the end": ("cells[0].place", lambda r: r["cells"][0].update(place=-1)),
    "twice": ("cells", lambda r: r["cells"].append(r["cells"][0])),
    "no such thing": ("cells[0].things", lambda r: r["cells"][0].update(things=[0, 9])),
    "a path": ("plan.cells[0].batch", lambda r: cell(r).update(batch="/../../../evil")),
    "a large batch": ("plan.cells[0].batch", lambda r: cell(r).update(batch=10**30)),
    "a true batch": ("plan.cells[0].batch", lambda r: cell(r).update(batch=True)),
    "streams": ("plan.cells[0].streams", lambda r: cell(r).update(streams="/../x")),
    "one stream": ("plan.cells[0].streams", lambda r: cell(r).update(streams=1)),
    "scenario": ("plan.cells[0].scenario", lambda r: cell(r).update(scenario="\x1b[2J")),
    "scenario of a thing": ("plan.things[0].scenario", lambda r: r["plan"]["things"][0].update(scenario="else")),
    "costs": ("plan.cells[0].costs[0]", lambda r: cell(r).update(costs=["much", None, None])),
    "few costs": ("plan.cells[0].costs", lambda r: cell(r).update(costs=[None])),
    "no hash": ("plan.things[0].digest", lambda r: r["plan"]["things"][0].update(digest="../../etc")),
    "backend": ("plan.things[0].backend", lambda r: r["plan"]["things"][0].update(backend="os")),
    "one label": ("plan.things", lambda r: r["plan"]["things"][0].update(label="wide")),
    "facts": ("plan.things[0].facts.nodes", lambda r: r["plan"]["things"][0]["facts"].update(nodes="x")),
    "rates": ("rates", lambda r: r.update(rates=[1])),
    "no bandwidth": ("rates.bandwidth", lambda r: r.update(rates=rated(bandwidth=[]))),
    "no speed": ("rates.float32_flops", lambda r: r.update(rates=rated(float32_flops=0))),
    "words of rates": ("rates.float32_flops", lambda r: r.update(rates=rated(float32_flops="fast"))),
    "packages": ("host.packages", lambda r: r["host"].update(packages=["numpy"])),
    "flags": ("host.flags[0]", lambda r: r["host"].update(flags=["\x1b"])),
    "cores": ("host.cores", lambda r: r["host"].update(cores="two")),
    "more of the host": ("host.more", lambda r: r["host"].update(more="\x07")),
    "threads": ("threads", lambda r: r.update(threads=0)),
    "escape": ("name", lambda r: r.update(name="\x1b[2J")),
    "settings": ("plan.settings.min_count", lambda r: r["plan"]["settings"].update(min_count=-3)),
    "no plan": ("plan", lambda r: r.update(plan=[])),
    "cells": ("cells", lambda r: r.update(cells={"a": 1})),
    "an odd key": (f"{TIMED}.providers.?_2J", lambda r: told(r).update(providers={"\x1b_2J": 1})),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_nonsense_is_refused(carried, tmp_path, edit):
    """A record whose hash fits and whose content cannot be is refused with one line that names the file and the key."""
    key, change = EDITS[edit]
    file = tmp_path / "made.json"
    file.write_text(resealed(carried[1], change))
    with pytest.raises(BadInput, match="not what a kit writes") as caught:
        kits.read(file)
    assert str(caught.value).startswith(f"{file}: not what a kit writes ({key}")
    assert str(caught.value).isprintable()


def test_a_sustained_record(carried, tmp_path):
    """A sustained run of a few blocks is one: nothing else is wrong with what the edits above begin from."""
    file = tmp_path / "made.json"
    file.write_text(resealed(carried[1], lambda r: (sustained(r, 4), r.update(rates=rated()))))
    (measurements, comparisons), _ = [made(tmp_path, "imported: x") for made in kits.read(file).cells.values()]
    assert measurements[0]["sustained"]["first_per_s"] > 0
    assert comparisons == []


def test_numbers_that_make_no_sense_together(carried, tmp_path, monkeypatch):
    """Whatever goes wrong where measurements are made of a record, the file is named, also where a suite takes it in."""
    brought = kits.read(carried[1])

    def fails(*_, **__):
        raise ZeroDivisionError("float division by zero")

    monkeypatch.setattr(kit_reading, "outcome", fails)
    with pytest.raises(BadInput, match=r"not what a kit writes \(float division by zero") as caught:
        suite.run(suite.Suite((), ()), tmp_path / "out", brought=[brought])
    assert str(carried[1]) in str(caught.value)
    monkeypatch.setattr(kit_reading, "outcome", lambda *_, **__: ([{"warm": float("nan")}], []))
    with pytest.raises(BadInput, match="not what a kit writes"):
        next(iter(brought.cells.values()))(tmp_path, "imported: x")


def test_what_a_runtime_printed_is_shown_plain(carried, tmp_path):
    """Colours and control characters of a runtime's messages are taken out, and the rest is kept; a record is not refused for them."""

    def change(record):
        record["cells"][0].pop("told")
        record["cells"][0]["error"] = "small: failed\n  \x1b[1;31mno kernel\x1b[m\x07 \u202ehere"
        record["skipped"][0]["reason"] = "\x1b[2Jnot here"

    file = tmp_path / "made.json"
    file.write_text(resealed(carried[1], change))
    assert [one["reason"] for one in kits.read(file).skipped] == ["not here", *["small: failed\n  no kernel   here"] * 2]


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
        (json.dumps({**record, "schema": 1, "edgekd": "\x1b[2J"}), "whose format is another; make the kit anew"),
        (json.dumps({**record, "schema": 3}), "whose format is another"),
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
    known = carried[2][:1]
    kits.write(known, replace_seconds(300), tmp_path / "long.pyz")
    process = start(tmp_path / "long.pyz", tmp_path)
    for line in process.stderr:
        if "timing small" in line:
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


def test_started_by_a_relative_path(carried, tmp_path):
    """Typed in its own folder, as `python3 kit.pyz`: also where __file__ is as it was typed (before Python 3.9) it finds itself."""
    kits.write(carried[2][:1], QUICK.model_copy(update={"streams": ()}), tmp_path / "kit.pyz")
    code, _, errors = finished(start(Path("kit.pyz"), tmp_path, "-o", "typed.json"))
    assert code == 0, errors
    assert len(kits.read(tmp_path / "typed.json").cells) == 1
    program = "import os, runpy, sys; sys.argv[0] = 'kit.pyz'; sys.path.insert(0, 'kit.pyz'); source = sys.argv.pop(1)\n"
    program += "exec(compile(open(source).read(), 'x', 'exec'), {'__name__': '__main__', '__file__': 'kit.pyz/__main__.py', '__doc__': ''})"
    old = start(Path("-c"), tmp_path, program, kit_main.__file__, "-o", "old.json")  # as Python 3.8 does it
    code, _, errors = finished(old)
    assert code == 0, errors
    assert len(kits.read(tmp_path / "old.json").cells) == 1


def test_more_threads_than_the_device_bears(carried, tmp_path):
    """The limit of threads is the one that other devices have; a kit that asks for more says so and times nothing."""
    assert threads.threads_on({"cores": 4, "physical_cores": 2}, None) == 2
    assert threads.threads_on({"cores": 4, "physical_cores": None}, None) == 4
    assert threads.threads_on({"cores": 4}, 16) == 16
    with pytest.raises(BadInput, match="17 threads on 4 usable cores; give at most 16"):
        threads.threads_on({"cores": 4}, 17)
    kits.write(carried[2][:1], QUICK.model_copy(update={"threads": 1024}), tmp_path / "kit.pyz")
    code, _, errors = finished(start(tmp_path / "kit.pyz", tmp_path))
    assert code == 2
    assert "bench.threads: 1024 threads on" in errors
    assert "Traceback" not in errors


def test_what_is_counted_is_what_is_timed(carried, tmp_path, monkeypatch):
    """Costs are of the shapes that are timed, also where an input of the graph is empty, as a cache before its first token."""
    value, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [node("Concat", ["past", "x"], ["y"], axis=0)],
        "cache",
        [value("past", 1, [0, 4]), value("x", 1, ["batch", 4])],
        [value("y", 1, ["all", 4])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    face = [
        {"name": "past", "dtype": "float32", "shape": ["past", 4]},
        {"name": "x", "dtype": "float32", "shape": ["batch", 4]},
    ]
    (tmp_path / "cache.onnx").write_bytes(model.SerializeToString())
    (one,) = know([thing_from(tmp_path / "cache.onnx")])
    one = replace(one, interfaces={"model": {"inputs": [{**face[0], "shape": ["b", "past"]}, face[1]], "outputs": []}})
    seen: list[dict] = []
    monkeypatch.setattr(kits, "cost", lambda file, shapes: (seen.append(shapes), cost.Cost(1, 2, 0, 0, 0, 0, 0, ()))[1])
    settings = QUICK.model_copy(update={"roofline": True, "streams": (), "batch_sizes": (3,)})
    kits.write([one], settings, tmp_path / "kit.pyz")
    assert seen == [{"past": [3, 0], "x": [3, 4]}]


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
