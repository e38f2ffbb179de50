"""Main memory: how much a process can still take, and one clear message where it ran out."""

from __future__ import annotations

import contextlib
import errno
import re
import resource
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import BadInput, EdgekdError

if TYPE_CHECKING:
    from .recipe import Recipe

_RAN_OUT = re.compile(
    r"not enough memory|can.?t allocate memory|cannot allocate memory|out of memory|bad.?alloc|unable to allocate|failed to allocate",
    re.IGNORECASE,
)
"""The words of torch, numpy, ONNX Runtime and the C libraries: their exceptions share no base."""
_ASKED = re.compile(r"(?:allocate|size) ([\d.]+) ?(bytes|[KMGTPE]iB)?", re.IGNORECASE)
_OF_A_GPU = re.compile(r"total capacity of ([\d.]+ \w+) of which ([\d.]+ \w+) is free")
_UNITS = {"bytes": 1, **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGTPE", 1)}}
_UNLIMITED = 2**60
"""Version 1 of control groups has no word for no limit, but a number that no machine has."""


class OutOfMemory(BadInput):
    """Memory ran out, or will: says of what, how much is needed and there, and what to change."""


def available(root: Path = Path("/")) -> int:
    """Return how many bytes this process can still take: by the machine (swap counted), its container, and its own limit."""
    import psutil

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some containers do not tell how much was swapped
        machine = psutil.virtual_memory().available + psutil.swap_memory().free
        own = psutil.Process().memory_info().vms
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    rooms = [machine, _of_container(root), None if limit == resource.RLIM_INFINITY else limit - own]
    return max(0, min(room for room in rooms if room is not None))


def _of_container(root: Path) -> int | None:
    """Return what a container's limit leaves, what it keeps of files counted as free; None without a limit."""
    group = root / "sys/fs/cgroup"
    for folder, most, now, files in (
        (group, "memory.max", "memory.current", "inactive_file"),
        (group / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            limit, used = (folder / most).read_text().strip(), int((folder / now).read_text())
            told = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if limit.isdigit() and int(limit) < _UNLIMITED:
            return int(limit) - used + int(told.get(files, 0))
    return None


def ran_out(error: BaseException | None) -> BaseException | None:
    """Return the failed allocation behind an error (itself, or what it was raised from or after); None where there is none."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
            return error
        if isinstance(error, Exception) and not isinstance(error, EdgekdError) and _RAN_OUT.search(str(error)):
            return error
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def guarded(doing: str, ways: str) -> Iterator[None]:
    """Turn an allocation that fails inside into OutOfMemory, however it was wrapped. ways: what to change, for people."""
    try:
        yield
    except OutOfMemory:
        raise
    except Exception as error:
        if (failed := ran_out(error)) is None:
            raise
        raise OutOfMemory(f"{doing}: memory ran out{_asked(failed)}; {_there(failed)}: {ways}") from None


def ways_out(stage: str, recipe: Recipe) -> str:
    """Return what to change where memory ran out in a stage of a recipe."""
    ways = []
    if stage == "teacher-cache":
        ways.append("set distill.teacher: live and a small distill.batch_size")
    elif stage == "train":
        ways.append(f"lower train.batch_size (now {recipe.train.batch_size})")
    elif stage == "distill" or stage.startswith("quantize/"):
        ways.append(f"lower distill.batch_size (now {recipe.teaching.batch_size})")
    if recipe.reads_text:
        ways.append(f"lower data.max_tokens (now {recipe.data.max_tokens})")
    ways.append("close what else is running, or take a machine with more memory")
    return ", ".join(ways) + ". Finished stages are kept"


def _asked(error: BaseException) -> str:
    """Say how much more was asked for, where the error tells."""
    found = _ASKED.search(str(error))
    if found is None:
        return ""
    units = {name.lower(): factor for name, factor in _UNITS.items()}
    return f" (another {size(int(float(found[1]) * units[(found[2] or 'bytes').lower()]))} were asked for)"


def _there(error: BaseException) -> str:
    """Say how much there is, of the memory that ran out."""
    if gpu := _OF_A_GPU.search(str(error)):
        return f"{gpu[2]} of the GPU's {gpu[1]} were free"
    import psutil

    return f"{size(available())} of the machine's {size(psutil.virtual_memory().total)} are free"


def size(count: float) -> str:
    """Return a number of bytes for people.

    >>> size(90_868_370), size(26e9)
    ('91 MB', '26.0 GB')
    """
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"
