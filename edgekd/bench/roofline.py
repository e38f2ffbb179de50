"""How much of what this machine can do a measurement reached, and whether arithmetic or memory sets the limit.

The roofline (Williams, Waterman, Patterson 2009): a call takes at least the time of its arithmetic at the machine's matrix rate,
and at least the time of its bytes at the machine's bandwidth; the longer of the two binds.

- Arithmetic: 2 x MACs of floating point at the higher of NumPy's BLAS and ONNX Runtime, those of 8-bit integers at ONNX Runtime's
  integer rate. Other operations are not in the limit: a good runtime does them beside.
- Memory: bytes that must move whatever the runtime does. Weights, as read, and the graph's inputs and outputs once; tensors
  between nodes only where a node's own inputs and outputs exceed the last-level cache, since a smaller one can be used before it is
  gone. Bandwidth is read from the measured curve at the size of what a call goes through (these, and the largest node's
  tensors): a model that fits into a cache is held to the cache's speed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from .. import host
from . import rates as machine
from .cost import Cost

TINY = 50e-6
"""Seconds of attainable time below which what a call costs by itself outweighs what it computes."""
NOISE = 1.2
"""A fraction above this is no noise: the count or a rate is wrong."""
CACHE = 8 << 20
"""Last-level cache that is assumed where the system does not tell."""


def rates_of(
    threads: int, cache: Path | None = None, measure: Callable[[int], dict[str, Any]] = machine.measure
) -> dict[str, Any]:
    """Return this machine's rates at so many threads: measured once (about 7 s), then read from the cache's file.

    cache: the file, `rates.json` in the user's cache folder when None; one that cannot be read or written is done without.
    Rates belong to a processor, its cores, and the versions of NumPy, its BLAS and ONNX Runtime. What was measured while others
    kept the machine busy is measured again once it is quiet.
    """
    file = cache or cache_file()
    key = _key(threads)
    found = _read(file).get(key)
    if _whole(found, threads) and (_busy(_load()) or not _busy(found["load_average"])):
        return found
    made = measure(threads)
    _write(file, {**_read(file), key: made})
    return made


def cache_file() -> Path:
    """Return where rates are kept: edgekd/rates.json in XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekd" / "rates.json"


def roofline(cost: Cost, rates: Mapping[str, Any], median_s: float, threads: int) -> dict[str, Any]:
    """Hold a measured median against what the machine could do; `said` is the result as a sentence.

    Returns flops, macs, int8_macs, bytes, intensity (flops / bytes), attainable_s, fraction (attainable_s / median_s), bound
    ("arithmetic" or "memory"), rate (flop/s, of floats and integers in this graph's mix), bandwidth (bytes/s), said.
    """
    float_rate = max(rates["float32_flops"], rates.get("runtime_float32_flops") or 0.0)
    int8_rate = rates.get("runtime_int8_ops") or float_rate
    arithmetic_s = 2 * (cost.macs - cost.int8_macs) / float_rate + 2 * cost.int8_macs / int8_rate
    level = rates.get("last_level_bytes") or CACHE
    spilled = sum(node.activation_bytes for node in cost.nodes if node.activation_bytes > level)
    moved = cost.weights_read_bytes + cost.io_bytes + spilled
    working_set = moved + max((node.activation_bytes for node in cost.nodes), default=0) * (not spilled)
    bandwidth = bandwidth_at(working_set, rates["bandwidth"])
    memory_s = moved / bandwidth
    attainable = max(arithmetic_s, memory_s)
    made: dict[str, Any] = {
        "flops": cost.flops,
        "macs": cost.macs,
        "int8_macs": cost.int8_macs,
        "bytes": moved,
        "intensity": cost.flops / moved if moved else None,
        "attainable_s": attainable,
        "fraction": attainable / median_s,
        "bound": "arithmetic" if arithmetic_s >= memory_s else "memory",
        "rate": 2 * cost.macs / arithmetic_s if arithmetic_s else float_rate,
        "bandwidth": bandwidth,
    }
    return {**made, "said": _said(made, median_s, threads, rates)}


