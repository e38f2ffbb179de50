"""A pipe to a device's Python, whatever carries it: files and orders go there, what happens there comes back as it happens."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bench.process import WorkerDied
from ..errors import Missing
from . import bootstrap, packing

if TYPE_CHECKING:
    from . import Tell

START = ("-u", "-c", "import sys;exec(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))")
"""What a device's Python is started with: it reads how long its program is, then the program, then that reads on."""

PATIENCE = 60.0
"""Seconds without a sign of life after which a device ends what it does for us."""

CONNECT = 60.0
"""Seconds until a connection has to stand, the user's own waiting rooms (jump hosts) included."""

LEAVE = 10.0
"""Seconds that a device gets to tidy up."""


class Lost(Missing):
    """The connection is gone."""


class Link:
    """A pipe to Python on a device; a context manager: leaving it ends what runs there, and nothing stays there.

    address: names the device in messages. command: starts its Python with START. why(exit code, what was printed): what the end of
    command means, in words. folder: where a private folder is made there; None for the system's place for such.
    hello: {"python": version, "executable", "folder"}. Entering raises Missing.
    """

    def __init__(
        self,
        address: str,
        command: Sequence[str],
        why: Callable[[int, str], str],
        folder: str | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self.address, self._command, self._why, self._folder, self._patience = address, list(command), why, folder, patience
        self.hello: dict[str, Any] = {}

    def __enter__(self) -> Link:
        self._printed = tempfile.TemporaryFile()  # closed in __exit__
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        self._lock, self._gone, self._there = threading.Lock(), threading.Event(), set[str]()
        try:
            # Ctrl-C at the terminal is for us: we tell the other side.
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._printed,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as error:
            self._printed.close()
            raise Missing(
                f"{self.address}: {self._command[0]} cannot be started ({error.strerror}): {self._why(127, '')}"
            ) from None
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            program = Path(bootstrap.__file__).read_text(encoding="utf-8") + f"\nmain({self._patience!r}, {self._folder!r})\n"
            self._write(f"{len(program.encode())}\n{program}".encode())
            watch = threading.Timer(CONNECT, self._process.kill)
            watch.daemon = True
            watch.start()
            try:
                self.hello = next(event for event in self._events() if "hello" in event)
            finally:
                watch.cancel()
            threading.Thread(target=self._beat, daemon=True).start()
            self.put({"kit.pyz": packing.packed()})
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *rest: object) -> None:
        self._gone.set()
        stdin, stdout = self._process.stdin, self._process.stdout
        with contextlib.suppress(OSError):
            stdin.close()  # type: ignore[union-attr]  # the other side's sign to tidy up and end
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=LEAVE if self.hello else 0.5)
        self._process.kill()  # does nothing to a process that has ended
        self._process.wait()
        stdout.close()  # type: ignore[union-attr]
        self._printed.close()

    def put(self, files: Mapping[str, Path | bytes], tell: Tell = lambda share, what: None) -> None:
        """Send files: path there -> content. One that was sent on this link is not sent again; a path stands for a content."""
        for name, content in files.items():
            if name in self._there:
                continue
            size = len(content) if isinstance(content, bytes) else content.stat().st_size
            with self._lock:  # no sign of life in the middle of a file
                self._write(json.dumps({"put": name, "bytes": size}).encode() + b"\n")
                if isinstance(content, bytes):
                    self._write(content)
                else:
                    self._copy(content, size, tell)
            self._there.add(name)

    def order(self, order: Mapping[str, Any], tell: Tell = lambda share, what: None) -> dict[str, Any]:
        """Have an order (bench/agent.py) obeyed; return its result. Raises WorkerDied (the thing failed there), Missing, Lost."""
        with self._lock:
            self._write(json.dumps({"order": order}).encode() + b"\n")
        result, failed = None, None
        for event in self._events():
            if "progress" in event:
                tell(*event["progress"])
            elif "result" in event:
                result = event["result"]
            elif "error" in event:
                failed = event
            elif "ended" in event:
                break
        if failed:
            if failed["kind"] == "thing":
                raise WorkerDied(f"{failed['error']}\n  on {self.address}", failed.get("label"))
            raise Missing(f"{self.address}: {failed['error']}")
        if not isinstance(result, dict):
            raise Missing(f"{self.address}: what measures there ended {_ended(event['ended'])}, and said nothing{self._tail()}")
        return result

    def _events(self) -> Iterator[dict[str, Any]]:
        """Yield what the device says. Raises Missing when it refuses or fails, Lost when it is gone."""
        while True:
            line = self._lines.get()
            if line is None:
                raise self._lost()
            try:
                event = json.loads(line)
            except ValueError:
                continue  # a shell that greets, the half line of an agent that was killed
            if isinstance(event, dict):
                if event.get("kind") in ("python", "disk", "caller"):
                    raise Lost(f"{self.address}: {self._said(event)}")
                yield event

    def _said(self, event: Mapping[str, Any]) -> str:
        """Put what stopped the device's side into words."""
        if event["kind"] == "python":
            oldest = ".".join(str(part) for part in bootstrap.OLDEST)
            return f"{event['error']}: it takes {oldest} or newer; name another with ?python=/path/to/python3"
        if event["kind"] == "disk":
            return f"files cannot be written there ({event['error']}); name a folder with space with ?folder=/path"
        return f"the device gave up: it {event['error']}"

    def _lost(self) -> Missing:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        code = self._process.poll()
        printed = self._print()
        if not self.hello:
            return Missing(f"{self.address}: {self._why(-9 if code is None else code, printed)}")
        how = "it ended" if code is None else f"it ended {_ended(code)}"
        last = printed.strip().splitlines()
        return Lost(f"{self.address}: the connection was lost ({last[-1] if last else how}); what ran there ends by itself")

    def _listen(self) -> None:
        source = os.fdopen(os.dup(self._process.stdout.fileno()), "rb")  # type: ignore[union-attr]
        with source, contextlib.suppress(OSError):
            for line in source:
                self._lines.put(line)
        self._lines.put(None)

    def _beat(self) -> None:
        while not self._gone.wait(self._patience / 6):
            with self._lock, contextlib.suppress(Missing, OSError, ValueError):
                self._write(b'{"beat": true}\n')

    def _write(self, data: bytes) -> None:
        """Write all of it. Raises Missing, with the device's own words where it has some, when nobody takes it."""
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._process.stdin.fileno(), left) :]  # type: ignore[union-attr]
        except OSError:
            if threading.current_thread() is threading.main_thread():
                for _ in self._events():
                    pass  # it ends by raising
            raise

    def _copy(self, file: Path, size: int, tell: Tell) -> None:
        sent, shown = 0, time.monotonic()
        with file.open("rb") as source:
            while sent < size:
                piece = source.read(min(1 << 16, size - sent))
                if not piece:
                    raise Missing(f"{file}: became shorter while it was sent to {self.address}; try again")
                self._write(piece)
                sent += len(piece)
                if time.monotonic() - shown > 0.5:
                    shown = time.monotonic()
                    tell(0.0, f"sending {file.name}: {sent / 1e6:.0f} of {size / 1e6:.0f} MB")

    def _print(self) -> str:
        size = self._printed.seek(0, 2)
        self._printed.seek(max(0, size - 8000))
        return self._printed.read().decode(errors="replace")

    def _tail(self) -> str:
        return "".join(f"\n  {line}" for line in self._print().strip().splitlines()[-8:])


def _ended(code: int) -> str:
    return f"by signal {-code}" if code < 0 else f"with exit code {code}"
