"""Operations that move values and compute none: reshaping, cutting, joining, looking up."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .values import Table, flags, ints, one_of


def reshape(*, x: Tensor, shape: Tensor) -> Tensor:
    """Reshape; 0 keeps the size of that axis, -1 follows from the rest."""
    return x.reshape([x.shape[axis] if n == 0 else n for axis, n in enumerate(ints(shape))])


def transpose(*, x: Tensor, perm: Tensor) -> Tensor:
    """Put the axes in another order."""
    return x.permute(ints(perm))


def expand_dims(*, x: Tensor, axes: Tensor) -> Tensor:
    """Put in axes of size 1; `axes` are places in the result."""
    rank = x.ndim + len(ints(axes))
    for axis in sorted(axis % rank for axis in ints(axes)):
        x = x.unsqueeze(axis)
    return x


def squeeze(*, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Take out axes of size 1, all where none are named."""
    return x.squeeze() if axes is None else x.squeeze(tuple(ints(axes)))


def concat(*, values: list[Tensor], axis: Tensor, interleave: Tensor | None = None) -> Tensor:
    """Join along an axis, one after the other, or interleaved."""
    values = [value if value.ndim else value[None] for value in values]
    at = int(axis) % values[0].ndim
    if interleave is None or not bool(interleave):
        return torch.cat(values, at)
    return torch.stack(values, at + 1).flatten(at, at + 1)


def stack(*, values: list[Tensor], axis: Tensor) -> Tensor:
    """Join along a new axis."""
    return torch.stack(values, int(axis))


