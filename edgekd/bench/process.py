"""The parent's end of a worker: start it, ask it, and never leave it behind."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import tempfile
import threading
from typing import Any

from ..errors import EdgekdError

PATIENCE = 120.0
"""Seconds that a worker may stay silent beyond what it was asked to spend."""

STARTED: tuple[str, ...] = (sys.executable, "-m", "edgekd.bench.worker")


_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class WorkerDied(EdgekdError):
    """The runtime failed, crashed or hung on an artifact: names the artifact and shows the end of what it printed.

    label: the artifact's, where it is known.
    """

    exit_code = 2

    def __init__(self, message: str, label: str | None = None) -> None:
        super().__init__(message)
        self.label = label


class Worker:
    """One process for one artifact; `ask` is one command of worker.py. A context manager: leaving it ends the process."""

    def __init__(self, label: str) -> None:
        self.label = label
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        self._process = subprocess.Popen(
            STARTED,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
            text=True,
            encoding="utf-8",
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            if kind is None:
                self._send({"do": "quit"})
                self._process.wait(timeout=5)
        self._process.kill()  # does nothing to a process that has ended
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait()
        self._process.stdout.close()  # type: ignore[union-attr]
        self._printed.close()

    def send(self, **command: Any) -> None:
        """Send a command whose answer is taken later by `receive`."""
        try:
            self._send(command)
        except OSError:
            raise self._died("ended") from None

    def receive(self, expected: float = 0.0) -> dict[str, Any]:
        """Return the answer to the command sent. Raises WorkerDied, also when none came PATIENCE after `expected` seconds."""
        hung = threading.Event()

        def give_up() -> None:
            hung.set()
            self._process.kill()

        watch = threading.Timer(expected + PATIENCE, give_up)
        watch.daemon = True
        watch.start()
        try:
            line = self._process.stdout.readline()  # type: ignore[union-attr]
        finally:
            watch.cancel()
        if not line:
            raise self._died(f"did not answer within {expected + PATIENCE:.0f} s" if hung.is_set() else "ended")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise self._died("failed", answer["error"])
        return answer

    def ask(self, expected: float = 0.0, **command: Any) -> dict[str, Any]:
        """Send a command that should take about `expected` seconds and return its answer. Raises WorkerDied."""
        self.send(**command)
        return self.receive(expected)

    def _send(self, command: dict[str, Any]) -> None:
        self._process.stdin.write(json.dumps(command) + "\n")  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]

    def _died(self, how: str, error: str | None = None) -> WorkerDied:
        code = None
        if how == "ended":
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(timeout=5)
        how += "" if code is None else f" (signal {-code})" if code < 0 else f" (exit code {code})"
        size = self._printed.seek(0, 2)
        self._printed.seek(max(0, size - 4000))
        printed = _COLOURS.sub("", self._printed.read().decode(errors="replace")).strip().splitlines()[-12:]
        told = [error] if error else []
        # a runtime often prints what it raises too: once is enough
        tail = [f"  {line}" for line in told + [line for line in printed if not (error and line[-60:] in error)]]
        return WorkerDied("\n".join([f"{self.label}: the process that timed it {how}", *tail]), self.label)
