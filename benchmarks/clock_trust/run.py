"""Can the clock be believed? A against A, and against A with 5 % more work, again and again.

python benchmarks/clock_trust/run.py --runs 100
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from work import LAYERS, ROWS, WIDTH, stack

from edgekd import bench, host
from edgekd.bench import environment
from edgekd.bench.things import Thing
from edgekd.progress import bar, say
from edgekd.recipe import Bench
from edgekd.run_folder import write_text

HERE = Path(__file__).parent
PLANTED = 1.05
CASES = {"same": LAYERS, "slower": round(LAYERS * PLANTED)}
"""Case -> layers of the candidate; the control has LAYERS."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the result file after every run, print how often the verdict was right. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100, help="of each case")
    parser.add_argument("--max-seconds", type=float, default=40.0, help="of each of the two files, for one run")
    parser.add_argument("--interval", type=float, default=Bench().interval, help="width at which the clock stops")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "measured.json", help="goes on from what it has")
    options = parser.parse_args(arguments)
    settings = Bench(
        min_seconds=1, max_seconds=options.max_seconds, interval=options.interval, threads=options.threads, roofline=False
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    result = _begun(options.out, settings)
    with TemporaryDirectory() as scratch, bar("clock_trust", 2 * options.runs) as advance:
        files = {case: stack(Path(scratch) / f"{case}.onnx", layers) for case, layers in {"control": LAYERS, **CASES}.items()}
        advance(len(result["runs"]))
        while len(result["runs"]) < 2 * options.runs:
            case = ("same", "slower")[len(result["runs"]) % 2]
            result["runs"].append(_once(case, files, settings, Path(scratch) / "out"))
            write_text(options.out, json.dumps(_with_counts(result), indent=1) + "\n")
            advance(1, case)
    counts = result["counts"]
    say(f"A against A: no difference seen in {counts['same']['right']} of {counts['same']['runs']} (at least 95 in 100)")
    say(f"5 % more work: seen to be slower in {counts['slower']['right']} of {counts['slower']['runs']} (at least 90 in 100)")
    return 0


def _once(case: str, files: dict[str, Path], settings: Bench, folder: Path) -> dict[str, Any]:
    """Time the control against one candidate; return the verdict and what it took."""
    before, begin = environment.now(), time.perf_counter()
    things = [
        Thing("A", "onnxruntime", {"model": files["control"]}, control=True),
        Thing("B", "onnxruntime", {"model": files[case]}),
    ]
    measurements, (told,) = bench.measure(things, settings, folder)
    return {
        "case": case,
        "verdict": told["verdict"],
        "ratio": told["ratio"],
        "low": told["low"],
        "high": told["high"],
        "pairs": told["pairs"],
        "seconds": time.perf_counter() - begin,
        "stopped_by": measurements[0]["stopped_by"],
        "median_s": measurements[0]["warm"]["median_s"],
        "load_average": before["load_average"],
    }


def right(run: dict[str, Any]) -> bool:
    """Say whether a run's verdict was the right one."""
    said = "no difference seen" if run["case"] == "same" else "SLOWER than"
    return said in run["verdict"]


def _with_counts(result: dict[str, Any]) -> dict[str, Any]:
    result["counts"] = {
        case: {
            "runs": len(mine := [run for run in result["runs"] if run["case"] == case]),
            "right": sum(map(right, mine)),
            "longest_s": max((run["seconds"] for run in mine), default=0),
            "by_limit": sum(run["stopped_by"] == "max_seconds" for run in mine),
        }
        for case in CASES
    }
    return result


def _begun(file: Path, settings: Bench) -> dict[str, Any]:
    """Return what was measured before with these settings, or the beginning of a new result."""
    fresh: dict[str, Any] = {
        "schema": 1,
        "command": shlex.join(["python", "benchmarks/clock_trust/run.py", *sys.argv[1:]]),
        "work": {"layers": LAYERS, "layers_slower": CASES["slower"], "width": WIDTH, "rows": ROWS, "dtype": "float32"},
        "settings": settings.model_dump(mode="json"),
        "host": host.describe(),
        "runs": [],
        "counts": {},
    }
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return fresh
    return found if found["settings"] == fresh["settings"] and found["work"] == fresh["work"] else fresh


if __name__ == "__main__":
    sys.exit(main())
