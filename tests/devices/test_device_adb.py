"""Timing on Android: a program that behaves as adb, a device that is a folder, and a tool that prints as ONNX Runtime's does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.bench import energy
from edgekd.bench.process import WorkerDied
from edgekd.bench.things import Thing, thing_from
from edgekd.bench.timing import cells, job_of, know, measure
from edgekd.devices import adb, adb_link, adb_worker
from edgekd.errors import BadInput, Missing
from edgekd.recipe import Bench

FAKE = Path(__file__).with_name("fake_adb.py")
QUICK = Bench(min_seconds=0.05, min_count=5, max_seconds=60, interval=None, threads=4, roofline=False, launches=1)
PROPS = """[ro.build.version.release]: [16]
[ro.build.version.sdk]: [36]
[ro.product.cpu.abi]: [arm64-v8a]
[ro.product.manufacturer]: [Google]
[ro.product.model]: [Pixel 9]
[ro.soc.manufacturer]: [Google]
[ro.soc.model]: [Tensor G4]
"""
BATTERY = "Current Battery Service state:\n  AC powered: false\n  USB powered: true\n  level: 80\n  temperature: 312\n"
THERMAL = """IsStatusOverride: false
Thermal Status: 2
Cached temperatures:
	Temperature{mValue=99.0, mType=0, mName=OLD, mStatus=0}
Current temperatures from HAL:
	Temperature{mValue=41.5, mType=0, mName=BIG, mStatus=0}
	Temperature{mValue=38.0, mType=0, mName=LITTLE, mStatus=0}
	Temperature{mValue=55.0, mType=3, mName=VIRTUAL-SKIN, mStatus=2}
