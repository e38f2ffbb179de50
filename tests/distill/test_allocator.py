"""Freed memory stays while a network is trained, and goes back afterwards: counted in the page faults and resident memory of a process.

Each in a process of its own: what glibc was told can't be wholly taken back.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"),
    reason="allocator.kept() tunes glibc, which this system does without",
)
PAGE = os.sysconf("SC_PAGE_SIZE")
BLOCKS, BLOCK = 8, 24 << 20
"""Parts of the heap, being below 32 MiB, and together more than what glibc left alone keeps at its end, 64 MiB."""
PAGES = BLOCKS * BLOCK // PAGE

PROLOGUE = f"""
import ctypes, json, resource, sys
import numpy as np
import psutil
sys.path.insert(0, {str(Path(__file__).parent)!r})
from edgekd.distill import allocator

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a page of 2 MiB would be one fault

def work():
    held = [np.full({BLOCK}, 1, np.uint8) for _ in range({BLOCKS})]

def faults(call=work):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    call()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return psutil.Process().memory_info().rss
"""


def run(script: str, **environment: str) -> dict[str, int]:
    """Run the script, return what it printed as JSON."""
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD"))
    }
    made = subprocess.run(
        [sys.executable, "-c", PROLOGUE + script], env={**clean, **environment}, capture_output=True, text=True, timeout=300
    )
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout)


def test_freed_memory_stays_inside_and_goes_back_afterwards() -> None:
    found = run("""
work(); work()
before = faults()
with allocator.kept():
    work(); work()
    inside = faults()
    full = resident()
    with allocator.kept():
        pass
    nested = faults()
after = resident()
work(); work()
print(json.dumps({"before": before, "inside": inside, "nested": nested, "given_back": full - after, "later": faults()}))
""")
    assert found["before"] > PAGES / 2  # else there is nothing to mend, and the rest says nothing
    assert found["inside"] < PAGES / 100
    assert found["nested"] < PAGES / 100
    assert found["given_back"] > 0.9 * BLOCKS * BLOCK
    assert found["later"] > PAGES / 2


@pytest.mark.parametrize(
    ("condition", "environment"),
    [
        ("on_cpu=False", {}),
        ("", {"MALLOC_TRIM_THRESHOLD_": str(1 << 20)}),
        ("", {"GLIBC_TUNABLES": f"glibc.malloc.trim_threshold={1 << 20}"}),
    ],
)
def test_glibc_is_left_alone_elsewhere_and_where_somebody_tuned_it(condition: str, environment: dict[str, str]) -> None:
    found = run(f"with allocator.kept({condition}):\n    work(); work()\n    print(json.dumps(faults()))", **environment)
    assert found > PAGES / 2  # type: ignore[operator]


def test_it_goes_back_when_training_fails() -> None:
    found = run("""
try:
    with allocator.kept():
        work()
        full = resident()
        raise KeyboardInterrupt
except KeyboardInterrupt:
    pass
print(json.dumps({"given_back": full - resident()}))
""")
    assert found["given_back"] > 0.9 * BLOCKS * BLOCK


@pytest.mark.parametrize("what", ["fit", "cache"])
def test_a_training_keeps_it(what: str) -> None:
    """A network whose forward pass takes and frees what work() does: no faults but in its first steps."""
    found = run(f"""
import tempfile, types
from pathlib import Path
import tiny
from torch import nn
from edgekd import recipe
from edgekd.distill import teacher_cache
from edgekd.distill.trainer import fit

counted = []

class Hungry(nn.Module):
    def forward(self, x):
        counted.append(faults())
        return x

def hungry(role):
    return tiny.loaded(nn.Sequential(Hungry(), tiny.network()), role)

folder = Path(tempfile.mkdtemp())
if {what!r} == "fit":
    fit(hungry("student"), tiny.splits(), tiny.TinyTask(), recipe.Training(epochs=1, batch_size=16), seed=0, folder=folder)
else:
    settings = recipe.Distill(augment={{"flip": True}}, views=4)
    plan = types.SimpleNamespace(recipe=types.SimpleNamespace(distill=settings, seed=0))
    teacher_cache.fill(plan, types.SimpleNamespace(splits=tiny.splits(), teacher=hungry("teacher"), task=tiny.TinyTask()), folder / "cache")
print(json.dumps({{"calls": len(counted), "last": max(counted[-4:])}}))
""")
    assert found["calls"] >= 8
    assert found["last"] < PAGES / 100
