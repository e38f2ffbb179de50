"""Hold the matrix rate of `edgekd.bench.rates` against a plain loop of NumPy's matmul, alternately, each in a fresh process.

python benchmarks/host_rates/run.py
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd import host
from edgekd.bench import environment, rates
from edgekd.progress import say

HERE = Path(__file__).parent
WITHIN = 0.10
"""The two may be so far apart."""
SIZES = (256, 384, 512, 768, 1024, 1536, 2048, 3072)

# Shares nothing with rates.py: @ on fresh results, sizes of its own, another clock.
PLAIN = """
import json, sys, time
import numpy as np
best = {}
for n in json.loads(sys.argv[1]):
    a = np.random.rand(n, n).astype("float32")
    b = np.random.rand(n, n).astype("float32")
    runs, until = [], time.monotonic() + 0.4
    while len(runs) < 6 or time.monotonic() < until:
        start = time.monotonic_ns()
        a @ b
        runs.append(time.monotonic_ns() - start)
    best[n] = 2 * n ** 3 / min(runs) * 1e9
print(json.dumps(best))
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the result file, print the table. Returns 1 where the two are farther apart than WITHIN."""
    options = _options(arguments)
    began, before = time.perf_counter(), environment.now()
    parts = [_part(threads, options.rounds, options.seconds) for threads in options.threads]
    told = f"--threads {' '.join(map(str, options.threads))} --rounds {options.rounds} --seconds {options.seconds:g}"
    result = {
        "schema": 1,
        "command": f"python benchmarks/host_rates/run.py {told}",
        "within": WITHIN,
        "parts": parts,
        "environment": {
            **host.describe(),
            **environment.around(before, environment.now(), max(options.threads)),
            "virtual_machine": "hypervisor" in host.cpu_flags(),
        },
        "total_s": time.perf_counter() - began,
    }
    out = options.out or HERE / "results" / "measured.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    say(f"written: {out.name}")
    return 0 if all(part["met"] for part in parts) else 1


def _part(threads: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Measure both, `rounds` times: ours plain, plain ours, ..."""
    ours: list[dict[str, Any]] = []
    plain: list[dict[str, float]] = []
    for number in range(rounds):
        for kind in ("ours", "plain")[:: -1 if number % 2 else 1]:
            if kind == "ours":
                ours.append(rates.measure(threads, seconds))
            else:
                plain.append(_plain(threads))
        say(f"{threads} thread(s), round {number + 1} of {rounds}: done")
    ratios = [one["float32_flops"] / max(other.values()) for one, other in zip(ours, plain, strict=True)]
    middle = statistics.median(ratios)
    return {
        "threads": threads,
        "ours": ours,
        "plain": plain,
        "ratios": ratios,
        "ratio": middle,
        "low": min(ratios),
        "high": max(ratios),
        "met": abs(middle - 1) <= WITHIN,
    }


def _plain(threads: int) -> dict[str, float]:
    """Return size -> flop/s of the plain loop in a fresh process with so many threads."""
    around = {**os.environ, **{name: str(threads) for name in rates.VARIABLES}}
    command = [sys.executable, "-c", PLAIN, json.dumps(SIZES)]
    done = subprocess.run(command, env=around, stdout=subprocess.PIPE, text=True, check=True)
    made: dict[str, float] = json.loads(done.stdout)
    return made


def table(result: Mapping[str, Any]) -> str:
    """Return what a reader wants to know, as lines of text."""
    told = result["environment"]
    machine = [told["cpu"], f"{told['cores']} cores" + " of a virtual machine" * told["virtual_machine"]]
    first = result["parts"][0]["ours"][0]
    lines = ["", ", ".join([*machine, f"{first['blas']}, NumPy {first['numpy']}"]), *told["notes"], ""]
    lines.append(
        "threads   edgekd GFLOP/s   NumPy GFLOP/s   edgekd / NumPy (spread)   bandwidth GB/s at 256 KiB, 4 MiB, the largest"
    )
    for part in result["parts"]:
        ours = statistics.median(one["float32_flops"] for one in part["ours"]) / 1e9
        plain = statistics.median(max(one.values()) for one in part["plain"]) / 1e9
        goal = "met" if part["met"] else "MISSED"
        spread = f"{part['ratio']:.3f} ({part['low']:.3f}-{part['high']:.3f}) {goal}"
        speeds = "  ".join(f"{_bandwidth(part, size):6.1f}" for size in (256 << 10, 4 << 20, None))
        lines.append(f"{part['threads']:7}{ours:17.1f}{plain:16.1f}   {spread:>28}   {speeds}")
        runtime = [one for one in part["ours"] if one["runtime_float32_flops"]]
        if runtime:
            floats, integers = (
                statistics.median(one[key] for one in runtime) / 1e9 for key in ("runtime_float32_flops", "runtime_int8_ops")
            )
            lines.append(f"          {runtime[0]['runtime']}: {floats:.0f} GFLOP/s in float32, {integers:.0f} in int8")
    return "\n".join(lines)


def _bandwidth(part: Mapping[str, Any], size: int | None) -> float:
    """Return the median GB/s over the rounds at a working set, the largest when None."""
    curves = [dict(map(tuple, one["bandwidth"])) for one in part["ours"]]
    return statistics.median(curve[size or max(curve)] for curve in curves) / 1e9


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = sorted({1, host.usable_cores()})
    parser.add_argument("--threads", type=int, nargs="+", default=every, help=f"default {' '.join(map(str, every))}")
    parser.add_argument("--rounds", type=int, default=7, help="default 7")
    parser.add_argument("--seconds", type=float, default=6.0, help="of one measurement of ours (default 6)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="result file (default results/measured.json)")
    options = parser.parse_args(arguments)
    if min(options.rounds, *options.threads) < 1:
        parser.error("--threads and --rounds must be at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main())
