"""optimum-benchmark's readings, one JSON line for each line asked. Runs with the peers' Python.

{"folder": of config.json and model.onnx, "task", "threads", "seconds", "warm_up", "shapes", "launcher": "inline" | "process"}
-> {"values": seconds of each call, as its report has them} or {"error": text}. It imports once; each reading is made in a process forked off for it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", LOG_TO_FILE="0", LOG_LEVEL="ERROR", TOKENIZERS_PARALLELISM="false")

import optimum.pipelines
from optimum.onnxruntime import ORTModelForImageClassification, ORTModelForSequenceClassification
from optimum_benchmark import Benchmark, BenchmarkConfig, InferenceConfig, InlineConfig, ORTConfig, ProcessConfig

# optimum-benchmark 0.6.0, the newest, looks the class of a task up in a table that optimum 2 no longer has.
optimum.pipelines.ORT_SUPPORTED_TASKS = {
    "image-classification": {"class": (ORTModelForImageClassification,)},
    "text-classification": {"class": (ORTModelForSequenceClassification,)},
}


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what anything prints must not come between the answers
    apart = multiprocessing.get_context("fork")
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["launcher"] == "process":  # forks by itself
            answer = _reading(asked)
        else:
            here, there = apart.Pipe(duplex=False)
            child = apart.Process(target=lambda asked, there: there.send(_reading(asked)), args=(asked, there))
            child.start()
            there.close()
            answer = _received(here)
            child.join()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _received(here: Connection) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = here.recv()
    except EOFError:
        return {"error": "the process ended without an answer"}
    return answer


def _reading(asked: dict[str, Any]) -> dict[str, Any]:
    try:
        process = asked["launcher"] == "process"
        report = Benchmark.launch(
            BenchmarkConfig(
                name="clock_vs_peers",
                launcher=ProcessConfig(start_method="fork") if process else InlineConfig(),
                scenario=InferenceConfig(
                    latency=True, iterations=10, duration=asked["seconds"], warmup_runs=asked["warm_up"],
                    input_shapes=asked["shapes"],
                ),
                backend=ORTConfig(
                    model=asked["folder"], task=asked["task"], library="transformers", device="cpu",
                    session_options={"intra_op_num_threads": asked["threads"], "inter_op_num_threads": 1},
                ),
            )
        )  # fmt: skip
    except Exception:  # whatever it raises is told to run.py, which stops
        return {"error": traceback.format_exc()}
    return {"values": [float(value) for value in report.forward.latency.values]}


if __name__ == "__main__":
    main()
