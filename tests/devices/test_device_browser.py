"""Timing in a browser: pages of a real Chromium. Skips, with the reason, where it or onnxruntime-web is not installed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.backends import chromium, web
from edgekd.bench import energy
from edgekd.bench.process import WorkerDied
from edgekd.bench.things import Thing, thing_from
from edgekd.bench.timing import cells, job_of, know, measure
from edgekd.devices import browser
from edgekd.devices.browser_worker import PageWorker
from edgekd.errors import BadInput, Missing
from edgekd.recipe import Bench
from edgekd.targets import load_target

MEANS = web.executes(load_target("browser"))
real = pytest.mark.skipif(MEANS.by is None, reason=str(MEANS.why))
QUICK = Bench(min_seconds=0.2, min_count=5, max_seconds=60, interval=None, threads=1, roofline=False, launches=1)


def products(file: Path, width: int, count: int, inputs: str = "x", output: str = "y") -> Path:
    """Write `count` products with matrices (width, width), one after the other."""
    random = np.random.default_rng(0)
    names = [inputs, *(f"h{place}" for place in range(count - 1)), output]
    weights = [
        numpy_helper.from_array((random.standard_normal((width, width)) / width**0.5).astype(np.float32), f"w{place}")
        for place in range(count)
    ]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(count)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", width)) for name in (inputs, output)]
    graph = helper.make_graph(nodes, "products", ends[:1], ends[1:], weights)
    file.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    return file


def job(things: Sequence[Thing], scratch: Path, settings: Bench = QUICK):
    (cell,) = cells(know(things), settings)
    return job_of(cell, settings, 1, scratch)


def least(one) -> float:
    """Return the shortest call: what others do on this machine only lengthens calls."""
    return float(min(min(block["nanoseconds"]) for block in one["blocks"]))


def profiles() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob(f"{chromium.PREFIX}*"))


def browsers() -> list[psutil.Process]:
    """Return the processes of browsers that this test started, their own children included."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if chromium.PREFIX in " ".join(process.cmdline()):
                found.append(process)
    return found


