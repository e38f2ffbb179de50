"""One isolated process for one artifact: reads JSON commands, one a line, from standard input; answers each with a JSON line.

{"do": "start", "backend": "onnxruntime"}         -> {"runtime": {name: version}, "bytes": peak memory so far}
{"do": "load", "file", "target", "threads"}       -> {"seconds", "providers": {provider: nodes}}
{"do": "inputs", "file": x.npz | "declared": [{name, dtype, shape}], "seed", "batch"}   -> {"shapes": {name: shape}}
{"do": "first"}                                   -> {"seconds"}
{"do": "warm-up", "seconds", "count"}             -> {"nanoseconds": [...]}
{"do": "time", "settle": calls not told, "count"} -> {"nanoseconds": [...]}
{"do": "memory"}                                  -> {"bytes": peak memory so far}
{"do": "quit"}, or the end of the input: the process ends. A failure is told as {"error": message} and ends it too.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from . import clock, scenarios


def main() -> int:
    """Obey until told to quit or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group: the parent decides
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a runtime that prints must not break the protocol
    state: dict[str, Any] = {}
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "quit":
            break
        try:
            _answer(answers, COMMANDS[command.pop("do")](state, **command))
        except Exception as error:  # whatever a runtime raises ends here: the parent names the artifact
            _answer(answers, {"error": f"{type(error).__name__}: {error}"})
            return 1
    return 0


def _answer(answers: TextIO, value: dict[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


def _start(state: dict[str, Any], backend: str) -> dict[str, Any]:
    from ..backends import backend_of

    state["backend"] = backend_of(backend)
    runtime = {}
    for package in getattr(state["backend"], "PACKAGES", (backend,)):
        with contextlib.suppress(ImportError, importlib.metadata.PackageNotFoundError):
            # a backend imports its runtime when first used: that is not part of loading
            importlib.import_module(package.replace("-", "_"))
            runtime[package] = importlib.metadata.version(package)
    return {"runtime": {**runtime, "numpy": np.__version__}, "bytes": clock.peak_memory()}


def _load(state: dict[str, Any], file: str, target: str | None, threads: int | None) -> dict[str, Any]:
    described = None
    if target is not None:
        from ..targets import load_target

        described = load_target(target)
    path = Path(file)
    with path.open("rb") as opened:
        while opened.read(1 << 24):
            pass  # the file lies in the system's cache from here on, see DEFINITIONS

    def load() -> None:
        state["session"] = state["backend"].load(path, described, threads)

    seconds = clock.seconds_of(load)
    return {"seconds": seconds, "providers": dict(state["session"].providers)}


def _inputs(
    state: dict[str, Any],
    batch: int,
    file: str | None = None,
    declared: list[dict[str, Any]] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    if file is not None:
        with np.load(file, allow_pickle=False) as stored:
            inputs = scenarios.batch_of({name: stored[name] for name in stored.files}, batch)
    else:
        inputs = scenarios.random_inputs(declared or [], batch, seed)
    state["call"] = scenarios.single_stream(state["session"].run, inputs)
    return {"shapes": {name: list(value.shape) for name, value in inputs.items()}}


def _first(state: dict[str, Any]) -> dict[str, Any]:
    return {"seconds": clock.seconds_of(state["call"])}


def _warm_up(state: dict[str, Any], seconds: float, count: int) -> dict[str, Any]:
    return {"nanoseconds": clock.warm_up(state["call"], seconds, count).tolist()}


def _time(state: dict[str, Any], settle: int, count: int) -> dict[str, Any]:
    clock.time_calls(state["call"], settle)
    return {"nanoseconds": clock.time_calls(state["call"], count).tolist()}


def _memory(state: dict[str, Any]) -> dict[str, Any]:
    return {"bytes": clock.peak_memory()}


COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {
    "start": _start,
    "load": _load,
    "inputs": _inputs,
    "first": _first,
    "warm-up": _warm_up,
    "time": _time,
    "memory": _memory,
}

if __name__ == "__main__":
    sys.exit(main())
