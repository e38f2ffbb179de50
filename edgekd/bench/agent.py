"""The device's end: reads one order, obeys it here, tells what happens as JSON lines on standard output. numpy and the standard
library alone.

python -m edgekd.bench.agent FOLDER   with FOLDER/order.json, in which paths are relative to FOLDER:
{"do": "measure", "job": see schedule.py} -> {"progress": [share, what]}, ..., {"result": what schedule.run returns}
{"do": "describe", "runtimes": {module: [distribution, ...]}} -> {"result": {"host": environment.describe(), "load_average": now,
    "runtimes": {module: version | null}}}
{"do": "rates", "threads"}                -> {"result": see rates.py}
A failure is {"error": message, "kind": "thing" (it is the artifact's, whose "label" is told) | "device"}, and exit code 1. The end of standard input means
that whoever gave the order is gone: everything here ends at once, and the folder with it, which is this order's alone.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from .process import Worker, WorkerDied


def main(folder: str) -> int:
    """Obey the order in the folder; return the exit code."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a runtime prints must not break the protocol
    lock = threading.Lock()

    def tell(**event: Any) -> None:
        with lock:
            answers.write(json.dumps(event) + "\n")
            answers.flush()

    threading.Thread(target=_end_with_the_caller, args=(folder,), daemon=True).start()
    try:
        order = json.loads((Path(folder) / "order.json").read_text(encoding="utf-8"))
        tell(result=_obey(order, Path(folder), tell))
    except ImportError as error:
        name = error.name or str(error)
        tell(error=f"{name} is not installed for {sys.executable}: {sys.executable} -m pip install {name}", kind="device")
        return 1
    except WorkerDied as error:
        tell(error=str(error), kind="thing", label=error.label)
        return 1
    except Exception as error:
        tell(error=f"{type(error).__name__}: {error}", kind="device")
        return 1
    return 0


def _obey(order: dict[str, Any], folder: Path, tell: Any) -> dict[str, Any]:
    if order["do"] == "describe":
        from . import environment

        return {
            "host": environment.describe(),
            "load_average": environment.now()["load_average"],
            "runtimes": {module: version(module, order["runtimes"][module]) for module in order["runtimes"]},
        }
    if order["do"] == "rates":
        from . import rates

        return rates.measure(order["threads"])
    from . import schedule

    return schedule.run(here(order["job"], folder), Worker, lambda share, what: tell(progress=[share, what]))


def here(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a job whose paths were relative to a folder with this machine's."""
    things = []
    for thing in job["things"]:
        files = {graph: str(folder / file) for graph, file in thing["files"].items()}
        things.append(dict(thing, files=files, inputs=str(folder / thing["inputs"]) if thing.get("inputs") else None))
    return dict(job, things=things)


def version(module: str, distributions: list[str]) -> str | None:
    """Return the version of a module that is installed, not imported; "?" where no distribution tells; None where it is not."""
    if importlib.util.find_spec(module) is None:
        return None
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "?"


def _end_with_the_caller(folder: str) -> None:
    """Wait for the end of standard input; then remove the folder and kill the process group, which is ours alone where we lead it."""
    # Not sys.stdin's own buffer: the interpreter could not end while a thread waits in it.
    while os.read(0, 1 << 16):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    if os.getpid() == os.getpgid(0):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
