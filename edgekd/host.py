"""This machine, as far as it matters to a number: processor, instructions, cores, memory, versions. Needs no torch."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
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


@functools.cache
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


@functools.cache
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


@functools.cache
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
    quota = _first_line("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit() and int(quota[1]) > 0:
        count = min(count, max(1, -(-int(quota[0]) // int(quota[1]))))
    return count


@functools.cache
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


def temperature() -> float | None:
    """Return the hottest thermal zone in degrees Celsius, None where there is none."""
    zones = [_first_line(zone) for zone in Path("/sys/class/thermal").glob("thermal_zone*/temp")]
    degrees = [int(zone) / 1000 for zone in zones if zone.lstrip("-").isdigit()]
    return max(degrees) if degrees else None


def memory_bytes() -> int | None:
    """Return the installed memory in bytes."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


@functools.cache
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


@functools.cache
def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(errors="replace").partition("\n\n")[0].splitlines()
    except OSError:
        return []


def _first_line(path: str | Path) -> str:
    try:
        return Path(path).read_text(errors="replace").partition("\n")[0].strip()
    except OSError:
        return ""


def _command(*words: str) -> str:
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=2, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