@pytest.fixture
def nothing_left(monkeypatch):
    """Profiles lie in a folder of this test's own, and browsers that another test left open don't count."""
    before = {process.pid for process in browsers()}

    def left() -> list[int]:
        return [process.pid for process in browsers() if process.pid not in before]

    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield
        end = time.monotonic() + 10
        while time.monotonic() < end and (left() or profiles()):
            time.sleep(0.1)
        assert not left()
        assert not profiles()
        monkeypatch.undo()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class FakePage:
    """A page that obeys at once. groups: what each warm-up finds, one after the other."""

    def __init__(self, groups: list[int]) -> None:
        self.groups, self.files, self.asked = groups, {}, []

    def wait(self, alive, patience):
        return {"isolated": True}

    def ask(self, job, arrays, alive, patience):
        self.asked.append(job)
        answers = {
            "facts": {"step": 5000},
            "load": {"session": 1, "seconds": 0.1, "providers": {"WASM": 1}},
            "first": {"seconds": 0.001},
            "memory": {"bytes": 1},
        }
        if job["do"] == "warm":
            return {"nanoseconds": [10_000] * 20, "group": self.groups.pop(0)}, {}
        if job["do"] == "time":
            count = -(-job["count"] // job["group"])
            told = {"nanoseconds": [10_000] * count, "calls": count * job["group"], "wall": 10_000 * count * job["group"]}
            return {**told, "at": time.time_ns(), "marks": {}, "hidden": False}, {}
        return answers.get(job["do"], {}), {}


def test_groups_are_chosen_once_so_that_all_launches_have_blocks_alike(tmp_path):
    page, pages_opened = FakePage([7, 5, 11]), []

    class Source:
        def page(self, label: str, threads: int) -> PageWorker:
            pages_opened.append(label)
            return PageWorker(label, page, lambda: None, lambda: None, {})

    thing = thing_from(products(tmp_path / "m.onnx", 4, 1))
    settings = QUICK.model_copy(update={"launches": 3, "min_seconds": 0.06})
    told = browser.Browser("browser", "a browser", "wasm", Source()).run(
        job([thing], tmp_path, settings), lambda share, what: None
    )
    assert len(pages_opened) == 3
    (one,) = told["timed"]
    assert {block["launch"] for block in one["blocks"]} == {0, 1, 2}
    assert {asked["group"] for asked in page.asked if asked["do"] == "time"} == {7}
    assert {len(block["nanoseconds"]) for block in one["blocks"]} == {-(-one["calls"] // 7)}
    (note,) = [note for note in told["around"]["notes"] if "their mean is one sample" in note]
    assert note.startswith("m: ")
    assert "7 calls are timed together" in note


@real
@pytest.mark.slow
def test_a_model_is_measured_in_a_page(tmp_path, nothing_left):
    thing = thing_from(products(tmp_path / "m.onnx", 256, 8))
    twice = QUICK.model_copy(update={"launches": 2})
    (told,), _ = measure([thing], twice, tmp_path / "bench", device=browser.open_("browser"))
    assert len(told["blocks"]["launches"]) == 2
    samples = np.load(tmp_path / "bench" / told["samples"])
    assert told["warm"]["median_s"] == pytest.approx(np.nanmedian(samples), rel=1e-9)
    assert told["warm"]["count"] == np.isfinite(samples).sum() >= 40
    assert told["device"] == "browser"
    assert told["providers"] == {"WASM": 8}
    assert told["environment"]["runtime"] == {"onnxruntime-web": web.runtime_version(web.runtime_folder())}
    assert "the page's clock has steps of 5 µs" in told["environment"]["notes"]
    assert 0 < told["load_s"] < 5
    assert 0 < told["first_call_s"] < 5
    assert told["peak_memory_above_runtime_bytes"] is None
    assert 2 * 2**20 < told["peak_memory_bytes"] < 100 * 2**20  # 8 matrices of 256 KiB, and the runtime
    times = np.load(tmp_path / "bench" / told["times"])["begin_s"]
    assert times[0] == 0
    assert (np.diff(times) > 0).all()


@real
@pytest.mark.slow
def test_two_things_alternate_and_ten_times_the_work_is_seen(tmp_path, nothing_left):
    things = [thing_from(products(tmp_path / f"{name}.onnx", 256, count)) for name, count in (("one", 6), ("ten", 60))]
    with browser.open_("browser") as device:
        assert device.title.startswith("Chromium ")
        told = device.run(job(things, tmp_path), lambda share, what: None)
    one, ten = told["timed"]
    assert least(ten) > 3 * least(one)
    began = sorted((block["at"], place) for place, thing in enumerate((one, ten)) for block in thing["blocks"])
    both = 2 * min(len(one["blocks"]), len(ten["blocks"]))
    assert both >= 8
    order = [place for _, place in began][:both]
    assert order == [0, 1] * (both // 2)  # A B A B, by a clock that both pages share
    for thing in (one, ten):
        for block in thing["blocks"]:
            assert sum(block["nanoseconds"]) <= block["wall"]


@real
def test_the_pages_clock_agrees_with_the_clock_outside(tmp_path, nothing_left):
    file = products(tmp_path / "m.onnx", 256, 40)
    thing = thing_from(file)
    asked = job([thing], tmp_path)["things"][0]
    source = browser.Headless("wasm", False)
    source.enter()
    with source.page("m", 1) as worker:
        worker.ask(do="start", backend="onnxruntime")
        worker.ask(do="load", files=asked["files"], target=None, threads=1, copies=1)
        worker.ask(do="prepare", scenario="single-stream", batch=1, interfaces=asked["interfaces"])
        warm = worker.ask(do="warm-up", seconds=0.2, count=10)
        worker.groups["m"] = 1
        assert len(warm["nanoseconds"]) >= 10
        assert sum(warm["nanoseconds"]) >= 0.2e9 * 0.8
        count = int(1e9 / np.median(warm["nanoseconds"])) + 1
        begin = time.perf_counter_ns()
        block = worker.ask(do="time", settle=0, count=count)
        outside = time.perf_counter_ns() - begin
    assert len(block["nanoseconds"]) == count
    assert sum(block["nanoseconds"]) <= block["wall"] <= outside
    assert sum(block["nanoseconds"]) >= 0.1 * outside  # in the same unit; this process may have waited for its turn
    assert block["calls"] == count
    assert set(block) == {"nanoseconds", "wall", "at", "marks", "calls"}
    assert abs(block["at"] - time.time_ns()) < 60e9


@real
def test_the_heap_is_told_at_once_with_threads_and_grows_with_the_model(tmp_path, nothing_left):
    source = browser.Headless("wasm", False)
    source.enter()
    with source.page("m", 2) as worker:  # the second thread sleeps in the runtime
        worker.ask(do="start", backend="onnxruntime")
        sizes = []
        for name, count in (("small", 1), ("large", 16)):  # 4 MiB and 64 MiB of weights
            file = str(products(tmp_path / f"{name}.onnx", 1024, count))
            worker.ask(do="load", files={name: file}, target=None, threads=2, copies=1)
            begin = time.monotonic()
            sizes.append(worker.ask(do="memory")["bytes"])
            assert time.monotonic() - begin < 5
    assert 4 * 2**20 < sizes[0] < sizes[1] - 48 * 2**20


@real
def test_calls_shorter_than_the_clocks_steps_are_timed_in_groups(tmp_path, nothing_left):
    with browser.open_("browser") as device:
        told = device.run(job([thing_from(products(tmp_path / "tiny.onnx", 4, 1))], tmp_path), lambda share, what: None)
    (note,) = [note for note in told["around"]["notes"] if "timed together" in note]
    group = int(note.partition(", so ")[2].partition(" ")[0])
    assert note.startswith("tiny: ")
    assert group > 1
    (one,) = told["timed"]
    for block in one["blocks"]:
        assert len(block["nanoseconds"]) == -(-one["calls"] // group)  # a sample a group
        assert block["calls"] == group * len(block["nanoseconds"]) >= one["calls"]
        assert min(block["nanoseconds"]) * group >= 5000  # a group takes steps of 5 µs, where a call may take none
        assert sum(block["nanoseconds"]) * group <= block["wall"] * 1.001  # and tells what one call takes, rounded


@real
def test_of_a_chain_each_part_is_told(tmp_path, nothing_left):
    folder = tmp_path / "chain"
    products(folder / "a_encoder.onnx", 256, 4, "x", "memory")
    products(folder / "b_decoder.onnx", 256, 24, "memory", "y")
    thing = thing_from(folder)
    with browser.open_("browser") as device:
        told = device.run(job([thing], tmp_path), lambda share, what: None)["timed"][0]
    assert told["providers"] == {"WASM": 28}
    for block in told["blocks"]:
        parts = np.array([block["marks"]["a_encoder"], block["marks"]["b_decoder"]])
        assert parts.shape == (2, len(block["nanoseconds"]))
        assert (parts.sum(0) <= np.array(block["nanoseconds"]) + 1).all()
    encoder, decoder = (np.median([n for b in told["blocks"] for n in b["marks"][name]]) for name in ("a_encoder", "b_decoder"))
    assert decoder > 1.5 * encoder


@real
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "said"), [("browser", "Chromium ended"), ("renderer", "the page crashed")])
def test_a_browser_that_dies_midway_names_the_thing(tmp_path, nothing_left, monkeypatch, kind, said):
    started: list[chromium.Chromium] = []
    begin = chromium.Chromium.__init__

    def record(self, *args, **named):
        begin(self, *args, **named)
        started.append(self)

    def die(share: float, what: str) -> None:
        if not what.startswith("timing") or share < 0.15:
            return
        for process in browsers():
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())
                if str(started[-1].profile) in line and (
                    "--type=renderer" in line if kind == "renderer" else "--type" not in line
                ):
                    process.send_signal(signal.SIGKILL)

    with browser.open_("browser") as device:
        monkeypatch.setattr(chromium.Chromium, "__init__", record)
        things = [thing_from(products(tmp_path / f"{name}.onnx", 256, 8)) for name in ("kept", "lost")]
        begun = time.monotonic()
        with pytest.raises(WorkerDied, match=f"(?s)lost: the page that timed it failed.*{said}"):
            device.run(job(things, tmp_path, QUICK.model_copy(update={"min_seconds": 9.0})), die)
    assert time.monotonic() - begun < 60


@real
def test_a_page_that_cannot_load_the_file_names_the_thing(tmp_path, nothing_left):
    node = helper.make_node("NoSuchOperator", ["x"], ["y"], domain="com.example")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1,)) for name in "xy"]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    sets = [helper.make_opsetid("", 20), helper.make_opsetid("com.example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=10), tmp_path / "odd.onnx")
    source = browser.Headless("wasm", False)
    source.enter()
    with source.page("odd", 1) as worker:
        worker.ask(do="start", backend="onnxruntime")
        with pytest.raises(WorkerDied, match=r"odd: the page that timed it failed\n.*NoSuchOperator") as died:
            worker.ask(do="load", files={"model": str(tmp_path / "odd.onnx")}, target=None, threads=1, copies=1)
    assert died.value.label == "odd"


@contextlib.contextmanager
def visitor(port: int):
    """Open our page as somebody would who reads the address; yield what ends that browser."""
    opened: list[chromium.Chromium] = []
    welcome = browser.Visitor._welcome

    def visit(self, page) -> None:
        opened.append(chromium.Chromium(f"http://127.0.0.1:{port}/{page.key}"))
        welcome(self, page)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(browser.Visitor, "_welcome", visit)
        try:
            yield lambda: os.killpg(opened[0].process.pid, signal.SIGKILL)
        finally:
            opened[0].close()


@real
@pytest.mark.slow
def test_any_browser_that_opens_the_address(tmp_path, nothing_left, capsys, monkeypatch):
    port = free_port()
    things = [thing_from(products(tmp_path / f"{name}.onnx", 256, count)) for name, count in (("one", 6), ("ten", 60))]
    with visitor(port), browser.open_(f"browser://127.0.0.1:{port}") as device:
        said = capsys.readouterr().err
        assert re.search(rf"Open http://127\.0\.0\.1:{port}/[0-9a-f]{{8}}/ in the browser", said)
        assert f"adb reverse tcp:{port} tcp:{port}" in said
        assert "localhost, or https" in said
        facts = device.describe()
        assert facts["isolated"] is True
        assert facts["cores"] == facts["physical_cores"] == psutil.cpu_count()
        assert "Chrome/" in facts["browser"]
        monkeypatch.setattr(energy, "meter", lambda: pytest.fail("this machine's meter says nothing of another"))
        told = device.run(job(things, tmp_path), lambda share, what: None)
        assert told["around"]["load_average"] == [None, None]  # of this machine nothing is said: the browser may be anywhere
        assert "a page cannot read" in told["energy"]["why"]
        again = device.run(job(things[:1], tmp_path), lambda share, what: None)  # the same page, for a second cell
    one, ten = told["timed"]
    assert least(ten) > 3 * max(least(one), least(again["timed"][0]))
    assert all(block["joules"] is None for block in one["blocks"])


@real
@pytest.mark.slow
def test_a_browser_that_is_closed_midway(tmp_path, nothing_left, monkeypatch):
    monkeypatch.setattr(browser, "GONE", 1.0)
    port = free_port()
    thing = thing_from(products(tmp_path / "m.onnx", 256, 8))
    with visitor(port) as close, browser.open_(f"browser://127.0.0.1:{port}") as device:

        def leave(share: float, what: str) -> None:
            if what.startswith("timing") and share > 0.12:
                with contextlib.suppress(ProcessLookupError):
                    close()

        begun = time.monotonic()
        with pytest.raises(Missing, match="the browser was closed, or lost its connection"):
            device.run(job([thing], tmp_path, QUICK.model_copy(update={"min_seconds": 9.0})), leave)
        assert time.monotonic() - begun < 40


@real
def test_nobody_opens_the_page(monkeypatch):
    monkeypatch.setattr(browser, "OPENS", 0.5)
    with pytest.raises(Missing, match="no page to time in: the page did not answer"), browser.open_("browser://127.0.0.1:0"):
        pass


@real
def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(BadInput, match="another program has that port"), browser.open_(f"browser://127.0.0.1:{port}"):
            pass


@real
def test_a_software_gpu_is_no_device(nothing_left):
    said = "no error: there is a GPU here"
    try:
        with browser.open_("browser?provider=webgpu"):
            pass
    except Missing as error:
        said = str(error)
    if said.startswith("no error"):
        pytest.skip(said)
    assert "software=1" in said or "WebGPU" in said


@real
def test_webgpu_on_request_by_a_software_gpu(tmp_path, nothing_left):
    device = browser.open_("browser?provider=webgpu&software=1")
    try:
        device.__enter__()
    except Missing as error:
        pytest.skip(str(error))
    with device:
        told = device.run(job([thing_from(products(tmp_path / "m.onnx", 64, 2))], tmp_path), lambda share, what: None)
    assert told["timed"][0]["providers"] == {"WebGPU": 2}


def missing(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> Callable[[], object]:
    monkeypatch.setenv(variable, value)
    return browser.open_("browser").__enter__


def test_what_is_missing_is_said(monkeypatch, tmp_path):
    with pytest.raises(Missing, match="EDGEKD_CHROMIUM is set to `nothing`"):
        missing(monkeypatch, chromium.VARIABLE, "nothing")()
    monkeypatch.setenv(chromium.VARIABLE, "true")
    with pytest.raises(Missing, match="npm install"):
        missing(monkeypatch, web.VARIABLE, str(tmp_path))()


@pytest.mark.parametrize(
    "address",
    [
        *("browser://", "browser://host", "browser://host:x", "browser://h:1/path", "browsers"),
        *("browser?provider=cuda", "browser?threads=1", "browser?software=1", "browser://h:1?provider=webgpu&software=1"),
    ],
)
def test_wrong_addresses(address):
    with pytest.raises(BadInput, match="device `browser"):
        browser.open_(address)


def test_what_a_browser_takes(tmp_path):
    wasm, webgpu = browser.open_("browser"), browser.open_("browser?provider=webgpu")
    file = products(tmp_path / "m.onnx", 4, 1)
    assert wasm.takes(thing_from(file)) is None
    assert webgpu.takes(thing_from(file)) is None
    for_gpu = Thing("m", "web", {"model": file}, target_file="browser-webgpu")
    assert webgpu.takes(for_gpu) is None
    assert "--device 'browser?provider=webgpu'" in wasm.takes(for_gpu)
    assert "--device 'browser'" in webgpu.takes(Thing("m", "web", {"model": file}, target_file="browser"))
    assert "runs .onnx files" in wasm.takes(Thing("m", "onnxruntime_mobile", {"model": tmp_path / "m.ort"}))
    assert "made for qnn" in wasm.takes(Thing("m", "qnn", {"model": file}))


def test_scenarios():
    assert browser.open_("browser").scenarios() == {"single-stream", "chain", "sustained"}
