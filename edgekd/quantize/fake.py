"""Fake quantization of a network's weights, through torch's parametrizations.

The trainer, its checkpoints and the exporter see an ordinary network: `layer.weight` gives the quantized weights, and the
full-precision ones are the parameter `parametrizations.weight.original` of the layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..errors import BadInput
from .encoded import Encoded


def attach(net: nn.Module, quantizers: Mapping[str, nn.Module]) -> None:
    """Put a quantizer before each named weight. quantizers: name in the state dict, such as `blocks.0.conv.weight` -> module.

    Layers that share a weight share its quantizer.
    """
    for name, quantizer in quantizers.items():
        weights = net.get_parameter(name)
        quantizer.trains_weights = weights.requires_grad  # type: ignore[assignment]  # as it shall be without the quantizer
        for owner, tensor in [(m, t) for m in net.modules() for t, p in m.named_parameters(recurse=False) if p is weights]:
            parametrize.register_parametrization(owner, tensor, quantizer)


def quantized(net: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Module, torch.Tensor]]:
    """Yield (name in the state dict, owner, tensor's name, quantizer, full-precision weights) of each quantized weight.

    Of layers that share one, only the first. The student's own parametrizations (weight_norm, spectral_norm) are none of them.
    """
    seen = set()
    for path, owner in net.named_modules():
        if not parametrize.is_parametrized(owner):
            continue
        for tensor, parts in owner.parametrizations.items():
            if _ours(parts) and id(parts.original) not in seen:
                seen.add(id(parts.original))
                yield f"{path}.{tensor}".lstrip("."), owner, tensor, parts[0], parts.original


def encode(net: nn.Module) -> dict[str, Encoded]:
    """Return every quantized weight as it is stored: name in the state dict -> Encoded. Raises BadInput for NaN and infinity."""
    made = {}
    for name, _, _, quantizer, weights in quantized(net):
        found = quantizer.encode(weights)  # type: ignore[operator]
        if not all(torch.isfinite(t).all() for t in (weights, *found[1:]) if t is not None):
            raise BadInput(f"quantize: `{name}` has NaN or infinite weights; check the student, or lower the learning rate")
        indices, scale, offset, points = (t if t is None else t.cpu().numpy() for t in found)
        made[name] = Encoded(indices, scale, offset, points, int(quantizer.levels), tuple(weights.shape))  # type: ignore[arg-type]
    return made


def bake(net: nn.Module) -> dict[str, Encoded]:
    """Replace each quantizer by the weights it gives, exactly Encoded.decoded(); return what encode() does."""
    made = encode(net)
    with torch.no_grad():
        for name, _, _, _, weights in quantized(net):
            weights.copy_(torch.from_numpy(made[name].decoded()))
    detach(net)
    return made


def detach(net: nn.Module) -> None:
    """Remove the quantizers; the weights are the full-precision ones again, and trained or not as before attach()."""
    for owner in [module for module in net.modules() if _owns(module)]:
        # A copy.deepcopy() of the network has the very class that torch gave this module, and torch takes the property off the class.
        given = type(owner)
        owner.__class__ = type(given.__name__, given.__bases__, dict(given.__dict__))
        lists: Any = owner.parametrizations
        for tensor, parts in [(tensor, parts) for tensor, parts in lists.items() if _ours(parts)]:
            parts.original.requires_grad_(parts[0].trains_weights)
            others = [name for name, _ in owner.named_parameters(recurse=False)]
            parametrize.remove_parametrizations(owner, tensor, leave_parametrized=False)
            for other in others:  # the weight goes back to its place before the bias
                owner.register_parameter(other, owner._parameters.pop(other))


def _owns(owner: Any) -> bool:
    return parametrize.is_parametrized(owner) and any(map(_ours, owner.parametrizations.values()))


def _ours(parts: Any) -> bool:
    """Say whether it was attach() that made this ParametrizationList."""
    return hasattr(parts[0], "trains_weights")
