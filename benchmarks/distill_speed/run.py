"""Time distillation: images per second of edgekd (supervised, cached teacher, live teacher) and of torchdistill, alternately.

python benchmarks/distill_speed/run.py [--data FOLDER]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

os.environ["ACCELERATE_USE_CPU"] = "true"  # all on the CPU, whatever the machine has

import by_torchdistill
import numpy as np
import torch
import work as works
from by_edgekd import Block, ByEdgekd
from by_torchdistill import ByTorchdistill
from work import BATCH, Work

from edgekd import host
from edgekd.bench import environment, statistics
from edgekd.errors import BadInput
from edgekd.progress import say

HERE = Path(__file__).parent
NAMES = {
    "supervised": "edgekd, student alone",
    "cached": "edgekd, cached teacher",
    "live": "edgekd, live teacher",
    "torchdistill": "torchdistill",
}
GOALS = {("cached", "supervised"): 0.95, ("cached", "torchdistill"): 2.0}
"""(candidate, control) -> how many times the control's images per second the candidate shall reach."""
COMPARED = [*GOALS, ("live", "torchdistill"), ("live", "supervised")]


class Contestant(Protocol):
    """One way to train the student."""

    def block(self, epochs: int) -> Block:
        """Train for so many epochs from the same start."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the result file, print the table. Returns the exit code."""
    options = _options(arguments)
    try:
        work = works.make(options.data, options.images, options.seed)
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    began, before = time.perf_counter(), environment.now()
    absent = by_torchdistill.missing()
    with tempfile.TemporaryDirectory() as folder:
        result = _measure(work, options, Path(folder), absent)
    after = environment.now()
    result |= {
        "schema": 1,
        "command": " ".join(["python", "benchmarks/distill_speed/run.py", *_told(options)]),
        "environment": {
            **host.describe(),
            "torchdistill": None if absent else by_torchdistill.version(),
            **environment.around(before, after, torch.get_num_threads()),
            "threads": torch.get_num_threads(),
            "virtual_machine": "hypervisor" in host.cpu_flags(),
        },
        "torchdistill_missing": absent,
        "total_s": time.perf_counter() - began,
    }
    out = options.out or HERE / "results" / f"{options.data.name if options.data else 'random'}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    say(f"written: {out.name}")
    return 0


