"""What optimum-benchmark's timed call does besides running the session: seconds of each part, file by file. Runs with the peers' Python.

PEERS/bin/python benchmarks/clock_vs_peers/added.py build/clock_vs_peers OUT.json

In one process, alternately: four of its calls, taken apart by marks around the two functions inside, and four plain `session.run`
with the same input in numpy. What is between the marks is Python and torch; after a call of a large model its code and data have left the caches.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import numpy as np
import onnxruntime as ort
import torch
from optimum.onnxruntime import ORTModelForImageClassification, ORTModelForSequenceClassification

SECONDS, TURN, WARM_UP = 4.0, 4, 10
TOKENS, PIXELS = 128, 224


def parts(file: Path, threads: int) -> dict[str, float]:
    """Return the medians, in seconds: call (theirs), before, binding, session and after (its parts), plain (`session.run` alone)."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    text = "bert" in file.parent.name
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = (
        {"input_ids": rng.integers(0, 10000, (1, TOKENS))}
        if text
        else {"pixel_values": rng.random((1, 3, PIXELS, PIXELS), np.float32)}
    )
    kind = ORTModelForSequenceClassification if text else ORTModelForImageClassification
    model = kind.from_pretrained(file.parent, session_options=options, provider="CPUExecutionProvider", use_io_binding=True)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    marks: dict[str, tuple[float, float]] = {}
    _mark(model, "_prepare_io_binding", "binding", marks)
    _mark(model.session, "run_with_iobinding", "session", marks)

    @torch.inference_mode()
    def theirs() -> Any:
        return model.forward(**tensors)

    seen: dict[str, list[float]] = defaultdict(list)
    for _ in range(WARM_UP):
        theirs()
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        for _ in range(TURN):
            begin = time.perf_counter()
            theirs()
            done = time.perf_counter()
            seen["call"].append(done - begin)
            seen["before"].append(marks["binding"][0] - begin)
            seen["binding"].append(marks["binding"][1] - marks["binding"][0])
            seen["session"].append(marks["session"][1] - marks["session"][0])
            seen["after"].append(done - marks["session"][1])
        for _ in range(TURN):
            begin = time.perf_counter()
            model.session.run(["logits"], arrays)
            seen["plain"].append(time.perf_counter() - begin)
    return {name: float(np.median(values)) for name, values in seen.items()}


def _mark(owner: Any, name: str, part: str, marks: dict[str, tuple[float, float]]) -> None:
    """Make a method note when it begins and ends."""
    inner = getattr(owner, name)

    def marked(*given: Any, **named: Any) -> Any:
        begin = time.perf_counter()
        made = inner(*given, **named)
        marks[part] = (begin, time.perf_counter())
        return made

    setattr(owner, name, marked)


def main() -> None:
    """Measure every file of a folder, print a table, write the JSON."""
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    told = {}
    print("| file | session.run | added to it | before | binding | after |\n|---|---|---|---|---|---|")
    for name in ("nothing", "resnet", "bert-int8", "bert", "vit"):
        found = told[name] = parts(folder / name / "model.onnx", threads=1)
        added = sum(found[part] for part in ("before", "binding", "after"))
        cells = [f"{found['plain'] * 1e3:.3f} ms", f"{added * 1e3:.3f} ms, {100 * added / found['plain']:.1f} %"]
        print(
            "| "
            + " | ".join([name, *cells, *(f"{found[part] * 1e3:.3f} ms" for part in ("before", "binding", "after"))])
            + " |"
        )
    command = "PEERS/bin/python benchmarks/clock_vs_peers/added.py build/clock_vs_peers OUT.json"
    out.write_text(json.dumps({"schema": 1, "command": command, "threads": 1, "median_s": told}, indent=1) + "\n")


if __name__ == "__main__":
    main()
