"""Preprocessing inside the model: every model of edgekd takes raw pictures, uint8, as a camera or a decoder gives them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .recipe import Preprocess


class Preprocessed(nn.Module):
    """A network behind its preprocessing: uint8 (N, H, W, C) in 0-255 -> logits.

    To 0-1, resized to `size` where the picture is not that already (antialiased, corners not aligned), (x - mean) / std,
    channels first, then `net`. Mean and standard deviation are not part of the state dict, which is that of `net` alone.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, net: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.net = net
        self.size = size_of(preprocess)
        self.interpolation = preprocess.interpolation
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std).view(1, -1, 1, 1), persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the network's output, (N, classes) for a classifier. image: uint8 (N, H, W, C)."""
        # Contiguous: many a network flattens with x.view(), which refuses the strides that permute leaves.
        x = image.permute(0, 3, 1, 2).to(self.mean.dtype, memory_format=torch.contiguous_format) / 255
        if self.size is not None and tuple(x.shape[2:]) != self.size:
            x = _resize(x, self.size, self.interpolation)
        return self.net((x - self.mean) / self.std)


def size_of(preprocess: Preprocess) -> tuple[int, int] | None:
    """Return (height, width), whichever way the recipe wrote it; None: the data's own."""
    size = preprocess.size
    return (size, size) if isinstance(size, int) else size


def description(preprocess: Preprocess, image_shape: tuple[int, int, int]) -> dict[str, list[dict[str, Any]]]:
    """Return what the host program does before the graph, and what the graph does itself, step by step (JSON-able).

    image_shape: height, width, channels of the graph's input.
    """
    height, width, channels = image_shape
    host: list[dict[str, Any]] = [{"step": "decode"}, {"step": "convert", "to": "gray" if channels == 1 else "RGB"}]
    covering = [round(height / preprocess.crop), round(width / preprocess.crop)]
    host.append({"step": "resize", "to_cover": covering, "interpolation": preprocess.interpolation, "antialias": True})
    host.append({"step": "centre-crop", "to": [height, width]})
    graph: list[dict[str, Any]] = [{"step": "scale", "by": 1 / 255}]
    size = size_of(preprocess)
    if size is not None and size != (height, width):
        graph.append({"step": "resize", "to": list(size), "interpolation": preprocess.interpolation, "antialias": True})
    graph.append({"step": "normalize", "mean": list(preprocess.mean), "std": list(preprocess.std)})
    graph.append({"step": "transpose", "from": "NHWC", "to": "NCHW"})
    return {"host": host, "graph": graph}


def _resize(x: torch.Tensor, size: tuple[int, int], interpolation: str) -> torch.Tensor:
    if interpolation == "nearest":
        return functional.interpolate(x, size, mode="nearest-exact")
    return functional.interpolate(x, size, mode=interpolation, align_corners=False, antialias=True)
