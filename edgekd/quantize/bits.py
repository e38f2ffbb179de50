"""How many bits each tensor gets.

Two ways. By gradient norm: points of a codebook in proportion to how steeply the loss depends on the tensor (Polino, Pascanu and
Alistarh 2018, section 4.1, and their released code). By measured damage: quantize one tensor at a time, see how far the outputs move, and
spend a budget of bytes where it helps most. The second assumes that damages add up: it is as good as that.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ..errors import BadInput
from ..models.mode import evaluation
from .uniform import MinMax

Batch = Any

MOST = 256
"""Points that an index of 8 bits can name."""

STATES = 200_000
"""Partial allocations that allocate() keeps. It is exact while no more than these are worth keeping."""


def by_gradient_norm(norms: Mapping[str, float], counts: Mapping[str, int], levels: int) -> dict[str, int]:
    """Return the points of each tensor's codebook: name -> 2 ... 256. They add up to levels x tensors, as far as the limits allow.

    Every tensor has levels / 2 (at least 2); the rest goes in proportion to the norms. No tensor gets more than 256, or more
    points than it has weights (but 2).
    norms: 2-norm of the loss's gradient by each tensor, see gradient_norms(). counts: weights in each. levels: points on average.
    Raises BadInput for a norm that is NaN, infinite or negative.
    """
    names = list(norms)
    share = np.array([norms[name] for name in names], dtype=np.float64)
    if bad := [name for name, norm in zip(names, share, strict=True) if not (np.isfinite(norm) and norm >= 0)]:
        raise BadInput(f"bits: the gradient's norm of `{bad[0]}` is {norms[bad[0]]}; check the student's weights and the data")
    most = np.array([min(MOST, max(2, counts[name])) for name in names], dtype=np.float64)
    points = np.minimum(max(2, levels // 2), most)
    total = min(levels * len(names), most.sum())
    rising = points < most
    while rising.any():
        part = np.where(rising, share, 0.0)
        part = part if part.sum() > 0 else rising.astype(np.float64)
        wanted = points + (total - points.sum()) * part / part.sum()
        full = rising & (wanted >= most)
        if not full.any():
            points = wanted
            break
        points = np.where(full, most, points)  # what they leave over is shared out among the others
        rising &= ~full
    whole = np.floor(points + 1e-9)
    largest = np.argsort(whole - points, kind="stable")[: round(total - whole.sum())]
    whole[largest] += 1
    return {name: int(n) for name, n in zip(names, whole, strict=True)}


def gradient_norms(
    net: nn.Module, names: Iterable[str], loss: Callable[[nn.Module, Batch], torch.Tensor], batches: Iterable[Batch]
) -> dict[str, float]:
    """Return the 2-norm of the gradient, mean over the batches, of each named weight: name in the state dict -> norm.

    loss(net, batch) gives a scalar. The paper takes 5 minibatches. The network is in evaluation mode meanwhile; neither its weights,
    nor its gradients, nor its modes are changed afterwards.
    """
    weights = {name: net.get_parameter(name) for name in names}
    frozen = [w for w in weights.values() if not w.requires_grad]
    sums, seen = {name: torch.zeros_like(w) for name, w in weights.items()}, 0
    with evaluation(net):
        try:
            for w in frozen:
                w.requires_grad_(True)
            for batch in batches:
                with torch.enable_grad():
                    found = torch.autograd.grad(loss(net, batch), list(weights.values()), allow_unused=True)
                for total, gradient in zip(sums.values(), found, strict=True):
                    if gradient is not None:
                        total += gradient
                seen += 1
        finally:
            for w in frozen:
                w.requires_grad_(False)
    return {name: float(total.double().norm()) / max(seen, 1) for name, total in sums.items()}


def measure(
    net: nn.Module,
    outputs: Callable[[nn.Module], torch.Tensor],
    sizes: Mapping[str, int],
    choices: Sequence[int],
    quantizer: Callable[[int, int, torch.Tensor], nn.Module] = lambda size, bits, weights: MinMax(size, bits),
    advance: Callable[[], object] = lambda: None,
) -> dict[str, dict[int, float]]:
    """Return the damage of quantizing one tensor at a time: name -> bits -> mean KL from the full-precision outputs, in nats.

    outputs(net): logits (samples, ..., classes) of a few batches, the same ones at every call; it is called 1 + names x choices
    times, without gradients and in evaluation mode. sizes: name of the weight in the state dict -> weights a bucket.
    quantizer(size of a bucket, bits, weights) -> module. advance: called after every measurement, for a progress bar. The network is
    left as it was. A choice whose outputs are NaN or infinite has infinite damage.
    """
    found: dict[str, dict[int, float]] = {}
    with torch.no_grad(), evaluation(net):
        full = functional.log_softmax(outputs(net).flatten(0, -2).double(), dim=-1)
        for name, size in sizes.items():
            weights = net.get_parameter(name)
            kept = weights.detach().clone()
            found[name] = {}
            for bits in choices:
                try:
                    weights.copy_(quantizer(size, bits, kept)(kept))
                    logits = outputs(net).flatten(0, -2).double()
                finally:
                    weights.copy_(kept)
                moved = functional.kl_div(functional.log_softmax(logits, dim=-1), full, reduction="sum", log_target=True)
                damage = float(moved) / len(full)
                found[name][bits] = damage if math.isfinite(damage) else math.inf
                advance()
    return found


def weight_bytes(counts: Mapping[str, int], sizes: Mapping[str, int], choices: Sequence[int]) -> dict[str, dict[int, float]]:
    """Return the bytes of each tensor at each number of bits: packed indices, and 8 bytes (scale and offset) a bucket.

    counts: weights in each tensor. sizes: weights a bucket.
    """
    return {
        name: {bits: math.ceil(count * bits / 8) + 8 * math.ceil(count / sizes[name]) for bits in choices}
        for name, count in counts.items()
    }


def allocate(
    sensitivity: Mapping[str, Mapping[int, float]], sizes: Mapping[str, Mapping[int, float]], budget_bytes: float
) -> dict[str, int]:
    """Return the bits of each tensor, such that the summed damage is the least that fits the budget: name -> bits.

    sensitivity: name -> bits -> damage, such as measure() gives; a NaN or infinite damage rules the choice out.
    sizes: name -> bits -> bytes. A mean number of bits is a budget too: budget_bytes = mean x weights / 8, sizes alike.
    Exact: all allocations tensor by tensor (the multiple-choice knapsack by dynamic programming over undominated pairs of bytes
    and damage), without those that the bound of mixed choices shows to be worse than a greedy allocation. Only where more than
    STATES remain are the most promising kept; the result is then at least as good as the greedy one.
    Raises BadInput where even the smallest choices exceed the budget.
    """
    tensors = [_Tensor(name, sensitivity[name], sizes[name]) for name in sensitivity]
    smallest = sum(tensor.size[0] for tensor in tensors)
    room = budget_bytes * (1 + 1e-9)  # sums of sizes in another order differ in their last digits
    if smallest > room:
        raise BadInput(
            f"budget: {budget_bytes:,.0f} bytes are too few; the weights take {smallest:,.0f} bytes at the fewest bits allowed "
            f"({', '.join(map(str, sorted({t.bits[0] for t in tensors})))}). Raise the budget to that, or allow fewer bits, larger "
            "groups, or a smaller student"
        )
    best, damage = _greedy(tensors, room)
    slack = 1e-12 * (1 + sum(np.abs(t.damage).max() for t in tensors))
    size, lost = np.zeros(1), np.zeros(1)
    steps = []
    for number, tensor in enumerate(tensors):
        new_size, new_lost = (size[:, None] + tensor.size).ravel(), (lost[:, None] + tensor.damage).ravel()
        bound = new_lost + _least(tensors[number + 1 :], room - new_size)
        kept = np.flatnonzero(bound <= damage + slack)
        if len(kept) > STATES:
            kept = kept[np.argpartition(bound[kept], STATES)[:STATES]]
        kept = kept[np.lexsort((new_lost[kept], new_size[kept]))]
        lowest = np.minimum.accumulate(new_lost[kept])
        kept = kept[np.concatenate([[True], lowest[1:] < lowest[:-1]])] if len(kept) else kept
        size, lost = new_size[kept], new_lost[kept]
        steps.append(kept)
    if len(lost) and lost[-1] <= damage:
        best, at = [], len(lost) - 1
        for tensor, kept in zip(reversed(tensors), reversed(steps), strict=True):
            at, choice = divmod(int(kept[at]), len(tensor.bits))
            best.append(choice)
        best.reverse()
    return {tensor.name: tensor.bits[choice] for tensor, choice in zip(tensors, best, strict=True)}


def table(
    chosen: Mapping[str, int],
    counts: Mapping[str, int],
    sensitivity: Mapping[str, Mapping[int, float]],
    sizes: Mapping[str, Mapping[int, float]],
) -> list[dict[str, Any]]:
    """Return a row a tensor, plain JSON values: name, count (of weights), bits, sensitivity (the damage, nats), bytes."""
    return [
        {"name": name, "count": counts[name], "bits": bits, "sensitivity": sensitivity[name][bits], "bytes": sizes[name][bits]}
        for name, bits in chosen.items()
    ]


class _Tensor:
    """The choices for one tensor that are worth having, by rising size and falling damage."""

    def __init__(self, name: str, damages: Mapping[int, float], sizes: Mapping[int, float]) -> None:
        finite = sorted((float(sizes[bits]), damage, bits) for bits, damage in damages.items() if math.isfinite(damage))
        if not finite:
            raise BadInput(
                f"bits: every choice for `{name}` ({', '.join(map(str, damages))} bits) gives NaN or infinite outputs"
            )
        useful = [finite[0]]
        for choice in finite[1:]:
            if choice[1] < useful[-1][1]:
                useful.append(choice)
        self.name, self.bits = name, [bits for _, _, bits in useful]
        self.size, self.damage = np.array([s for s, _, _ in useful]), np.array([d for _, d, _ in useful])
        self.hull = self._hull()

    def _hull(self) -> list[int]:
        """Return the choices on the lower convex hull of damage over size, from the smallest on."""
        made = [0]
        while made[-1] < len(self.bits) - 1:
            here, later = made[-1], np.arange(made[-1] + 1, len(self.bits))
            slopes = (self.damage[later] - self.damage[here]) / (self.size[later] - self.size[here])
            made.append(int(later[np.flatnonzero(slopes == slopes.min())[-1]]))
        return made


def _steps(tensors: Sequence[_Tensor]) -> list[tuple[float, float, float, int, int]]:
    """Return (slope, bytes, damage, tensor, choice) of every step up along the hulls, the steepest fall of damage first."""
    made = []
    for number, tensor in enumerate(tensors):
        for low, high in itertools.pairwise(tensor.hull):
            bytes_, damage = tensor.size[high] - tensor.size[low], tensor.damage[high] - tensor.damage[low]
            made.append((damage / bytes_, bytes_, damage, number, high))
    return sorted(made)


def _greedy(tensors: Sequence[_Tensor], room: float) -> tuple[list[int], float]:
    """Return a good choice a tensor and the summed damage: steps along the hulls, the steepest first, while they fit."""
    chosen, stopped = [0] * len(tensors), set()
    room -= sum(tensor.size[0] for tensor in tensors)
    for _, bytes_, _, number, choice in _steps(tensors):
        if bytes_ <= room and number not in stopped:
            chosen[number] = choice
            room -= bytes_
        else:
            stopped.add(number)
    return chosen, float(sum(tensor.damage[choice] for tensor, choice in zip(tensors, chosen, strict=True)))


def _least(tensors: Sequence[_Tensor], room: np.ndarray) -> np.ndarray:
    """Return a lower bound of the tensors' summed damage in each room (bytes): that of mixed choices; infinite if they do not fit."""
    room = room - sum(tensor.size[0] for tensor in tensors)
    steps = np.array([step[1:3] for step in _steps(tensors)]).reshape(-1, 2)
    used, damage = np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)]).T
    found = np.interp(room, used, damage) + sum(tensor.damage[0] for tensor in tensors)
    return np.where(room >= 0, found, math.inf)
