"""Cutting a part from labelled samples: seeded, every class in proportion."""

from __future__ import annotations

import numpy as np


def cut(labels: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (positions of `count` samples, positions of the rest), both ascending; classes keep their proportions.

    labels: (N,). The n-th shuffled sample of a class with m samples gets the rank (n + 1/2) / m; the lowest ranks are taken.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    rank = np.empty(len(labels))
    for value in np.unique(labels):
        members = order[labels[order] == value]
        rank[members] = (np.arange(len(members)) + 0.5) / len(members)
    by_rank = order[np.argsort(rank[order], kind="stable")]
    return np.sort(by_rank[:count]), np.sort(by_rank[count:])
