"""Statistics of raw samples: what a sample supports and no more. numpy and the standard library alone.

Samples of one thing are an array (blocks, calls) of seconds: row k of every thing was timed in the same round, so rows pair up.
Calls within a block resemble each other (same clock rate, same neighbours), so intervals resample blocks, never single calls.
Outliers are kept: a call that took long took long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

PERCENTILES = (90, 95, 99)
BEYOND = 5
"""A percentile needs so many samples expected beyond it: p90 from 50 samples on, p95 from 100, p99 from 500."""

LEVEL = 0.95
RESAMPLES = 2000
SAME = 0.02
"""Two processes running the same file differ by this much (memory layout, thread placement): no smaller ratio is a difference."""

FEWEST_PAIRS = 6
"""With 5 pairs all on one side of 1, chance alone does that in 2 x 0.5^5 = 6 % of cases: 6 are needed for LEVEL."""

_GRID = 2048


@dataclass(frozen=True)
class Interval:
    """An estimate and the interval that holds the true value with probability LEVEL, over repeated measurements."""

    value: float
    low: float
    high: float


def supports(count: int, percentile: float) -> bool:
    """Say whether `count` samples support a percentile: BEYOND of them expected above it.

    Then the interval of `percentile_interval` is bounded too: all of 50 samples lie below p90 with probability 0.9^50 = 0.005.
    """
    return count * (100 - percentile) >= 100 * BEYOND - 1e-9


def percentile_interval(samples: np.ndarray, percentile: float) -> Interval:
    """Return a percentile and its distribution-free interval from two order statistics.

    The number of samples below the true percentile is binomial(n, p); the ranks are its LEVEL-central quantiles
    (David and Nagaraja, Order Statistics, 7.1). Raises ValueError where the sample does not support the percentile.
    """
    ordered = np.sort(np.asarray(samples, dtype=np.float64).ravel())
    n, p = len(ordered), percentile / 100
    if not supports(n, percentile):
        raise ValueError(f"p{percentile:g} needs {math.ceil(100 * BEYOND / (100 - percentile) - 1e-9)} samples, there are {n}")
    cumulative = np.cumsum(_binomial(n, p))
    tail = (1 - LEVEL) / 2
    low = int(np.searchsorted(cumulative, tail))  # P(below < low) <= tail: the low-th smallest is a lower bound
    high = int(np.searchsorted(cumulative, 1 - tail)) + 1
    return Interval(
        float(np.percentile(ordered, percentile)), float(ordered[max(low - 1, 0)]), float(ordered[min(high, n) - 1])
    )


def median_interval(samples: np.ndarray, seed: int = 0) -> Interval:
    """Return the median of all samples and its bootstrap interval over blocks.

    samples: (blocks, calls), or (calls,) where every call is its own block. Exact up to 2,048 distinct ranks; above, the
    resampled medians are read off a grid of 2,048 quantiles. Reproducible: the resampling is seeded.
    """
    samples = np.asarray(samples, dtype=np.float64)
    rows = samples if samples.ndim == 2 else samples[:, None]
    if rows.size == 0:
        raise ValueError("no samples")
    ordered = np.sort(rows, axis=None)
    value = float(np.median(ordered))
    if len(rows) < 2:
        return Interval(
            value, float(ordered[0]), float(ordered[-1])
        )  # one block says nothing about the next: all that was seen
    grid = np.unique(ordered[np.linspace(0, len(ordered) - 1, min(len(ordered), _GRID)).round().astype(int)])
    below = np.stack([np.searchsorted(np.sort(row), grid, side="right") for row in rows])  # (blocks, grid): calls <= grid
    weights = np.random.default_rng(seed).multinomial(len(rows), np.full(len(rows), 1 / len(rows)), RESAMPLES)
    counts = weights @ below.astype(np.float64)  # (resamples, grid)
    medians = grid[np.argmax(counts >= rows.size / 2, axis=1)]
    low, high = _expanded(medians, len(rows))
    return Interval(value, float(min(low, value)), float(max(high, value)))


def summary(samples: np.ndarray) -> dict[str, float | int]:
    """Summarise the warm samples of one thing, (blocks, calls) in seconds. Percentiles appear only where supported.

    count, median_s with median_low_s and median_high_s, mean_s, min_s, max_s, and p90_s, p95_s, p99_s with _low_s and _high_s.
    """
    flat = np.asarray(samples, dtype=np.float64).ravel()
    median = median_interval(samples)
    told: dict[str, float | int] = {
        "count": len(flat),
        "median_s": median.value,
        "median_low_s": median.low,
        "median_high_s": median.high,
        "mean_s": float(flat.mean()),
        "min_s": float(flat.min()),
        "max_s": float(flat.max()),
    }
    for percentile in PERCENTILES:
        if supports(len(flat), percentile):
            found = percentile_interval(flat, percentile)
            told |= {
                f"p{percentile}_s": found.value,
                f"p{percentile}_low_s": found.low,
                f"p{percentile}_high_s": found.high,
            }
    return told


def throughput(samples: np.ndarray, batch: int) -> float:
    """Return samples a second: calls x batch / summed seconds."""
    flat = np.asarray(samples, dtype=np.float64)
    return flat.size * batch / float(flat.sum())


def ratio(control: np.ndarray, candidate: np.ndarray, seed: int = 0) -> Interval:
    """Return how many times faster the candidate is: control's time / candidate's, above 1 where the candidate is faster.

    Both (blocks, calls): row k of one was timed next to row k of the other, so what slows the machine for a while hits both.
    The median over the pairs' ratios of block medians, and its bootstrap interval over pairs. Below FEWEST_PAIRS the
    interval is (0, inf): nothing is known. Raises ValueError where the numbers of blocks differ, or there are none.
    """
    if len(control) != len(candidate) or len(control) == 0:
        raise ValueError(f"blocks pair up: {len(control)} of the control, {len(candidate)} of the candidate")
    pairs = np.log(np.median(control, axis=1)) - np.log(np.median(candidate, axis=1))
    if len(pairs) < FEWEST_PAIRS:
        return Interval(float(np.exp(np.median(pairs))), 0.0, math.inf)
    chosen = np.random.default_rng(seed).integers(0, len(pairs), (RESAMPLES, len(pairs)))
    medians = np.median(pairs[chosen], axis=1)
    low, high = _expanded(medians, len(pairs))
    return Interval(float(np.exp(np.median(pairs))), float(np.exp(low)), float(np.exp(high)))


def differs(found: Interval) -> bool:
    """Say whether a ratio is a difference: its interval leaves out 1, and it is further from 1 than SAME."""
    return not found.low <= 1 <= found.high and max(found.value, 1 / found.value) > 1 + SAME


def verdict(found: Interval, candidate: str, control: str) -> str:
    """Say a ratio in a plain sentence.

    >>> verdict(Interval(1.31, 1.27, 1.35), "int8", "fp32")
    'int8 is 1.31x faster than fp32 (1.27-1.35)'
    """
    if math.isinf(found.high):
        return f"too few blocks to compare {candidate} with {control}: give the clock more time"
    if not differs(found):
        return f"no difference seen between {candidate} and {control} ({_span(found)})"
    if found.value > 1:
        return f"{candidate} is {_times(found.value)}x faster than {control} ({_span(found)})"
    slower = Interval(1 / found.value, 1 / found.high, 1 / found.low)
    return f"{candidate} is {_times(slower.value)}x SLOWER than {control} ({_span(slower)})"


def _expanded(resampled: np.ndarray, n: int) -> tuple[float, float]:
    """Return the bootstrap interval of an estimate from `n` independent parts, widened for small n.

    The plain percentile interval is too narrow by the factor sqrt((n-1)/n) and by normal instead of t quantiles: with 20
    parts it covers 93 % instead of 95 %. "Expanded percentile": Hesterberg, What Teachers Should Know About the Bootstrap
    (The American Statistician 69, 2015), 4.3. The t quantile: Abramowitz and Stegun 26.7.5, exact to 0.1 % from n = 6 on.
    """
    z, v = NormalDist().inv_cdf((1 + LEVEL) / 2), max(n - 1, 1)
    t = (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )
    tail = 100 * NormalDist().cdf(-math.sqrt(n / max(n - 1, 1)) * t)
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return float(low), float(high)


def _times(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _span(found: Interval) -> str:
    """Write an interval; with one more digit where two would make its ends the same."""
    low, high = _times(found.low), _times(found.high)
    return f"{low}-{high}" if low != high else f"{found.low:.3f}-{found.high:.3f}"


def _binomial(n: int, p: float) -> np.ndarray:
    """Return the probabilities of 0..n successes, through logarithms (n is large)."""
    k = np.arange(n + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    logs = log_factorial[n] - log_factorial[k] - log_factorial[n - k] + k * math.log(p) + (n - k) * math.log1p(-p)
    return np.exp(logs)
