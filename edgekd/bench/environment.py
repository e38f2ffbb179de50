"""What surrounded a measurement and can change it: load, governor, temperature, versions."""

from __future__ import annotations

import os
from typing import Any

from .. import host

HOT = 15.0
"""A machine that warms by so many degrees while it is timed may be throttling."""


def now() -> dict[str, Any]:
    """Return what changes from minute to minute: load average (1 minute), temperature in degrees Celsius, governor."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"load_average": load, "temperature_c": host.temperature(), "governor": host.governor()}


def around(before: dict[str, Any], after: dict[str, Any], threads: int) -> dict[str, Any]:
    """Put together what was so before and after a measurement, with notes on what makes it less sure."""
    notes = []
    cores, load = host.usable_cores(), before["load_average"]
    if load is not None and load > 0.5 * cores:
        notes.append(f"the machine was busy: load average {load:.1f} on {cores} cores before the clock started")
    if before["governor"] == "powersave":
        notes.append("the frequency governor is `powersave`: the clock rate follows the load")
    if threads > cores:
        notes.append(f"{threads} threads on {cores} usable cores")
    warm, hot = before["temperature_c"], after["temperature_c"]
    if warm is not None and hot is not None and hot - warm > HOT:
        notes.append(f"the machine warmed from {warm:.0f} to {hot:.0f} degrees: the end may be slower than the beginning")
    return {
        "cpu": host.cpu_model(),
        "vnni": host.vnni(),
        "load_average": [load, after["load_average"]],
        "temperature_c": [warm, hot],
        "governor": before["governor"],
        "notes": notes,
    }


def describe() -> dict[str, Any]:
    """Describe this machine: host.describe()."""
    return host.describe()
