"""Suites: every thing on every device in every scenario, resumed where it was stopped; what fails stops nothing else."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekd import devices
from edgekd.bench import suite, timing
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

    def __enter__(self) -> "Fake":
        if isinstance(self.table, Exception):
            raise self.table
        return self

    def __exit__(self, *rest: object) -> None:
        self.log.append(f"{self.address} left")

    def describe(self) -> dict[str, Any]:
        return {"cores": 4, "physical_cores": 4, "cpu": "none", "vnni": None}

    def takes(self, thing: Thing) -> str | None:
        return self.refused.get(thing.label)

    def scenarios(self) -> frozenset[str]:
        return frozenset({"single-stream", "sustained"})

    def rates(self, threads: int) -> None:
        return None

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

    def make(address: str, table: Any, refuses: dict[str, str] | None = None) -> None:
        known[address] = Fake(address, table, log, refuses)

    def find(address: str) -> Fake:
        return known[address]

    monkeypatch.setattr(devices, "open_device", find)
    monkeypatch.setattr(suite, "open_device", find)
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


def test_a_thing_that_fails_or_is_refused_stops_no_other(fakes: Any, things: tuple[Thing, ...], tmp_path: Path):
    make, _ = fakes
    make("one", {"a": 1e-3, "b": WorkerDied("b: the process that timed it ended (signal 6)")})
    make("two", {"a": 1e-3, "b": 1e-3}, {"b": "it is for a browser"})
    with pytest.raises(WorkerDied, match="b: the process that timed it ended"):
        suite.run(suite.Suite(things, ("one", "two"), (Bench(**QUICK),), compare=False), tmp_path / "out")
    told = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert [(m["device"], m["artifact"]) for m in told["measurements"]] == [("one", "a"), ("two", "a")]
    assert {(s["device"], s["artifact"]): s["reason"].partition(" ended")[0] for s in told["skipped"]} == {
        ("one", "b"): "b: the process that timed it",
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
        suite.read(tmp_path / "suite.yaml")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_suite_is_read_from_where_it_lies(tmp_path: Path):
    model(tmp_path / "a.onnx")
    (tmp_path / "suite.yaml").write_text(
        "things: [a.onnx]\nscenarios: [latency, {streams: [2]}, {sustained_minutes: 5}]\nbench: {min_seconds: 2}\n"
    )
    read = suite.read(tmp_path / "suite.yaml")
    assert read.things == (Thing("a", "onnxruntime", {"model": tmp_path / "a.onnx"}),)
    found = [(s.latency, s.streams, s.sustained_minutes, s.min_seconds) for s in read.settings]
    assert found == [(True, (), 0, 2), (False, (2,), 0, 2), (False, (), 5, 2)]
