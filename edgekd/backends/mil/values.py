"""What operations are given: tensors, and constants that they read as Python numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Table = dict[str, Callable[..., Any]]
"""Operation, as Core ML calls it -> what computes it, called with the operation's own parameter names."""


def ints(value: torch.Tensor | None) -> list[int]:
    """Return a constant vector, or a single number, as Python's integers."""
    return [] if value is None else [int(v) for v in value.reshape(-1)]


def flags(value: torch.Tensor | None, count: int) -> list[bool]:
    """Return a constant vector of truth values; as many times False where there is none."""
    return [False] * count if value is None else [bool(v) for v in value.reshape(-1)]


def one_of(parameter: str, value: str, known: tuple[str, ...]) -> str:
    """Return the text when it is among those known. Raises NotImplementedError."""
    if value not in known:
        raise NotImplementedError(f"{parameter} = {value!r} (known: {', '.join(known)})")
    return value
