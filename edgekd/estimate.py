"""What the variants will weigh, before anything is made."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from . import quantize
from .materials import Materials
from .plan import Plan
from .quantize.size import numbers

if TYPE_CHECKING:
    from torch import nn

    from .recipe import VariantRecipe, Weights


def estimate(plan: Plan) -> dict[str, Any]:
    """Return {student, teacher: {parameters, bytes}, variants: {name: bytes}} from the models as they load. Raises BadInput.

    A variant's bytes are the weights of convolutions and linear layers at the scheme's bits (of a budget: as many as it allows),
    their scales, and the rest in 32 bits; the graph around them (a few KB) is not counted.
    """
    materials = Materials(plan)
    student = materials.fresh_student
    found: dict[str, Any] = {
        "student": {"parameters": student.parameters, "bytes": 4 * student.parameters},
        "variants": {v.name: round(_bytes(student.module.net, v)) for v in plan.recipe.quantize},
    }
    if plan.recipe.teacher:
        found["teacher"] = {"parameters": materials.teacher.parameters, "bytes": 4 * materials.teacher.parameters}
    return found


def _bytes(net: nn.Module, variant: VariantRecipe) -> float:
    if quantize.from_the_network(variant):
        return _network_bytes(net, variant)
    weights = [p for p in net.parameters() if p.ndim > 1]
    rest = numbers(net) - sum(w.numel() for w in weights)
    return 4 * rest + sum(_symmetric_bytes(tuple(w.shape), variant.weights) for w in weights)


def _network_bytes(net: nn.Module, variant: VariantRecipe) -> float:
    """Return the bytes of a variant made in torch: two numbers a bucket, and a codebook's points."""
    from .quantize import chain

    assert variant.weights is not None
    sizes = chain.check(variant, net)
    counts = {name: net.get_parameter(name).numel() for name in sizes}
    rest = 4 * numbers(net, without=sizes)
    budget, bits = variant.budget, variant.weights.bits
    if budget and budget.size_mb is not None:
        return min(budget.size_mb * 1e6, rest + _stored(counts, sizes, variant, max(budget.choices)))
    if budget and budget.mean_bits is not None:
        mean = min(budget.mean_bits, max(budget.choices))
        bits = math.ceil(mean)
        return rest + _stored(counts, sizes, variant, bits) - sum(counts.values()) * (bits - mean) / 8
    return rest + _stored(counts, sizes, variant, bits)


def _stored(counts: dict[str, int], sizes: dict[str, int], variant: VariantRecipe, bits: int) -> float:
    from .quantize.bits import weight_bytes

    assert variant.weights is not None
    points = 4 * (1 << bits) if variant.weights.kind == "codebook" else 0
    return sum(each[bits] + points for each in weight_bytes(counts, sizes, [bits]).values())


def _symmetric_bytes(shape: tuple[int, ...], scheme: Weights | None) -> float:
    """Return the bytes of one of ptq's tensors: a scale a channel, or one."""
    count = math.prod(shape)
    if scheme is None:
        return 4 * count
    return count * scheme.bits / 8 + 4 * (shape[0] if scheme.granularity == "channel" else 1)
