"""Time training steps with freed memory kept (edgekd/distill/allocator.py) and as glibc would have it, in processes that take turns.

python benchmarks/kept_memory/run.py
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgekd import host
from edgekd.bench import environment, statistics
from edgekd.distill import allocator
from edgekd.progress import say

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "quantizer_speed"))
import steps as training  # noqa: E402

WAYS = ("kept", "left")
WARM = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the result file, print the table. Returns the exit code."""
    options = _options(arguments)
    if options.child:
        print(json.dumps(child(*options.child[:3], threads=options.threads[0], steps=options.steps)))
        return 0
    before, made = environment.now(), []
    for threads in options.threads:
        for student in options.students:
            for kind in ("plain", "qd"):
                made.append(alternate(student, kind, threads, options))
                say(line(made[-1]))
    result = {
        "schema": 1,
        "command": f"python benchmarks/kept_memory/run.py --threads {' '.join(map(str, options.threads))} "
        f"--students {' '.join(options.students)} --rounds {options.rounds} --steps {options.steps}",
        "measured": made,
        "environment": {**host.describe(), **environment.around(before, environment.now(), max(options.threads))},
    }
    out = options.out or HERE / "results" / "measured.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    say(f"written: {out.name}")
    return 0


def alternate(student: str, kind: str, threads: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return what `rounds` processes of each way measured, in the order a b, b a, ..., and how many times as fast `kept` is."""
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    command = [sys.executable, __file__, "--threads", str(threads), "--steps", str(options.steps), "--child", student, kind]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    for number in range(options.rounds):
        for way in WAYS[:: -1 if number % 2 else 1]:
            run = subprocess.run([*command, way], capture_output=True, text=True, check=True, env=environ)
            found[way].append(json.loads(run.stdout))
    ratio = statistics.ratio(*(np.array([one["seconds"] for one in found[way]]) for way in WAYS[::-1]))
    high = ratio.high if math.isfinite(ratio.high) else None
    return {
        "student": student, "kind": kind, "threads": threads, **found,
        "times_as_fast": {"value": ratio.value, "low": ratio.low, "high": high},
    }  # fmt: skip


def child(student: str, kind: str, way: str, *, threads: int, steps: int) -> dict[str, Any]:
    """Return seconds and page faults of each step of this process, and the most memory it had, in bytes."""
    torch.set_num_threads(threads)
    seconds, faults = [], []
    with allocator.kept(way == "kept"):
        step, _ = training.make(student, kind, "cpu")
        for _ in range(WARM):
            step()
        for _ in range(steps):
            before, began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
            step()
            seconds.append(time.perf_counter() - began)
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return {"seconds": seconds, "faults": faults, "most_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def line(part: dict[str, Any]) -> str:
    """Say what was measured."""
    fast = part["times_as_fast"]
    between = f"({fast['low']:.2f}-{fast['high']:.2f})" if fast["high"] is not None else "(too few rounds for an interval)"
    told = []
    for way in WAYS[::-1]:
        ms, faults = (np.median([one[name] for one in part[way]]) for name in ("seconds", "faults"))
        most = max(one["most_bytes"] for one in part[way])
        told.append(f"{way} {ms * 1e3:.1f} ms, {faults:,.0f} page faults a step, at most {most / 1e6:.0f} MB")
    where = f"{part['student']}, {part['kind']}, {part['threads']} thread(s)"
    return f"{where}: {fast['value']:.2f} {between} times as fast; {'; '.join(told)}"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = sorted({1, host.usable_cores()})
    parser.add_argument("--threads", type=int, nargs="+", default=every, help=f"(default {' '.join(map(str, every))})")
    parser.add_argument("--students", nargs="+", choices=list(training.STUDENTS), default=list(training.STUDENTS))
    parser.add_argument("--rounds", type=int, default=8, help="processes of each way (default 8; intervals need 6)")
    parser.add_argument("--steps", type=int, default=12, help="of each process (default 12)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="result file (default results/measured.json)")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if min(options.rounds, options.steps, *options.threads) < 1:
        parser.error("--threads, --rounds and --steps must be at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main())
