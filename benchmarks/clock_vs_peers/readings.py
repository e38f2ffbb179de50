"""One reading of each tool. A reading: {"count", "median_s", "mean_s"}, None for what the tool does not tell."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgekd import bench
from edgekd.bench.things import Thing
from edgekd.recipe import Bench

HERE = Path(__file__).parent
TOKENS = 128
FEWEST = 20
"""Calls at least, of the tools that are told how many."""
OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
PICTURE: dict[str, Any] = {
    "task": "image-classification",
    "shapes": {"batch_size": 1, "num_channels": 3, "height": 224, "width": 224},
}
TEXT: dict[str, Any] = {"task": "text-classification", "shapes": {"batch_size": 1, "sequence_length": TOKENS}}

Reading = dict[str, Any]


def by_edgekd(files: dict[str, Path], seconds: float, threads: int) -> tuple[dict[str, Reading], dict[str, Any] | None]:
    """Time ONNX files in alternation, in at most so many seconds each; return name -> reading, and the first two's ratio with its interval.

    Two files are timed as `edgekd bench` does by default, until the interval of their ratio is narrow. Of one, what is compared is its
    median: one process, and all the seconds, as with the others.
    """
    things = [
        Thing(name, "onnxruntime", {"model": file}, control=not place) for place, (name, file) in enumerate(files.items())
    ]
    settings = Bench(max_seconds=seconds, threads=threads, roofline=False)
    if len(files) == 1:
        settings = Bench(
            min_seconds=seconds, max_seconds=3 * seconds, interval=None, launches=1, threads=threads, roofline=False
        )
    with TemporaryDirectory() as scratch:
        measurements, comparisons = bench.measure(things, settings, Path(scratch))
    made = {one["artifact"]: {name: one["warm"][name] for name in ("count", "median_s", "mean_s")} for one in measurements}
    if not comparisons:
        return made, None
    ratio = {key: comparisons[0][key] for key in ("pairs", "ratio", "low", "high")}
    return made, ratio | {"stopped_by": measurements[0]["stopped_by"], "launches": len(measurements[0]["blocks"]["launches"])}


class Optimum:
    """optimum-benchmark, imported once and waiting in a process of its own (by_optimum.py)."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def read(self, file: Path, seconds: float, threads: int, launcher: str = "inline") -> Reading:
        """Time a file's folder. Raises SystemExit where optimum-benchmark fails."""
        asked = {
            **(TEXT if "bert" in file.parent.name else PICTURE),
            "folder": str(file.parent.resolve()),
            "launcher": launcher,
        }
        asked |= {"seconds": seconds, "threads": threads, "warm_up": 10}
        self._process.stdin.write(json.dumps(asked) + "\n")  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]
        answer = json.loads(self._process.stdout.readline() or '{"error": "by_optimum.py ended"}')  # type: ignore[union-attr]
        if "error" in answer:
            raise SystemExit(f"optimum-benchmark on {file.parent.name}: {answer['error']}")
        values = answer["values"]
        return {"count": len(values), "median_s": statistics.median(values), "mean_s": statistics.fmean(values)}


@contextmanager
def optimum(python: str) -> Iterator[Optimum]:
    """Start optimum-benchmark with the peers' Python; end it afterwards."""
    command = [python, str(HERE / "by_optimum.py")]
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nothing, text=True, env=OFFLINE) as process:
        try:
            yield Optimum(process)
        finally:
            process.kill()


def by_onnxruntime_test(python: str, file: Path, calls: int) -> Reading:
    """Time a file by `python -m onnxruntime.tools.onnxruntime_test`: a mean alone, on as many threads as the runtime chooses."""
    printed = _printed([python, "-m", "onnxruntime.tools.onnxruntime_test", str(file), str(calls)])
    return {"count": calls, "median_s": None, "mean_s": float(_found(r"avg latency: ([\d.e-]+) ms", printed)) / 1e3}


def by_bert_perf_test(python: str, file: Path, calls: int, threads: int) -> Reading:
    """Time a file with one input of token ids by `onnxruntime/transformers/bert_perf_test.py`: it gives mean and percentiles."""
    where = _printed(
        [python, "-c", "import importlib.util as u; print(*u.find_spec('onnxruntime').submodule_search_locations)"]
    )
    tool = Path(where.strip()) / "transformers" / "bert_perf_test.py"
    asked = ["--model", file, "--batch_size", 1, "--sequence_length", TOKENS, "--samples", calls, "--test_times", 1]
    asked += ["--intra_op_num_threads", threads, "--input_ids_name", "input_ids"]
    printed = _printed([python, str(tool), *map(str, asked)])
    summary = Path(_found(r"Test summary is saved to (.+)", printed))
    lines = summary.read_text().splitlines()
    summary.unlink()
    if len(lines) < 2:  # its exit code is 0 when the process that it timed in failed
        raise SystemExit(f"bert_perf_test could not run {file}:\n{printed[-2000:]}")
    told = dict(zip(lines[0].split("\t"), lines[1].split("\t"), strict=True))
    return {"count": calls, "median_s": float(told["Latency_P50"]) / 1e3, "mean_s": float(told["Latency(ms)"]) / 1e3}


def calls_in(seconds: float, call: float) -> int:
    """Return how many calls of `call` seconds to ask for."""
    return max(FEWEST, round(seconds / call))


def _printed(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=OFFLINE, check=False)
    if done.returncode:
        raise SystemExit(f"failed: {' '.join(command)}\n{done.stderr[-2000:]}")
    return done.stdout


def _found(pattern: str, printed: str) -> str:
    match = re.search(pattern, printed)
    if match is None:
        raise SystemExit(f"nothing like `{pattern}` in what was printed:\n{printed[-2000:]}")
    return match[1].strip()
