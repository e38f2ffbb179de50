"""The clock and the inputs of a call."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edgekd.bench import clock, scenarios


def test_calls_are_timed_one_by_one():
    naps = iter([0.0, 0.02, 0.0, 0.01])
    samples = clock.time_calls(lambda: time.sleep(next(naps)), 4)
    assert samples.dtype == np.int64
    assert samples[1] >= 20e6 > samples[3] >= 10e6 > samples[0]
    assert 0.01 <= clock.seconds_of(lambda: time.sleep(0.01)) < 1


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


def test_batches_are_cut_and_repeated():
    pictures = {"image": np.arange(3, dtype=np.uint8).reshape(3, 1), "scale": np.array(2.0)}
    assert scenarios.batch_of(pictures, 8)["image"].ravel().tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert scenarios.batch_of(pictures, 2)["image"].ravel().tolist() == [0, 1]
    assert scenarios.batch_of(pictures, 2)["scale"] == 2.0
    with pytest.raises(ValueError, match="`image` has no samples"):
        scenarios.batch_of({"image": np.zeros((0, 4))}, 1)


def test_random_inputs_follow_the_declared_types_and_shapes():
    declared = [
        {"name": "image", "dtype": "uint8", "shape": ["batch", 8, 8, 3]},
        {"name": "ids", "dtype": "int64", "shape": ["batch", "sequence"]},
        {"name": "x", "dtype": "float32", "shape": [1, 4]},
        {"name": "mask", "dtype": "bool", "shape": [0, 2]},
    ]
    made = scenarios.random_inputs(declared, 5, seed=1)
    assert {name: (v.dtype.name, v.shape) for name, v in made.items()} == {
        "image": ("uint8", (5, 8, 8, 3)),
        "ids": ("int64", (5, scenarios.UNKNOWN_AXIS)),
        "x": ("float32", (1, 4)),
        "mask": ("bool", (5, 2)),
    }
    assert made["image"].max() > 200
    assert set(np.unique(made["ids"])) <= {0, 1}
    again = scenarios.random_inputs(declared, 5, seed=1)
    assert all(np.array_equal(made[name], again[name]) for name in made)
    assert not np.array_equal(made["image"], scenarios.random_inputs(declared, 5, seed=2)["image"])


def test_what_is_shipped_to_devices_needs_numpy_alone():
    """clock, scenarios and statistics must run where neither edgekd nor anything but numpy is installed."""
    folder = clock.__file__.rpartition("/")[0]
    code = f"""
import sys, types
package = types.ModuleType("shipped"); package.__path__ = [{folder!r}]; sys.modules["shipped"] = package
import shipped.clock, shipped.scenarios, shipped.statistics
import numpy
foreign = {{name.partition(".")[0] for name in sys.modules}} - set(sys.stdlib_module_names) - {{"shipped", "numpy", "__main__", "sitecustomize"}}
print(sorted(n for n in foreign if not n.startswith(("_", "__editable__"))))
"""
    told = subprocess.run([sys.executable, "-S", "-c", f"import sys; sys.path.append({np.__path__[0].rpartition('/')[0]!r})\n{code}"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert told.stdout.strip() == "[]"


def test_the_readme_says_what_the_report_says():
    readme = (Path(clock.__file__).parent / "README.md").read_text()
    for name, meaning in clock.DEFINITIONS.items():
        assert f"| {name} | {meaning} |" in readme
