"""Fake quantization of a network's weights, through torch's parametrizations.

The trainer, its checkpoints and the exporter see an ordinary network: `layer.weight` gives the quantized weights, and the
full-precision ones are the parameter `parametrizations.weight.original` of the layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.nn.utils import parametrize

from .encoded import Encoded


def attach(net: nn.Module, quantizers: Mapping[str, nn.Module]) -> None:
    """Put a quantizer before each named weight. quantizers: name in the state dict, such as `blocks.0.conv.weight` -> module."""
    for name, quantizer in quantizers.items():
        owner, _, tensor = name.rpartition(".")
        parametrize.register_parametrization(net.get_submodule(owner), tensor, quantizer)


def quantized(net: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Module, torch.Tensor]]:
    """Yield (name in the state dict, owner, tensor's name, quantizer, full-precision weights) of each quantized weight."""
    for path, owner in net.named_modules():
        if not parametrize.is_parametrized(owner):
            continue
        for tensor, parts in owner.parametrizations.items():
            yield f"{path}.{tensor}".lstrip("."), owner, tensor, parts[0], parts.original


def encode(net: nn.Module) -> dict[str, Encoded]:
    """Return every quantized weight as it is stored: name in the state dict -> Encoded."""
    made = {}
    for name, _, _, quantizer, weights in quantized(net):
        indices, scale, offset, points = (t if t is None else t.cpu().numpy() for t in quantizer.encode(weights))  # type: ignore[operator]
        made[name] = Encoded(indices, scale, offset, points, int(quantizer.levels), tuple(weights.shape))  # type: ignore[arg-type]
    return made


def bake(net: nn.Module) -> dict[str, Encoded]:
    """Replace each quantizer by the weights it gives, exactly Encoded.decoded(); return what encode() does."""
    made = encode(net)
    for name, owner, tensor, _, weights in list(quantized(net)):
        parametrize.remove_parametrizations(owner, tensor, leave_parametrized=False)
        values = torch.from_numpy(made[name].decoded()).to(weights)
        with torch.no_grad():
            getattr(owner, tensor).copy_(values)
        getattr(owner, tensor).requires_grad_(True)
    return made


def detach(net: nn.Module) -> None:
    """Remove the quantizers; the weights are the full-precision ones again."""
    for _, owner, tensor, _, _ in list(quantized(net)):
        parametrize.remove_parametrizations(owner, tensor, leave_parametrized=False)
