"""How far two models' outputs lie apart. numpy only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

IDENTICAL_DB = 200.0
"""Stands for a difference of exactly 0, whose ratio has no number."""
TOKENS = "tokens"
"""An output of this name is token ids, the same or not; how far two of them lie apart says nothing."""


@dataclass(frozen=True)
class Parity:
    """The difference between outputs y and their reference r, the worst of all output tensors.

    max_abs: max|y - r|. relative: max_abs / max|r|. sqnr_db: 10 log10(sum r^2 / sum (y - r)^2), at most IDENTICAL_DB.
    A NaN or infinity on one side alone, or another shape, is an infinite difference; `reason` then says which.
    agreement: the share of tokens that are the same, of language models.
    """

    max_abs: float
    relative: float
    sqnr_db: float
    reason: str | None = None
    agreement: float | None = None

    def record(self) -> dict[str, Any]:
        """Return plain JSON values: None stands for infinite."""
        told = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in asdict(self).items()}
        return told if self.agreement is not None else {key: v for key, v in told.items() if key != "agreement"}


def compare(reference: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> Parity:
    """Return the worst over the tensors of `reference`: the largest error and the lowest ratio, whichever tensors they are of."""
    found = [_tensor(name, r, outputs.get(name)) for name, r in reference.items() if name != TOKENS]
    worst = max(found, key=lambda p: (p.relative, -p.sqnr_db))
    same = agreement(reference[TOKENS], outputs[TOKENS]) if TOKENS in reference and TOKENS in outputs else None
    return replace(worst, max_abs=max(p.max_abs for p in found), sqnr_db=min(p.sqnr_db for p in found), agreement=same)


def agreement(reference: np.ndarray, tokens: np.ndarray) -> float:
    """Return the share of places, 0-1, that hold the same token, among those where either side has one (not below 0).

    Rows (n, tokens) that are longer on one side differ there.
    """
    width = max(reference.shape[1], tokens.shape[1])
    r, y = (np.pad(one, ((0, 0), (0, width - one.shape[1])), constant_values=-1) for one in (reference, tokens))
    some = (r >= 0) | (y >= 0)
    return float((r == y)[some].mean()) if some.any() else 1.0


def _tensor(name: str, r: np.ndarray, y: np.ndarray | None) -> Parity:
    if y is None or y.shape != r.shape:
        return _apart(f"`{name}` is {'missing' if y is None else f'{y.shape} instead of {r.shape}'}")
    r, y = np.asarray(r, np.float64), np.asarray(y, np.float64)
    finite = np.isfinite(r)
    if not np.array_equal(finite, np.isfinite(y)) or not np.array_equal(r[~finite], y[~finite], equal_nan=True):
        return _apart(f"`{name}` has NaN or infinite values that the reference does not have")
    r, y = r[finite], y[finite]
    largest, noise, signal = float(np.abs(r - y).max(initial=0)), float(np.square(r - y).sum()), float(np.square(r).sum())
    if noise == 0:
        return Parity(0.0, 0.0, IDENTICAL_DB)
    if signal == 0:
        return Parity(largest, math.inf, -math.inf, f"`{name}` should be all zero")
    return Parity(largest, largest / float(np.abs(r).max()), min(IDENTICAL_DB, 10 * math.log10(signal / noise)))


def _apart(reason: str) -> Parity:
    return Parity(math.inf, math.inf, -math.inf, reason)


def paired_interval(difference: np.ndarray, seed: int = 0, resamples: int = 2000, level: float = 0.95) -> tuple[float, float]:
    """Return the bootstrap percentile interval of the mean of per-sample differences (Efron 1979), each sample its own pair."""
    rng = np.random.default_rng(seed)
    values, counts = np.unique(np.asarray(difference, np.float64), return_counts=True)
    if len(values) <= 64:  # a right-or-wrong metric has three: draw how often each comes up, the same distribution
        means = rng.multinomial(len(difference), counts / len(difference), size=resamples) @ values / len(difference)
    else:
        means = np.array([rng.choice(difference, len(difference)).mean() for _ in range(resamples)])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
