"""Memory that is not enough, told with what to change."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from ..errors import BadInput, first_line


@contextlib.contextmanager
def told(advice: str) -> Iterator[None]:
    """Raise BadInput with the advice where what is done inside runs out of memory, a GPU's or the machine's."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _ran_out(error):
            raise
        raise BadInput(f"{advice} ({first_line(error)[:120]})") from None


def _ran_out(error: BaseException) -> bool:
    """Say whether an error is of memory; torch has a type for that of GPUs alone."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