Current cooling devices from HAL:
"""
CPUINFO = "".join(f"processor\t: {n}\nFeatures\t: fp asimd asimdhp asimddp i8mm\nCPU part\t: 0xd82\n\n" for n in range(8))


def program(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)
    return file


@pytest.fixture
def device(tmp_path, monkeypatch):
    """Attach a device; return its folder. Nothing of ours may be left there, nor run."""
    root = tmp_path / "device"
    for name, text in {
        "proc/cpuinfo": CPUINFO,
        "proc/meminfo": "MemTotal:       11686776 kB\nMemFree: 1 kB\n",
        "proc/loadavg": "5.25 1.00 0.50 1/900 123\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "sched_pixel\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "820000\n",
        "sys/devices/system/cpu/cpu7/cpufreq/scaling_cur_freq": "3105000\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "data/local/tmp").mkdir(parents=True)
    program(root / "bin/getprop", f"#!/bin/sh\ncat <<'E'\n{PROPS}E\n")
    program(
        root / "bin/dumpsys", f"#!/bin/sh\nif [ $1 = battery ]; then cat <<'E'\n{BATTERY}E\nelse cat <<'E'\n{THERMAL}E\nfi\n"
    )
    started = f'#!/bin/sh\nexec {sys.executable} {FAKE} $0 "$@"\n'
    monkeypatch.setenv(adb_link.VARIABLE, str(program(tmp_path / "sdk/adb", started)))
    tool = program(tmp_path / "build/onnxruntime_perf_test", started)
    (tool.parent / "libonnxruntime.so").write_bytes(b"\0ELF\0VERS_1.22.1\0")
    monkeypatch.setenv(adb.VARIABLE, str(tool))
    monkeypatch.setenv("FAKE_ADB_DEVICE", str(root))
    yield root
    assert list((root / "data/local/tmp").iterdir()) == []
    if (root / "hangs").exists():
        with pytest.raises(ProcessLookupError):
            os.kill(int((root / "hangs").read_text()), 0)


def products(file: Path, count: int) -> Path:
    """Write `count` products with matrices (4, 4), one after the other."""
    names = ["x", *(f"h{place}" for place in range(count - 1)), "y"]
    weights = [numpy_helper.from_array(np.eye(4, dtype=np.float32), f"w{place}") for place in range(count)]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(count)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", 4)) for name in "xy"]
    graph = helper.make_graph(nodes, "products", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    return file


def runs(device: Path) -> list[dict]:
    return [json.loads(line) for line in (device / "log").read_text().splitlines()]


def test_what_is_measured_is_what_the_tool_told(device, tmp_path):
    settings = QUICK.model_copy(update={"batch_sizes": (3,), "launches": 5})
    thing = thing_from(products(tmp_path / "my model.onnx", 2))
    (told,), _ = measure([thing], settings, tmp_path / "bench", device=adb.open_("adb"))
    logged = runs(device)
    timed = [run["costs"] for run in logged if len(run["costs"]) == told["blocks"]["calls"] + told["blocks"]["settle"]]
    counted = [np.array(costs[told["blocks"]["settle"] :]) for costs in timed[-told["blocks"]["count"] :]]
    samples = np.load(tmp_path / "bench" / told["samples"])
    np.testing.assert_allclose(samples, np.stack(counted), rtol=1e-5)
    assert told["warm"]["median_s"] == pytest.approx(float(np.median(np.concatenate(counted))), rel=1e-5)
    assert told["load_s"] == 0.0123
    assert told["first_call_s"] == 0.002  # "2 ms": whole milliseconds
    assert told["peak_memory_bytes"] == 50_000_000 + 1000 * max(len(run["costs"]) for run in logged)
    assert told["environment"]["runtime"] == {"onnxruntime": "1.22.1"}
    assert {run["threads"] for run in logged} == {"4"}
    assert told["blocks"]["launches"] == [1] * told["blocks"]["count"]  # each block is a process of its own
    pushed = (device / "pushed").read_text().splitlines()
    assert [Path(file).name for file in pushed if "/edgekd-" in file and "/1/" in file] == ["model.onnx", "input_0.pb"]
    assert not [file for file in pushed if "/2/" in file]
    # the inputs that go there: 3 samples under the graph's own name
    assert logged[0]["inputs"] == ["input_0.pb"]
    tensor = onnx.TensorProto.FromString(bytes.fromhex(logged[0]["first"]))
    assert (tensor.name, list(tensor.dims)) == ("x", [3, 4])


@pytest.mark.slow
def test_two_things_alternate(device, tmp_path):
    things = [thing_from(products(tmp_path / f"{name}.onnx", count)) for name, count in (("one", 2), ("ten", 40))]
    _, (compared,) = measure(things, QUICK, tmp_path / "bench", device=adb.open_("adb://R58M123ABC"), one_control=True)
    assert compared["ratio"] == pytest.approx(0.1, rel=0.15)
    assert "SLOWER" in compared["verdict"]
    order = ["ten" if max(run["costs"]) > 0.005 else "one" for run in runs(device)]
    blocks = order[order.index("ten") + 1 :]
    blocks = blocks[len(blocks) % 4 :]
    assert "one ten one ten" in " ".join(blocks)
    assert blocks.count("one") == blocks.count("ten")


def test_the_device_is_described_and_not_this_machine(device, tmp_path, monkeypatch):
    thing = thing_from(products(tmp_path / "m.onnx", 2))
    with adb.open_("adb") as android:
        assert android.title == "Google Pixel 9 (Google Tensor G4)"
        told = android.describe()
        (cell,) = cells(know([thing]), QUICK)
        monkeypatch.setattr(energy, "meter", lambda: pytest.fail("this machine's meter says nothing of another"))
        answer = android.run(job_of(cell, QUICK, 4, tmp_path), lambda share, what: None)
    expected = {"cpu": "Google Tensor G4", "architecture": "aarch64", "cores": 8, "physical_cores": 8, "vnni": True}
    expected |= {"governor": "sched_pixel", "memory_bytes": 11686776 * 1024, "os": "Android 16 (API 36)"}
    expected |= {"flags": ["asimd", "asimddp", "asimdhp", "i8mm"], "packages": {"onnxruntime": "1.22.1"}}
    assert {key: told[key] for key in expected} == expected
    around = answer["around"]
    assert around["load_average"] == [5.25, 5.25]
    assert around["temperature_c"] == [41.5, 41.5]  # the hottest of the processor's, not the skin's, nor an old one
    assert around["frequency_mhz"] == [1962.5, 1962.5]
    assert around["cpu"] == "Google Tensor G4"
    assert any("thermal status: moderate" in note for note in around["notes"])
    assert any("load average 5.2" in note for note in around["notes"])
    assert "adb does not tell" in answer["energy"]["why"]
    assert {block["joules"] for block in answer["timed"][0]["blocks"]} == {None}


@pytest.mark.parametrize(("longest", "expected"), [(0.03, 0.03), (10.0, 0.06)])
def test_a_sustained_run_has_long_blocks_and_the_devices_heat(device, tmp_path, monkeypatch, longest, expected):
    monkeypatch.setattr(adb, "SUSTAINED", longest)
    settings = QUICK.model_copy(update={"sustained_minutes": 0.03, "latency": False})  # a thirtieth is 0.06 s
    (cell,) = (
        one for one in cells(know([thing_from(products(tmp_path / "m.onnx", 2))]), settings) if one.scenario == "sustained"
    )
    with adb.open_("adb") as android:
        told = android.run(job_of(cell, settings, 4, tmp_path), lambda share, what: None)
    blocks = told["timed"][0]["blocks"]
    # what the tool told, which it made up: calls of 0.9 to 1.2 ms
    assert all(0.8 * expected < block["wall"] / 1e9 < 1.4 * expected for block in blocks)
    assert len({len(block["nanoseconds"]) for block in blocks}) == 1
    assert [block["launch"] for block in blocks] == list(range(len(blocks)))
    assert len(told["watched"]) == len(blocks) >= 2
    assert {point["temperature_c"] for point in told["watched"]} == {41.5}
    assert [point["at_s"] for point in told["watched"]] == sorted(point["at_s"] for point in told["watched"])


def test_a_model_that_fails_there_names_the_thing(device, tmp_path):
    fine = thing_from(products(tmp_path / "fine.onnx", 2))
    broken = thing_from(products(tmp_path / "BROKEN.onnx", 2))
    node = onnx.load(str(broken.file))
    node.doc_string = "BROKEN"
    onnx.save(node, broken.file)
    with pytest.raises(
        WorkerDied, match=r"(?s)BROKEN: onnxruntime_perf_test failed \(exit status 255\).*Protobuf parsing failed"
    ) as died:
        measure([fine, broken], QUICK, tmp_path / "bench", device=adb.open_("adb"))
    assert died.value.label == "BROKEN"


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (
            "CANNOT LINK EXECUTABLE: library libc++_shared.so not found",
            "does not start there; is it built for this device's ABI",
        ),
        ("ERROR: Unknown command line flag 'e'", "built without its options; use that of ONNX Runtime 1.23 or later"),
    ],
)
def test_a_tool_that_does_not_run_there(device, tmp_path, monkeypatch, trouble, said):
    monkeypatch.setenv("FAKE_PERF", trouble)
    with pytest.raises(Missing, match=said):
        measure([thing_from(products(tmp_path / "m.onnx", 2))], QUICK, tmp_path / "bench", device=adb.open_("adb"))


def test_a_tool_that_hangs_is_ended(device, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_PERF", "hang")
    monkeypatch.setattr(adb_worker, "PATIENCE", 2.0)
    with pytest.raises(WorkerDied, match="m: onnxruntime_perf_test did not end within 2 s"):
        measure([thing_from(products(tmp_path / "m.onnx", 2))], QUICK, tmp_path / "bench", device=adb.open_("adb"))
    assert (device / "hangs").exists()


def test_ctrl_c_leaves_nothing(device, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_PERF", "hang")
    file = products(tmp_path / "m.onnx", 2)
    code = (
        "import pathlib, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from edgekd.bench.timing import measure; from edgekd.bench.things import thing_from\n"
        "from edgekd.devices import adb; from edgekd.recipe import Bench\n"
        "measure([thing_from(pathlib.Path(sys.argv[1]))], Bench(roofline=False), pathlib.Path(sys.argv[2]), device=adb.open_('adb'))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(file), str(tmp_path / "bench")], stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 60
    while not (device / "hangs").exists() and time.monotonic() < end and child.poll() is None:
        time.sleep(0.1)
    assert list((device / "data/local/tmp").iterdir())
    child.send_signal(signal.SIGINT)
    _, printed = child.communicate(timeout=30)
    assert "KeyboardInterrupt" in printed


def test_a_device_that_is_unplugged_midway(device, tmp_path):
    def unplug(share: float, what: str) -> None:
        if what.startswith("timing") or "timing" in what:
            (device / "unplugged").touch()

    with pytest.raises(Missing, match="R58M123ABC: the connection was lost: adb: device 'R58M123ABC' not found"):
        measure([thing_from(products(tmp_path / "m.onnx", 2))], QUICK, tmp_path / "bench", unplug, device=adb.open_("adb"))
    left = list((device / "data/local/tmp").iterdir())
    assert left  # nobody can remove it: the device is gone
    subprocess.run(["rm", "-rf", *left], check=True)


@pytest.mark.parametrize(
    ("listed", "address", "kind", "said"),
    [
        ("", "adb", Missing, "no Android device is attached"),
        ("R1  unauthorized usb:1-1 transport_id:1", "adb", Missing, "R1 is unauthorized: allow USB debugging on its screen"),
        ("R1  offline transport_id:1", "adb", Missing, "R1 is offline: it does not answer"),
        (
            "R1\tno permissions (missing udev rules? user is in the plugdev group)",
            "adb",
            Missing,
            "R1 is no permissions: this machine",
        ),
        (
            "R1  device usb:1-1\nR2  device usb:1-2",
            "adb",
            BadInput,
            "several Android devices are attached; give one: adb://R1, adb://R2",
        ),
        ("R1  device usb:1-1\nR2  offline usb:1-2", "adb://R2", Missing, "R2 is offline"),
        ("R1  device usb:1-1", "adb://R9", Missing, "no Android device R9 is attached; there are R1"),
        ("R1  recovery usb:1-1", "adb", Missing, "R1 is recovery: start Android on it"),
    ],
)
def test_which_device(device, monkeypatch, listed, address, kind, said):
    start = "* daemon not running; starting now at tcp:5037\n* daemon started successfully\nList of devices attached\n"
    monkeypatch.setenv("FAKE_ADB_LIST", f"{start}{listed}\n")
    with pytest.raises(kind, match=said), adb.open_(address):
        pass


def test_of_several_the_only_one_that_is_ready():
    assert adb_link.choose({"R1": "offline", "R2": "device"}, None) == "R2"
    assert adb_link.choose({"10.0.0.5:5555": "device", "R2": "device"}, "10.0.0.5:5555") == "10.0.0.5:5555"


def test_what_is_missing_is_said(device, monkeypatch):
    monkeypatch.setenv(adb_link.VARIABLE, "no-such-adb")
    with pytest.raises(Missing, match="install the Android SDK's platform tools"), adb.open_("adb"):
        pass
    monkeypatch.setenv(adb.VARIABLE, "nowhere")
    with pytest.raises(Missing, match="set to `nowhere`, where no file lies"), adb.open_("adb"):
        pass
    monkeypatch.delenv(adb.VARIABLE)
    with pytest.raises(Missing, match="--build_shared_lib"), adb.open_("adb"):
        pass


@pytest.mark.parametrize("address", ["adb://", "adb://a b", "adb:R1", "adb://R1;rm"])
def test_wrong_addresses(address):
    with pytest.raises(BadInput, match="`adb devices` lists serial numbers"):
        adb.open_(address)


def test_what_it_takes(tmp_path):
    android = adb.open_("adb")
    file = products(tmp_path / "m.onnx", 2)
    assert android.takes(thing_from(file)) is None
    assert android.takes(Thing("m", "onnxruntime_mobile", {"model": tmp_path / "m.ort"})) is None
    assert "made for openvino" in android.takes(Thing("m", "openvino", {"model": tmp_path / "m.xml"}))
    assert "runs one graph, and this has 2" in android.takes(Thing("m", "onnxruntime", {"encoder": file, "decoder": file}))
    assert android.scenarios() == {"single-stream", "sustained"}
