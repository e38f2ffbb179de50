"""This machine, as far as it matters to a number: processor, instructions, cores, memory, versions.

The standard library alone, Python 3.8 on: it travels to devices with the clock.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import re
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

PACKAGES = (
    "edgekd", "torch", "accelerate", "datasets", "timm", "transformers", "safetensors",
    "onnx", "onnxscript", "onnxruntime", "nncf", "openvino", "numpy", "pillow", "pydantic",
)  # fmt: skip
"""Packages whose version can change a model's numbers or speed."""

FLAGS = (
    "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx_vnni", "avx_vnni_int8",
    "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "neon", "asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
"""Instruction sets that a runtime chooses kernels by, in the kernel's (/proc/cpuinfo) spelling."""


@lru_cache(maxsize=None)  # noqa: UP033 (functools.cache is not in Python 3.8)
def describe() -> dict[str, Any]:
    """Describe this machine in plain JSON values; takes milliseconds. What cannot be told here is None.

    cpu, architecture, flags (those of FLAGS that it has), vnni (int8 sums in 32 bits: None where the flags are not known),
    cores (usable by this process), physical_cores, governor, memory_bytes, os, python, packages (name -> version).
    """
    return {
        "cpu": cpu_model(),
        "architecture": platform.machine(),
        "flags": sorted(set(FLAGS) & cpu_flags()),
        "vnni": vnni(),
        "cores": usable_cores(),
        "physical_cores": physical_cores(),
        "governor": governor(),
        "memory_bytes": memory_bytes(),
        "os": _os(),
        "python": platform.python_version(),
        "packages": packages(),
    }


@lru_cache(maxsize=None)  # noqa: UP033 (functools.cache is not in Python 3.8)
def cpu_flags() -> frozenset[str]:
    """Return the processor's features in Linux' spelling; empty where the system does not tell."""
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        told = _command("sysctl", "hw.optional.arm")  # "hw.optional.arm.FEAT_DotProd: 1"
        spelling = {"FEAT_DotProd": "asimddp", "FEAT_FP16": "asimdhp", "FEAT_I8MM": "i8mm", "FEAT_BF16": "bf16"}
        found = {spelling[name] for name in spelling if f"{name}: 1" in told}
        return frozenset(found | {"asimd"})
    for line in _cpuinfo():
        key, _, value = line.partition(":")
        if key.strip().lower() in {"flags", "features"}:
            return frozenset(value.split())
    return frozenset()


def vnni() -> bool | None:
    """Say whether int8 products are summed in 32 bits here. Without it x86 sums pairs in 16 bits, slower, and they can saturate.

    ARM sums in 32 bits always: there this says whether the fast dot product instructions exist. None: not known.
    """
    flags = cpu_flags()
    if not flags:
        return None
    return bool(flags & {"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8", "asimddp", "i8mm"})


@lru_cache(maxsize=None)  # noqa: UP033 (functools.cache is not in Python 3.8)
def cpu_model() -> str:
    """Return the processor's marketing name, or at least its architecture."""
    if platform.system() == "Darwin":
        name = _command("sysctl", "-n", "machdep.cpu.brand_string").strip()
    else:
        name = next(
            (v.strip() for k, _, v in (line.partition(":") for line in _cpuinfo()) if k.strip() in {"model name", "Model"}), ""
        )
    return name or platform.processor() or platform.machine() or "unknown"


def usable_cores() -> int:
    """Count the logical processors this process may use: affinity and a container's quota considered."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = quota_cores()
    return count if quota is None else min(count, max(1, math.ceil(quota)))


def quota_cores() -> float | None:
    """Return how many cores' time a container may use (2.5: two and a half), None where there is no limit."""
    both = _first_line("/sys/fs/cgroup/cpu.max").split()  # version 2 of control groups
    if not both:
        both = [_first_line(f"/sys/fs/cgroup/cpu/cpu.cfs_{name}_us") for name in ("quota", "period")]
    if len(both) == 2 and all(part.isdigit() and int(part) > 0 for part in both):
        return int(both[0]) / int(both[1])
    return None


def affinity() -> list[int] | None:
    """Return the logical processors this process may run on, None where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


@lru_cache(maxsize=None)  # noqa: UP033 (functools.cache is not in Python 3.8)
def physical_cores() -> int:
    """Count the cores that do not share their arithmetic with another (no hyper-threads), never more than `usable_cores`."""
    if platform.system() == "Darwin":
        told = _command("sysctl", "-n", "hw.physicalcpu").strip()
        return min(int(told), usable_cores()) if told.isdigit() else usable_cores()
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    folder = Path("/sys/devices/system/cpu")
    siblings = {_first_line(folder / f"cpu{n}/topology/thread_siblings_list") or str(n) for n in mine}
    return max(1, min(len(siblings), usable_cores()))


def governor() -> str | None:
    """Return the frequency governor of the first core ("performance", "powersave"), None where there is none."""
    return _first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None


def frequency_mhz(root: Path = Path("/")) -> dict[str, float | None]:
    """Return the clock rate: now (mean over cores), min and max (of the fastest core), in MHz; None each where not told."""
    folders = sorted(root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq"))
    told = {}
    for key, name in (("now", "scaling_cur_freq"), ("min", "cpuinfo_min_freq"), ("max", "cpuinfo_max_freq")):
        values = [int(line) / 1000 for line in (_first_line(folder / name) for folder in folders) if line.isdigit()]
        told[key] = None if not values else sum(values) / len(values) if key == "now" else max(values)
    if told["now"] is None:  # a virtual machine, often: what the processor said when it was asked last
        values = [float(m) for m in re.findall(r"^cpu MHz\s*: ([\d.]+)", _text(root / "proc/cpuinfo"), re.MULTILINE)]
        told["now"] = sum(values) / len(values) if values else None
    return told


def temperature(root: Path = Path("/")) -> float | None:
    """Return the hottest thermal zone or processor sensor in degrees Celsius, None where there is none."""
    zones = list(root.glob("sys/class/thermal/thermal_zone*/temp"))
    for sensor in root.glob("sys/class/hwmon/hwmon*"):
        if _first_line(sensor / "name") in {"coretemp", "k10temp", "zenpower", "cpu_thermal"}:
            zones += sensor.glob("temp*_input")
    degrees = [int(line) / 1000 for line in map(_first_line, zones) if line.lstrip("-").isdigit()]
    return max(degrees) if degrees else None


def memory_bytes() -> int | None:
    """Return the installed memory in bytes."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


@lru_cache(maxsize=None)  # noqa: UP033 (functools.cache is not in Python 3.8)
def packages() -> dict[str, str]:
    """Return the installed versions of PACKAGES by name, without importing any."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _os() -> str:
    if platform.system() == "Linux":
        try:
            return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, Linux {platform.release()}"
        except (OSError, KeyError, AttributeError):
            pass
    if platform.system() == "Darwin":
        return f"macOS {platform.mac_ver()[0]}"
    return f"{platform.system()} {platform.release()}"


@lru_cache(maxsize=None)  # noqa: UP033 (functools.cache is not in Python 3.8)
def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(errors="replace").partition("\n\n")[0].splitlines()
    except OSError:
        return []


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _first_line(path: str | Path) -> str:
    return _text(path).partition("\n")[0].strip()


def _command(*words: str) -> str:
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=2, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
