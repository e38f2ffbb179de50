"""Operations that make one value of many along axes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .values import Table, ints, one_of


def _over(function: Callable[[Tensor, list[int], bool], Tensor]) -> Callable[..., Tensor]:
    """Wrap (x, axes, keep_dims) -> y; no axes means all."""

    def reduce(*, x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | None = None) -> Tensor:
        return function(x, ints(axes) or list(range(x.ndim)), keep_dims is not None and bool(keep_dims))

    return reduce


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _arg(largest: bool) -> Callable[..., Tensor]:
    def find(*, x: Tensor, axis: Tensor | None = None, keep_dims: Tensor | None = None, output_dtype: str = "int32") -> Tensor:
        one_of("output_dtype", output_dtype, ("int32", "uint16"))
        at = -1 if axis is None else int(axis)
        keep = keep_dims is not None and bool(keep_dims)
        return x.argmax(at, keepdim=keep) if largest else x.argmin(at, keepdim=keep)

    return find


def topk(
    *, x: Tensor, k: Tensor | None = None, axis: Tensor | None = None, ascending: Tensor | None = None,
    sort: Tensor | None = None, return_indices: Tensor | None = None, output_indices_dtype: str = "int32",
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return the k largest (ascending: smallest) along an axis, sorted, and where they are."""
    one_of("output_indices_dtype", output_indices_dtype, ("int32", "uint16"))
    found = torch.topk(
        x, 1 if k is None else int(k), -1 if axis is None else int(axis), largest=ascending is None or not bool(ascending)
    )
    return tuple(found) if return_indices is None or bool(return_indices) else (found.values,)


def argsort(*, x: Tensor, axis: Tensor | None = None, ascending: Tensor | None = None) -> Tensor:
    """Return the places of the elements along an axis, the largest first (ascending: the smallest), of equals the first."""
    rising = ascending is not None and bool(ascending)
    return x.argsort(dim=-1 if axis is None else int(axis), descending=not rising, stable=True)


def cumsum(*, x: Tensor, axis: Tensor | None = None, exclusive: Tensor | None = None, reverse: Tensor | None = None) -> Tensor:
    """Return running sums along an axis, from the end (reverse), each without its own element (exclusive)."""
    at = 0 if axis is None else int(axis)
    backwards = reverse is not None and bool(reverse)
    x = x.flip(at) if backwards else x
    made = x.cumsum(at)
    made = made - x if exclusive is not None and bool(exclusive) else made
    return made.flip(at) if backwards else made


OPERATIONS: Table = {
    "reduce_max": _over(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "reduce_min": _over(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "reduce_sum": _over(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "reduce_mean": _over(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "reduce_prod": _over(_product),
    "reduce_sum_square": _over(lambda x, axes, keep: x.square().sum(axes, keepdim=keep)),
    "reduce_l1_norm": _over(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
    "reduce_l2_norm": _over(lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt()),
    "reduce_log_sum": _over(lambda x, axes, keep: x.sum(axes, keepdim=keep).log()),
    "reduce_log_sum_exp": _over(lambda x, axes, keep: x.logsumexp(axes, keepdim=keep)),
    "reduce_argmax": _arg(largest=True),
    "reduce_argmin": _arg(largest=False),
    "topk": topk,
    "argsort": argsort,
    "cumsum": cumsum,
}
