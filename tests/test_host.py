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
