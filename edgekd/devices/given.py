"""What devices need that do not run bench/worker.py: a job's inputs, and a worker's way of being asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..bench import scenarios


class Asked:
    """The commands of bench/worker.py, for a worker that obeys one at a time: whoever is one has obey(do, command, expected)."""

    _sent: dict[str, Any]

    def obey(self, do: str, command: dict[str, Any], expected: float) -> dict[str, Any]:
        """Do a command that should take about `expected` seconds; return its answer. Raises WorkerDied."""
        raise NotImplementedError

    def send(self, **command: Any) -> None:
        """Keep a command until its answer is wanted."""
        self._sent = command

    def receive(self, expected: float = 0.0) -> dict[str, Any]:
        """Return the answer to the command sent. Raises WorkerDied."""
        command = dict(self._sent)
        return self.obey(command.pop("do"), command, expected)

    def ask(self, expected: float = 0.0, **command: Any) -> dict[str, Any]:
        """Send a command that should take about `expected` seconds and return its answer. Raises WorkerDied."""
        self.send(**command)
        return self.receive(expected)


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
