"""What surrounded a measurement and can change it: load by others, clock rate, heat, power, memory.

The standard library alone, Python 3.8 on: it travels. `root` is where /proc and /sys lie.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .. import host

HOT = 15.0
"""A machine that warms by so many degrees while it is timed may be throttling."""

BUSY, STOLEN, SLOWER, SHORT = 0.05, 0.01, 0.1, 0.05
"""What is noted: share of the cores that others used, share of time the hypervisor took, fall of the clock rate, free memory."""

ROOT = Path("/")


def describe(root: Path = ROOT) -> dict[str, Any]:
    """Describe the device: `host.describe` and what else decides its speed, None where it cannot be told.

    affinity (logical processors), frequency_mhz {now, min, max}, boost, smt, quota_cores (a container's), swap_bytes,
    virtual_machine, clocksource.
    """
    cpu = root / "sys/devices/system/cpu"
    turbo = {"0": True, "1": False}.get(host._first_line(cpu / "intel_pstate/no_turbo"))
    boost = {"0": False, "1": True}.get(host._first_line(cpu / "cpufreq/boost"))
    flags = host.cpu_flags()
    return {
        **host.describe(),
        "affinity": host.affinity(),
        "frequency_mhz": host.frequency_mhz(root),
        "boost": boost if turbo is None else turbo,
        "smt": {"0": False, "1": True}.get(host._first_line(cpu / "smt/active")),
        "quota_cores": host.quota_cores(),
        "swap_bytes": _memory(root).get("SwapTotal"),
        "virtual_machine": "hypervisor" in flags or (root / "sys/hypervisor/type").exists() if flags else None,
        "clocksource": host._first_line(root / "sys/devices/system/clocksource/clocksource0/current_clocksource") or None,
    }


def now(pids: Iterable[int] | None = None, root: Path = ROOT) -> dict[str, Any]:
    """Return what changes from minute to minute; takes milliseconds. What cannot be told is None.

    pids: the processes that measure, whose children count as theirs; this one when absent. at_s (perf_counter), load_average
    (1 minute), temperature_c, governor, frequency_mhz (mean now), free_bytes, swapped_pages, throttled (times since the system
    started), power_saving (why, or None), and processor seconds since the system started: busy_s, stolen_s, ours_s, on `processors`.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    throttled = [
        int(line)
        for line in map(host._first_line, root.glob("sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count"))
        if line.isdigit()
    ]
    swapped = re.findall(r"^pswp(?:in|out) (\d+)", host._text(root / "proc/vmstat"), re.MULTILINE)
    return {
        "at_s": time.perf_counter(),
        "load_average": load,
        "temperature_c": host.temperature(root),
        "governor": host._first_line(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None,
        "frequency_mhz": host.frequency_mhz(root)["now"],
        "free_bytes": _memory(root).get("MemAvailable"),
        "swapped_pages": sum(map(int, swapped)) if swapped else None,
        "throttled": sum(throttled) if throttled else None,
        "power_saving": _power_saving(root),
        **_processor_time(root, [os.getpid()] if pids is None else list(pids)),
    }


def others(before: Mapping[str, Any], after: Mapping[str, Any]) -> float | None:
    """Return the share of the machine's cores, 0 to 1, that other processes used between two `now`; None where not known."""
    if any(moment.get(key) is None for moment in (before, after) for key in ("busy_s", "ours_s", "processors")):
        return None
    spent = (after["busy_s"] - before["busy_s"]) - (after["ours_s"] - before["ours_s"])
    return min(max(spent / _processor_seconds(before, after), 0.0), 1.0)


def point(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float | None]:
    """Return one point for `sustained.analyse`: at_s, temperature_c, frequency_mhz, and others between two `now`."""
    told = {key: after[key] for key in ("at_s", "temperature_c", "frequency_mhz")}
    return {**told, "others": others(before, after)}


def around(before: Mapping[str, Any], after: Mapping[str, Any], threads: int) -> dict[str, Any]:
    """Put together what was so before and after a measurement (two `now`), with notes on what makes it less sure."""
    notes = []
    cores, load = host.usable_cores(), before["load_average"]
    by_others, stolen = others(before, after), None
    if load is not None and load > 0.5 * cores:
        notes.append(f"the machine was busy: load average {load:.1f} on {cores} cores before the clock started")
    if by_others is not None and by_others > BUSY:
        notes.append(f"other processes used {by_others:.0%} of the cores while the clock ran")
    if before.get("stolen_s") is not None and after.get("stolen_s") is not None:
        stolen = max(after["stolen_s"] - before["stolen_s"], 0.0) / _processor_seconds(before, after)
        if stolen > STOLEN:
            notes.append(f"the hypervisor gave {stolen:.0%} of the cores' time to other machines")
    if before["governor"] == "powersave":
        notes.append("the frequency governor is `powersave`: the clock rate follows the load")
    if threads > cores:
        notes.append(f"{threads} threads on {cores} usable cores")
    warm, hot = before["temperature_c"], after["temperature_c"]
    if warm is not None and hot is not None and hot - warm > HOT:
        notes.append(f"the machine warmed from {warm:.0f} to {hot:.0f} degrees: the end may be slower than the beginning")
    clock = [before.get("frequency_mhz"), after.get("frequency_mhz")]
    # a clock rate read while nothing ran says little: only a rate after the work that lies below the one before it counts
    if clock[0] and clock[1] and clock[1] < (1 - SLOWER) * clock[0]:
        notes.append(f"the clock rate fell from {clock[0]:.0f} to {clock[1]:.0f} MHz")
    if (times := _grew(before, after, "throttled")) > 0:
        notes.append(f"the processor slowed itself down {times:.0f} times because of heat")
    if after.get("power_saving"):
        notes.append(after["power_saving"])
    free, memory = after.get("free_bytes"), host.memory_bytes()
    if free is not None and memory and free < SHORT * memory:
        notes.append(f"memory is short: {free / 2**20:.0f} MiB free")
    if (pages := _grew(before, after, "swapped_pages")) > 0:
        notes.append(f"the machine swapped while the clock ran: {pages:.0f} pages")
    return {
        "cpu": host.cpu_model(),
        "vnni": host.vnni(),
        "load_average": [load, after["load_average"]],
        "temperature_c": [warm, hot],
        "frequency_mhz": clock,
        "others": by_others,
        "stolen": stolen,
        "free_bytes": free,
        "governor": before["governor"],
        "notes": notes,
    }


def _grew(before: Mapping[str, Any], after: Mapping[str, Any], key: str) -> float:
    return 0.0 if before.get(key) is None or after.get(key) is None else after[key] - before[key]


def _processor_seconds(before: Mapping[str, Any], after: Mapping[str, Any]) -> float:
    return max((after["at_s"] - before["at_s"]) * after["processors"], 1e-3)


def _memory(root: Path) -> dict[str, int]:
    """Return /proc/meminfo in bytes."""
    found = re.findall(r"^(\w+):\s+(\d+) kB", host._text(root / "proc/meminfo"), re.MULTILINE)
    return {name: 1024 * int(size) for name, size in found}


def _processor_time(root: Path, pids: list[int]) -> dict[str, Any]:
    """Return busy_s, stolen_s (all processors) and ours_s (`pids`, what they started, and what of that has ended)."""
    lines = host._text(root / "proc/stat").splitlines()
    if not lines or not lines[0].startswith("cpu "):
        return {"busy_s": None, "stolen_s": None, "ours_s": None, "processors": os.cpu_count()}
    tick = os.sysconf("SC_CLK_TCK")
    user, nice, system, _, _, irq, soft, *steal = [int(word) / tick for word in lines[0].split()[1:]]
    parents, spent = {}, {}
    for file in root.glob("proc/[0-9]*/stat"):
        words = host._text(file).rpartition(")")[2].split()  # what lies before is the name, which may hold anything
        if len(words) > 14:  # state, parent, ..., then utime, stime, cutime, cstime: fields 14 to 17 of proc(5)
            parents[int(file.parent.name)] = int(words[1])
            spent[int(file.parent.name)] = sum(map(int, words[11:15])) / tick
    ours, added = set(pids), True
    while added:
        grown = ours | {pid for pid, parent in parents.items() if parent in ours}
        added, ours = len(grown) > len(ours), grown
    return {
        "busy_s": user + nice + system + irq + soft,
        "stolen_s": steal[0] if steal else None,
        "ours_s": sum(spent.get(pid, 0.0) for pid in ours),
        "processors": sum(1 for line in lines if re.match(r"cpu\d", line)),
    }


def _power_saving(root: Path) -> str | None:
    """Say why the machine saves power: it runs on battery, or macOS' low power mode is on."""
    if root == ROOT and sys.platform == "darwin":
        if re.search(r"lowpowermode\s+1", host._command("pmset", "-g")):
            return "macOS is in low power mode"
        return "the machine runs on battery" if "Battery Power" in host._command("pmset", "-g", "batt") else None
    supplies = [(host._first_line(s / "type"), s) for s in root.glob("sys/class/power_supply/*")]
    plugged = any(kind != "Battery" and host._first_line(s / "online") == "1" for kind, s in supplies)
    discharging = any(
        kind == "Battery" and host._first_line(s / "scope") != "Device" and host._first_line(s / "status") == "Discharging"
        for kind, s in supplies  # a mouse's battery has the scope `Device`
    )
    return "the machine runs on battery" if discharging and not plugged else None
