"""The student of models/minilm beside what its teacher gives without us: accuracy, bytes, and time for one sentence, in one run.

python benchmarks/minilm/run.py RUN        # RUN: what `edgekd compress models/minilm` left

"Without us" is the teacher as ONNX, in full precision and by onnxruntime.quantization.quantize_dynamic with its defaults. Every file
is scored on the test pairs by ONNX Runtime and then timed alternately with all others. With several numbers of threads each file is
timed with each, and all are compared with quantize_dynamic's on the most. Writes results/CPU.json and prints a table.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekd import bench, host, recipe_file
from edgekd.backends import backend_of
from edgekd.bench.stage import with_threads
from edgekd.bench.things import Thing
from edgekd.export import artifact, onnx
from edgekd.progress import say
from edgekd.recipe import Bench
from edgekd.run_folder import write_text
from edgekd.targets import load_target
from edgekd.tasks import task_of

HERE = Path(__file__).parent
WITHOUT_US = "teacher, quantize_dynamic"


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the teacher's files, score and time all, write the result file. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run of models/minilm")
    parser.add_argument("--target", default="onnxruntime-cpu")
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 32], help="lengths of the timed sentence")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[host.usable_cores()], help="each file with each number of them"
    )
    parser.add_argument("--max-seconds", type=float, default=60.0, help="of each file and length")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/minilm-teacher"), help="where the teacher's ONNX files are kept"
    )
    options = parser.parse_args(arguments)
    record = options.run / "manifest.json"
    recipe = recipe_file.from_manifest(json.loads(record.read_text(encoding="utf-8"))["recipe"], record)
    task = task_of(recipe.task)
    splits = task.splits(recipe)
    teacher, _ = task.models(recipe, splits)
    target = load_target(options.target)
    folder = options.run / "targets" / options.target
    made = {**_teachers_files(task.graphs(teacher, splits)[0], options.work)}
    made |= {f"student, {one.name}": artifact.load(one).graphs["model"] for one in sorted(folder.iterdir())}
    told: dict[str, Any] = {
        "schema": 1,
        "command": shlex.join(["python", "benchmarks/minilm/run.py", *sys.argv[1:]]),
        "host": host.describe(),
        "threads": options.threads,
        "pairs": len(splits.test),
        "files": {},
        "timed": {},
    }
    for name, file in made.items():
        session = backend_of(target.backend).load(file, target, max(options.threads))
        score = task.evaluate(lambda _, inputs, session=session: session.run(inputs), splits.test).score
        told["files"][name] = {"bytes": sum(one.stat().st_size for one in onnx.files_of(file)), "spearman": score}
        say(f"{name}: {100 * score:.2f}, {told['files'][name]['bytes'] / 1e6:.1f} MB")
    settings = Bench(min_seconds=2, max_seconds=options.max_seconds)
    for tokens in options.tokens:
        row = _row(splits.test, tokens)
        files = [
            Thing(name, "onnxruntime", {"model": file}, {"model": row}, control=name == WITHOUT_US)
            for name, file in made.items()
        ]
        things = with_threads(files, sorted(options.threads, reverse=True))  # the first that is marked is the control
        measurements, comparisons = bench.measure(things, settings, options.work / f"samples-{tokens}")
        told["timed"][str(tokens)] = {"measurements": measurements, "comparisons": comparisons}
        for one in comparisons:
            print(f"{tokens} tokens: {one['verdict']}", flush=True)
    (HERE / "results").mkdir(exist_ok=True)
    name = re.sub(r"[^A-Za-z0-9]+", "-", host.cpu_model()).strip("-")
    write_text(HERE / "results" / f"{name}.json", json.dumps(told, indent=1) + "\n")
    print(table(told))
    return 0


def table(told: dict[str, Any]) -> str:
    """Return the result as a Markdown table."""
    lengths = list(told["timed"])
    rows = ["| file | threads | MB | Spearman | " + " | ".join(f"{n} tokens | times as fast" for n in lengths) + " |"]
    rows.append("|" + "---|" * (4 + 2 * len(lengths)))
    for thing in [m["artifact"] for m in told["timed"][lengths[0]]["measurements"]]:
        name, _, threads = thing.removesuffix(")").rpartition(" (")
        of = told["files"][name]
        cells = [name, threads.split()[0], f"{of['bytes'] / 1e6:.1f}", f"{100 * of['spearman']:.2f}"]
        for n in lengths:
            median = next(m["warm"]["median_s"] for m in told["timed"][n]["measurements"] if m["artifact"] == thing)
            found = next((c for c in told["timed"][n]["comparisons"] if c["candidate"] == thing), None)
            cells += [
                f"{1e3 * median:.2f} ms",
                f"{found['ratio']:.2f} ({found['low']:.2f}-{found['high']:.2f})" if found else "1",
            ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _teachers_files(graph: Any, folder: Path) -> dict[str, Path]:
    from onnxruntime.quantization import quantize_dynamic

    folder.mkdir(parents=True, exist_ok=True)
    full, small = folder / "teacher.onnx", folder / "teacher-dynamic.onnx"
    if not full.is_file():
        onnx.write(graph, full)
    if not small.is_file():
        quantize_dynamic(full, small)
    return {"teacher, fp32": full, WITHOUT_US: small}


def _row(split: Any, tokens: int) -> dict[str, np.ndarray]:
    """Return a real sentence of so many tokens, or of the nearest length there is, as the graph takes it."""
    rows, _ = split.columns["first_input_ids"]
    at = int(np.abs(rows.lengths - tokens).argmin())
    taken = split.take(np.array([at]))
    return {name: taken[f"first_{name}"] for name in ("input_ids", "attention_mask")}


if __name__ == "__main__":
    sys.exit(main())
