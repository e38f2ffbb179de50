"""Suites: every thing on every device in every scenario, resumed where it was stopped; what fails stops nothing else."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekd import devices
from edgekd.bench import kept, stage, suite, suite_file, timing
from edgekd.bench.process import WorkerDied
from edgekd.bench.things import Thing
from edgekd.errors import BadInput, Missing
from edgekd.recipe import Bench

QUICK = {"min_seconds": 0.02, "min_count": 5, "interval": None, "launches": 1, "threads": 1, "roofline": False}


def model(file: Path, batch: int | str = "batch") -> Path:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    return file


class Fake:
    """A device whose clock is a table: label -> seconds of each of 12 calls; an exception is raised instead."""

    title = "a device of this test"

    def __init__(self, address: str, table: dict[str, Any], log: list[str], refuses: dict[str, str] | None = None) -> None:
        self.address, self.table, self.log, self.refused = address, table, log, refuses or {}
        self.host: dict[str, Any] = {"cores": 4, "physical_cores": 4, "cpu": "none", "vnni": None}
        self.asked: list[int] = []
        self.speed: dict[str, Any] | None = None

    def __enter__(self) -> "Fake":
        if isinstance(self.table, Exception):
            raise self.table
        return self

    def __exit__(self, *rest: object) -> None:
        self.log.append(f"{self.address} left")

    def describe(self) -> dict[str, Any]:
        return dict(self.host)

    def takes(self, thing: Thing) -> str | None:
        return self.refused.get(thing.label)

    def scenarios(self) -> frozenset[str]:
        return frozenset({"single-stream", "sustained"})

    def rates(self, threads: int) -> dict[str, Any] | None:
        self.asked.append(threads)
        return self.speed

    def run(self, job: dict[str, Any], tell: Any) -> dict[str, Any]:
        self.log.append(f"{self.address} {job['scenario']} {job['batch']} {' '.join(one['label'] for one in job['things'])}")
        tell(0.5, "half")
        timed = []
        for thing in job["things"]:
            seconds = self.table[thing["label"]]
            if isinstance(seconds, Exception):
                raise seconds
            nanoseconds = int(seconds * 1e9)
            blocks = [
                {
                    "nanoseconds": [nanoseconds] * 10,
                    "wall": 10 * nanoseconds,
                    "at": k * 10**9,
                    "marks": {},
                    "joules": None,
                    "launch": 0,
                }
                for k in range(12)
            ]
            timed.append(
                {
                    "label": thing["label"], "load_s": 0.1, "first_call_s": 0.2, "warm_up": {"count": 3, "seconds": 0.1}, "calls": 10,
                    "settle": 0, "stopped_by": "minutes" if job["scenario"] == "sustained" else "interval", "providers": {"CPU": 1}, "runtime": {"none": "1"},
                    "peak_memory_bytes": 5, "peak_memory_above_runtime_bytes": 1, "blocks": blocks,
                }
            )  # fmt: skip
        return {
            "timed": timed,
            "around": {"cpu": "none", "vnni": None, "notes": []},
            "energy": {"source": None, "idle_watts": None, "why": "not available here"},
            "watched": [],
        }


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch):
    """Return make(address, table, refuses): a device of that address from here on; and the log of what they did."""
    known: dict[str, Fake] = {}
    log: list[str] = []

    def make(address: str, table: Any, refuses: dict[str, str] | None = None) -> Fake:
        known[address] = Fake(address, table, log, refuses)
        return known[address]

    def find(address: str) -> Fake:
        return known[address]

    monkeypatch.setattr(devices, "open_device", find)
    monkeypatch.setattr(suite, "open_device", find)
    monkeypatch.setattr(stage, "open_device", find)
    return make, log


@pytest.fixture
def things(tmp_path: Path) -> tuple[Thing, ...]:
    return tuple(Thing(name, "onnxruntime", {"model": model(tmp_path / f"{name}.onnx")}) for name in ("a", "b"))


def test_every_thing_on_every_device_in_every_scenario(fakes: Any, things: tuple[Thing, ...], tmp_path: Path):
    make, log = fakes
    make("one", {"a": 2e-3, "b": 1e-3})
    make("two", {"a": 4e-3, "b": 8e-3})
    asked = suite.Suite(
        things, ("one", "two"), (Bench(**QUICK, batch_sizes=(1, 4)), Bench(**QUICK, latency=False, sustained_minutes=1))
    )
    told = suite.run(asked, tmp_path / "out")
    assert log == [
        "one single-stream 1 a b", "one single-stream 4 a b", "one sustained 1 a b", "one left",
        "two single-stream 1 a b", "two single-stream 4 a b", "two sustained 1 a b", "two left",
    ]  # fmt: skip
    found = {(m["device"], m["artifact"], m["batch"], m["scenario"]): m for m in told["measurements"]}
    assert found["one", "b", 4, "single-stream"]["throughput_per_s"] == pytest.approx(4 / 1e-3)
    assert found["two", "a", 1, "sustained"]["sustained"]["first_per_s"] == pytest.approx(250)
    assert found["two", "a", 1, "single-stream"]["warm"]["median_s"] == pytest.approx(4e-3)
    said = {(c["device"], c["batch"]): c["verdict"] for c in told["comparisons"]}
    assert said["one", 1].startswith("b is 2.00x faster than a")
    assert said["two", 4].startswith("b is 2.00x SLOWER than a")
    assert json.loads((tmp_path / "out" / "bench.json").read_text()) == told
    assert (tmp_path / "out" / "report.html").is_file()
    samples = np.load(tmp_path / "out" / found["two", "b", 4, "single-stream"]["samples"])
    assert samples.shape == (12, 10)
    assert (samples == 8e-3).all()


def test_a_resumed_suite_measures_only_what_is_left(fakes: Any, things: tuple[Thing, ...], tmp_path: Path):
    make, log = fakes
    make("one", {"a": 1e-3, "b": 1e-3})
    make("two", Missing("two: the connection was lost"))
    asked = suite.Suite(things, ("one", "two"), (Bench(**QUICK),))
    with pytest.raises(Missing, match=r"two: the connection was lost\nWhat was measured is in .*goes on with what is left"):
        suite.run(asked, tmp_path / "out", resume=True)
    kept = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert [m["device"] for m in kept["measurements"]] == ["one", "one"]
    assert kept["skipped"][0]["reason"] == "two: the connection was lost"
    make("two", {"a": 1e-3, "b": 1e-3})
    log.clear()
    told = suite.run(asked, tmp_path / "out", resume=True)
    assert log == ["one left", "two single-stream 1 a b", "two left"]
    assert [m["device"] for m in told["measurements"]] == ["one", "one", "two", "two"]
    assert told["skipped"] == []
    log.clear()
    changed = suite.Suite(things, ("one", "two"), (Bench(**{**QUICK, "min_count": 6}),))
    suite.run(changed, tmp_path / "out", resume=True)
    assert "one single-stream 1 a b" in log, "other settings: measured again"
    log.clear()
    model(tmp_path / "a.onnx", batch=1)
    suite.run(changed, tmp_path / "out", resume=True)
    assert "one single-stream 1 a b" in log, "another file: measured again"
    log.clear()
    suite.run(changed, tmp_path / "out")
    assert "one single-stream 1 a b" in log, "not resumed: measured again"


@pytest.mark.parametrize("compare", [True, False])
def test_a_thing_that_fails_or_is_refused_stops_no_other(fakes: Any, things: tuple[Thing, ...], tmp_path: Path, compare: bool):
    make, _ = fakes
    make("one", {"a": 1e-3, "b": WorkerDied("b: the process that timed it ended (signal 6)", "b")})
    make("two", {"a": 1e-3, "b": 1e-3}, {"b": "it is for a browser"})
    with pytest.raises(WorkerDied, match="b: the process that timed it ended"):
        suite.run(suite.Suite(things, ("one", "two"), (Bench(**QUICK),), compare), tmp_path / "out")
    told = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert [(m["device"], m["artifact"]) for m in told["measurements"]] == [("one", "a"), ("two", "a")]
    assert {(s["device"], s["artifact"]): s["reason"].partition(" ended")[0] for s in told["skipped"]} == {
        ("one", "b"): "the process that timed it",
        ("two", "b"): "it is for a browser",
    }
    make("two", {}, {"a": "no", "b": "no"})
    with pytest.raises(Missing, match="nothing could be timed:\na on two: no\nb on two: no"):
        suite.run(suite.Suite(things, ("two",), (Bench(**QUICK),)), tmp_path / "none")


def test_what_a_device_cannot_do_is_said(fakes: Any, things: tuple[Thing, ...], tmp_path: Path):
    make, _ = fakes
    make("one", {"a": 1e-3, "b": 1e-3})
    told = suite.run(suite.Suite(things, ("one",), (Bench(**QUICK, streams=(2,)),)), tmp_path / "out")
    assert len(told["measurements"]) == 2
    assert {s["reason"] for s in told["skipped"]} == {"one cannot run the scenario `streams`"}


def test_a_sustained_run_needs_the_calls_of_its_thing(fakes: Any, things: tuple[Thing, ...], tmp_path: Path):
    make, log = fakes
    make("one", {"a": 1e-3, "both": 1e-3})
    both = Thing("both", "onnxruntime", {"first": things[0].file, "second": things[1].file})
    told = suite.run(suite.Suite((things[0], both), ("one",), (Bench(**QUICK, sustained_minutes=1),)), tmp_path / "out")
    assert log == ["one single-stream 1 a", "one sustained 1 a", "one left"]
    assert [(s["artifact"], s["scenario"], s["reason"]) for s in told["skipped"]] == [
        ("both", "chain", "one cannot run the scenario `chain`")
    ] * 2


def test_what_a_device_cannot_do_is_told_before_anything_is_timed(fakes: Any, things: tuple[Thing, ...], tmp_path: Path):
    make, log = fakes
    device = make("one", {"a": 1e-3, "b": 1e-3}, {"b": "it is for a browser"})
    with pytest.raises(
        BadInput, match=r"^b on one: it is for a browser; a: one cannot run the scenario `streams`; b: one cannot"
    ):
        timing.measure(things, Bench(**QUICK, streams=(2,)), tmp_path / "out", device=device)
    with pytest.raises(BadInput, match=r"bench\.threads: 17 threads on 4 usable cores"):
        timing.measure(things[:1], Bench(**{**QUICK, "threads": 17}), tmp_path / "out", device=device)
    assert log == ["one left", "one left"]


def graphs(*names: str, inputs: tuple[str, ...] = ("image",), outputs: tuple[str, ...] = ("logits",)) -> dict[str, Any]:
    """Interfaces of graphs that all have these inputs and outputs."""
    sides = {"inputs": inputs, "outputs": outputs}
    told = {side: [{"name": name, "dtype": "float32", "shape": []} for name in found] for side, found in sides.items()}
    return dict.fromkeys(names, told)


def test_before_training_a_device_is_asked_what_it_can_do(fakes: Any):
    make, log = fakes
    make("one", {}, {"mine": "tensorrt is not installed there"})
    make("two", {})
    make("three", Missing("three: it cannot be reached"))

    def plan(**settings: Any) -> Any:
        targets = [SimpleNamespace(name=name, backend="onnxruntime", file="") for name in ("mine", "other", "here")]
        return SimpleNamespace(recipe=SimpleNamespace(bench=Bench(**settings)), targets=targets)

    stage.check(plan(devices={"mine": "two", "other": "one"}), graphs("model"))
    assert log == ["two left", "one left"]
    with pytest.raises(BadInput) as raised:
        stage.check(plan(devices={"mine": "one", "other": "two"}, streams=[2], threads=17), graphs("model"))
    assert str(raised.value).splitlines() == [
        "bench.devices: one: bench.threads: 17 threads on 4 usable cores; give at most 16, or leave it out for one a core",
        "bench.devices: mine on one: tensorrt is not installed there",
        "bench.devices: mine: one cannot run the scenario `streams`",
        "bench.devices: two: bench.threads: 17 threads on 4 usable cores; give at most 16, or leave it out for one a core",
        "bench.devices: other: two cannot run the scenario `streams`",
    ]
    with pytest.raises(BadInput, match=r"^bench.devices: other: two cannot run the scenario `chain`$"):
        stage.check(plan(devices={"other": "two"}, sustained_minutes=1), graphs("encoder", "decoder"))
    writer = graphs("decoder", inputs=("input_ids", "past_key_values.0.key"), outputs=("logits", "present.0.key"))
    with pytest.raises(BadInput, match=r"^bench.devices: other: two cannot run the scenario `generation`$"):
        stage.check(plan(devices={"other": "two"}), writer)
    with pytest.raises(Missing, match="three: it cannot be reached"):
        stage.check(plan(devices={"other": "three"}), graphs("model"))


def files(folder: Path) -> set[str]:
    return {file.name for file in folder.rglob("*") if file.suffix in (".npy", ".npz", ".json")} - {"bench.json"}


def test_what_was_measured_on_a_device_that_is_away_stays(fakes: Any, things: tuple[Thing, ...], tmp_path: Path):
    make, log = fakes
    out, quick = tmp_path / "out", Bench(**QUICK)
    asked = suite.Suite(things, ("one", "two"), (quick,))
    for address in ("one", "two"):
        make(address, {"a": 1e-3, "b": 2e-3})
    before, there = suite.run(asked, out, resume=True), files(out)
    make("two", Missing("two: it cannot be reached"))
    log.clear()
    with pytest.raises(Missing, match=r"^two: it cannot be reached\nWhat was measured is in"):
        suite.run(asked, out, resume=True)
    told = json.loads((out / "bench.json").read_text())
    assert log == ["one left"]
    for name in ("measurements", "comparisons", "devices"):
        assert told[name] == before[name]
    assert [(s["device"], s["reason"]) for s in told["skipped"]] == [("two", "two: it cannot be reached")]
    assert files(out) == there
    three = Thing("c", "onnxruntime", {"model": model(tmp_path / "c.onnx")})
    make("one", {"a": 1e-3, "b": 2e-3, "c": 3e-3})
    with pytest.raises(Missing):
        suite.run(replace(asked, things=(*things, three)), out, resume=True)
    assert files(out) >= {m[kind] for m in before["measurements"] if m["device"] == "two" for kind in ("samples", "times")}
    make("two", {"a": 1e-3, "b": 2e-3})
    log.clear()
    assert suite.run(asked, out, resume=True)["measurements"][2:] == before["measurements"][2:], "another plan dropped nothing"
    assert "two single-stream 1 a b" not in log


def test_a_device_lost_midway_keeps_what_comes_later(fakes: Any, things: tuple[Thing, ...], tmp_path: Path):
    make, _ = fakes
    out, first, second = tmp_path / "out", Bench(**QUICK), Bench(**{**QUICK, "min_count": 6})
    make("one", {"a": 1e-3, "b": 2e-3})
    before = suite.run(suite.Suite(things, ("one",), (second,)), out, resume=True)
    make("one", {"a": Missing("one: the connection was lost")})
    with pytest.raises(Missing, match="connection was lost"):
        suite.run(suite.Suite(things, ("one",), (first, second)), out, resume=True)
    told = json.loads((out / "bench.json").read_text())
    assert told["measurements"] == before["measurements"]
    changed = make("one", {"a": Missing("one: the connection was lost")})
    changed.host["packages"] = {"onnxruntime": "2.0"}
    there = files(out)
    with pytest.raises(Missing, match=r"^one: the connection was lost$"):  # nothing of the device as it is now
        suite.run(suite.Suite(things, ("one",), (first, second)), out, resume=True)
    make("two", {"a": 1e-3, "b": 2e-3})
    with pytest.raises(Missing):
        suite.run(suite.Suite(things, ("one", "two"), (first, second)), out, resume=True)
    told = json.loads((out / "bench.json").read_text())
    assert {m["device"] for m in told["measurements"]} == {"two"}
    assert files(out) > there, "nor is anything removed before it is measured again"


def test_of_what_failed_only_that_is_tried_again(fakes: Any, things: tuple[Thing, ...], tmp_path: Path):
    make, log = fakes
    asked = suite.Suite(things, ("one",), (Bench(**QUICK),))
    make("one", {"a": 1e-3, "b": WorkerDied("b: ended", "b")})
    for _ in range(2):
        with pytest.raises(WorkerDied):
            suite.run(asked, tmp_path / "out", resume=True)
    told = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert log == ["one single-stream 1 a b", "one single-stream 1 a", "one left", "one single-stream 1 a b", "one left"]
    assert [m["artifact"] for m in told["measurements"]] == ["a"]
    make("one", Missing("one: away"))
    with pytest.raises(Missing, match="What was measured is in"):
        suite.run(asked, tmp_path / "out", resume=True)
    assert [m["artifact"] for m in json.loads((tmp_path / "out" / "bench.json").read_text())["measurements"]] == ["a"]
    make("one", {"a": 1e-3, "b": 1e-3})
    told = suite.run(asked, tmp_path / "out", resume=True)
    assert [m["artifact"] for m in told["measurements"]] == ["a", "b"]
    assert len(list((tmp_path / "out" / "cells").glob("*.json"))) == 1
    assert len(list((tmp_path / "out").glob("*.np[yz]"))) == 4


def test_a_failure_is_told_also_when_the_device_is_lost_later(fakes: Any, things: tuple[Thing, ...], tmp_path: Path):
    make, _ = fakes
    make("one", {"a": WorkerDied("a: ended", "a"), "b": Missing("one: the connection was lost")})
    with pytest.raises(WorkerDied, match=r"^a: ended\none: the connection was lost$"):
        suite.run(suite.Suite(things, ("one",), (Bench(**QUICK),)), tmp_path / "out")


def test_too_many_threads_for_one_device_stop_no_other(fakes: Any, things: tuple[Thing, ...], tmp_path: Path):
    make, _ = fakes
    make("one", {"a": 1e-3, "b": 1e-3}).host["cores"] = 1
    make("two", {"a": 1e-3, "b": 1e-3})
    make("busy", BadInput("device browser://:80: another program has that port"))
    settings = (Bench(**{**QUICK, "threads": 8}), Bench(**QUICK))
    with pytest.raises(BadInput, match=r"another program has that port\nbench\.threads: 8 threads on 1 usable cores"):
        suite.run(suite.Suite(things, ("busy", "one", "two"), settings), tmp_path / "out")
    told = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert [(m["device"], m["threads"]) for m in told["measurements"][::2]] == [("one", 1), ("two", 8), ("two", 1)]
    assert [s["device"] for s in told["skipped"]] == ["busy", "one"]


CHANGES = {
    "another processor": lambda device, things, patch: device.host.update(cpu="else"),
    "fewer cores": lambda device, things, patch: device.host.update(cores=2),
    "other threads": lambda device, things, patch: device.host.update(physical_cores=2),
    "another runtime": lambda device, things, patch: device.host.update(packages={"onnxruntime": "2.0"}),
    "another runtime there": lambda device, things, patch: setattr(device, "runtimes", lambda: {"onnxruntime": "2.0"}),
    "other inputs": lambda device, things, patch: things[0].inputs["model"].update(x=np.ones((2, 4), np.float32)),
    "another edgekd": lambda device, things, patch: patch.setattr(kept, "code_fingerprint", lambda modules: "another"),
    "times lost": lambda device, things, patch: next((Path(things[0].file).parent / "out").glob("a-*-times-*.npz")).unlink(),
    "samples lost": lambda device, things, patch: next(
        (Path(things[0].file).parent / "out").glob("b-batch1-????????.npy")
    ).unlink(),
    "nothing": lambda device, things, patch: device.host.update(load=7),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_measurement_depends_on_is_measured_again(
    fakes: Any, things: tuple[Thing, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
):
    make, log = fakes
    device = make("one", {"a": 1e-3, "b": 1e-3})
    given = (replace(things[0], inputs={"model": {"x": np.zeros((2, 4), np.float32)}}), things[1])
    asked = suite.Suite(given, ("one",), (Bench(**QUICK),))
    suite.run(asked, tmp_path / "out", resume=True)
    log.clear()
    CHANGES[change](device, given, monkeypatch)
    suite.run(asked, tmp_path / "out", resume=True)
    assert log == (["one left"] if change == "nothing" else ["one single-stream 1 a b", "one left"])
    assert len(list((tmp_path / "out").glob("*.np[yz]"))) == 4, "what the earlier one measured is gone"


def test_rates_are_asked_once_and_kept(fakes: Any, things: tuple[Thing, ...], tmp_path: Path):
    make, _ = fakes
    asked = suite.Suite(things, ("one",), (Bench(**{**QUICK, "roofline": True}, batch_sizes=(1, 4)),))
    device = make("one", {"a": 1e-3, "b": 1e-3})
    device.speed = {"float32_flops": 1e9, "bandwidth": [[1024, 1e9], [1 << 20, 1e9]]}
    told = suite.run(asked, tmp_path / "out", resume=True)
    assert device.asked == [1]
    assert told["devices"]["one"]["rates"] == device.speed
    assert all(m["roofline"] for m in told["measurements"])
    again = make("one", {})
    assert suite.run(asked, tmp_path / "out", resume=True)["devices"] == told["devices"]
    assert again.asked == []


def test_samples_of_cells_that_are_dropped_go_too(fakes: Any, things: tuple[Thing, ...], tmp_path: Path):
    make, _ = fakes
    make("one", {"a": 1e-3, "b": 1e-3})
    out, settings = tmp_path / "out", Bench(**QUICK)
    suite.run(suite.Suite(things[:1], ("one",), (settings,)), out)
    (out / "bench.json").unlink()  # as if killed before it was written
    (out / "mine-batch1-12345678.npy").write_bytes(b"mine")
    (out / "cells" / "damaged.json").write_text("[")
    told = suite.run(suite.Suite(things[1:], ("one",), (settings,)), out)
    (one,) = told["measurements"]
    assert {file.name for file in out.glob("*.np[yz]")} == {one["samples"], one["times"], "mine-batch1-12345678.npy"}
    assert len(list((out / "cells").glob("*.json"))) == 1


def test_where_nothing_is_measured_the_earlier_results_stay(fakes: Any, things: tuple[Thing, ...], tmp_path: Path):
    make, _ = fakes
    make("one", {"a": 1e-3, "b": 1e-3})
    asked = suite.Suite(things, ("one",), (Bench(**QUICK),))
    told, there = suite.run(asked, tmp_path / "out"), files(tmp_path / "out")
    make("one", Missing("one: away"))
    with pytest.raises(Missing, match=r"^one: away$"):
        suite.run(asked, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "bench.json").read_text()) == told
    assert files(tmp_path / "out") == there


def test_inputs_lie_beside_the_samples_and_go(fakes: Any, things: tuple[Thing, ...], tmp_path: Path):
    make, _ = fakes
    device = make("one", {"a": 1e-3})
    thing = replace(things[0], inputs={"model": {"x": np.zeros((2, 4), np.float32)}})
    (tmp_path / "out" / timing.INPUTS).mkdir(parents=True)
    (tmp_path / "out" / timing.INPUTS / "of-one-that-was-killed.npz").write_bytes(b"")
    run, seen = device.run, []

    def look(job: dict[str, Any], tell: Any) -> dict[str, Any]:
        seen.append(sorted(str(file) for file in (tmp_path / "out").rglob("*.npz")))
        assert seen == [[job["things"][0]["inputs"]]]
        return run(job, tell)

    device.run = look
    timing.measure([thing], Bench(**QUICK), tmp_path / "out", device=device)
    assert len(seen) == 1
    assert {file.suffix for file in (tmp_path / "out").iterdir()} == {".npy", ".npz"}


def test_file_names_differ_where_capitals_do_not():
    labels = ["a/B", "A/b", "a b", "a__b-2", "", "c"]
    names = timing.file_names(labels)
    assert list(names) == labels
    assert len({name.casefold() for name in names.values()}) == len(labels)
    assert names["c"] == "c"


def test_a_graph_made_for_one_batch_is_timed_with_that(tmp_path: Path):
    known = timing.know([Thing(str(b), "onnxruntime", {"model": model(tmp_path / f"{b}.onnx", b)}) for b in ("batch", 1, 3)])
    found = [(c.batch, c.streams, [one.thing.label for one in c.known]) for c in timing.cells(known, Bench(batch_sizes=(1, 8)))]
    assert found == [(1, None, ["batch", "1"]), (8, None, ["batch"]), (3, None, ["3"])]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("things: [a.onnx]\ndevice: [local]", "device: Extra inputs are not permitted"),
        ("devices: [local]", "things: Field required"),
        ("things: [absent.onnx]", "absent.onnx: no such file or folder"),
        ("things: [a.onnx]\ndevices: [phone]", "device `phone`: no such kind of device"),
        ("things: [a.onnx]\nscenarios: [fast]", "scenario `fast`: it is `latency`, or a table"),
        ("things: [a.onnx]\nscenarios: [{stream: [2]}]", "stream: Extra inputs"),
        ("things: [a.onnx", "not YAML"),
        ("- a.onnx", "a suite has `things`"),
    ],
)
def test_a_wrong_suite_is_one_message(tmp_path: Path, text: str, said: str):
    model(tmp_path / "a.onnx")
    (tmp_path / "suite.yaml").write_text(text)
    with pytest.raises(BadInput) as raised:
        suite_file.read(tmp_path / "suite.yaml")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_suite_is_read_from_where_it_lies(tmp_path: Path):
    model(tmp_path / "a.onnx")
    (tmp_path / "suite.yaml").write_text(
        "things: [a.onnx]\nscenarios: [latency, {streams: [2]}, {sustained_minutes: 5}]\nbench: {min_seconds: 2}\n"
    )
    read = suite_file.read(tmp_path / "suite.yaml")
    assert read.things == (Thing("a", "onnxruntime", {"model": tmp_path / "a.onnx"}),)
    found = [(s.latency, s.streams, s.sustained_minutes, s.min_seconds) for s in read.settings]
    assert found == [(True, (), 0, 2), (False, (2,), 0, 2), (False, (), 5, 2)]
