"""The description of this machine, and of machines that are not here."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgekd import host


def _forget() -> None:
    for function in vars(host).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Return pretend(cpuinfo): be a machine with this /proc/cpuinfo."""

    def pretend(cpuinfo: str) -> None:
        _forget()
        lines = cpuinfo.splitlines()
        monkeypatch.setattr(host, "_cpuinfo", lambda: lines)
        monkeypatch.setattr(host.platform, "system", lambda: "Linux")

    yield pretend
    monkeypatch.undo()
    _forget()


def test_the_description_is_plain_json_and_quick():
    _forget()
    start = time.perf_counter()
    told = host.describe()
    assert time.perf_counter() - start < 0.5  # milliseconds on a quiet machine
    assert json.loads(json.dumps(told)) == told
    assert told["packages"]["numpy"]
    assert 1 <= told["physical_cores"] <= told["cores"]
    assert told["cpu"]


def test_it_imports_neither_torch_nor_a_runtime():
    code = "import sys; from edgekd import host; host.describe(); print([m for m in ('torch', 'numpy', 'onnxruntime') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("model name\t: Old Xeon\nflags\t\t: fpu avx avx2 fma", False),
        ("model name\t: Ice Lake\nflags\t\t: avx2 avx512f avx512_vnni", True),
        ("model name\t: Alder Lake\nflags\t\t: avx2 avx_vnni", True),
        ("processor\t: 0\nFeatures\t: fp asimd asimddp", True),
        ("processor\t: 0\nFeatures\t: fp asimd", False),
        ("", None),
    ],
)
def test_vnni_is_read_from_the_flags(machine, cpuinfo: str, expected: bool | None):
    machine(cpuinfo)
    assert host.vnni() is expected


def test_the_processor_is_named(machine):
    machine('processor\t: 0\nmodel name\t: AMD Ryzen 7: the "best"\n')
    assert host.cpu_model() == 'AMD Ryzen 7: the "best"'


def test_a_quota_of_a_container_limits_the_cores(monkeypatch: pytest.MonkeyPatch):
    read = host._first_line
    monkeypatch.setattr(host.os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.setattr(host, "_first_line", lambda path: "150000 100000" if Path(path).name == "cpu.max" else read(path))
    assert host.usable_cores() == 2  # one and a half
    monkeypatch.setattr(host, "_first_line", lambda path: "max 100000" if Path(path).name == "cpu.max" else "")
    assert host.usable_cores() == 64


def test_two_threads_of_a_core_count_once(monkeypatch: pytest.MonkeyPatch):
    _forget()
    monkeypatch.setattr(host.platform, "system", lambda: "Linux")
    monkeypatch.setattr(host.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    pairs = {"cpu0": "0,2", "cpu1": "1,3", "cpu2": "0,2", "cpu3": "1,3"}
    monkeypatch.setattr(host, "_first_line", lambda path: pairs.get(Path(path).parent.parent.name, ""))
    assert host.physical_cores() == 2
    _forget()


def test_the_older_kind_of_quota_limits_too(monkeypatch: pytest.MonkeyPatch):
    files = {"cpu.cfs_quota_us": "250000", "cpu.cfs_period_us": "100000"}
    monkeypatch.setattr(host, "_first_line", lambda path: files.get(Path(path).name, ""))
    assert host.quota_cores() == 2.5
    files["cpu.cfs_quota_us"] = "-1"
    assert host.quota_cores() is None


def test_the_clock_rate_is_read_from_the_governor_else_from_cpuinfo(tmp_path: Path):
    assert host.frequency_mhz(tmp_path) == {"now": None, "min": None, "max": None}
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\ncpu MHz\t\t: 2400.5\n\nprocessor\t: 1\ncpu MHz\t\t: 2600.5\n")
    assert host.frequency_mhz(tmp_path) == {"now": 2500.5, "min": None, "max": None}
    for core, values in {"cpu0": ("1000000", "600000", "1800000"), "cpu1": ("2000000", "800000", "2400000")}.items():
        folder = tmp_path / "sys/devices/system/cpu" / core / "cpufreq"
        folder.mkdir(parents=True)
        for name, value in zip(("scaling_cur_freq", "cpuinfo_min_freq", "cpuinfo_max_freq"), values, strict=True):
            (folder / name).write_text(value + "\n")
    assert host.frequency_mhz(tmp_path) == {"now": 1500.0, "min": 800.0, "max": 2400.0}


def test_the_hottest_sensor_of_the_processor_counts(tmp_path: Path):
    assert host.temperature(tmp_path) is None
    sensors = {"thermal/thermal_zone0/temp": "41000", "hwmon/hwmon0/name": "coretemp", "hwmon/hwmon0/temp2_input": "72000",
               "hwmon/hwmon1/name": "nvme", "hwmon/hwmon1/temp1_input": "99000"}  # fmt: skip
    for name, value in sensors.items():
        (tmp_path / "sys/class" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys/class" / name).write_text(value + "\n")
    assert host.temperature(tmp_path) == 72.0


def test_affinity_is_what_the_system_says(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(host.os, "sched_getaffinity", lambda pid: {3, 1}, raising=False)
    assert host.affinity() == [1, 3]
    monkeypatch.delattr(host.os, "sched_getaffinity")
    assert host.affinity() is None