def _measure(work: Work, options: argparse.Namespace, folder: Path, absent: str | None) -> dict[str, Any]:
    cost = _cost(work)
    say(f"teacher / student, forward: {cost['flops_ratio']:.1f}x the operations, {cost['seconds_ratio']:.1f}x the time")
    runners: dict[str, Contestant] = {
        "supervised": ByEdgekd(work, None, folder),
        "cached": ByEdgekd(work, "cached", folder),
        "live": ByEdgekd(work, "live", folder),
    }
    trials: dict[str, list[float]] = {}
    choice, difference = None, None
    if absent:
        say(absent)
    else:
        difference = by_torchdistill.loss_difference(work)
        if not difference < 1e-4:
            raise SystemExit(f"not the same work: the losses on one batch differ by {difference:.2g} of their size")
        say("torchdistill: looking for its fastest setting")
        choice, trials = by_torchdistill.fastest(work)
        say(f"torchdistill: {choice}")
        runners["torchdistill"] = ByTorchdistill(work, choice)
    epochs, warm = {}, {}
    for name, runner in runners.items():
        first = runner.block(1)  # also fills the teacher's cache
        again = runner.block(1)
        warm[name] = [asdict(first), asdict(again)]
        epochs[name] = max(1, math.ceil(options.seconds / again.seconds))
        say(f"warm-up: {NAMES[name]}: {again.images / again.seconds:.0f} images/s, {epochs[name]} epochs a block")
    blocks: list[dict[str, Any]] = []
    for number in range(options.rounds):
        for name in list(runners)[:: -1 if number % 2 else 1]:
            block = runners[name].block(epochs[name])
            load = environment.now()["load_average"]
            blocks.append({"round": number, "contestant": name, "epochs": epochs[name], **asdict(block), "load_average": load})
            say(f"round {number + 1}/{options.rounds}: {NAMES[name]}: {block.images / block.seconds:.0f} images/s")
    built = warm["cached"][0]["wall_s"] - warm["cached"][1]["wall_s"]
    return {
        "work": {
            "data": work.source, "images": len(work.splits.train), "image_shape": work.splits.image_shape, "batch_size": BATCH,
            "optimizer": works.OPTIMIZER, "temperature": works.TEMPERATURE, "alpha": works.ALPHA, "augmentation": None, "dtype": "float32",
        },
        "pair": cost,
        "torchdistill_choice": asdict(choice) if choice else None,
        "torchdistill_trials": trials,
        "loss_difference": difference,
        "cache_build_s": built,
        "warm_up": warm,
        "blocks": blocks,
        "images_per_second": {name: float(np.median(_rates(blocks, name))) for name in runners},
        "ratios": [_ratio(blocks, *pair) for pair in COMPARED if set(pair) <= set(runners)],
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """Return what a reader wants to know, as lines of text."""
    told, cost, rates = result["environment"], result["pair"], result["images_per_second"]
    flags = set(told["flags"])
    machine = [told["cpu"], f"{told['cores']} cores" + " of a virtual machine" * told["virtual_machine"]]
    machine += [
        "AVX-512" if "avx512f" in flags else "no AVX-512",
        "VNNI" if told["vnni"] else "no VNNI",
        f"{told['threads']} threads",
    ]
    loads = [block["load_average"] for block in result["blocks"] if block["load_average"] is not None]
    if loads:
        machine.append(f"load {min(loads):.1f}-{max(loads):.1f}")
    lines = [
        "",
        ", ".join(machine),
        *told["notes"],
        f"teacher / student, forward: {cost['flops_ratio']:.1f}x the operations, {cost['seconds_ratio']:.1f}x the time",
        "",
        f"{'':24}{'images/s':>9}{'lowest':>9}{'highest':>9}   blocks",
    ]
    for name, label in NAMES.items():
        if name in rates:
            all_rates = _rates(result["blocks"], name)
            lines.append(f"{label:24}{rates[name]:9.0f}{all_rates.min():9.0f}{all_rates.max():9.0f}{len(all_rates):9}")
        else:
            lines.append(f"{label:24}{'not run':>9}   {result['torchdistill_missing']}")
    lines.append("")
    for ratio in result["ratios"]:
        what = f"{NAMES[ratio['candidate']]} / {NAMES[ratio['control']]}"
        known = ratio["high"] is not None
        between = f"({ratio['low']:.2f}-{ratio['high']:.2f})" if known else "(too few rounds for an interval)"
        lines.append(f"{what:48}{ratio['value']:6.2f}x {between}{_goal(ratio)}")
    saved = 1 / rates["live"] - 1 / rates["cached"]
    if saved > 0:
        pays = math.ceil(result["cache_build_s"] / saved / result["work"]["images"])
        lines.append(f"making the cache took {result['cache_build_s']:.1f} s, once: it pays from epoch {max(pays, 1)} on")
    return "\n".join(lines)


def _goal(ratio: dict[str, Any]) -> str:
    goal = ratio["goal"]
    if goal is None:
        return ""
    if ratio["value"] < goal:
        return f"   goal {goal:g}: MISSED"
    return f"   goal {goal:g}: met" + (
        "" if ratio["high"] is None or ratio["low"] >= goal else " by the median, the interval reaches below"
    )


def _ratio(blocks: list[dict[str, Any]], candidate: str, control: str) -> dict[str, Any]:
    found = statistics.ratio(1 / _rates(blocks, control)[:, None], 1 / _rates(blocks, candidate)[:, None])
    goal = GOALS.get((candidate, control))
    high = found.high if math.isfinite(found.high) else None
    return {"candidate": candidate, "control": control, "value": found.value, "low": found.low, "high": high, "goal": goal}


def _rates(blocks: list[dict[str, Any]], name: str) -> np.ndarray:
    """Return images per second of each round: (rounds,)."""
    chosen = sorted((block["round"], block["images"] / block["seconds"]) for block in blocks if block["contestant"] == name)
    return np.array([rate for _, rate in chosen])


def _cost(work: Work, rounds: int = 9) -> dict[str, float]:
    """Return operations and seconds of a forward pass in evaluation mode, of teacher and student: the fastest of several, alternately."""
    image = torch.from_numpy(work.splits.train.take(np.arange(BATCH))["image"])
    seconds: dict[str, list[float]] = {"student": [], "teacher": []}
    with torch.no_grad():
        for _ in range(rounds + 1):
            for role, times in seconds.items():
                module = getattr(work, role).module.eval()
                start = time.perf_counter()
                module(image)
                times.append(time.perf_counter() - start)
    best = {role: min(times) for role, times in seconds.items()}
    flops = {role: works.forward_flops(getattr(work, role), work.splits) for role in seconds}
    return {
        "student_flops": flops["student"],
        "teacher_flops": flops["teacher"],
        "flops_ratio": flops["teacher"] / flops["student"],
        "student_seconds": best["student"] / BATCH,
        "teacher_seconds": best["teacher"] / BATCH,
        "seconds_ratio": best["teacher"] / best["student"],
        "student_parameters": work.student.parameters,
        "teacher_parameters": work.teacher.parameters,
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="IDX files such as Fashion-MNIST's; random 32x32 pictures when absent"
    )
    parser.add_argument("--images", type=int, default=2048, help=f"in an epoch, a multiple of {BATCH} (default 2048)")
    parser.add_argument("--rounds", type=int, default=7, help="blocks of each contestant (default 7; intervals need 6)")
    parser.add_argument("--seconds", type=float, default=10.0, help="least length of a block (default 10)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="result file (default results/random.json, or the data folder's name)"
    )
    options = parser.parse_args(arguments)
    if options.images < BATCH or options.images % BATCH or options.rounds < 1 or options.seconds <= 0:
        parser.error(f"--images must be a multiple of {BATCH}, --rounds at least 1, --seconds above 0")
    return options


def _told(options: argparse.Namespace) -> list[str]:
    """Return the options as on a command line, folders by their names alone."""
    told = ["--data", options.data.name] if options.data else []
    return [*told, "--images", str(options.images), "--rounds", str(options.rounds), "--seconds", f"{options.seconds:g}"]


if __name__ == "__main__":
    sys.exit(main())
