"""Channels-last weights, where a network can work with them: convolutions on a CPU are up to half as fast again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def channels_last(module: nn.Module, forward: Callable[[], object]) -> None:
    """Store the weights of 2-D convolutions channels last, unless `forward` (at least two samples) then fails.

    A network that flattens with x.view() fails so; it never gives other numbers.
    """
    if not any(parameter.ndim == 4 for parameter in module.parameters()):
        return
    _store(module, torch.channels_last)
    try:
        with torch.no_grad():
            forward()
    except RuntimeError:
        contiguous(module)


def contiguous(module: nn.Module) -> None:
    """Store all weights in the ordinary way again."""
    _store(module, torch.contiguous_format)


def _store(module: nn.Module, memory_format: torch.memory_format) -> None:
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)
