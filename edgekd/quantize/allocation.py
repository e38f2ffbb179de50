"""A variant's budget: which tensor gets how many bits, so that all of it weighs no more."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..distributed import is_main_process, process_count
from ..errors import BadInput
from ..progress import bar

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..models import LoadedModel
    from ..recipe import Budget, VariantRecipe
    from . import Job

SAMPLES = 512
"""Training samples that the outputs are compared on: their mean damage is known to a few percent."""
BATCHES, BATCH = 5, 64
"""Of the gradient's norms: as many batches as in the paper."""

Sizes = dict[str, dict[int, float]]


def check(config: VariantRecipe, net: nn.Module, sizes: Mapping[str, int]) -> None:
    """Raise BadInput for a budget below the smallest possible size. sizes: name of each quantized weight -> weights a bucket."""
    assert config.budget is not None
    each, room = _bytes(config, net, sizes)
    least = sum(min(of.values()) for of in each.values())
    if room < least * (1 - 1e-9):
        whole = (config.budget.size_mb or 0) * 1e6 - room + least
        fewest = min(config.budget.choices)
        raise BadInput(
            f"quantize `{config.name}`: budget.size_mb {config.budget.size_mb:g} is below the smallest possible size, "
            f"{math.ceil(whole / 10) / 1e5:g} MB ({fewest} bits throughout, with scales and what stays in full precision). "
            "Raise it, allow fewer bits in `choices`, larger groups, or keep fewer layers"
        )


def bits_of(config: VariantRecipe, job: Job, student: LoadedModel, sizes: Mapping[str, int]) -> tuple[dict[str, int], Any]:
    """Return the bits of each tensor, and the table of how they came about (JSON-able). Under `accelerate launch` all get the first process's."""
    made: list[Any] = [_allocated(config, job, student, sizes) if is_main_process() else None]
    if process_count() > 1:
        from accelerate.utils import broadcast_object_list

        from ..distill import processes

        processes.accelerator()
        broadcast_object_list(made)
    bits, told = made[0]
    return bits, told


def _allocated(config: VariantRecipe, job: Job, student: LoadedModel, sizes: Mapping[str, int]) -> tuple[dict[str, int], Any]:
    from . import bits

    budget, net = config.budget, student.module.net
    assert budget is not None
    counts = {name: net.get_parameter(name).numel() for name in sizes}
    each, room = _bytes(config, net, sizes)
    if budget.by == "sensitivity":
        with bar("sensitivity", len(sizes) * len(budget.choices)) as advance:
            outputs = _outputs(job, student)
            measures = bits.measure(net, outputs, sizes, budget.choices, _quantizer(config), advance=lambda: advance(1))
        chosen = bits.allocate(measures, each, room)
        rows = bits.table(chosen, counts, measures, each)
    else:
        norms = bits.gradient_norms(net, sizes, lambda _, batch: _loss(job, student, batch), _batches(job))
        chosen = _most_points(norms, counts, each, room, budget)
        rows = [
            {"name": name, "count": counts[name], "bits": count, "gradient_norm": norms[name], "bytes": each[name][count]}
            for name, count in chosen.items()
        ]
    quantized = sum(counts.values())
    return chosen, {
        "by": budget.by,
        "size_mb": budget.size_mb,
        "mean_bits": budget.mean_bits,
        "choices": sorted(set(budget.choices)),
        "mean_bits_reached": sum(counts[name] * count for name, count in chosen.items()) / quantized,
        "table": rows,
    }


def _quantizer(config: VariantRecipe) -> Callable[[int, int, torch.Tensor], nn.Module]:
    """Return (weights a bucket, bits, weights) -> what the variant's first method puts before them, rounding to the nearest."""
    from .codebook import Codebook
    from .learned_scale import LearnedScale
    from .symmetric import Symmetric
    from .uniform import MinMax

    if config.methods[0] == "differentiable":
        return lambda size, bits, weights: Codebook(size, 1 << bits, weights)
    if config.scale == "learned":
        return LearnedScale
    if config.weights and config.weights.symmetric:
        return lambda size, bits, weights: Symmetric(size, bits)
    return lambda size, bits, weights: MinMax(size, bits, config.style or "straight-through")


def _most_points(
    norms: Mapping[str, float], counts: Mapping[str, int], each: Sizes, room: float, budget: Budget
) -> dict[str, int]:
    """Return the bits of the most points on average that fit the budget, shared out as in the paper.

    A tensor gets the most bits among the choices that its points fill; the fewest where they fill none.
    """
    from . import bits

    made = dict.fromkeys(counts, min(budget.choices))
    for levels in range(2, bits.MOST + 1):
        points = bits.by_gradient_norm(norms, counts, levels)
        filled = {name: [b for b in budget.choices if 1 << b <= points[name]] for name in counts}
        now = {name: max(fit, default=min(budget.choices)) for name, fit in filled.items()}
        if sum(each[name][b] for name, b in now.items()) <= room * (1 + 1e-9):
            made = now
    return made


def _bytes(config: VariantRecipe, net: nn.Module, sizes: Mapping[str, int]) -> tuple[Sizes, float]:
    """Return (name -> bits -> bytes, bytes that there are for all): as stored, or of the bits alone for a mean number of bits."""
    from .bits import weight_bytes
    from .size import numbers

    budget = config.budget
    assert budget is not None
    assert config.weights is not None
    counts = {name: net.get_parameter(name).numel() for name in sizes}
    if budget.mean_bits is not None:
        each: Sizes = {name: {bits: count * bits / 8 for bits in budget.choices} for name, count in counts.items()}
        return each, budget.mean_bits * sum(counts.values()) / 8
    assert budget.size_mb is not None
    each = weight_bytes(counts, sizes, budget.choices)
    if config.weights.kind == "codebook":
        each = {name: {bits: size + 4 * (1 << bits) for bits, size in of.items()} for name, of in each.items()}
    return each, budget.size_mb * 1e6 - 4 * numbers(net, without=sizes)


def _outputs(job: Job, student: LoadedModel) -> Any:
    """Return net -> logits of some training samples, drawn by the seed."""
    import torch

    assert job.splits
    assert job.task
    task, train = job.task, job.splits().train
    chosen = np.sort(np.random.default_rng(job.seed).permutation(len(train))[:SAMPLES])
    batches = [
        {name: torch.from_numpy(values) for name, values in train.take(chosen[start : start + 128]).items()}
        for start in range(0, len(chosen), 128)
    ]
    return lambda _: torch.cat([task.forward(student.module, batch)["logits"] for batch in batches])


def _batches(job: Job) -> list[dict[str, torch.Tensor]]:
    import torch

    assert job.splits
    train = job.splits().train
    order = np.random.default_rng(job.seed).permutation(len(train))[: BATCHES * BATCH]
    return [
        {name: torch.from_numpy(values) for name, values in train.take(np.sort(order[start : start + BATCH])).items()}
        for start in range(0, len(order), BATCH)
    ]


def _loss(job: Job, student: LoadedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    assert job.task
    return job.task.loss(job.task.forward(student.module, batch), batch)
