"""ONNX Runtime's own clock on an Android device, onnxruntime_perf_test, spoken to in the commands of bench/worker.py.

Each block is one run of it: it loads the model, makes one call that it does not count, then `-r COUNT` calls, and appends a line for
each to its result file, "FOLDER,SECONDS,PEAK,CPU,NUMBER", and prints "Session creation time cost: 0.0123 s" and
"First inference time cost: 5 ms" (onnxruntime/test/perftest/performance_runner.cc; the same from 1.17 to 1.31). Not -v: that also
raises the log level, which is paid for in every call. Its calls are Session::Run on inputs in memory, from its test_data_set_0.
"""

from __future__ import annotations

import math
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..bench.process import PATIENCE, WorkerDied
from ..bench.scenarios import inputs_of
from ..bench.things import parts
from ..errors import Missing
from .adb_link import Link, quote
from .asked import Asked

TOOL = "onnxruntime_perf_test"
_NOT_HERE = ("CANNOT LINK EXECUTABLE", "not executable", "inaccessible or not found", "Exec format error", "Permission denied")


class PerfWorker(Asked):
    """One thing in a folder of its own on the device. seconds: that a block takes at least; look: called after each."""

    def __init__(
        self,
        label: str,
        link: Link,
        number: int,
        version: str,
        seconds: float = 0.0,
        look: Callable[[str], None] | None = None,
    ) -> None:
        self.label, self._link, self._version, self._seconds, self._look = label, link, version, seconds, look
        self._folder = f"{link.folder}/{number}"
        self._model, self._threads, self._peak, self._first = "", 1, 0, 0.0

    def __enter__(self) -> PerfWorker:
        return self

    def __exit__(self, *rest: object) -> None:
        """Leave what is there to the link, which removes it: with a lost connection nothing could be done here."""

    def obey(self, do: str, command: dict[str, Any], expected: float) -> dict[str, Any]:
        """Do a command. Raises WorkerDied; Missing when the device is lost, or cannot start the tool."""
        obey: dict[str, Callable[..., dict[str, Any]]] = {
            "start": lambda **rest: {"runtime": {"onnxruntime": self._version}, "bytes": None},
            "load": self._load,
            "prepare": lambda **rest: {},
            "first": lambda **rest: {"seconds": self._first},
            "warm-up": self._warm,
            "time": self._time,
            "memory": lambda **rest: {"bytes": self._peak or None},
        }
        return obey[do](expected=expected, **command)

    def give(self, thing: dict[str, Any], job: dict[str, Any], scratch: Path) -> None:
        """Bring the model and its inputs there; scratch: an empty folder here, for the inputs."""
        import onnx

        ((graph, file),) = thing["files"].items()
        told = {
            "inputs": thing.get("inputs"),
            "interfaces": thing.get("interfaces"),
            "batch": job["batch"],
            "seed": job.get("seed"),
        }
        given = inputs_of(told.get("inputs"), told.get("interfaces") or {}, [graph], told["batch"], told.get("seed") or 0)[
            graph
        ]
        data = f"{self._folder}/test_data_set_0"
        self._link.shell(f"mkdir -p {data}")
        main = Path(file)
        self._model = f"{self._folder}/model{main.suffix}"
        for part in parts(main):
            self._link.push(part, self._model if part == main else f"{self._folder}/{part.name}")
        for place, (name, value) in enumerate(given.items()):
            tensor = scratch / f"input_{place}.pb"
            tensor.write_bytes(onnx.numpy_helper.from_array(value, name).SerializeToString())
            self._link.push(tensor, f"{data}/{tensor.name}")

    def _load(self, threads: int, expected: float, **rest: Any) -> dict[str, Any]:
        self._threads = threads
        _, printed = self._run(1, PATIENCE)
        created = re.search(r"Session creation time cost: (\S+) s", printed)
        first = re.search(r"First inference time cost: (\d+) ms", printed)
        if not created or not first:
            said = f"{TOOL} did not say how long it loaded; use that of ONNX Runtime 1.17 or later"
            raise WorkerDied(f"{self.label}: {said}", self.label)
        self._first = int(first[1]) / 1000
        return {"seconds": float(created[1]), "providers": {}}

    def _warm(self, seconds: float, count: int, expected: float) -> dict[str, Any]:
        """Make `count` calls, fewer where they would take more than four times `seconds`; then what is left of `seconds`."""
        most = math.floor(4 * seconds / self._first) if self._first else count
        made, _ = self._run(max(1, min(count, most)), PATIENCE)
        left = seconds - sum(made) / 1e9
        if left > 0:
            made += self._run(math.ceil(left / (sum(made) / 1e9 / len(made))), expected + PATIENCE)[0]
        self._call = sum(made[len(made) // 2 :]) / 1e9 / len(made[len(made) // 2 :])
        return {"nanoseconds": made}

    def _time(self, settle: int, count: int, expected: float) -> dict[str, Any]:
        if self._seconds:
            count = max(count, math.ceil(self._seconds / self._call))
            expected = max(expected, 10 * self._seconds)
        made, _ = self._run(settle + count, expected + PATIENCE)
        ended = time.perf_counter_ns()
        if self._look:
            self._look(self.label)
        counted = made[settle:]
        return {"nanoseconds": counted, "wall": sum(counted), "at": ended - sum(counted), "marks": {}}

    def _run(self, count: int, patience: float) -> tuple[list[int], str]:
        """Run the tool once; return the nanoseconds of `count` calls and what it printed."""
        words = [f"{self._link.folder}/{TOOL}", "-e", "cpu", "-o", "99", "-x", str(self._threads), "-r", str(count)]
        inner = f"echo $$ >{self._folder}/pid; exec {quote(*words, self._model, self._folder + '/result.csv')}"
        command = (
            f"export LD_LIBRARY_PATH={self._link.folder}; rm -f {self._folder}/result.csv; sh -c {quote(inner)}; edgekd_status=$?; "
            f"rm -f {self._folder}/pid; cat {self._folder}/result.csv 2>/dev/null; (exit $edgekd_status)"
        )
        try:
            status, printed = self._link.shell(command, patience)
        except subprocess.TimeoutExpired:
            raise WorkerDied(f"{self.label}: {TOOL} did not end within {patience:.0f} s", self.label) from None
        lines = re.findall(r"^.*?,([\d.e+-]+),(\d+),-?\d+,\d+$", printed, re.MULTILINE)
        if status or len(lines) != count:
            raise self._failed(status, printed)
        self._peak = max(self._peak, int(lines[-1][1]))
        return [round(float(seconds) * 1e9) for seconds, _ in lines], printed

    def _failed(self, status: int, printed: str) -> Exception:
        said = "\n".join(f"  {line}" for line in printed.strip().splitlines()[-8:])
        if any(words in printed for words in _NOT_HERE):
            return Missing(f"{self._link.serial}: {TOOL} does not start there; is it built for this device's ABI?\n{said}")
        if "command line flag" in printed:  # Abseil leaves flags out on Android, unless told otherwise: ONNX Runtime #25849
            return Missing(
                f"{TOOL} was built without its options; use that of ONNX Runtime 1.23 or later, or before 1.22\n{said}"
            )
        return WorkerDied(f"{self.label}: {TOOL} failed (exit status {status})\n{said}", self.label)
