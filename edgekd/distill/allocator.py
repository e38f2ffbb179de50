"""Freed memory stays with the process while a network is trained on a CPU.

Left alone, glibc gives the activations that every step frees back to the system, which hands them out again page by page, filled with
zeros: up to tens of thousands of page faults a step (benchmarks/kept_memory). How many varies with whatever else a step
allocates, so that what a method costs wavers, too.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of mallopt(), from glibc's malloc.h: how much free memory at the end of the heap goes back, and from which size on a block is no part of it."""
_KEEP = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 2**31 - 1}
"""Larger blocks go back at once, as ever: before its 2.38, glibc can't put an aligned block where one of the same size was, and a heap of
large ones grew to eight times what was in use."""
_USUAL = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}
"""What glibc itself arrives at once a block of 32 MiB was freed. mallopt() can't let it find its own way again."""
_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")
_inside = False


@contextmanager
def kept(on_cpu: bool = True) -> Iterator[None]:
    """Keep freed memory inside; at the end of the outermost what is free goes back.

    Does nothing for other devices, without glibc (macOS, musl), and where glibc is tuned by the environment (MALLOC_..., GLIBC_TUNABLES).
    """
    global _inside
    libc = ctypes.CDLL(None)
    has_both = all(hasattr(libc, name) for name in ("gnu_get_libc_version", "mallopt"))  # tcmalloc has the latter alone
    if not on_cpu or _inside or not has_both or _tuned():
        yield
        return
    _inside = True
    _set(libc, _KEEP)
    try:
        yield
    finally:
        _inside = False
        _set(libc, _USUAL)
        libc.malloc_trim(ctypes.c_size_t(0))


def _tuned() -> bool:
    return any(name in os.environ for name in _OWN) or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", "")


def _set(libc: ctypes.CDLL, options: dict[int, int]) -> None:
    for option, value in options.items():
        libc.mallopt(option, value)
