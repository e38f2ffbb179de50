"""A worker's way of being asked, for devices that do not run bench/worker.py."""

from __future__ import annotations

from typing import Any


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
