"""Measuring real processes: what is recorded, in which order, and what happens when one dies or the user interrupts."""

import itertools
import json
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd import backends, bench
from edgekd.bench import compare, measured, process, schedule, stage
from edgekd.bench.things import GraphFacts, Thing, facts, fingerprint, golden_inputs
from edgekd.devices import open_device
from edgekd.errors import BadInput
from edgekd.recipe import Bench
from edgekd.targets import load_target

QUICK = Bench(min_seconds=0.1, min_count=20, interval=None, launches=1, max_seconds=5, threads=1, roofline=False)
BRIEF = [
    "bench.min_seconds=0.02",
    "bench.min_count=5",
    "bench.interval=null",
    "bench.launches=1",
    "bench.threads=1",
    "bench.roofline=false",
]

# a runtime whose speed the file's content decides: "milliseconds" per call, or what goes wrong
STUB = """
import os, sys, time
def load(file, target=None, threads=None, exact=False):
    with open(os.environ["STUB_LOG"] + ".loads", "a") as log: log.write(file.stem[0])
    word = file.read_text()
    print("the runtime says hello")
    class Session:
        providers = {"StubProvider": threads}
        def run(self, inputs):
            with open(os.environ["STUB_LOG"], "a") as log: log.write(file.stem[0])
            if word == "crash": os.write(2, b"native stack smashed\\n"); os.abort()
            if word == "raise": raise ValueError("bad node Conv_3")
            if word == "hang": time.sleep(600)
            time.sleep(float(word) / 1000)
            return inputs
    return Session()
"""


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return thing(name, word): something to time on the stub runtime."""
    (tmp_path / "stub_runtime.py").write_text(STUB)
    monkeypatch.setenv("STUB_LOG", str(tmp_path / "log"))
    (tmp_path / "log").write_text("")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from edgekd import backends; "
        "backends.BACKENDS['stub'] = 'stub_runtime'; from edgekd.bench import worker; sys.exit(worker.main())"
    )
    monkeypatch.setattr(process, "STARTED", (sys.executable, "-c", code))
    here = SimpleNamespace(PACKAGES=(), interface=lambda file: {"inputs": [], "outputs": []})
    known = backends.backend_of
    monkeypatch.setattr(backends, "backend_of", lambda name: here if name == "stub" else known(name))

    def thing(name: str, word: str, **more: object) -> Thing:
        (tmp_path / f"{name}.bin").write_text(word)
        inputs = {"model": {"image": np.zeros((2, 4), np.uint8)}}
        return Thing(name, "stub", {"model": tmp_path / f"{name}.bin"}, inputs, **more)  # type: ignore[arg-type]

    return thing


def identity(path: Path, nodes: int = 1, quantized: bool = False) -> Path:
    """Write a small ONNX model: uint8 pictures -> float -> products with a matrix."""
    made = [helper.make_node("Cast", ["image"], ["x0"], to=TensorProto.FLOAT)]
    weights = [numpy_helper.from_array(np.eye(12, dtype=np.float32), "w")]
    if quantized:
        weights += [numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(np.int8(0), "z")]
    for i in range(nodes):
        source = f"x{i}"
        if quantized and i == 0:
            made += [
                helper.make_node("QuantizeLinear", ["x0", "s", "z"], ["q"]),
                helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
            ]
            source = "d"
        made.append(helper.make_node("MatMul", [source, "w"], [f"x{i + 1}"]))
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 12])],
        [helper.make_tensor_value_info(f"x{nodes}", TensorProto.FLOAT, ["batch", 12])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_blocks_alternate_and_every_number_is_recorded(stub, tmp_path: Path):
    shares: list[float] = []
    measurements, comparisons = bench.measure(
        [stub("a", "3", control=True), stub("b", "1")], QUICK, tmp_path / "out", lambda share, what: shares.append(share)
    )
    a, b = measurements
    assert a["warm"]["median_s"] >= 3e-3
    assert 1e-3 <= b["warm"]["median_s"] < a["warm"]["median_s"]
    assert a["first_call_s"] >= 3e-3
    assert a["threads"] == 1
    assert a["providers"] == {"StubProvider": 1}
    assert a["stopped_by"] == "min_seconds and min_count"
    for one in measurements:
        samples = np.load(tmp_path / "out" / one["samples"])
        assert samples.shape == (one["blocks"]["count"], one["blocks"]["calls"])
        assert samples.size == one["warm"]["count"] >= QUICK.min_count
        assert samples.sum() >= 0.9 * QUICK.min_seconds  # it counts the time between the calls, too
        assert np.median(samples) == one["warm"]["median_s"]
        assert one["throughput_per_s"] == pytest.approx(samples.size / samples.sum())
        assert one["warm_up"]["count"] >= 4
        assert one["peak_memory_above_runtime_bytes"] <= one["peak_memory_bytes"]
        assert len(one["environment"]["artifact_sha256"]) == 64
    assert a["blocks"]["count"] == b["blocks"]["count"]
    (told,) = comparisons
    assert (told["control"], told["candidate"]) == ("a", "b")
    assert told["low"] < told["ratio"] < told["high"]
    assert told["ratio"] > 1
    assert told["verdict"].startswith("b is ")
    assert told["verdict"].split(" (")[0].endswith("x faster than a")
    # first a is loaded and warmed up, then b; then the timed blocks: A B, A B, ...
    log = (tmp_path / "log").read_text()
    blocks = [(name, len(list(calls))) for name, calls in itertools.groupby(log)][2:]
    size = {one["artifact"]: one["blocks"]["calls"] + one["blocks"]["settle"] for one in measurements}
    assert blocks == [("ab"[i % 2], size["ab"[i % 2]]) for i in range(len(blocks))], "no block follows one of its own thing"
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    json.dumps([measurements, comparisons], allow_nan=False)


def test_everything_is_started_afresh_and_the_starts_are_kept_apart(stub, tmp_path: Path):
    settings = QUICK.model_copy(update={"launches": 3, "max_seconds": 60.0})
    (a, b), (told,) = bench.measure([stub("a", "2", control=True), stub("b", "2")], settings, tmp_path / "out")
    log = (tmp_path / "log").read_text()
    assert (tmp_path / "log.loads").read_text() == "abbaab", "what is loaded first differs from launch to launch"
    # a start: first call and warm-up of a, then of b; then blocks in alternation; in the second launch b is first in all
    first = [name for name, calls in itertools.groupby(log) if len(list(calls)) >= 4]
    assert len(a["blocks"]["launches"]) == 3
    assert a["blocks"]["launches"] == b["blocks"]["launches"]
    assert all(rows >= 6 for rows in a["blocks"]["launches"])
    assert sum(a["blocks"]["launches"]) == a["blocks"]["count"] == told["pairs"]
    assert a["stopped_by"] == "min_seconds and min_count"
    assert first[:2] == ["a", "b"]
    samples, told = (np.load(tmp_path / "out" / a[kind]) for kind in ("samples", "times"))
    times = told["begin_s"]
    assert [list(told["launch"]).count(number) for number in range(3)] == a["blocks"]["launches"]
    assert (told["wall_s"] >= samples.sum(axis=1) * 0.999).all()
    assert samples.shape == (a["blocks"]["count"], a["blocks"]["calls"])
    gaps = np.diff(times)
    edge = a["blocks"]["launches"][0] - 1
    assert gaps[edge] > 3 * np.median(gaps), "between two launches lie a start, a load and a warm-up"
    # the second launch begins with b's warm-up, right after its last block; so does the third with a's
    assert len(list(itertools.groupby(log))) == 3 * 2 + 2 * sum(a["blocks"]["launches"]) - 2


def test_what_starts_slowly_is_started_once(stub, tmp_path: Path):
    settings = QUICK.model_copy(update={"launches": 5, "min_seconds": 0.05, "max_seconds": 0.7})
    (one,), _ = bench.measure([stub("a", "2")], settings, tmp_path / "out")
    assert len(one["blocks"]["launches"]) == 1, "five starts of 0.15 s or more do not fit into 0.7 s"


class Table:
    """A worker whose clock is a table: start, load and calls take what it says, on a clock of its own."""

    now = 0.0

    def __init__(self, start: float, call: float) -> None:
        self.start, self.call, self.asked = start, call, {}

    def __enter__(self) -> "Table":
        return self

    def __exit__(self, *rest: object) -> None:
        pass

    def send(self, **command: object) -> None:
        self.asked = command

    def receive(self, expected: float = 0.0) -> dict:
        return self.answer(**self.asked)

    def ask(self, expected: float = 0.0, **command: object) -> dict:
        return self.answer(**command)

    def answer(self, do: str, count: int = 1, settle: int = 0, seconds: float = 0.0, **rest: object) -> dict:
        if do == "start":
            Table.now += self.start
            return {"runtime": {}, "bytes": 1}
        if do == "warm-up":
            calls = max(1, int(seconds / self.call))
            Table.now += calls * self.call
            return {"nanoseconds": [int(self.call * 1e9)] * calls}
        if do == "time":
            at = Table.now
            Table.now += (settle + count) * self.call
            nanoseconds = [int(self.call * 1e9)] * count
            return {"nanoseconds": nanoseconds, "wall": sum(nanoseconds), "at": int(at * 1e9), "marks": {}}
        return {"seconds": 0.0, "providers": {}, "bytes": 2}


@pytest.mark.parametrize(
    ("start", "call", "launches", "calls"),
    [(0.3, 1e-3, 5, 40), (0.3, 1.0, 1, 25), (1.0, 1.0, 1, 25), (0.2, 0.8, 1, 30), (8.0, 1e-3, 1, 1000)],
)
def test_the_time_that_may_be_spent_is_spent_on_calls(
    monkeypatch: pytest.MonkeyPatch, start: float, call: float, launches: int, calls: int
):
    """30 seconds at most: many launches where they fit, else one with as many calls as fit."""
    Table.now = 0.0
    monkeypatch.setattr(schedule.time, "perf_counter", lambda: Table.now)
    job = {
        "things": [{"label": "a", "backend": "none", "files": {}}], "scenario": "single-stream", "batch": 1, "threads": 1,
        "min_seconds": 1.0, "min_count": 40, "max_seconds": 30.0, "interval": None, "launches": 5,
    }  # fmt: skip
    (one,) = schedule.run(job, lambda label: Table(start, call))["timed"]
    assert len({block["launch"] for block in one["blocks"]}) == launches
    assert sum(len(block["nanoseconds"]) for block in one["blocks"]) >= calls
    assert Table.now <= 30 + 2 * call + start


def test_each_launch_of_a_meter_counts_all_calls_that_it_saw():
    """0.5 J a call, 2 calls counted and 1 to settle in each block of 0.3 s; 5 W."""
    block = {"nanoseconds": [1, 1], "joules": 1.5, "metered_s": 0.3}
    told = measured._energy({"blocks": [block, block], "calls": 2, "settle": 1}, {"source": "test"})
    assert told["joules_per_call"] == pytest.approx(0.5)
    assert told["watts"] == pytest.approx(5.0)


def test_each_batch_size_gets_its_own_measurement(stub, tmp_path: Path):
    settings = QUICK.model_copy(update={"batch_sizes": (1, 5)})
    measurements, comparisons = bench.measure([stub("a", "1")], settings, tmp_path / "out")
    assert [m["batch"] for m in measurements] == [1, 5]
    assert measurements[1]["throughput_per_s"] * np.load(tmp_path / "out" / measurements[1]["samples"]).mean() == pytest.approx(
        5
    )
    assert len({m["samples"] for m in measurements}) == 2
    assert comparisons == []


def test_max_seconds_is_a_hard_limit_and_is_said(stub, tmp_path: Path):
    settings = QUICK.model_copy(update={"min_seconds": 50.0, "min_count": 10_000, "max_seconds": 0.6})
    start = time.monotonic()
    (one, other), (told,) = bench.measure([stub("a", "100"), stub("b", "100")], settings, tmp_path / "out")
    assert time.monotonic() - start < 8
    assert one["stopped_by"] == other["stopped_by"] == "max_seconds"
    assert 1 <= one["warm"]["count"] <= 6
    assert told["low"] is None
    assert "too few blocks" in told["verdict"]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("crash", ["b: the process that timed it ended (signal 6)", "native stack smashed"]),
        ("raise", ["b: ", "ValueError: bad node Conv_3"]),
    ],
)
def test_a_worker_that_dies_is_named_with_its_last_words(stub, tmp_path: Path, word: str, expected: list[str]):
    with pytest.raises(process.WorkerDied) as raised:
        bench.measure([stub("a", "1"), stub("b", word)], QUICK, tmp_path / "out")
    for text in expected:
        assert text in str(raised.value)
    assert "Traceback" not in str(raised.value)
    assert not _children()


def test_a_worker_that_hangs_is_given_up(stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(process, "PATIENCE", 8.0)
    with pytest.raises(process.WorkerDied, match="a: the process that timed it did not answer within 8 s"):
        bench.measure([stub("a", "hang")], QUICK, tmp_path / "out")
    assert not _children()


def _children() -> list[int]:
    import psutil

    running = [child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]
    return [child.pid for child in running if "chrom" not in child.name()]  # a browser that another test has left open


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupt_leaves_no_process_behind(tmp_path: Path, number: int):
    """Ctrl-C (to the whole group, as a terminal sends it), and even a parent killed outright."""
    import psutil

    model = identity(tmp_path / "m.onnx")
    code = (
        "import signal, sys\nfrom pathlib import Path\nfrom edgekd import bench\nfrom edgekd.recipe import Bench\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background inherits that it is ignored
        f"thing = bench.thing_from(Path({str(model)!r}))\n"
        "bench.measure([thing, bench.Thing('again', thing.backend, thing.files)], Bench(min_seconds=60, launches=1, max_seconds=3600, roofline=False), Path(sys.argv[1]),"
        " lambda share, what: print(what, flush=True))\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    for line in parent.stdout:
        if "alternation" in line:
            break
    workers = psutil.Process(parent.pid).children(recursive=True)
    assert len(workers) == 2
    if number == signal.SIGINT:
        os.killpg(parent.pid, number)
    else:
        parent.kill()
    errors = parent.communicate(timeout=60)[1]
    assert psutil.wait_procs(workers, timeout=60)[1] == []
    if number == signal.SIGINT:
        assert "KeyboardInterrupt" in errors


def test_a_bare_onnx_file_runs_on_inputs_made_from_its_declaration(tmp_path: Path):
    things = [bench.thing_from(identity(tmp_path / f"{name}.onnx")) for name in ("one", "two")]
    assert things[0] == Thing("one", "onnxruntime", {"model": tmp_path / "one.onnx"})
    measurements, (told,) = bench.measure(
        things, QUICK.model_copy(update={"min_seconds": 0.05, "batch_sizes": (3,)}), tmp_path / "out"
    )
    assert [m["artifact"] for m in measurements] == ["one", "two"]
    assert sum(measurements[0]["providers"].values()) >= 1
    assert measurements[0]["environment"]["runtime"]["onnxruntime"]
    assert told["control"] == "one"
    assert told["why"] is None, "neither is quantized: there is nothing to explain"


def artifact(folder: Path, target: str) -> Path:
    """Write the least that is an artifact."""
    folder.mkdir(parents=True)
    identity(folder / "model.onnx")
    told = {"file": "model.onnx", "inputs": [{"name": "image", "dtype": "uint8", "shape": ["batch", 12]}], "outputs": []}
    record = {"schema": 1, "target": target, "variant": folder.name, "backend": "onnxruntime", "graphs": {"model": told}}
    (folder / "artifact.json").write_text(json.dumps(record))
    return folder


def filled(run: Path, told: str) -> dict:
    """Time the run's only artifact for a target file of the user's own; return bench.json."""
    (run / "board.toml").write_text(f'title = "Board"\nbackend = "onnxruntime"\n{told}')
    target = load_target(str(run / "board.toml"))
    artifact(run / "targets" / "board" / "fp32", "board")
    plan = SimpleNamespace(
        out=run,
        step=lambda name: SimpleNamespace(folder="measurements/board"),
        pairs=lambda: [(target, "fp32")],
        recipe=SimpleNamespace(bench=QUICK.model_copy(update={"min_seconds": 0.02, "min_count": 5})),
    )
    (run / "made").mkdir()
    stage.fill(plan, target, run / "made")  # type: ignore[arg-type]
    return json.loads((run / "made" / "bench.json").read_text())


def test_a_target_file_of_ones_own_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sent = []
    send = process.Worker.send
    monkeypatch.setattr(process.Worker, "send", lambda self, **command: (sent.append(command), send(self, **command))[1])
    told = filled(tmp_path, "")
    assert [m["artifact"] for m in told["measurements"]] == ["board/fp32"]
    assert [c["target"] for c in sent if c["do"] == "load"] == [str(tmp_path / "board.toml")]
    assert told["skipped"] is None
    alone = stage.measure_paths([tmp_path / "targets" / "board" / "fp32"], BRIEF, tmp_path / "out")
    assert len(alone["measurements"]) == 1, "an artifact without its target file runs with the backend's own defaults"


def test_a_device_that_this_machine_is_not_is_not_timed_here(tmp_path: Path):
    told = filled(tmp_path, 'device = "ssh"')
    assert told == {
        "measurements": [],
        "comparisons": [],
        "skipped": f"run on {platform.machine()} here: Board is another device (ssh) and cannot be reached from here",
    }


def test_many_more_threads_than_cores_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("edgekd.host.usable_cores", lambda: 2)
    thing = bench.thing_from(identity(tmp_path / "m.onnx"))
    with pytest.raises(BadInput, match=r"bench\.threads: 9 threads on 2 usable cores; give at most 8"):
        bench.measure([thing], Bench(threads=9), tmp_path / "out")


def test_a_thing_has_its_own_number_of_threads(stub, tmp_path: Path):
    thing = stub("a", "1")
    things = [*stage.with_threads([thing], (1, 2)), replace(thing, label="plain")]
    assert [(one.label, one.threads) for one in things] == [("a (1 thread)", 1), ("a (2 threads)", 2), ("plain", None)]
    settings = QUICK.model_copy(update={"threads": 3})
    measurements, comparisons = bench.measure(things, settings, tmp_path / "out")
    assert [m["threads"] for m in measurements] == [1, 2, 3]
    assert [m["providers"]["StubProvider"] for m in measurements] == [1, 2, 3]  # what the runtime was told
    assert [c["candidate"] for c in comparisons] == ["a (2 threads)", "plain"]


def test_several_streams_split_a_things_own_threads(stub, tmp_path: Path):
    settings = QUICK.model_copy(update={"streams": (2,), "latency": False})
    (one,), _ = bench.measure(stage.with_threads([stub("a", "1")], (4,)), settings, tmp_path / "out")
    assert (one["threads"], one["providers"]["StubProvider"]) == (4, 2)


@pytest.mark.parametrize(("threads", "said"), [((0,), "at least 1"), ((2, 2), "given twice"), ((1, 900), "900 threads on")])
def test_numbers_of_threads_that_make_no_sense(stub, tmp_path: Path, threads: tuple[int, ...], said: str):
    with pytest.raises(BadInput, match=said):
        bench.measure(stage.with_threads([stub("a", "1")], threads), QUICK, tmp_path / "out")


def test_samples_of_an_earlier_call_go_and_other_files_stay(tmp_path: Path):
    quick, out = BRIEF, tmp_path / "out"
    for name in ("one", "two"):
        identity(tmp_path / f"{name}.onnx")
    stage.measure_paths([tmp_path / "one.onnx"], quick, out)
    (out / "mine-batch1.npy").write_bytes(b"mine")
    stage.measure_paths([tmp_path / "two.onnx"], quick, out)
    (two,) = json.loads((out / "bench.json").read_text())["measurements"]
    kept = {"bench.json", "report.html", "cells", "mine-batch1.npy", two["samples"], two["times"]}
    assert {f.name for f in out.iterdir()} == kept
    assert two["samples"].startswith("two-batch1-")
    with pytest.raises(BadInput):
        stage.measure_paths([tmp_path / "absent.onnx"], quick, out)
    assert (out / two["samples"]).is_file()


def test_an_onnx_error_without_words_is_still_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*args: object, **options: object) -> None:
        raise ValueError

    monkeypatch.setattr(onnx, "load", fail)
    with pytest.raises(BadInput, match=r"cannot be read as ONNX \(ValueError\)"):
        facts(tmp_path / "m.onnx")


def test_files_that_belong_to_no_run(tmp_path: Path):
    model = identity(tmp_path / "m.onnx")
    told = stage.measure_paths([model, model], BRIEF, tmp_path / "out")
    assert [m["artifact"] for m in told["measurements"]] == [str(model), f"{model} (2)"]
    assert told["measurements"][0]["threads"] == 1
    assert json.loads((tmp_path / "out" / "bench.json").read_text()) == told
    assert (tmp_path / "out" / told["measurements"][1]["samples"]).is_file()
    with pytest.raises(BadInput, match="only bench"):
        stage.measure_paths([model], ["distill.epochs=3"], tmp_path / "out")
    with pytest.raises(BadInput, match="min_second"):
        stage.measure_paths([model], ["bench.min_second=3"], tmp_path / "out")


def test_an_artifact_folder_is_read_with_its_golden_inputs(tmp_path: Path):
    identity(tmp_path / "model.onnx")
    record = {
        "schema": 1, "target": "onnxruntime-cpu", "variant": "fp32", "backend": "onnxruntime",
        "graphs": {"model": {"file": "model.onnx", "inputs": [{"name": "image", "dtype": "uint8", "shape": ["batch", 12]}], "outputs": []}},
    }  # fmt: skip
    (tmp_path / "artifact.json").write_text(json.dumps(record))
    pictures = np.arange(24, dtype=np.uint8).reshape(2, 12)
    np.savez(tmp_path / "golden.npz", **{"model/in/image": pictures, "model/out/logits": np.zeros(2)})
    thing = bench.thing_from(tmp_path)
    assert (thing.label, thing.variant, thing.target, thing.backend) == (
        "onnxruntime-cpu/fp32",
        "fp32",
        "onnxruntime-cpu",
        "onnxruntime",
    )
    assert np.array_equal(thing.inputs["model"]["image"], pictures)
    assert golden_inputs(tmp_path / "golden.npz", "model", ["absent"]) is None
    (tmp_path / "artifact.json").write_text('{"schema": 1}')
    with pytest.raises(BadInput, match="damaged"):
        bench.thing_from(tmp_path)


@pytest.mark.parametrize("name", ["absent.onnx", "absent", "."])
def test_what_cannot_be_timed_is_said(tmp_path: Path, name: str):
    with pytest.raises(BadInput, match=r"Give a run folder, RUN/targets/TARGET/VARIANT, a file that ends in \.onnx"):
        bench.thing_from(tmp_path / name)


def test_a_file_that_is_not_onnx_and_equal_labels_are_bad_input(tmp_path: Path):
    (tmp_path / "m.onnx").write_bytes(b"not a protobuf at all")
    thing = bench.thing_from(tmp_path / "m.onnx")
    with pytest.raises(BadInput, match="cannot be read as ONNX"):
        bench.measure([thing], QUICK, tmp_path)
    with pytest.raises(BadInput, match="two things to time are called `m`"):
        bench.measure([thing, thing], QUICK, tmp_path)


def test_facts_about_a_graph(tmp_path: Path):
    known = facts(identity(tmp_path / "q.onnx", nodes=3, quantized=True))
    assert (known.nodes, known.conversions, known.heavy, known.heavy_float) == (6, 2, 3, 2)
    assert known.quantized
    assert known.inputs == ({"name": "image", "dtype": "uint8", "shape": ["batch", 12]},)
    assert not facts(identity(tmp_path / "f.onnx")).quantized


def test_the_control_is_the_first_without_quantized_nodes(tmp_path: Path):
    found = {name: facts(identity(tmp_path / f"{name}.onnx", quantized=name == "int8")) for name in ("int8", "fp32")}
    things = [Thing(name, "onnxruntime", {"model": tmp_path / f"{name}.onnx"}) for name in ("int8", "fp32")]
    assert compare.control_of(things, found).label == "fp32"
    marked = Thing("int8", "onnxruntime", things[0].files, control=True)
    assert compare.control_of([things[1], marked], found) is marked


def test_weights_packed_into_integers_are_no_control(tmp_path: Path):
    """A codebook's file computes in float, and is stored in bytes: what it is compared with is the file in full precision."""
    graph = helper.make_graph(
        [helper.make_node("Gather", ["points", "codes"], ["w"]), helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 12])],
        [
            numpy_helper.from_array(np.zeros((12, 12), np.int8), "codes"),
            numpy_helper.from_array(np.ones(16, np.float32), "points"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "dq4.onnx")
    things = [
        Thing("dq4", "onnxruntime", {"model": tmp_path / "dq4.onnx"}),
        Thing("fp32", "onnxruntime", {"model": identity(tmp_path / "fp32.onnx")}),
    ]
    found = {thing.label: facts(thing.file) for thing in things}
    assert (found["dq4"].packed, found["fp32"].packed) == (True, False)
    assert compare.control_of(things, found).label == "fp32"


def test_a_reason_is_given_for_what_was_seen_alone():
    thing = [Thing(name, "onnxruntime", {}) for name in ("fp32", "int8")]
    known = GraphFacts((), 10, 4, 3, 1)
    few = {"fp32": np.full((3, 5), 1e-5), "int8": np.full((3, 5), 2e-5)}
    (told,) = compare.compare(thing, few, {"fp32": None, "int8": known}, 1, {"fp32": {}, "int8": {}}, one_control=True)
    assert told["verdict"].startswith("too few blocks")
    assert told["why"] is None


def test_integers_in_weights_alone_are_told_from_integer_arithmetic(tmp_path: Path):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from edgekd.quantize.weights_only import quantize_weights

    weights = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    onnx.save(quantize_weights(model, keep=()), tmp_path / "w8.onnx")
    known = facts(tmp_path / "w8.onnx")
    assert known.quantized
    assert known.weights_alone
    assert [reason for reason in compare.why(known, 1.0, {"CPU": 1}) if "arithmetic is in float" in reason]
    assert not facts(identity(tmp_path / "q.onnx", nodes=3, quantized=True)).weights_alone


def test_the_fingerprint_of_one_file_is_its_sha256_and_weights_beside_it_count(tmp_path: Path):
    import hashlib

    thing = Thing("m", "onnxruntime", {"model": identity(tmp_path / "m.onnx")})
    digest, _ = fingerprint(thing)
    assert digest == hashlib.sha256((tmp_path / "m.onnx").read_bytes()).hexdigest()
    onnx.save_model(
        onnx.load(tmp_path / "m.onnx"),
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    again, larger = fingerprint(thing)
    assert again != digest
    assert larger == (tmp_path / "m.onnx").stat().st_size + (tmp_path / "weights.bin").stat().st_size
    kept = bytearray((tmp_path / "weights.bin").read_bytes())
    kept[0] ^= 1
    (tmp_path / "weights.bin").write_bytes(kept)
    assert fingerprint(thing)[0] != again, "a changed weight is another thing"
    assert "its weights lie in weights.bin, and a page looks for m.onnx.data" in open_device("browser").takes(thing)
