"""What a device's Python is sent first over SSH: keeps a private folder there, obeys orders, and leaves nothing behind.

It reads frames from standard input, each a line of JSON: {"put": path, "bytes": N} and N bytes; {"order": see bench/agent.py}, of which
there is one at a time; {"beat": true}, a sign of life; {"end": true}. It answers with lines of JSON on standard output: {"hello":
process id, "python", "executable", "folder"} first, {"ended": exit code} after an order, {"error", "kind"}; between an order and its
end they are the agent's. At the end of input, at SIGTERM, SIGHUP or SIGINT, and when nothing was heard for `patience` seconds,
everything that it started is killed and the folder is gone.

The standard library alone, and words that Python 3.6 understands: a Python that is too old has to be able to say so.
"""

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

OLDEST = (3, 8)


def main(patience: float, parent: "str | None" = None) -> None:
    """Serve until the caller ends it, is gone, or has been silent for `patience` seconds. parent: where the folder is made."""
    sys.path[:] = [place for place in sys.path if place]  # what lies in the home folder is not ours to import
    if sys.version_info < OLDEST:
        _say(error=f"Python {sys.version_info[0]}.{sys.version_info[1]} is too old", kind="python")
        return
    state = {"folder": None, "agent": None, "heard": time.monotonic()}  # type: dict[str, Any]

    def end(code: int, **last: Any) -> None:
        _kill(state["agent"])
        if state["folder"]:
            _remove(state["folder"])
        if last:
            _say(**last)
        os._exit(code)  # another thread may be reading standard input

    for name in ("SIGTERM", "SIGHUP", "SIGINT"):
        signal.signal(getattr(signal, name), lambda *_: end(1))
    try:
        state["folder"] = folder = tempfile.mkdtemp(prefix="edgekd-", dir=parent)  # for this user alone
        os.mkdir(os.path.join(folder, "tmp"))
    except OSError as error:
        end(1, error=str(error), kind="disk")
    frames = queue.Queue()  # type: queue.Queue[dict[str, Any]]
    threading.Thread(target=_read, args=(frames, folder, state), daemon=True).start()
    _say(
        hello=os.getpid(), python=".".join(str(part) for part in sys.version_info[:3]), executable=sys.executable, folder=folder
    )
    while True:
        try:
            frame = frames.get(timeout=max(0.05, min(1.0, patience / 4)))
        except queue.Empty:
            frame = {}
        if "order" in frame:
            state["agent"] = _start(frame["order"], folder, frames)
        elif "ended" in frame:
            _kill(state["agent"])  # what it started and did not end
            state["agent"] = None
            _say(**frame)
        elif "end" in frame:
            end(0)
        elif "error" in frame:
            end(1, **frame)
        if time.monotonic() - state["heard"] > patience:
            end(1, error=f"heard nothing from the caller for {patience:g} s", kind="caller")


def _read(frames: "queue.Queue[dict[str, Any]]", folder: str, state: "dict[str, Any]") -> None:
    """Take frames from standard input, files into the folder, until it ends or a file cannot be written."""
    source = sys.stdin.buffer  # type: Any
    try:
        while True:
            line = source.readline()
            state["heard"] = time.monotonic()
            if not line.endswith(b"\n"):
                break
            frame = json.loads(line.decode("utf-8"))
            if "put" not in frame:
                frames.put(frame)
                continue
            path = os.path.join(folder, *frame["put"].split("/"))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            left = frame["bytes"]
            with open(path, "wb") as opened:
                while left:
                    piece = source.read1(min(left, 1 << 16))
                    if not piece:
                        frames.put({"end": True})
                        return
                    state["heard"] = time.monotonic()
                    opened.write(piece)
                    left -= len(piece)
        frames.put({"end": True})
    except OSError as error:
        frames.put({"error": str(error), "kind": "disk"})


def _start(order: "dict[str, Any]", folder: str, frames: "queue.Queue[dict[str, Any]]") -> "subprocess.Popen[bytes]":
    """Start the agent on an order, as the head of a process group; its end becomes a frame."""
    with open(os.path.join(folder, "order.json"), "w", encoding="utf-8") as opened:
        json.dump(order, opened)
    paths = [os.path.join(folder, "kit.pyz")] + [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    around = dict(os.environ, PYTHONPATH=os.pathsep.join(paths), TMPDIR=os.path.join(folder, "tmp"))
    # Its standard input ends with this process, however that ends: the agent's sign that nobody is left.
    agent = subprocess.Popen(
        [sys.executable, "-m", "edgekd.bench.agent", folder],
        cwd=folder,
        env=around,
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    threading.Thread(target=lambda: frames.put({"ended": agent.wait()}), daemon=True).start()
    return agent


def _kill(agent: "subprocess.Popen[bytes] | None") -> None:
    """Kill an agent and all that it started."""
    if agent is None:
        return
    with contextlib.suppress(OSError):  # it has ended, and all with it
        os.killpg(agent.pid, signal.SIGKILL)
    agent.wait()


def _remove(folder: str) -> None:
    """Remove the folder, also when a process that was just killed is still on its way out."""
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.exists(folder):
            return
        time.sleep(0.1)


def _say(**event: Any) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        # the agent may have been stopped in the middle of a line
        sys.stdout.write("\n" + json.dumps(event) + "\n")
        sys.stdout.flush()
