"""Bench folders that never were: a record of `edgekd bench` built by hand, with raw samples where asked."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.bench import statistics

SECONDS = {"fp32": 412e-6, "int8": 247e-6, "w8": 561e-6}
SIZES = {"fp32": 182_344, "int8": 61_207, "w8": 58_950}
HOST = {
    "cpu": "AMD Ryzen 7 5800U", "architecture": "x86_64", "flags": ["avx", "avx2", "fma"], "vnni": False, "cores": 16, "physical_cores": 8,
    "governor": "schedutil", "memory_bytes": 33_285_996_544, "os": "Debian GNU/Linux 12", "python": "3.11.2", "packages": {"numpy": "2.3.5"},
}  # fmt: skip
RATES = {
    "format": 1, "threads": 4, "float32_flops": 40e9, "runtime_float32_flops": 50e9, "runtime_int8_ops": 100e9,
    "bandwidth": [[32768, 200e9], [268435456, 10e9]], "last_level_bytes": 16777216,
}  # fmt: skip


def samples(label: str, seconds: float, blocks: int = 20, calls: int = 150, slow: bool = True) -> np.ndarray:
    """Return (blocks, calls) of seconds around `seconds`, blocks that resemble each other between things, some calls slow."""
    random = np.random.default_rng(sum(map(ord, label)))
    block = np.exp(np.random.default_rng(1).normal(0, 0.03, (blocks, 1)) + random.normal(0, 0.006, (blocks, 1)))
    found = seconds * block * np.exp(np.abs(random.normal(0, 0.03, (blocks, calls))))
    far = random.random(found.shape) < 0.004
    return np.where(far, found * random.uniform(2, 30, found.shape), found) if slow else found


def summary(median: float, count: int = 3000) -> dict[str, Any]:
    """Return a summary with round numbers."""
    return {
        "count": count, "median_s": median, "median_low_s": 0.99 * median, "median_high_s": 1.01 * median, "mean_s": 1.05 * median,
        "min_s": 0.9 * median, "max_s": 9 * median, "p90_s": 1.2 * median, "p90_low_s": 1.1 * median, "p90_high_s": 1.3 * median,
        "p99_s": 3 * median, "p99_low_s": 2.5 * median, "p99_high_s": 3.5 * median,
    }  # fmt: skip


def measurement(label: str, device: str = "local", **other: Any) -> dict[str, Any]:
    """Return one measurement with every key; other: what differs."""
    median = SECONDS.get(label.rpartition("/")[2], 1e-3) * {"local": 1.0}.get(device, 3.0)
    return {
        "artifact": label, "device": device, "scenario": "single-stream", "batch": 1, "threads": 4, "streams": None,
        "load_s": 0.0121, "first_call_s": 0.00152, "warm_up": {"count": 480, "seconds": 0.2}, "warm": summary(median),
        "throughput_per_s": 1 / (1.05 * median), "peak_memory_bytes": 61_300_000, "peak_memory_above_runtime_bytes": 6_900_000,
        "samples": None, "times": None, "blocks": {"count": 20, "calls": 150, "settle": 15}, "stopped_by": "min_seconds and min_count",
        "providers": {"CPUExecutionProvider": 14}, "parts": None, "generation": None, "drift": None,
        "outliers": {"count": 12, "share": 0.004, "slowest_s": 0.0061}, "sustained": None,
        "energy": {"joules_per_call": None, "watts": None, "idle_watts": None, "source": None, "why": "not available here: no RAPL counter may be read"},
        "roofline": None,
        "environment": {
            "cpu": "AMD Ryzen 7 5800U", "vnni": False, "load_average": [0.31, 0.92], "temperature_c": [48.0, 55.0], "governor": "schedutil",
            "notes": [], "runtime": {"onnxruntime": "1.23.2", "numpy": "2.3.5"}, "artifact_sha256": "ab" * 32,
            "artifact_bytes": SIZES.get(label.rpartition("/")[2], 1_000_000),
        },
        **other,
    }  # fmt: skip


def roofline(flops: float, moved: float, median: float, rate: float = 50e9, bandwidth: float = 10e9) -> dict[str, Any]:
    """Return a measurement's roofline, worked out here."""
    attainable = max(flops / rate, moved / bandwidth)
    bound = "arithmetic" if flops / rate >= moved / bandwidth else "memory"
    return {
        "flops": flops, "macs": flops / 2, "int8_macs": 0, "bytes": moved, "intensity": flops / moved, "attainable_s": attainable,
        "fraction": attainable / median, "bound": bound, "rate": rate, "bandwidth": bandwidth, "said": f"{100 * attainable / median:.0f} % of what the {bound} allows",
    }  # fmt: skip


def comparison(
    candidate: str, ratio: float, low: float | None, high: float | None, control: str = "fp32", **other: Any
) -> dict[str, Any]:
    """Return a comparison with the verdict that the clock would give."""
    found = statistics.Interval(ratio, 0.0 if low is None else low, float("inf") if high is None else high)
    return {
        "target": None, "device": "local", "scenario": "single-stream", "control": control, "candidate": candidate, "batch": 1, "pairs": 20,
        "ratio": ratio, "low": low, "high": high, "verdict": statistics.verdict(found, candidate, control), "why": None, **other,
    }  # fmt: skip


def device(address: str = "local", title: str = "AMD Ryzen 7 5800U", **other: Any) -> dict[str, Any]:
    """Return a device's description."""
    return {"address": address, "title": title, "host": HOST, "rates": None, **other}


def record(measurements: list[dict[str, Any]], comparisons: list[dict[str, Any]] = [], **other: Any) -> dict[str, Any]:  # noqa: B006
    """Return a bench.json. Devices are those that the measurements name, unless given."""
    named = dict.fromkeys(m.get("device") or "local" for m in measurements)
    return {
        "schema": 1, "when": "2026-03-01T12:34:56", "devices": {a: device(a, "AMD Ryzen 7 5800U" if a == "local" else a) for a in named},
        "measurements": measurements, "comparisons": comparisons, "skipped": [], **other,
    }  # fmt: skip


def write(folder: Path, told: dict[str, Any], raw: dict[str, np.ndarray] | None = None) -> Path:
    """Write a bench folder: bench.json, and raw samples by file name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json.dumps(told, indent=1))
    for name, values in (raw or {}).items():
        np.save(folder / name, values)
    return folder
