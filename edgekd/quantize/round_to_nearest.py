"""Round to nearest: the finished student's weights, each to the nearest level of its bucket. Nothing is trained.

The baseline that Polino, Pascanu and Alistarh (2018) call PM, post-mortem quantization; others say RTN.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn

from . import fake
from .symmetric import Symmetric
from .uniform import MinMax

if TYPE_CHECKING:
    from ..recipe import VariantRecipe


def prepare(net: nn.Module, layout: Mapping[str, tuple[int, int]], config: VariantRecipe) -> None:
    """Put the quantizers before the weights. layout: name in the state dict -> (weights a bucket, bits)."""
    kind = Symmetric if config.weights and config.weights.symmetric else MinMax
    fake.attach(net, {name: kind(size, bits) for name, (size, bits) in layout.items()})
