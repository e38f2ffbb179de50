"""One isolated process for one thing: reads JSON commands, one a line, from standard input; answers each with a JSON line.

{"do": "start", "backend": "onnxruntime"}         -> {"runtime": {name: version}, "bytes": peak memory so far}
{"do": "load", "files": {graph: path}, "target", "threads", "copies"}  -> {"seconds": of all graphs, "providers": {provider: nodes}}
    copies: sessions of each graph; `threads` are of each
{"do": "prepare", "scenario", "inputs": x.npz | null, "interfaces": {graph: {"inputs": [{name, dtype, shape}], "outputs"}},
 "batch", "seed", "prompt_tokens", "new_tokens"}  -> {}
{"do": "first"}                                   -> {"seconds"}
{"do": "warm-up", "seconds", "count"}             -> {"nanoseconds": [...]}
{"do": "time", "settle": calls not told, "count"} -> a block, see schedule.py
{"do": "streams", "settle", "count"}              -> a block: every copy at once, `count` calls each
{"do": "memory"}                                  -> {"bytes": peak memory so far}
{"do": "quit"}, or the end of the input: the process ends. A failure is told as {"error": message} and ends it too.
numpy and the standard library alone: it runs on devices.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ..errors import EdgekdError
from . import clock, generation, scenarios


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
        except Exception as error:  # whatever a runtime raises ends here: the parent names the thing
            kind = "" if isinstance(error, EdgekdError) else f"{type(error).__name__}: "
            _answer(answers, {"error": f"{kind}{error}"})
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


def _load(
    state: dict[str, Any], files: dict[str, str], target: str | None = None, threads: int | None = None, copies: int = 1
) -> dict[str, Any]:
    described = None
    if target is not None:
        from ..targets import load_target

        described = load_target(target)
    paths = {graph: Path(file) for graph, file in files.items()}
    for path in paths.values():
        for part in [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file()):
            with part.open("rb") as opened:
                while opened.read(1 << 24):
                    pass  # the file lies in the system's cache from here on, see DEFINITIONS
    sessions: list[dict[str, Any]] = []

    def load() -> None:
        sessions.append({graph: state["backend"].load(path, described, threads) for graph, path in paths.items()})

    seconds = clock.seconds_of(load)
    for _ in range(copies - 1):
        load()
    providers: dict[str, int] = {}
    for session in sessions[0].values():
        for name, nodes in session.providers.items():
            providers[name] = providers.get(name, 0) + nodes
    state["sessions"] = sessions
    return {"seconds": seconds, "providers": providers}


def _prepare(
    state: dict[str, Any],
    scenario: str,
    batch: int,
    inputs: str | None = None,
    interfaces: dict[str, dict[str, list[dict[str, Any]]]] | None = None,
    seed: int | None = None,
    prompt_tokens: int | None = None,
    new_tokens: int | None = None,
) -> dict[str, Any]:
    faces = interfaces or {}
    calls: list[Any] = []
    for sessions in state["sessions"]:
        if scenario == "generation":
            calls.append(
                generation.call(
                    sessions, faces, new_tokens=new_tokens, batch=batch, prompt_tokens=prompt_tokens, seed=seed or 0
                )
            )
            continue
        ready = scenarios.inputs_of(inputs, faces, sessions, batch, seed or 0)  # of each copy its own: they share no memory
        if len(sessions) > 1:
            calls.append(scenarios.chain(sessions, ready, {graph: faces[graph]["inputs"] for graph in sessions}))
        else:
            ((graph, session),) = sessions.items()
            calls.append(scenarios.single_stream(session, ready[graph]))
    state["calls"] = calls
    state["tokens"] = (prompt_tokens, new_tokens) if scenario == "generation" else None
    return {}


def _first(state: dict[str, Any]) -> dict[str, Any]:
    try:
        seconds = clock.seconds_of(state["calls"][0])
    except Exception as error:
        if state["tokens"] is None:
            raise
        lengths = "a prompt of {} tokens and {} new ones".format(*state["tokens"])
        raise EdgekdError(
            f"{lengths} (bench.prompt_tokens, bench.new_tokens; are they more than it takes?): {error}"
        ) from error
    for call in state["calls"][1:]:
        call()
    return {"seconds": seconds}


def _warm_up(state: dict[str, Any], seconds: float, count: int) -> dict[str, Any]:
    if len(state["calls"]) > 1:
        scenarios.time_streams(state["calls"], 1)  # what the copies share is waited for together
    return {"nanoseconds": clock.warm_up(state["calls"][0], seconds, count).tolist()}


def _time(state: dict[str, Any], settle: int, count: int) -> dict[str, Any]:
    clock.time_calls(state["calls"][0], settle)
    begin = time.perf_counter_ns()
    nanoseconds, marks = clock.time_calls(state["calls"][0], count)
    wall = time.perf_counter_ns() - begin
    told = {name: values.tolist() for name, values in marks.items()}
    return {"nanoseconds": nanoseconds.tolist(), "wall": wall, "at": begin, "marks": told}


def _streams(state: dict[str, Any], settle: int, count: int) -> dict[str, Any]:
    scenarios.time_streams(state["calls"], settle)
    return scenarios.time_streams(state["calls"], count)


def _memory(state: dict[str, Any]) -> dict[str, Any]:
    return {"bytes": clock.peak_memory()}


COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {
    "start": _start,
    "load": _load,
    "prepare": _prepare,
    "first": _first,
    "warm-up": _warm_up,
    "time": _time,
    "streams": _streams,
    "memory": _memory,
}

if __name__ == "__main__":
    sys.exit(main())
