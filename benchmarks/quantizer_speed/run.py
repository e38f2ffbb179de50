"""Time quantization: what it adds to a training step, and a million weights against NumPy and a plain copy, alternately.

python benchmarks/quantizer_speed/run.py
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import codes
import numpy as np
import steps
import torch

from edgekd import host
from edgekd.bench import environment, statistics
from edgekd.distill import allocator
from edgekd.progress import say

HERE = Path(__file__).parent
MOST: dict[str, float | None] = {"qd": 1.10, "learned": None, "dq": 1.25}
"""A step of each kind may cost so many times a plain one."""
LEAST: dict[tuple[str, str], float | None] = {
    ("nearest", "numpy"): 5.0, ("nearest", "copy"): None, ("codebook", "copy"): None, ("uniform", "copy"): None,
}  # fmt: skip
"""(candidate, control) -> how many times as fast the candidate shall be."""
CALLS = 5
WARM = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the result file, print the table. Returns the exit code."""
    options = _options(arguments)
    began, before = time.perf_counter(), environment.now()
    of_codes, of_steps = [], []
    for threads in options.threads:
        torch.set_num_threads(threads)
        of_codes.append(_codes(threads, options))
        of_steps += [_steps(student, "cpu", threads, options) for student in options.students]
    if torch.cuda.is_available():
        of_steps += [_steps(student, "cuda", options.threads[-1], options) for student in options.students]
    around = environment.around(before, environment.now(), max(options.threads))
    result = {
        "schema": 1,
        "command": " ".join(["python", "benchmarks/quantizer_speed/run.py", *_told(options)]),
        "work": {
            "weights": codes.WEIGHTS, "points": codes.POINTS, "batch_size": steps.BATCH, "image_shape": [32, 32, 3],
            "group": steps.GROUP, "bits": steps.BITS, "dtype": "float32", "optimizer": "SGD, Nesterov, fused",
        },
        "codes": of_codes,
        "steps": of_steps,
        "environment": {
            **host.describe(),
            **around,
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "virtual_machine": "hypervisor" in host.cpu_flags(),
        },
        "total_s": time.perf_counter() - began,
    }  # fmt: skip
    out = options.out or HERE / "results" / "measured.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    say(f"written: {out.name}")
    return 0


def _codes(threads: int, options: argparse.Namespace) -> dict[str, Any]:
    timed = alternate(codes.make(options.seed), options.code_rounds, CALLS)
    ratios = [_ratio(timed, *pair, goal) for pair, goal in LEAST.items()]
    say(f"{codes.WEIGHTS:,} weights, {threads} thread(s): done")
    return {"threads": threads, **timed, "ratios": ratios}


def _steps(student: str, device: str, threads: int, options: argparse.Namespace) -> dict[str, Any]:
    made = {kind: steps.make(student, kind, device) for kind in steps.KINDS}
    with allocator.kept(device == "cpu"):  # as the trainer does
        timed = alternate({kind: step for kind, (step, _) in made.items()}, options.rounds, options.steps)
    # A step's cost is how many times as fast the plain one is.
    costs = [_ratio(timed, "plain", kind, goal) for kind, goal in MOST.items()]
    say(f"{student}, {device}, {threads} thread(s): done")
    return {"student": student, "parameters": made["plain"][1], "device": device, "threads": threads, **timed, "costs": costs}