def split(
    *, x: Tensor, axis: Tensor, num_splits: Tensor | None = None, split_sizes: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Cut along an axis, into sizes or a number of equal parts."""
    at = int(axis)
    if split_sizes is not None:
        return torch.split(x, ints(split_sizes), at)
    assert num_splits is not None
    return torch.split(x, x.shape[at] // int(num_splits), at)


def slice_by_index(
    *, x: Tensor, begin: Tensor, end: Tensor, stride: Tensor | None = None, begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None, squeeze_mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return x[begin:end:stride] along each axis as NumPy does; a mask says that an end is open, or that the axis goes."""
    starts, ends, steps = ints(begin), ints(end), ints(stride) or [1] * x.ndim
    opened, closed, single = (flags(mask, x.ndim) for mask in (begin_mask, end_mask, squeeze_mask))
    for axis in reversed(range(x.ndim)):
        if single[axis]:
            x = x.select(axis, starts[axis])
            continue
        cut = slice(None if opened[axis] else starts[axis], None if closed[axis] else ends[axis], steps[axis])
        places = torch.tensor(range(x.shape[axis])[cut], dtype=torch.int64)  # a step may be negative, which torch refuses
        x = x.index_select(axis, places)
    return x


def slice_by_size(*, x: Tensor, begin: Tensor, size: Tensor) -> Tensor:
    """Return `size` elements from `begin` on, along each axis; -1 takes all that is left."""
    for axis, (first, count) in enumerate(zip(ints(begin), ints(size), strict=True)):
        x = x.narrow(axis, first, x.shape[axis] - first if count == -1 else count)
    return x


def crop(*, x: Tensor, crop_height: Tensor, crop_width: Tensor) -> Tensor:
    """Cut off so much of the last two axes: (top, bottom), (left, right)."""
    (top, bottom), (left, right) = ints(crop_height), ints(crop_width)
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


def tile(*, x: Tensor, reps: Tensor) -> Tensor:
    """Repeat the whole along each axis."""
    return x.repeat(ints(reps))


def pad(*, x: Tensor, pad: Tensor, mode: str = "constant", constant_val: Tensor | None = None) -> Tensor:
    """Pad the last axes: (before, after) of each, the first of them first."""
    pairs = list(zip(ints(pad)[::2], ints(pad)[1::2], strict=True))
    while pairs and pairs[0] == (0, 0) and one_of("mode", mode, ("constant", "reflect", "replicate")) != "constant":
        pairs = pairs[1:]  # torch takes the padded axes alone
    flat = [n for pair in reversed(pairs) for n in pair]
    if one_of("mode", mode, ("constant", "reflect", "replicate")) == "constant":
        return functional.pad(x, flat, value=0.0 if constant_val is None else constant_val.item())
    return functional.pad(x, flat, mode=mode) if flat else x


def gather(
    *,
    x: Tensor,
    indices: Tensor,
    axis: Tensor | None = None,
    batch_dims: Tensor | None = None,
    validate_indices: Tensor | None = None,
) -> Tensor:
    """Return the slices of x at `indices` along an axis, indices of any shape, negative ones from the end."""
    at = (0 if axis is None else int(axis)) % x.ndim
    if batch_dims is not None and int(batch_dims):
        raise NotImplementedError(f"batch_dims = {int(batch_dims)} (known: 0)")
    places = torch.where(indices < 0, indices + x.shape[at], indices).long()
    return x.index_select(at, places.reshape(-1)).reshape(*x.shape[:at], *places.shape, *x.shape[at + 1 :])


def gather_nd(
    *, x: Tensor, indices: Tensor, batch_dims: Tensor | None = None, validate_indices: Tensor | None = None
) -> Tensor:
    """Return the slices of x at places along its first axes: the last axis of `indices` has one number for each of these."""
    if batch_dims is not None and int(batch_dims):
        raise NotImplementedError(f"batch_dims = {int(batch_dims)} (known: 0)")
    parts = indices.unbind(-1)
    return x[tuple(torch.where(part < 0, part + x.shape[axis], part).long() for axis, part in enumerate(parts))]


def gather_along_axis(
    *, x: Tensor, indices: Tensor, axis: Tensor | None = None, validate_indices: Tensor | None = None
) -> Tensor:
    """Return for each place the element of x at its index along the axis."""
    at = 0 if axis is None else int(axis)
    return torch.take_along_dim(x, torch.where(indices < 0, indices + x.shape[at], indices).long(), at)


def one_hot(
    *, indices: Tensor, one_hot_vector_size: Tensor, axis: Tensor | None = None, on_value: Tensor | None = None,
    off_value: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return a new axis with on_value at the index."""
    at = -1 if axis is None else int(axis)
    hot = functional.one_hot(indices.long(), int(one_hot_vector_size)).movedim(-1, at).bool()
    on = torch.tensor(1) if on_value is None else on_value
    return torch.where(hot, on, torch.zeros_like(on) if off_value is None else off_value)


def band_part(*, x: Tensor, lower: Tensor | None = None, upper: Tensor | None = None) -> Tensor:
    """Keep so many diagonals below and above the main one; -1 keeps all."""
    below, above = (-1 if n is None else int(n) for n in (lower, upper))
    x = x if below < 0 else x.triu(-below)
    return x if above < 0 else x.tril(above)


def depth_to_space(*, x: Tensor, block_size: Tensor) -> Tensor:
    """Spread channels over places, the block the outer part of the channel."""
    n, c, h, w = x.shape
    b = int(block_size)
    return x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)


def space_to_depth(*, x: Tensor, block_size: Tensor) -> Tensor:
    """Undo depth_to_space."""
    n, c, h, w = x.shape
    b = int(block_size)
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b**2, h // b, w // b)


def upsample_nearest(
    *, x: Tensor, scale_factor_height: Tensor | None = None, scale_factor_width: Tensor | None = None
) -> Tensor:
    """Enlarge the last two axes, each place the nearest one before it."""
    factors = [1.0 if n is None else float(n) for n in (scale_factor_height, scale_factor_width)]
    sizes = [int(n * f) for n, f in zip(x.shape[-2:], factors, strict=True)]
    return functional.interpolate(x, sizes, mode="nearest")


def upsample_bilinear(
    *, x: Tensor, scale_factor_height: Tensor | None = None, scale_factor_width: Tensor | None = None,
    align_corners: Tensor | None = None, half_pixel_centers: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Enlarge the last two axes by straight lines between places."""
    aligned = align_corners is None or bool(align_corners)
    if half_pixel_centers is not None and bool(half_pixel_centers) == aligned:
        raise NotImplementedError("half_pixel_centers other than not align_corners")
    factors = [1.0 if n is None else float(n) for n in (scale_factor_height, scale_factor_width)]
    sizes = [int(n * f) for n, f in zip(x.shape[-2:], factors, strict=True)]
    return functional.interpolate(x, sizes, mode="bilinear", align_corners=aligned)


def resize_nearest(*, x: Tensor, target_size_height: Tensor, target_size_width: Tensor) -> Tensor:
    """Resize the last two axes, each place the nearest one before it."""
    return functional.interpolate(x, [int(target_size_height), int(target_size_width)], mode="nearest")


def resize_bilinear(
    *,
    x: Tensor,
    target_size_height: Tensor | None = None,
    target_size_width: Tensor | None = None,
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """Resize the last two axes by straight lines between places."""
    one_of("sampling_mode", sampling_mode, ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "UNALIGN_CORNERS"))
    size = [1 if n is None else int(n) for n in (target_size_height, target_size_width)]
    if sampling_mode == "ALIGN_CORNERS" and 1 in size:
        raise NotImplementedError("sampling_mode = 'ALIGN_CORNERS' with a size of 1")
    return functional.interpolate(x, size, mode="bilinear", align_corners=sampling_mode != "UNALIGN_CORNERS")


def _range(*, start: Tensor, end: Tensor, step: Tensor) -> Tensor:
    return torch.arange(start.item(), end.item(), step.item())


def _fill(*, shape: Tensor, value: Tensor | None = None) -> Tensor:
    return torch.full(ints(shape), 0.0 if value is None else value.item())


OPERATIONS: Table = {
    "reshape": reshape,
    "transpose": transpose,
    "expand_dims": expand_dims,
    "squeeze": squeeze,
    "concat": concat,
    "stack": stack,
    "split": split,
    "slice_by_index": slice_by_index,
    "slice_by_size": slice_by_size,
    "crop": crop,
    "tile": tile,
    "pad": pad,
    "gather": gather,
    "gather_nd": gather_nd,
    "gather_along_axis": gather_along_axis,
    "one_hot": one_hot,
    "band_part": band_part,
    "depth_to_space": depth_to_space,
    "space_to_depth": space_to_depth,
    "pixel_shuffle": lambda *, x, upscale_factor: functional.pixel_shuffle(x, int(upscale_factor)),
    "pixel_unshuffle": lambda *, x, downscale_factor: functional.pixel_unshuffle(x, int(downscale_factor)),
    "reverse": lambda *, x, axes=None: x.flip(ints(axes) or list(range(x.ndim))),
    "shape": lambda *, x: torch.tensor(x.shape, dtype=torch.int64),
    "range_1d": _range,
    "fill": _fill,
    "upsample_nearest_neighbor": upsample_nearest,
    "upsample_bilinear": upsample_bilinear,
    "resize_nearest_neighbor": resize_nearest,
    "resize_bilinear": resize_bilinear,
}
