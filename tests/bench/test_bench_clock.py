"""The clock: what it times, what it costs, and that it travels."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from patience import patient

from edgekd.bench import clock


def test_calls_are_timed_one_by_one():
    naps = iter([0.0, 0.06, 0.0, 0.02])
    samples, marks = clock.time_calls(lambda: time.sleep(next(naps)), 4)
    assert samples.dtype == np.int64
    assert marks == {}
    assert samples[1] >= 60e6 > samples[3] >= 20e6 > samples[0]
    assert 0.01 <= clock.seconds_of(lambda: time.sleep(0.01)) < 1


def test_marks_are_told_by_name():
    told = iter([{"encode": 3, "tokens": [1, 2]}, {"encode": 4, "tokens": [5, 6]}])
    samples, marks = clock.time_calls(lambda: next(told), 2)
    assert samples.shape == (2,)
    assert {name: (array.dtype.name, array.tolist()) for name, array in marks.items()} == {
        "encode": ("int64", [3, 4]),
        "tokens": ("int64", [[1, 2], [5, 6]]),
    }
    empty, none = clock.time_calls(lambda: {"encode": 3}, 0)
    assert empty.shape == (0,)
    assert none == {}


@patient
def test_the_clock_itself_costs_less_than_two_percent_of_100_microseconds():
    """In each sample: two readings of the clock and a call of an empty function. benchmarks/clock_overhead has whole sessions."""
    clock.time_calls(lambda: None, 1000)
    assert np.median(clock.time_calls(lambda: None, 10_000)[0]) < 2000


@patient
def test_warm_up_lasts_for_both_seconds_and_count_but_not_forever():
    assert len(clock.warm_up(lambda: None, 0.0, 25)) >= 1
    assert len(clock.warm_up(lambda: time.sleep(0.001), 0.02, 15)) >= 15
    assert clock.warm_up(lambda: time.sleep(0.001), 0.05, 1).sum() / 1e9 == pytest.approx(0.05, abs=0.04)
    assert len(clock.warm_up(lambda: time.sleep(0.03), 0.005, 1000)) == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="VmHWM")
def test_peak_memory_is_this_process_own():
    """A child of a large parent must not start at the parent's size, and sees what it allocates itself."""
    ballast = np.ones(200 << 20, dtype=np.uint8)
    code = (
        "from edgekd.bench import clock; a = clock.peak_memory(); import numpy as np; x = np.ones(64 << 20, np.uint8); del x;"
        "print(a, clock.peak_memory())"
    )
    before, after = map(
        int, subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert before < 150 << 20 < len(ballast)
    assert 60 << 20 < after - before < 80 << 20


def test_what_is_shipped_to_devices_needs_numpy_alone():
    """These run where neither edgekd's dependencies nor anything but numpy is installed."""
    folder = Path(clock.__file__).parent
    code = f"""
import sys, types
for name, folder in (("shipped", {str(folder.parent)!r}), ("shipped.bench", {str(folder)!r})):
    package = types.ModuleType(name); package.__path__ = [folder]; sys.modules[name] = package
import shipped.bench.clock, shipped.bench.scenarios, shipped.bench.generation, shipped.bench.statistics
foreign = {{name.partition(".")[0] for name in sys.modules}} - set(sys.stdlib_module_names) - {{"shipped", "numpy", "__main__", "sitecustomize"}}
print(sorted(n for n in foreign if not n.startswith(("_", "__editable__"))))
"""
    told = subprocess.run([sys.executable, "-S", "-c", f"import sys; sys.path.append({np.__path__[0].rpartition('/')[0]!r})\n{code}"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert told.stdout.strip() == "[]"


def test_what_is_shipped_to_devices_is_python_3_8():
    """No newer syntax; what is called at run time is for a device with that Python to show."""
    for name in ("clock", "definitions", "scenarios", "generation", "decoder_inputs"):
        ast.parse((Path(clock.__file__).parent / f"{name}.py").read_text(), feature_version=(3, 8))


def test_the_readme_says_what_the_report_says():
    readme = (Path(clock.__file__).parent / "README.md").read_text()
    table = [line for line in readme.splitlines() if line.startswith("| ")]
    assert [f"| {name} | {meaning} |" for name, meaning in clock.DEFINITIONS.items()] == table[1 : 1 + len(clock.DEFINITIONS)]
