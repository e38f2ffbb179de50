"""Quantized distillation: the student learns from its teacher with quantized weights (Polino, Pascanu and Alistarh 2018, section 3).

Every step quantizes the weights, takes the gradient of the distillation loss there, and applies it to the full-precision
weights behind them; at the end they are quantized once more. All of this is the quantizer's doing (uniform.py, learned_scale.py);
the training is the one of every student.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from . import fake
from .learned_scale import LearnedScale
from .symmetric import Symmetric
from .uniform import MinMax

if TYPE_CHECKING:
    from ..recipe import VariantRecipe


def prepare(net: nn.Module, layout: Mapping[str, tuple[int, int]], config: VariantRecipe) -> None:
    """Put the quantizers before the weights; all stays trainable. layout: name in the state dict -> (weights a bucket, bits)."""
    fake.attach(net, {name: _quantizer(net.get_parameter(name), *of, config) for name, of in layout.items()})


def _quantizer(weights: torch.Tensor, size: int, bits: int, config: VariantRecipe) -> nn.Module:
    if config.scale == "learned":
        return LearnedScale(size, bits, weights)
    if config.weights and config.weights.symmetric:
        return Symmetric(size, bits)
    return MinMax(size, bits, config.style or "straight-through", config.rounding == "stochastic")
