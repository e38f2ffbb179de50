"""The clock: time calls one by one, warm up, read this process' peak memory. numpy and the standard library alone."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .definitions import DEFINITIONS as DEFINITIONS


def seconds_of(call: Callable[[], Any]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e9


def time_calls(call: Callable[[], Any], count: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Call `count` times; return each call's nanoseconds, int64 (count,), and its marks: name -> int64 (count,) or (count, k).

    A call returns its marks, the nanoseconds of its named parts, {name: one or k of them}, the same names and k every time; or
    None, and there are none. What two readings of the clock cost, some 0.1 us, is in each call's time
    (benchmarks/clock_overhead); keeping the numbers is not.
    """
    now = time.perf_counter_ns
    samples: list[int] = []
    told: list[dict[str, Any]] = []
    keep, tell = samples.append, told.append
    for _ in range(count):
        start = now()
        marks = call()
        end = now()
        keep(end - start)
        if marks is not None:
            tell(marks)
    names = told[0] if told else ()
    return np.array(samples, np.int64), {name: np.array([marks[name] for marks in told], np.int64) for name in names}


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
        return _peak_working_set()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def _peak_working_set() -> int | None:
    """Return PeakWorkingSetSize of GetProcessMemoryInfo (psapi.h), Windows' name for the same; None where it refuses."""
    import ctypes
    from ctypes import wintypes

    class Counters(ctypes.Structure):
        _fields_ = [
            ("cb", wintypes.DWORD),
            ("PageFaultCount", wintypes.DWORD),
            ("PeakWorkingSetSize", ctypes.c_size_t),
            ("WorkingSetSize", ctypes.c_size_t),
            ("QuotaPeakPagedPoolUsage", ctypes.c_size_t),
            ("QuotaPagedPoolUsage", ctypes.c_size_t),
            ("QuotaPeakNonPagedPoolUsage", ctypes.c_size_t),
            ("QuotaNonPagedPoolUsage", ctypes.c_size_t),
            ("PagefileUsage", ctypes.c_size_t),
            ("PeakPagefileUsage", ctypes.c_size_t),
        ]

    counters = Counters(cb=ctypes.sizeof(Counters))
    kernel: Any = ctypes.windll.kernel32  # type: ignore[attr-defined,unused-ignore]
    kernel.GetCurrentProcess.restype = wintypes.HANDLE
    ask = kernel.K32GetProcessMemoryInfo
    ask.argtypes = [wintypes.HANDLE, ctypes.POINTER(Counters), wintypes.DWORD]
    return counters.PeakWorkingSetSize if ask(kernel.GetCurrentProcess(), ctypes.byref(counters), counters.cb) else None
