"""Fashion-MNIST: a residual teacher and a student with a tenth of its weights, for gray pictures of 28 x 28 pixels."""

import torch
from torch import nn


class Block(nn.Module):
    """Two 3 x 3 convolutions beside an identity (He et al. 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip
        self.activation = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(x + self.body(x))


def _convolution(inside: int, width: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inside, width, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU())


def _network(widths: tuple[int, int, int, int], num_classes: int, in_channels: int) -> nn.Module:
    """Return a thin stem at 28 pixels, residual stages at 14, 7 and 4 pixels, and a linear classifier."""
    stem, first, second, third = widths
    return nn.Sequential(
        _convolution(in_channels, stem, 1),
        _convolution(stem, first, 2),
        Block(first),
        _convolution(first, second, 2),
        Block(second),
        _convolution(second, third, 2),
        Block(third),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(third, num_classes),
    )


def teacher(num_classes: int = 10, in_channels: int = 1) -> nn.Module:
    """Return the teacher: (n, in_channels, 28, 28) -> logits (n, num_classes)."""
    return _network((24, 48, 96, 160), num_classes, in_channels)


def student(num_classes: int = 10, in_channels: int = 1) -> nn.Module:
    """Return the student: (n, in_channels, 28, 28) -> logits (n, num_classes)."""
    return _network((8, 24, 32, 40), num_classes, in_channels)
