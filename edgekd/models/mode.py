"""Training and evaluation mode of a network: evaluation for a while, and training without what is random in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrize import ParametrizationList


@contextmanager
def evaluation(net: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode for a while; afterwards each of its modules is in the mode that it was in."""
    training = [module for module in net.modules() if module.training]
    net.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def without_dropout(net: nn.Module) -> None:
    """Let a network in training mode compute what it computes in evaluation: no dropout, stochastic depth, layer drop or jitter.

    Every module leaves training mode, since dropout is also a function that asks its module's mode. Those stay in it whose statistics
    go on with the batches (BatchNorm), parametrizations (quantizers that round at random, spectral_norm), and recurrent layers, which
    lose their dropout instead: cuDNN has no gradient of them in evaluation.
    """
    kept = {id(inner) for module in net.modules() if isinstance(module, ParametrizationList) for inner in module.modules()}
    for module in net.modules():
        if isinstance(module, nn.RNNBase):
            module.dropout = 0.0
        elif not isinstance(module, _NormBase) and id(module) not in kept:
            module.training = False
