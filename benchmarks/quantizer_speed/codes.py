"""Quantizing a million weights: to a codebook of 16 points, and between each bucket's extremes; beside a plain copy of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from edgekd.quantize.buckets import range_of, to_buckets
from edgekd.quantize.codebook import Codebook, nearest
from edgekd.quantize.uniform import MinMax

WEIGHTS, POINTS, GROUP, BITS = 1_000_000, 16, 256, 4
NAMES = {
    "numpy": "NumPy sort-and-search",
    "nearest": "edgekd: nearest point",
    "codebook": "edgekd: Codebook, ranges of groups included",
    "uniform": "edgekd: MinMax, 4 bits",
    "copy": "copy_ of the same tensor",
}


def make(seed: int) -> dict[str, Callable[[], object]]:
    """Return what is timed: name in NAMES -> call. Raises SystemExit where edgekd's result is not exactly NumPy's."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(WEIGHTS, generator=generator)
    book, uniform, there = Codebook(GROUP, POINTS, weights), MinMax(GROUP, BITS), torch.empty_like(weights)
    buckets = to_buckets(weights, GROUP)
    alpha, beta = range_of(buckets)
    values = ((buckets - beta) / alpha).flatten()[:WEIGHTS].clone()  # in [0, 1], as a codebook sees them
    points = book.points.detach()[torch.randperm(POINTS, generator=generator)]  # at the quantiles, in any order
    of_numpy, points_of_numpy = values.numpy(), points.numpy()

    def by_numpy() -> np.ndarray:
        rising = np.sort(points_of_numpy)
        return rising[np.searchsorted((rising[1:] + rising[:-1]) / 2, of_numpy)]

    def by_edgekd() -> torch.Tensor:
        return nearest(values, points.sort().values)[1]

    if not np.array_equal(by_numpy(), by_edgekd().numpy()):
        raise SystemExit("not the same work: edgekd's nearest points are not NumPy's")
    calls = {
        "numpy": by_numpy,
        "nearest": by_edgekd,
        "codebook": lambda: book(weights),
        "uniform": lambda: uniform(weights),
        "copy": lambda: there.copy_(weights),
    }
    return {name: torch.no_grad()(call) for name, call in calls.items()}
