"""What surrounds a number, on machines that are written out file by file."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgekd import host
from edgekd.bench import environment

BEFORE = {
    "at_s": 100.0, "load_average": 0.1, "temperature_c": 50.0, "governor": "performance", "frequency_mhz": 3000.0,
    "free_bytes": 2**40, "swapped_pages": 10, "throttled": 3, "power_saving": None,
    "busy_s": 1000.0, "stolen_s": 5.0, "ours_s": 10.0, "processors": 4,
}  # fmt: skip


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def stat(pid: int, parent: int, name: str, *ticks: int) -> dict[str, str]:
    """Return a process' /proc/PID/stat: fields 14 to 17 are its own user and system time, and its ended children's."""
    return {
        f"proc/{pid}/stat": f"{pid} ({name}) S {parent} 1 1 0 -1 4194304 900 0 0 0 {' '.join(map(str, ticks))} 20 0 1 0 5 6 7"
    }


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_CLK_TCK": 100}[name])
    return write(
        tmp_path,
        {
            "proc/stat": "cpu  1000 200 300 9000 50 10 40 70 500 0\ncpu0 500 100 150 4500 25 5 20 35 0 0\ncpu1 500 100 150 4500 25 5 20 35 0 0\nintr 1\n",
            **stat(10, 1, "clock", 100, 20, 3, 4),
            **stat(11, 10, "worker (x) 9", 500, 30, 0, 0),  # a name may hold anything
            **stat(12, 11, "grandchild", 40, 0, 0, 0),
            **stat(20, 1, "other", 400, 0, 0, 0),
            "proc/meminfo": "MemTotal:  8000000 kB\nMemAvailable:  4000000 kB\nSwapTotal:  1024 kB\nHugePages_Total:  0\n",
            "proc/vmstat": "nr_free 3\npswpin 7\npswpout 5\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1800000\n",
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "1200000\n",
            "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "1800000\n",
            "sys/devices/system/cpu/cpu1/cpufreq/cpuinfo_max_freq": "2400000\n",
            "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_min_freq": "600000\n",
            "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "2\n",
            "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "3\n",
            "sys/devices/system/cpu/smt/active": "1\n",
            "sys/devices/system/cpu/cpufreq/boost": "0\n",
            "sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc\n",
            "sys/class/thermal/thermal_zone0/temp": "48500\n",
            "sys/class/hwmon/hwmon0/name": "nvme\n",
            "sys/class/hwmon/hwmon0/temp1_input": "90000\n",
            "sys/class/hwmon/hwmon1/name": "k10temp\n",
            "sys/class/hwmon/hwmon1/temp1_input": "61250\n",
        },
    )


def test_now_reads_a_device(device: Path):
    told = environment.now([10], device)
    assert told["busy_s"] == pytest.approx((1000 + 200 + 300 + 10 + 40) / 100)
    assert told["stolen_s"] == pytest.approx(0.7)
    assert told["ours_s"] == pytest.approx((127 + 530 + 40) / 100), "the process, its child and its grandchild"
    assert (told["processors"], told["throttled"], told["swapped_pages"]) == (2, 5, 12)
    assert (told["temperature_c"], told["governor"], told["frequency_mhz"]) == (61.25, "schedutil", 1500.0)
    assert told["free_bytes"] == 4_000_000 * 1024


def test_describe_reads_a_device(device: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(host, "describe", lambda: {"cpu": "Chip"})
    told = environment.describe(device)
    assert told["cpu"] == "Chip"
    assert told["frequency_mhz"] == {"now": 1500.0, "min": 600.0, "max": 2400.0}
    assert (told["boost"], told["smt"], told["clocksource"], told["swap_bytes"]) == (False, True, "tsc", 2**20)
    write(device, {"sys/devices/system/cpu/intel_pstate/no_turbo": "0\n"})
    assert environment.describe(device)["boost"] is True


@pytest.mark.parametrize(("flags", "expected"), [({"avx2", "hypervisor"}, True), ({"avx2"}, False), (set(), None)])
def test_a_virtual_machine_is_told_by_its_flag(
    flags: set[str], expected: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(host, "cpu_flags", lambda: frozenset(flags))
    assert environment.describe(tmp_path)["virtual_machine"] is expected


def test_nothing_readable_is_none_and_no_error(tmp_path: Path):
    told = environment.now(root=tmp_path)
    for key in ("temperature_c", "governor", "frequency_mhz", "free_bytes", "swapped_pages", "throttled", "busy_s", "stolen_s"):
        assert told[key] is None
    around = environment.around(told, environment.now(root=tmp_path), 1)
    assert (around["others"], around["stolen"]) == (None, None)
    assert environment.point(told, told)["others"] is None


def test_this_machine_is_described_in_plain_json():
    before = environment.now()
    told = environment.describe() | environment.around(before, environment.now(), 1)
    assert json.loads(json.dumps(told)) == told


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="no /proc here")
def test_our_own_work_is_not_the_load_by_others():
    before = environment.now()
    work = "import time\nend = time.process_time() + 0.4\nwhile time.process_time() < end: pass"
    subprocess.run([sys.executable, "-c", work], check=True)  # a child that has ended by the second look
    after = environment.now()
    assert after["ours_s"] - before["ours_s"] >= 0.38
    assert after["busy_s"] - before["busy_s"] >= 0.38
    elsewhere = environment.others(before, {**after, "busy_s": before["busy_s"] + after["ours_s"] - before["ours_s"]})
    assert elsewhere == pytest.approx(0, abs=1e-9), "where all that was busy was ours"


@pytest.mark.parametrize(
    ("changed", "note"),
    [
        ({}, None),
        ({"busy_s": 1014.0, "ours_s": 20.0}, "other processes used 10% of the cores while the clock ran"),  # 4 s of 10 s x 4
        ({"busy_s": 1011.0, "ours_s": 20.0}, None),  # 1 s of 40: always so
        ({"stolen_s": 7.0}, "the hypervisor gave 5% of the cores' time to other machines"),
        ({"temperature_c": 66.0}, "the machine warmed from 50 to 66 degrees: the end may be slower than the beginning"),
        ({"temperature_c": 64.0}, None),
        ({"frequency_mhz": 2400.0}, "the clock rate fell from 3000 to 2400 MHz"),
        ({"throttled": 8}, "the processor slowed itself down 5 times because of heat"),
        ({"power_saving": "the machine runs on battery"}, "the machine runs on battery"),
        ({"free_bytes": 1 << 20}, "memory is short: 1 MiB free"),
        ({"swapped_pages": 110}, "the machine swapped while the clock ran: 100 pages"),
    ],
)
def test_notes_say_what_makes_a_number_less_sure(changed: dict[str, Any], note: str | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(host, "usable_cores", lambda: 4)
    monkeypatch.setattr(host, "memory_bytes", lambda: 2**33)
    told = environment.around(BEFORE, {**BEFORE, "at_s": 110.0, "busy_s": 1010.0, "ours_s": 20.0, **changed}, 4)
    assert told["notes"] == ([note] if note else [])


def test_notes_on_the_beginning(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(host, "usable_cores", lambda: 4)
    before = {**BEFORE, "load_average": 2.5, "governor": "powersave"}
    notes = environment.around(before, {**before, "at_s": 110.0}, 8)["notes"]
    assert [note.split(":")[0] for note in notes] == [
        "the machine was busy", "the frequency governor is `powersave`", "8 threads on 4 usable cores",
    ]  # fmt: skip


def test_a_point_for_the_analysis_of_a_long_run():
    after = {**BEFORE, "at_s": 110.0, "busy_s": 1022.0, "ours_s": 20.0, "temperature_c": 70.0}
    assert environment.point(BEFORE, after) == {
        "at_s": 110.0, "temperature_c": 70.0, "frequency_mhz": 3000.0, "others": pytest.approx(12 / 40),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("supplies", "expected"),
    [
        ({"BAT0/type": "Battery", "BAT0/status": "Discharging", "AC/type": "Mains", "AC/online": "0"}, True),
        ({"BAT0/type": "Battery", "BAT0/status": "Charging", "AC/type": "Mains", "AC/online": "1"}, False),
        ({"BAT0/type": "Battery", "BAT0/status": "Discharging", "usb/type": "USB", "usb/online": "1"}, False),
        ({"mouse/type": "Battery", "mouse/status": "Discharging", "mouse/scope": "Device"}, False),
        ({}, False),
    ],
)
def test_battery_power_is_seen(supplies: dict[str, str], expected: bool, tmp_path: Path):
    write(tmp_path, {f"sys/class/power_supply/{name}": text + "\n" for name, text in supplies.items()})
    said = environment.now(root=tmp_path)["power_saving"]
    assert said == ("the machine runs on battery" if expected else None)


@pytest.mark.parametrize("module", ["bench/statistics", "bench/sustained", "bench/environment", "bench/energy", "host"])
def test_what_travels_is_python_3_8(module: str):
    """Syntax, and the names a 3.8 does not have; `import edgekd` itself is the kit's affair."""
    text = (Path(host.__file__).parent / f"{module}.py").read_text()
    tree = ast.parse(text, feature_version=(3, 8))
    assert any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body)
    later = {"removeprefix", "removesuffix", "zip_strict", "pairwise", "bit_count"}
    assert not {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & later
    imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    outside = {name.split(".")[0] for name in imported if name} - set(sys.stdlib_module_names)
    assert outside <= {"numpy"}
    assert not any(isinstance(node, ast.keyword) and node.arg == "strict" for node in ast.walk(tree))
    assert not any(
        isinstance(node, ast.AugAssign) and isinstance(node.op, ast.BitOr) and isinstance(node.value, ast.Dict)
        for node in ast.walk(tree)
    )