def alternate(calls: Mapping[str, Callable[[], object]], rounds: int, each: int) -> dict[str, Any]:
    """Time the calls in the order a b c, c b a, ..., `each` of one in a row, after WARM of each.

    Returns wall_s and cpu_s, name -> (rounds, each) seconds: by the clock, and of this process's threads together. On one
    thread and a CPU the latter leaves out what other processes took.
    """
    for call in calls.values():
        for _ in range(WARM):
            call()
    wall: dict[str, list[list[float]]] = {name: [] for name in calls}
    cpu: dict[str, list[list[float]]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in list(calls)[:: -1 if number % 2 else 1]:
            for samples in (wall, cpu):
                samples[name].append([])
            for _ in range(each):
                began, spent = time.perf_counter(), time.process_time()
                calls[name]()
                wall[name][-1].append(time.perf_counter() - began)
                cpu[name][-1].append(time.process_time() - spent)
    return {"wall_s": wall, "cpu_s": cpu, "load_average": environment.now()["load_average"]}


def _ratio(timed: Mapping[str, Any], candidate: str, control: str, goal: float | None) -> dict[str, Any]:
    """Return how many times as fast the candidate is, by both clocks."""
    made: dict[str, Any] = {"candidate": candidate, "control": control, "goal": goal}
    for clock in ("wall_s", "cpu_s"):
        found = statistics.ratio(np.array(timed[clock][control]), np.array(timed[clock][candidate]))
        made[clock] = {"value": found.value, "low": found.low, "high": found.high if math.isfinite(found.high) else None}
    return made


def table(result: Mapping[str, Any]) -> str:
    """Return what a reader wants to know, as lines of text."""
    told = result["environment"]
    flags = set(told["flags"])
    machine = [told["cpu"], f"{told['cores']} cores" + " of a virtual machine" * told["virtual_machine"]]
    machine += ["AVX-512" if "avx512f" in flags else "no AVX-512", told["gpu"] or "no GPU"]
    loads = [part["load_average"] for part in (*result["codes"], *result["steps"]) if part["load_average"] is not None]
    machine += [f"load {min(loads):.1f}-{max(loads):.1f}"] if loads else []
    lines = ["", ", ".join(machine), *told["notes"]]
    for part in result["codes"]:
        lines += ["", f"{result['work']['weights']:,} float32 weights, {part['threads']} thread(s), median of calls"]
        copied = np.median(part["wall_s"]["copy"])
        for name, label in codes.NAMES.items():
            seconds = np.median(part["wall_s"][name])
            lines.append(f"  {label:44}{seconds * 1e3:9.2f} ms{100 * copied / seconds:8.1f} % of the copy's speed")
        for ratio in part["ratios"]:
            if ratio["goal"] is not None:
                met = "met" if ratio["wall_s"]["value"] >= ratio["goal"] else "MISSED"
                lines.append(
                    f"  nearest point: {_said(ratio['wall_s'])} times as fast as NumPy   goal {ratio['goal']:g}: {met}"
                )
    for part in result["steps"]:
        where = f"{part['device']}, {part['threads']} thread(s)"
        lines += [
            "",
            f"A step of {part['student']} ({part['parameters']:,} parameters), batch {result['work']['batch_size']}, {where}",
        ]
        lines.append(f"  {steps.KINDS['plain']:56}{np.median(part['wall_s']['plain']) * 1e3:8.1f} ms")
        for cost in part["costs"]:
            seconds = np.median(part["wall_s"][cost["control"]])
            goal, wall = cost["goal"], cost["wall_s"]["value"]
            met = "" if goal is None else f"   goal {goal:g}: {'met' if wall <= goal else 'MISSED'}"
            cpu = f", of processor time {_said(cost['cpu_s'])}" if part["device"] == "cpu" else ""
            lines.append(
                f"  {steps.KINDS[cost['control']]:56}{seconds * 1e3:8.1f} ms, {_said(cost['wall_s'])} times plain{cpu}{met}"
            )
    return "\n".join(lines)


def _said(found: Mapping[str, Any]) -> str:
    between = f"({found['low']:.2f}-{found['high']:.2f})" if found["high"] is not None else "(too few rounds for an interval)"
    return f"{found['value']:.2f} {between}"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = sorted({1, host.usable_cores()})
    parser.add_argument(
        "--threads", type=int, nargs="+", default=every, help=f"processor threads (default {' '.join(map(str, every))})"
    )
    parser.add_argument("--students", nargs="+", choices=list(steps.STUDENTS), default=list(steps.STUDENTS))
    parser.add_argument("--rounds", type=int, default=20, help="of training steps (default 20; intervals need 6)")
    parser.add_argument("--steps", type=int, default=2, help="in a row (default 2)")
    parser.add_argument("--code-rounds", type=int, default=30, help=f"of {CALLS} calls on a million weights (default 30)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, metavar="FILE", help="result file (default results/measured.json)")
    options = parser.parse_args(arguments)
    if min(options.rounds, options.steps, options.code_rounds, *options.threads) < 1:
        parser.error("--threads, --rounds, --steps and --code-rounds must be at least 1")
    return options


def _told(options: argparse.Namespace) -> list[str]:
    """Return the options as on a command line."""
    told = ["--threads", *options.threads, "--students", *options.students, "--rounds", options.rounds]
    return [str(part) for part in (*told, "--steps", options.steps, "--code-rounds", options.code_rounds)]


if __name__ == "__main__":
    sys.exit(main())
