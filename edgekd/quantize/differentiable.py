"""Differentiable quantization: the weights stay, the points that they are quantized to are learned (Polino, Pascanu and
Alistarh 2018, section 4).

BatchNorm goes on estimating its statistics meanwhile: with those of the full-precision network a student of 2 bits stays at
chance. The points' optimizer is AdamW unless the recipe says otherwise, for every tensor's points want a rate of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from . import fake
from .codebook import Codebook
from .learned_scale import LearnedScale

if TYPE_CHECKING:
    from ..recipe import VariantRecipe


def prepare(net: nn.Module, layout: Mapping[str, tuple[int, int]], config: VariantRecipe) -> None:
    """Put a codebook before each of the weights, and freeze all but its points. layout: name -> (weights a bucket, bits).

    After a quantized distillation the points begin at its levels, on its weights and ranges: with exactly its result. Else
    they begin at the quantiles of the weights.
    """
    before = {name: quantizer for name, _, _, quantizer, _ in fake.quantized(net)}
    fake.detach(net)
    if config.style == "truncated" and before:
        with torch.no_grad():
            for name in before:
                net.get_parameter(name).clamp_(-1, 1)
    net.requires_grad_(False)
    books = {name: _codebook(net.get_parameter(name), *of, before.get(name)) for name, of in layout.items()}
    fake.attach(net, books)


def _codebook(weights: torch.Tensor, size: int, bits: int, before: nn.Module | None) -> Codebook:
    ranges = (before.alpha, before.beta) if isinstance(before, LearnedScale) else None
    return Codebook(size, 1 << bits, weights, uniform=before is not None, ranges=ranges)
