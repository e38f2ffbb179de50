"""How many bits each tensor gets.

Two ways. By gradient norm: points of a codebook in proportion to how steeply the loss depends on the tensor (Polino, Pascanu and
Alistarh 2018, section 4.1, and their released code). By measured damage: quantize one tensor at a time, see how far the outputs move, and
spend a budget of bytes where it helps most. The second assumes that damages add up: it is as good as that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ..errors import BadInput
from .uniform import MinMax

Batch = Any


def by_gradient_norm(norms: Mapping[str, float], counts: Mapping[str, int], levels: int) -> dict[str, int]:
    """Return the points of each tensor's codebook: name -> 2 ... 256. They add up to levels x tensors, as far as the limits allow.

    Every tensor has levels / 2 (at least 2); the rest goes in proportion to the norms. No tensor gets more than 256, or more
    points than it has weights (but 2).
    norms: 2-norm of the loss's gradient by each tensor, see gradient_norms(). counts: weights in each. levels: points on average.
    Raises BadInput for a norm that is NaN, infinite or negative.
    """
    raise NotImplementedError


def gradient_norms(
    net: nn.Module, names: Iterable[str], loss: Callable[[nn.Module, Batch], torch.Tensor], batches: Iterable[Batch]
) -> dict[str, float]:
    """Return the 2-norm of the gradient, mean over the batches, of each named weight: name in the state dict -> norm.

    loss(net, batch) gives a scalar. The paper takes 5 minibatches. The network is in evaluation mode meanwhile; neither its weights,
    nor its gradients, nor its modes are changed afterwards.
    """
    raise NotImplementedError


def measure(
    net: nn.Module,
    outputs: Callable[[nn.Module], torch.Tensor],
    sizes: Mapping[str, int],
    choices: Sequence[int],
    quantizer: Callable[[int, int], nn.Module] = MinMax,
    advance: Callable[[], object] = lambda: None,
) -> dict[str, dict[int, float]]:
    """Return the damage of quantizing one tensor at a time: name -> bits -> mean KL from the full-precision outputs, in nats.

    outputs(net): logits (samples, ..., classes) of a few batches, the same ones at every call; it is called 1 + names x choices
    times, without gradients and in evaluation mode. sizes: name of the weight in the state dict -> weights a bucket.
    quantizer(size of a bucket, bits) -> module. advance: called after every measurement, for a progress bar. The network is
    left as it was. A choice whose outputs are NaN or infinite has infinite damage.
    """
    raise NotImplementedError


def weight_bytes(counts: Mapping[str, int], sizes: Mapping[str, int], choices: Sequence[int]) -> dict[str, dict[int, float]]:
    """Return the bytes of each tensor at each number of bits: packed indices, and 8 bytes (scale and offset) a bucket.

    counts: weights in each tensor. sizes: weights a bucket.
    """
    raise NotImplementedError


def allocate(
    sensitivity: Mapping[str, Mapping[int, float]], sizes: Mapping[str, Mapping[int, float]], budget_bytes: float
) -> dict[str, int]:
    """Return the bits of each tensor, such that the summed damage is the least that fits the budget: name -> bits.

    sensitivity: name -> bits -> damage, such as measure() gives; a NaN or infinite damage rules the choice out.
    sizes: name -> bits -> bytes. A mean number of bits is a budget too: budget_bytes = mean x weights / 8, sizes alike.
    Raises BadInput where even the smallest choices exceed the budget.
    """
    raise NotImplementedError


def table(
    chosen: Mapping[str, int],
    counts: Mapping[str, int],
    sensitivity: Mapping[str, Mapping[int, float]],
    sizes: Mapping[str, Mapping[int, float]],
) -> list[dict[str, Any]]:
    """Return a row a tensor, plain JSON values: name, count (of weights), bits, sensitivity (the damage, nats), bytes."""
    raise NotImplementedError
