"""The inputs of a job's thing, for devices that do not run bench/worker.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..bench import scenarios


def inputs_of(command: Mapping[str, Any], graphs: list[str]) -> dict[str, dict[str, np.ndarray]]:
    """Return graph -> input -> array of `batch` samples, for the command `prepare` of bench/worker.py: those that are given for a
    graph, else made from what it declares."""
    given: dict[str, dict[str, np.ndarray]] = {}
    if command.get("inputs"):
        with np.load(command["inputs"], allow_pickle=False) as stored:
            for key in stored.files:
                graph, _, name = key.partition("/")
                given.setdefault(graph, {})[name] = stored[key]
    faces, batch = command.get("interfaces") or {}, command["batch"]
    return {
        graph: scenarios.batch_of(given[graph], batch)
        if graph in given
        else scenarios.random_inputs(faces[graph]["inputs"], batch, command.get("seed") or 0)
        for graph in graphs
    }
