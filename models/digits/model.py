"""Digits: a residual teacher and a student a twentieth its size, for gray pictures of 8 x 8 pixels."""

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


def _stage(inside: int, width: int, stride: int) -> nn.Sequential:
    """One convolution that changes width and size, then a residual block."""
    convolution = nn.Conv2d(inside, width, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(), Block(width))


def _network(widths: tuple[int, int], num_classes: int, in_channels: int) -> nn.Module:
    """Return stages at full and half size, the mean over places, and a linear classifier."""
    return nn.Sequential(
        _stage(in_channels, widths[0], 1),
        _stage(widths[0], widths[1], 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(widths[1], num_classes),
    )


def teacher(num_classes: int = 10, in_channels: int = 1) -> nn.Module:
    """Return the teacher: (n, in_channels, 8, 8) -> logits (n, num_classes)."""
    return _network((64, 112), num_classes, in_channels)


def student(num_classes: int = 10, in_channels: int = 1) -> nn.Module:
    """Return the student: (n, in_channels, 8, 8) -> logits (n, num_classes)."""
    return _network((12, 24), num_classes, in_channels)
