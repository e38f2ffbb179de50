"""The clock: time calls one by one, warm up, read this process' peak memory. numpy and the standard library alone."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

DEFINITIONS = {
    "load": "From the path of the file to a session that is ready. The runtime is imported and the file lies in the "
    "system's cache already.",
    "first call": "The first call after loading, inputs in memory: what the runtime puts off until it is needed is in it.",
    "warm latency": "One call after warm-up: from input arrays in memory to output arrays in memory. Its median, with a "
    "95 % interval; a percentile only where at least 5 calls lie beyond it. No call is dropped.",
    "throughput": "Samples a second over all warm calls, one call after the other: calls x batch / their summed time.",
    "peak memory": "The most memory that the process held at once (resident), and how much of it lies above the same "
    "process with the runtime imported and no model loaded.",
    "ratio": "Both files are timed in alternating blocks (A B B A), each in a process of its own. The ratio is the median "
    "over pairs of neighbouring blocks, with a 95 % interval over the pairs. Below 2 % it is not called a difference.",
}
"""What every number means, in print: the report, the README and --help say the same."""


def seconds_of(call: Callable[[], Any]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e9


def time_calls(call: Callable[[], Any], count: int) -> np.ndarray:
    """Call `count` times; return each call's nanoseconds, int64, shape (count,)."""
    now = time.perf_counter_ns
    samples = np.empty(count, dtype=np.int64)
    for i in range(count):
        start = now()
        call()
        samples[i] = now() - start
    return samples


def warm_up(call: Callable[[], Any], seconds: float, count: int) -> np.ndarray:
    """Call until both `seconds` and `count` are reached; return each call's nanoseconds, int64.

    A single call longer than four times `seconds` ends it whatever the count: a slow model is warm after few calls.
    """
    now = time.perf_counter_ns
    begin, samples = now(), []
    while True:
        start = now()
        call()
        end = now()
        samples.append(end - start)
        spent = (end - begin) / 1e9
        if (spent >= seconds and len(samples) >= count) or spent >= 4 * seconds:
            return np.array(samples, dtype=np.int64)


def peak_memory() -> int | None:
    """Return the most resident memory this process has held, in bytes; None where the system does not tell.

    On Linux not getrusage: its number survives exec, so a child would start at the size of its parent.
    """
    if sys.platform.startswith("linux"):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return None
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
