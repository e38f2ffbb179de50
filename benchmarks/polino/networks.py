"""The networks of Polino et al. (2018) for CIFAR-10, by the widths in their released code (`cifar10_test.py`).

Convolutions with a bias, then ReLU, BatchNorm and, at some places, max-pooling by 2 and dropout. Students are distilled
without dropout, as in the code. Their last layer's ReLU on the logits is left out: it stops the gradient of negative logits.
"""

from __future__ import annotations

from torch import nn

STUDENTS = {"1M": ((75, 50, 50, 25), 500), "0.3M": ((50, 25, 25, 10), 400), "0.1M": ((25, 10, 10, 5), 300)}
"""Name -> (convolutions' widths, width of the hidden linear layer)."""


def teacher(num_classes: int = 10, in_channels: int = 3, pixels: int = 32, dropout: float = 1.0) -> nn.Module:
    """Return the teacher, 5.3M parameters for CIFAR-10: (n, in_channels, pixels, pixels) -> logits (n, num_classes).

    dropout: how much of the paper's dropout, which is meant for 200 epochs.
    """
    widths = (76, 76, 126, 126, 148, 148, 148, 148)
    rates = {at: dropout * rate for at, rate in {1: 0.2, 3: 0.3, 7: 0.35, 8: 0.4, 9: 0.4}.items()} if dropout else {}
    return _network(widths, (1, 3, 7), (1200, 1200), num_classes, in_channels, pixels, kernel=3, dropout=rates)


def student(num_classes: int = 10, in_channels: int = 3, pixels: int = 32, name: str = "0.3M") -> nn.Module:
    """Return a student (1M, 0.3M or 0.1M parameters for CIFAR-10): (n, in_channels, pixels, pixels) -> logits."""
    widths, hidden = STUDENTS[name]
    return _network(widths, (1, 3), (hidden,), num_classes, in_channels, pixels, kernel=5, dropout={})


def _network(
    widths: tuple[int, ...], pooled: tuple[int, ...], hidden: tuple[int, ...], num_classes: int, in_channels: int,
    pixels: int, kernel: int, dropout: dict[int, float],
) -> nn.Module:  # fmt: skip
    """pooled, dropout: after which layer, convolutions and linear layers counted together from 0."""
    layers: list[nn.Module] = []
    inside = in_channels
    for at, width in enumerate(widths):
        layers += [nn.Conv2d(inside, width, kernel, padding=kernel // 2), nn.ReLU(), nn.BatchNorm2d(width)]
        layers += [nn.MaxPool2d(2)] if at in pooled else []
        layers += [nn.Dropout2d(dropout[at])] if at in dropout else []
        inside, pixels = width, pixels // 2 if at in pooled else pixels
    layers.append(nn.Flatten())
    inside *= pixels * pixels
    for at, width in enumerate(hidden, start=len(widths)):
        layers += [nn.Linear(inside, width), nn.ReLU(), nn.BatchNorm1d(width)]
        layers += [nn.Dropout(dropout[at])] if at in dropout else []
        inside = width
    network = nn.Sequential(*layers, nn.Linear(inside, num_classes))
    for module in network:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    return network
