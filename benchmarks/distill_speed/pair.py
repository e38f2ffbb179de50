"""The pair: two residual networks for 32x32 pictures, a student with 1 block a stage and a teacher with 9 of the same width.

He et al. 2016 (arXiv:1512.03385), section 4.2: ResNet-8 and ResNet-56. Shortcuts that change the size are 1x1 convolutions.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

WIDTHS = (16, 32, 64)


class Block(nn.Module):
    """Two 3x3 convolutions with batch normalization around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Three stages of `blocks` blocks, 16, 32 and 64 channels wide: 6 x blocks + 2 layers."""

    def __init__(self, blocks: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, WIDTHS[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(WIDTHS[0])
        layers, width = [], WIDTHS[0]
        for stage, wanted in enumerate(WIDTHS):
            for number in range(blocks):
                layers.append(Block(width, wanted, 2 if stage and not number else 1))
                width = wanted
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(functional.relu(self.norm(self.conv(x))))
        return self.head(x.mean(dim=(2, 3)))


def student(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """ResNet-8."""
    return ResNet(1, num_classes, in_channels)


def resnet20(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """ResNet-20: what benchmarks/quantizer_speed trains."""
    return ResNet(3, num_classes, in_channels)


def teacher(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """ResNet-56."""
    return ResNet(9, num_classes, in_channels)