def bandwidth_at(size: float, curve: Sequence[Sequence[float]]) -> float:
    """Return bytes a second for a working set of `size` bytes: between the measured points straight in both logarithms.

    A smaller working set is never slower: where it was measured to be, something disturbed it.
    """
    sizes, measured = zip(*sorted((point[0], point[1]) for point in curve), strict=True)
    speeds = np.maximum.accumulate(measured[::-1])[::-1]
    return math.exp(float(np.interp(math.log(max(size, 1)), np.log(sizes), np.log(speeds))))


def _said(made: Mapping[str, Any], median_s: float, threads: int, rates: Mapping[str, Any]) -> str:
    at = f"{threads} thread{'s' * (threads != 1)}"
    if made["fraction"] > NOISE:
        return (
            f"{made['fraction']:.1f} times what this machine was seen to do at {at}: the count of this graph's work or the machine's "
            "measured rates are wrong (rates measured on a busy machine are too low)"
        )
    if made["fraction"] > 1:
        return (
            f"reaches all that this machine was seen to do at {at}, and {100 * made['fraction'] - 100:.0f} % more: its rates were measured "
            "while it was busy, or vary by so much"
        )
    percent = 100 * made["fraction"]
    said = f"reaches {percent:.0f} %" if percent >= 1 else f"reaches {percent:.1g} %"
    said += f" of what this machine can do at {at}; "
    if made["bound"] == "arithmetic":
        kind = (
            ""
            if not made["int8_macs"]
            else " in 8-bit integers"
            if made["int8_macs"] == made["macs"]
            else " of floats and integers"
        )
        said += f"arithmetic binds ({_giga(2 * made['macs'] / median_s)} of {_giga(made['rate'])} GFLOP/s{kind})"
    else:
        said += f"memory binds ({_giga(made['bytes'] / median_s)} of {_giga(made['bandwidth'])} GB/s)"
    if made["attainable_s"] < TINY:
        said += f"; so small a model ({_micro(made['attainable_s'])} of work) mostly waits for the call itself"
    if _busy(rates.get("load_average")):
        said += "; the rates were measured on a busy machine, so this is too high"
    if made["int8_macs"] and not rates.get("runtime_int8_ops"):
        said += "; integers are held to the rate of floats, as no integer rate was measured"
    return said


def _micro(seconds: float) -> str:
    micro = seconds * 1e6
    return f"{micro:.0f} us" if micro >= 1 else f"{micro:.1g} us"


def _giga(value: float) -> str:
    giga = value / 1e9
    return f"{giga:.0f}" if giga >= 10 else f"{giga:.2g}"


def _key(threads: int) -> str:
    runtime = host.packages().get("onnxruntime")
    parts = (machine.FORMAT, host.cpu_model(), host.usable_cores(), threads, np.__version__, machine.blas(), runtime)
    return " | ".join(str(part) for part in parts)


def _whole(found: Any, threads: int) -> TypeGuard[dict[str, Any]]:
    """Whether what the cache holds can be used."""
    try:
        curve = [float(speed) > 0 and float(size) > 0 for size, speed in found["bandwidth"]]
        right = found["format"] == machine.FORMAT and found["threads"] == threads
        return right and bool(curve) and all(curve) and float(found["float32_flops"]) > 0 and "load_average" in found
    except (KeyError, TypeError, ValueError):
        return False


def _load() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _busy(load: float | None) -> bool:
    return load is not None and load > 0.5 * host.usable_cores()


def _read(file: Path) -> dict[str, Any]:
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _write(file: Path, value: Mapping[str, Any]) -> None:
    """Replace the file in one step; a folder that cannot be written to means measuring again next time."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=file.name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as opened:
                json.dump(value, opened, indent=1)
            os.replace(name, file)
        except BaseException:
            os.unlink(name)
            raise
