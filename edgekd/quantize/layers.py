"""Which of a network's weights are quantized, and which stay in full precision."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Sequence

from torch import nn

from ..errors import BadInput
from ..names import nearest

KINDS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear, nn.Embedding,
)  # fmt: skip
"""Layers whose `weight` is quantized. Biases and norms stay: they are few, and errors in them reach every output."""

RULES = ("first", "last")
"""Words of `keep` that name a layer by its place, in the order of the network's modules."""


def weights_of(net: nn.Module, keep: Sequence[str] = ()) -> list[str]:
    """Return the names, in the state dict, of the weights to quantize, in the order of the modules.

    keep: module names (with * and ?: all inside them), `first`, `last`. A tensor that two layers share counts once.
    Raises BadInput for a pattern that matches nothing, for a layer that computes its weight from others (weight_norm), and
    where nothing is left to quantize.
    """
    layers = {name: module for name, module in net.named_modules() if isinstance(module, KINDS)}
    if not layers:
        raise BadInput("quantize: the student has no convolution, linear layer or embedding to quantize")
    names = list(layers)
    modules = [name for name, _ in net.named_modules() if name]
    kept = set()
    for pattern in keep:
        if pattern in RULES:
            kept.add(names[0] if pattern == "first" else names[-1])
        elif not any(_covers(pattern, name) for name in modules):
            raise BadInput(
                f"keep: no module of the student is called `{pattern}`{nearest(pattern, [*modules, *RULES])}. "
                f"There are first, last, {', '.join(modules[:8])}{' ...' if len(modules) > 8 else ''}"
            )
        else:
            kept |= {name for name in names if _covers(pattern, name)}
    weights = {name: layers[name]._parameters.get("weight") for name in names}
    if computed := [name for name in names if weights[name] is None and name not in kept]:
        raise BadInput(
            f"quantize: `{computed[0]}` computes its weight from others (weight_norm or another parametrization): "
            "remove that from the finished student, or name the layer in `keep`"
        )
    shared = {id(weights[name]) for name in kept}
    left: dict[int, str] = {}
    for name in names:
        if id(weights[name]) not in shared:
            left.setdefault(id(weights[name]), f"{name}.weight".lstrip("."))
    if not left:
        raise BadInput(f"keep: {', '.join(keep)} leaves nothing to quantize; keep fewer layers, or use method `none`")
    return list(left.values())


def unquantized(net: nn.Module, quantized: Collection[str]) -> list[str]:
    """Return the names of all other weights, those of two axes or more, in the order of the modules; of a shared one, the first.

    quantized: names in the state dict. Weights of no kind that is quantized are among them (those inside an LSTM, a matrix that is a
    parameter itself), and the `weight` that a layer computes from others (weight_norm) instead of these.
    """
    quantized_ones = {id(net.get_parameter(name)) for name in quantized}
    computing = {name for name, m in net.named_modules() if isinstance(m, KINDS) and m._parameters.get("weight") is None}
    found: dict[str, None] = {}
    for name, weights in net.named_parameters():
        if weights.ndim > 1 and weights.is_floating_point() and id(weights) not in quantized_ones:
            layer = name.rpartition(".")[0].partition("parametrizations.weight")[0].removesuffix(".")
            found[f"{layer}.weight".lstrip(".") if layer in computing else name] = None
    return list(found)


def _covers(pattern: str, module: str) -> bool:
    parts = module.split(".")
    return any(fnmatch.fnmatchcase(".".join(parts[:n]), pattern) for n in range(1, len(parts) + 1))
