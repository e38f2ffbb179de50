"""A headless Chromium that opens one page and ends with us, whatever happens."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ..errors import Missing

VARIABLE = "EDGEKD_CHROMIUM"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
HOW = f"install Chromium (Debian: apt-get install chromium), or set {VARIABLE} to its program"
FLAGS = (
    "--headless", "--no-first-run", "--no-default-browser-check", "--disable-quic", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--disable-dev-shm-usage", "--mute-audio",
    "--disable-background-timer-throttling", "--disable-renderer-backgrounding", "--disable-backgrounding-occluded-windows",
)  # fmt: skip
SOFTWARE_GPU = (
    "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan,WebGPU",
    "--use-vulkan=swiftshader", "--use-angle=swiftshader",
)  # fmt: skip
REAL_GPU = ("--enable-unsafe-webgpu", *(
    ("--enable-features=Vulkan,WebGPU", "--use-angle=vulkan", "--disable-vulkan-surface") if sys.platform == "linux" else ()
))  # fmt: skip
"""Headless, Chromium on Linux reaches a GPU through Vulkan alone; elsewhere it does so unasked."""

_DISCOVER = b'{"id": 1, "method": "Target.setDiscoverTargets", "params": {"discover": true}}\0'
_CRASHED = b'"Target.targetCrashed"'
"""What it is asked on its pipe, and what it says then of a page that died while the browser lives on (DevTools protocol)."""

PREFIX = "edgekd-chromium-"
_HELD = "held"
"""In each profile: a file that the process whose browser it is keeps locked."""


def missing() -> str | None:
    """Say that there is no Chromium here, and what to do; None where there is one."""
    if sys.platform == "win32":
        return "a headless Chromium is driven on Linux and macOS alone: open browser://localhost:8000 in any browser of this machine"
    if program():
        return None
    if told := os.environ.get(VARIABLE):
        return f"{VARIABLE} is set to `{told}`, which is no program here: set it to Chromium's, or unset it"
    return f"no Chromium here: {HOW}"


@functools.cache
def version(program: str) -> str:
    """Return what a browser calls itself, such as "Chromium 150.0.7871.100"; "Chromium" where it does not say."""
    try:
        told = subprocess.run([program, "--version"], capture_output=True, text=True, errors="replace", timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        told = ""
    found = re.search(r"^\D*\d+(\.\d+)+", told, re.MULTILINE)
    return found[0].strip() if found else "Chromium"


def program() -> str | None:
    """Return Chromium's path; None where there is none."""
    if sys.platform == "win32":
        return None
    if told := os.environ.get(VARIABLE):
        return shutil.which(told)
    return next((found for name in NAMES if (found := shutil.which(name))), None)


_START = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]  # out of the way of 3 and 4
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Starts a program with two pipes as its file descriptors 3 and 4, which is where Chromium looks for them."""


class Chromium:
    """A running browser with a profile of its own, which lies in a temporary folder.

    software_gpu: WebGPU on the CPU. real_gpu: WebGPU on the GPU that is here, if any.
    """

    def __init__(self, address: str, software_gpu: bool = False, real_gpu: bool = False) -> None:
        import fcntl

        found = program()
        if found is None:
            raise Missing(str(missing()))
        _sweep()
        self._owner = os.getpid()
        self.profile = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._held = (self.profile / _HELD).open("w")
        fcntl.flock(self._held, fcntl.LOCK_EX)
        self._log = self.profile / "stderr.txt"
        gpu = SOFTWARE_GPU if software_gpu else REAL_GPU if real_gpu else ("--disable-gpu",)
        flags = [*FLAGS, *gpu, f"--user-data-dir={self.profile}"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            flags.append("--no-sandbox")  # Chromium's sandbox refuses to run as root
        # Chromium ends when these pipes close, which the system does for us even if we are killed.
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        ends = (str(theirs_in), str(theirs_out))
        command = [sys.executable, "-I", "-S", "-c", _START, *ends, found, *flags, "--remote-debugging-pipe", address]
        try:
            with self._log.open("wb") as log:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(theirs_in, theirs_out),
                    start_new_session=True,
                )
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        self._said, self._crashed = b"", False
        os.set_blocking(self._from, False)
        with contextlib.suppress(BrokenPipeError):  # it could not even start: alive() says why
            os.write(self._to, _DISCOVER)

    def __del__(self) -> None:
        """End a browser that nobody closed and nobody holds any more: its profile's lock is gone with us."""
        with contextlib.suppress(Exception):
            if self._owner == os.getpid():  # not in a fork of ours
                self.close()

    def alive(self) -> None:
        """Raise RuntimeError when the browser has ended, with its last words, or its page has crashed."""
        if self.process.poll() is None:
            if self._page_crashed():
                raise RuntimeError("the page crashed in Chromium; too little memory is what it mostly is")
            return
        lines = self._log.read_text(errors="replace").strip().splitlines() if self._log.is_file() else []
        raise RuntimeError(
            f"Chromium ended (exit status {self.process.returncode}): {lines[-1] if lines else 'it said nothing'}"
        )

    def _page_crashed(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            while told := os.read(self._from, 1 << 16):
                self._crashed |= _CRASHED in self._said + told
                self._said = told[-len(_CRASHED) :]
        return self._crashed

    def close(self) -> None:
        """End the browser and all its processes, and remove its profile. Can be called again."""
        for end in (self._to, self._from):
            if end >= 0:
                os.close(end)
        self._to = self._from = -1
        _end(self.process)
        self._held.close()
        for _ in range(20):  # its last processes may still be writing
            shutil.rmtree(self.profile, ignore_errors=True)
            if not self.profile.exists():
                return
            time.sleep(0.1)


def _sweep() -> None:
    """Remove the profiles of processes that were killed before they could do so: those whose lock nobody holds."""
    import fcntl  # Windows has none

    for held in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{_HELD}"):
        with contextlib.suppress(OSError), held.open("r+") as file:
            if time.time() - os.fstat(file.fileno()).st_mtime < 60:
                continue  # perhaps made just now, and not yet locked
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(held.parent, ignore_errors=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and the group it leads; on Linux also wait for all of them, so that their processor time counts as ours."""
    group = _group(process.pid)
    with _adopting():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=10)
        end = time.monotonic() + 2
        while group and time.monotonic() < end:
            group = [pid for pid in group if not _gone(pid)]
            time.sleep(0.005 if group else 0)


def _group(leader: int) -> list[int]:
    """Return the other processes of the session that a process leads; none where /proc does not tell."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            words = file.read_text(errors="replace").rpartition(")")[2].split()  # state, parent, group, session: see proc(5)
            if words[3:4] == [str(leader)] and file.parent.name != str(leader):
                found.append(int(file.parent.name))
    return found


@contextlib.contextmanager
def _adopting() -> Iterator[None]:
    """Processes below us whose parent ends become our children meanwhile, not those of process 1 (PR_SET_CHILD_SUBREAPER, prctl(2))."""
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else lambda *words: None
    prctl(36, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(36, 0, 0, 0, 0)


def _gone(pid: int) -> bool:
    """Say whether a process has ended, and take its last word if it is our child."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:  # not ours, or not yet: its parent is dying
        return not Path(f"/proc/{pid}").exists()
