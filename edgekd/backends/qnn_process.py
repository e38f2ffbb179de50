"""The parent's end of qnn_worker.py: start it, ask it, and tell a crash from an answer."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

from ..errors import BadInput
from .qnn_worker import receive, send

PATIENCE = 1800.0
"""Seconds that one answer may take: the simulator needs seconds for an inference of a small network."""

_STARTED = (sys.executable, "-m", "edgekd.backends.qnn_worker")
_REFUSED = re.compile(r"\{ name: (.*?), type: (\w+) \}")
_NO_BACKEND = "QNN SetupBackend failed"


class Process:
    """A worker. It ends with `end`, or when nobody holds this object any more."""

    def __init__(self, label: str) -> None:
        self.label = label
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 (closed in _end)
        self._process = subprocess.Popen(_STARTED, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._printed)
        self.end = weakref.finalize(self, _end, self._process, self._printed)

    def ask(self, arrays: Mapping[str, np.ndarray] | None = None, **told: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return the answer to one message. Raises BadInput when the worker refuses, crashes or hangs."""
        hung, process = threading.Event(), self._process

        def give_up() -> None:  # knows nothing of self, which must go when its last user does
            hung.set()
            process.kill()

        watch = threading.Timer(PATIENCE, give_up)
        watch.daemon = True
        watch.start()
        answer = None
        try:
            with contextlib.suppress(OSError):  # it is gone already: read below what it said
                send(process.stdin, told, arrays)  # type: ignore[arg-type]
                answer = receive(process.stdout)  # type: ignore[arg-type]
        finally:
            watch.cancel()
        if answer is None:
            code = process.wait()
            how = f"did not answer within {PATIENCE:.0f} s" if hung.is_set() else f"crashed ({_code(code)})"
            raise BadInput("\n".join([f"{self.label}: Qualcomm's HTP compiler or simulator {how}", *self._tail()]))
        if "error" in answer[0]:
            raise BadInput(f"{self.label}: {self._reason(answer[0]['error'], told.get('file'))}")
        return answer

    def _reason(self, error: str, file: str | None) -> str:
        """Say why in the words of the user: ONNX Runtime's error says that a node has no place, the log says which.

        Where QNN takes no node at all, the log says nothing, and each of the file's is refused.
        """
        if "fallback to CPU EP has been explicitly disabled" not in error and "OpType:" not in error:
            return f"ONNX Runtime with QNN says: {error.splitlines()[0]}"
        said = self._said()
        lines = [line for line in said if "Unsupported nodes in QNN EP" in line]
        nodes = _REFUSED.findall(lines[-1]) if lines else []  # the first tries are before it changes the layout
        broken = next((line.partition(_NO_BACKEND)[2] for line in said if _NO_BACKEND in line), None)
        if not nodes and file is not None and broken is None:
            import onnx

            nodes = [(node.name, node.op_type) for node in onnx.load(file, load_external_data=False).graph.node]
        if not nodes:
            why = (
                f"its HTP backend did not load ({broken.strip()})" if broken else f"ONNX Runtime says: {error.splitlines()[0]}"
            )
            return f"nothing of the graph was taken by QNN, and computing on the CPU instead is forbidden: {why}"
        kinds: dict[str, str] = {}
        for name, kind in nodes:
            kinds.setdefault(kind, name)
        return "HTP does not take " + ", ".join(f"{kind} (node {name})" for kind, name in sorted(kinds.items()))

    def _said(self) -> list[str]:
        self._printed.seek(0)
        text = self._printed.read().decode(errors="replace")
        return re.sub(r"\x1b\[[0-9;]*m", "", text).strip().splitlines()

    def _tail(self) -> list[str]:
        return [f"  {line[:300]}" for line in self._said()[-6:]]


def _code(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _end(process: subprocess.Popen[bytes], printed: IO[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            pipe.close()  # type: ignore[union-attr]
    process.kill()  # it holds nothing that is worth waiting for
    process.wait()
    printed.close()
