"""Layers: convolutions, pooling, norms, products of matrices, attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .values import Table, ints, one_of

_PADS = ("valid", "custom", "same", "same_lower")


def _padding(x: Tensor, kernel: list[int], strides: list[int], pad_type: str, pad: Tensor | None) -> list[tuple[int, int]]:
    """Return (before, after) for each spatial axis. kernel: its extent, dilation counted."""
    one_of("pad_type", pad_type, _PADS)
    count = x.ndim - 2
    if pad_type == "valid" or (pad_type == "custom" and pad is None):
        return [(0, 0)] * count
    if pad_type == "custom":
        flat = ints(pad)
        return [(flat[2 * i], flat[2 * i + 1]) for i in range(count)]
    found = []
    for size, k, s in zip(x.shape[2:], kernel, strides, strict=True):
        total = max((math.ceil(size / s) - 1) * s + k - size, 0)
        fewer, more = total // 2, total - total // 2
        found.append((fewer, more) if pad_type == "same" else (more, fewer))
    return found


def _pad(x: Tensor, padding: list[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Pad the spatial axes; negative amounts crop."""
    return functional.pad(x, [n for pair in reversed(padding) for n in pair], value=value)


def conv(
    *, x: Tensor, weight: Tensor, bias: Tensor | None = None, strides: Tensor | None = None, pad_type: str = "valid",
    pad: Tensor | None = None, dilations: Tensor | None = None, groups: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Convolve. weight: (out, in / groups, *kernel)."""
    count = x.ndim - 2
    stride, dilation = ints(strides) or [1] * count, ints(dilations) or [1] * count
    extent = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilation, strict=True)]
    x = _pad(x, _padding(x, extent, stride, pad_type, pad))
    function: Any = (functional.conv1d, functional.conv2d, functional.conv3d)[count - 1]
    return function(x, weight, bias, stride, 0, dilation, int(groups) if groups is not None else 1)


def conv_transpose(
    *, x: Tensor, weight: Tensor, bias: Tensor | None = None, strides: Tensor | None = None, pad_type: str = "valid",
    pad: Tensor | None = None, output_shape: Tensor | None = None, dilations: Tensor | None = None, groups: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Convolve transposed. weight: (in, out / groups, *kernel)."""
    count = x.ndim - 2
    stride, dilation = ints(strides) or [1] * count, ints(dilations) or [1] * count
    one_of("pad_type", pad_type, ("valid", "custom"))
    function: Any = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[count - 1]
    whole = function(x, weight, None, stride, 0, 0, int(groups) if groups is not None else 1, dilation)
    around = _padding(x, [0] * count, stride, pad_type, pad)
    wanted = ints(output_shape)[-count:] or [n - a - b for n, (a, b) in zip(whole.shape[2:], around, strict=True)]
    whole = _pad(whole, [(-a, w + a - n) for n, w, (a, _) in zip(whole.shape[2:], wanted, around, strict=True)])
    return whole if bias is None else whole + bias.reshape(-1, *[1] * count)


def _pooled(
    x: Tensor,
    kernel_sizes: Tensor,
    strides: Tensor | None,
    pad_type: str,
    pad: Tensor | None,
    ceil_mode: Tensor | None,
    fill: float,
) -> tuple[Tensor, list[int], list[int], list[tuple[int, int]]]:
    """Return (x padded, kernel, strides, what the padding is). Windows that ceil_mode adds at the end are padded in too."""
    kernel = ints(kernel_sizes)
    stride = ints(strides) or [1] * len(kernel)
    padding = _padding(x, kernel, stride, pad_type, pad)
    if ceil_mode is not None and bool(ceil_mode):
        for i, (size, k, s) in enumerate(zip(x.shape[2:], kernel, stride, strict=True)):
            before, after = padding[i]
            count = math.ceil((size + before + after - k) / s) + 1
            count -= (count - 1) * s >= size + before  # no window starts in the padding at the end
            padding[i] = (before, (count - 1) * s + k - size - before)
    return _pad(x, padding, fill), kernel, stride, padding


def max_pool(
    *, x: Tensor, kernel_sizes: Tensor, strides: Tensor | None = None, pad_type: str = "valid", pad: Tensor | None = None,
    ceil_mode: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return the largest of each window; what is padded never is."""
    padded, kernel, stride, _ = _pooled(x, kernel_sizes, strides, pad_type, pad, ceil_mode, -math.inf)
    function: Any = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[len(kernel) - 1]
    return function(padded, kernel, stride)


def avg_pool(
    *, x: Tensor, kernel_sizes: Tensor, strides: Tensor | None = None, pad_type: str = "valid", pad: Tensor | None = None,
    exclude_padding_from_average: Tensor | None = None, ceil_mode: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return the mean of each window, padding counted as zeros or left out. What ceil_mode adds is never counted."""
    padded, kernel, stride, padding = _pooled(x, kernel_sizes, strides, pad_type, pad, ceil_mode, 0.0)
    function: Any = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[len(kernel) - 1]
    ones = torch.ones(1, 1, *x.shape[2:])
    if exclude_padding_from_average is None or not bool(exclude_padding_from_average):
        asked = _padding(x, kernel, stride, pad_type, pad)
        ones = _pad(ones, asked, 1.0)
        padding = [(0, after - told) for (_, after), (_, told) in zip(padding, asked, strict=True)]
    return function(padded, kernel, stride) / function(_pad(ones, padding), kernel, stride)


def batch_norm(
    *,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | None = None,
) -> Tensor:
    """Normalize each channel by stored statistics."""
    return functional.batch_norm(x, mean, variance, gamma, beta, False, 0.0, _epsilon(epsilon, 1e-5))


def instance_norm(
    *, x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: Tensor | None = None
) -> Tensor:
    """Normalize each channel of each sample over its places."""
    return functional.instance_norm(x, weight=gamma, bias=beta, eps=_epsilon(epsilon, 1e-5))


def layer_norm(
    *,
    x: Tensor,
    axes: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | None = None,
) -> Tensor:
    """Normalize over `axes` (all where there are none); gamma and beta have the shape of these."""
    over = sorted(axis % x.ndim for axis in ints(axes)) or list(range(x.ndim))
    centred = x - x.mean(over, keepdim=True)
    made = centred * torch.rsqrt(centred.square().mean(over, keepdim=True) + _epsilon(epsilon, 1e-5))
    beside = [x.shape[axis] if axis in over else 1 for axis in range(x.ndim)]
    made = made if gamma is None else made * gamma.reshape(beside)
    return made if beta is None else made + beta.reshape(beside)


def l2_norm(*, x: Tensor, epsilon: Tensor | None = None) -> Tensor:
    """Divide by the length over the last three axes."""
    return x * torch.rsqrt(x.square().sum((-3, -2, -1), keepdim=True) + _epsilon(epsilon, 1e-6))


def _epsilon(value: Tensor | None, default: float) -> float:
    return default if value is None else float(value)


def matmul(*, x: Tensor, y: Tensor, transpose_x: Tensor | None = None, transpose_y: Tensor | None = None) -> Tensor:
    """Multiply matrices, the last two axes of each, transposed or not."""
    left = x.transpose(-1, -2) if transpose_x is not None and bool(transpose_x) else x
    return left @ (y.transpose(-1, -2) if transpose_y is not None and bool(transpose_y) else y)


def linear(*, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x weight^T + bias."""
    return functional.linear(x, weight, bias)


def einsum(*, values: list[Tensor], equation: str) -> Tensor:
    """Return Einstein's sum."""
    return torch.einsum(equation, *values)


def attention(*, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Return softmax(query key^T / sqrt(d) + mask) value; a boolean mask is true where attention goes."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return torch.softmax(scores, -1) @ value


OPERATIONS: Table = {
    "conv": conv,
    "conv_transpose": conv_transpose,
    "max_pool": max_pool,
    "avg_pool": avg_pool,
    "batch_norm": batch_norm,
    "instance_norm": instance_norm,
    "layer_norm": layer_norm,
    "l2_norm": l2_norm,
    "matmul": matmul,
    "linear": linear,
    "einsum": einsum,
    "scaled_dot_product_attention": attention,
}
