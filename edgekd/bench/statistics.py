"""Statistics of raw samples: what a sample supports and no more. numpy and the standard library alone.

Samples of one thing are an array (blocks, calls) of seconds: row k of every thing was timed in the same round, so rows pair up.
Calls within a block resemble each other (same clock rate, same neighbours), so intervals resample blocks, never single calls.
Outliers are kept: a call that took long took long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

PERCENTILES = (90, 95, 99)
BEYOND = 5
"""A percentile needs so many samples expected beyond it: p90 from 50 samples on, p95 from 100, p99 from 500."""

LEVEL = 0.95
RESAMPLES = 2000
SAME = 0.025
"""No smaller ratio is called a difference. Half of 5 %: a file 5 % slower is found as surely as equal files are left alone."""

BETWEEN = 0.0075
"""Two processes that run the same file differ (memory layout, thread placement) for as long as they live, and their blocks
cannot show it: the standard deviation of the log of their ratio. Measured: 26 pairs of processes with one file each, 60 blocks
a pair, gave 0.0076, at most 1.8 %; intervals from blocks alone held 1 in 10 of the 26."""

ALONE = 0.02
"""The same, where each file was started once or twice: what was seen beside other work, 0.97 to 1.04 and further. A verdict on a
single start must bear the worst."""

INTERVAL = 0.04
"""Narrow enough to stop at: the ratio's interval, BETWEEN included, relative to the ratio. With it, SAME and 10 to 300 rounds
looked at every second round, simulations (AR(1) noise both share, noise a block, outliers, BETWEEN between processes) call A
against A different in 0.3 to 3 of 100 and miss 5 % in 0.3 to 5 of 100; with 0.05 and a SAME of 0.02 it is 2 to 6 and 0 to 5.
Processes that differ by twice BETWEEN make it 12 and 8; over launches (`_over_launches`: 6 to 30) it is 0 and 0 there, and 2 and 1
where they differ by four times BETWEEN."""

UNSURE = 1.2
"""An interval whose ends differ by more than this says nothing, not that there is no difference."""

OUTLIER = 5
"""An outlier lies beyond the median of its block by so many robust standard deviations, each at least 1 % of the median."""

FEWEST_PAIRS = 6
"""With 5 pairs all on one side of 1, chance alone does that in 2 x 0.5^5 = 6 % of cases: 6 are needed for LEVEL."""

FEWEST_LAUNCHES = 3
"""From so many launches on, an interval is over launches."""

PRIOR, TRIMMED = 2, 8

_GRID = 2048
_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)


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


def median_interval(samples: np.ndarray, seed: int = 0, launches: Sequence[int] | None = None) -> Interval:
    """Return the median of all samples and its bootstrap interval over blocks; over launches where there are FEWEST_LAUNCHES.

    samples: (blocks, calls), or (calls,) where every call is its own block. launches: (blocks,), the process each block ran in. Exact up to 2,048 distinct ranks; above, the
    resampled medians are read off a grid of 2,048 quantiles. Reproducible: the resampling is seeded.
    """
    samples = np.asarray(samples, dtype=np.float64)
    rows = samples if samples.ndim == 2 else samples[:, None]
    if rows.size == 0:
        raise ValueError("no samples")
    ordered = np.sort(rows, axis=None)
    value = float(np.median(ordered))
    if launches is not None and len(set(launches)) >= FEWEST_LAUNCHES:
        # a bootstrap of five launches cannot leave their range, which holds the truth in 88 %
        over = block_interval(rows, launches)
        return Interval(value, min(over.low, value), max(over.high, value))
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
    low, high = min(low, value), max(high, value)
    if launches is None:
        return Interval(value, low, high)
    more = value * _Z * ALONE / math.sqrt(2)  # another process would differ
    return Interval(value, value - math.hypot(value - low, more), value + math.hypot(high - value, more))


def summary(samples: np.ndarray, launches: Sequence[int] | None = None) -> dict[str, float | int]:
    """Summarise the warm samples of one thing, (blocks, calls) in seconds. Percentiles appear only where supported.

    launches: (blocks,), the process each block ran in.

    count, median_s with median_low_s and median_high_s, mean_s, min_s, max_s, and p90_s, p95_s, p99_s with _low_s and _high_s.
    """
    flat = np.asarray(samples, dtype=np.float64).ravel()
    median = median_interval(samples, launches=launches)
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
            told[f"p{percentile}_s"] = found.value
            told[f"p{percentile}_low_s"], told[f"p{percentile}_high_s"] = found.low, found.high
    return told


def ratio(
    control: np.ndarray, candidate: np.ndarray, *, between: float = ALONE, launches: Sequence[int] | None = None
) -> Interval:
    """Return how many times faster the candidate is: control's time / candidate's, above 1 where the candidate is faster.

    Both (blocks, calls): row k of one was timed next to row k of the other, so what slows the machine for a while hits both.
    The median over the pairs' ratios of block medians, and its interval: the exact one over pairs (`_by_ranks`), widened by
    how much another two processes would differ (`between`, added in squares; 0 where both ran in one process). Below
    FEWEST_PAIRS the interval is (0, inf): nothing is known. launches: (blocks,), the number of the process each pair ran in; from
    FEWEST_LAUNCHES different ones on, what they differ by is seen, not assumed: the estimate and its interval are over launches
    (`_over_launches`), those with an even number (the control was first) counting as much as those with an odd one. Block medians (blocks, 1) give the same as the calls they are of, in 0.1 ms.
    Raises ValueError where the numbers of blocks differ, or there are none.
    """
    if len(control) != len(candidate) or len(control) == 0:
        raise ValueError(f"blocks pair up: {len(control)} of the control, {len(candidate)} of the candidate")
    logs = np.log(np.median(control, axis=1)) - np.log(np.median(candidate, axis=1))
    if launches is not None and len(set(launches)) >= FEWEST_LAUNCHES:
        numbers, medians = _of_each_launch(logs, launches)
        return _exponents(_over_launches(*_in_either_order(numbers, medians), BETWEEN))
    value, low, high = _by_ranks(logs)
    more = _Z * between
    low, high = value - math.hypot(value - low, more), value + math.hypot(high - value, more)
    return _exponents((value, low, high))


def block_interval(samples: np.ndarray, launches: Sequence[int] | None = None) -> Interval:
    """Return the median of the block medians of one thing, (blocks, calls) in seconds, and its interval by ranks.

    For looking while the clock runs: 0.1 ms from block medians (blocks, 1); `median_interval` of the calls takes 50. Below
    FEWEST_PAIRS blocks the interval is (0, inf).
    """
    logs = np.log(np.median(samples, axis=1))
    if launches is not None and len(set(launches)) >= FEWEST_LAUNCHES:
        return _exponents(_over_launches(_of_each_launch(logs, launches)[1], 1, BETWEEN / math.sqrt(2)))
    value, low, high = _by_ranks(logs)
    more = 0.0 if launches is None else _Z * ALONE / math.sqrt(2)
    return _exponents((value, value - math.hypot(value - low, more), value + math.hypot(high - value, more)))


def relative_width(found: Interval) -> float:
    """Return how wide an interval is, relative to its estimate; inf where it has no bound."""
    return (found.high - found.low) / found.value if math.isfinite(found.high) else math.inf


def outliers(samples: np.ndarray) -> dict[str, float | int]:
    """Count the calls that took unusually long, for showing: they stay in every statistic. samples: (blocks, calls), seconds.

    Beyond the median of its block + OUTLIER x 1.4826 x the median absolute deviation there; of all calls together where a
    block has fewer than 8. count, share (0 to 1), slowest_s (the slowest call of all).
    """
    samples = np.asarray(samples, dtype=np.float64)
    rows = samples if samples.ndim == 2 and samples.shape[1] >= 8 else samples.reshape(1, -1)
    middle = np.median(rows, axis=1, keepdims=True)
    scale = np.maximum(1.4826 * np.median(np.abs(rows - middle), axis=1, keepdims=True), 0.01 * middle)
    count = int((rows > middle + OUTLIER * scale).sum())
    return {"count": count, "share": count / samples.size, "slowest_s": float(samples.max())}


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
    if not differs(found) and found.high / found.low > UNSURE:
        return f"cannot tell {candidate} from {control} ({_span(found)}): too much disturbed the clock; give it more time"
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
    (The American Statistician 69, 2015), 4.3.
    """
    tail = 100 * NormalDist().cdf(-math.sqrt(n / max(n - 1, 1)) * t_quantile(max(n - 1, 1)))
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return float(low), float(high)


def t_quantile(v: float) -> float:
    """Return Student's two-sided LEVEL quantile for `v` degrees of freedom, to 0.2 % from 5 on (Abramowitz, Stegun 26.7.5)."""
    z = _Z
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )


def _exponents(logs: tuple[float, float, float]) -> Interval:
    value, low, high = logs
    return Interval(math.exp(value), math.exp(low) if low > -math.inf else 0.0, math.exp(high) if high < math.inf else math.inf)


def _of_each_launch(values: np.ndarray, launches: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the launches, and the median of each one's values."""
    numbers, at = np.unique(np.asarray(launches)), np.asarray(launches)
    return numbers, np.array([np.median(values[at == number]) for number in numbers])


def _in_either_order(numbers: np.ndarray, medians: np.ndarray) -> tuple[np.ndarray, int]:
    """Return launches' values without what the order of starting does to them, and how many parameters that and a mean take.

    What is started first is slower, or faster, in all launches of that order: without this, of five launches three would have it
    in favour of the candidate. Both orders need two launches; half the difference of their middles is what the order does.
    """
    odd = numbers % 2 == 1
    if min(odd.sum(), (~odd).sum()) < 2:
        return medians, 1
    middle = np.median if len(medians) >= TRIMMED else np.mean  # one disturbed launch among many does not decide
    half = (middle(medians[~odd]) - middle(medians[odd])) / 2
    return medians - np.where(odd, -half, half), 2


def _over_launches(medians: np.ndarray, spent: int, between: float) -> tuple[float, float, float]:
    """Return the mean over launches of the median of each one's values, and its interval by Student's t.

    spent: parameters that were estimated from the medians, the mean among them.

    The variance is the one seen between launches; where they happen to agree, the one with `between` as PRIOR more launches. From
    TRIMMED launches on a fifth is left out at either end, that one disturbed launch does not decide (Yuen, Biometrika 61, 1974).
    """
    medians = np.sort(medians)
    n = len(medians)
    out = n // 5 if n >= TRIMMED else 0
    left = medians[out : n - out]
    value, freedom = float(left.mean()), len(left) - spent
    clipped = np.clip(medians, left[0], left[-1])
    squares = float(((clipped - clipped.mean()) ** 2).sum())
    usual = freedom / (n - spent) * between**2  # clipping makes it that much smaller, roughly
    variance = max(squares / (n - spent), (squares + PRIOR * usual) / (n - spent + PRIOR))
    half = t_quantile(freedom) * math.sqrt(variance / n) * n / len(left)
    return value, value - half, value + half


def _by_ranks(values: np.ndarray) -> tuple[float, float, float]:
    """Return the median of independent values and its interval: two of the ordered values, exact for any distribution.

    The number of values below the true median is binomial(n, 1/2) (the sign test turned round; David and Nagaraja, 7.1).
    Below FEWEST_PAIRS no two values are far enough apart: (-inf, inf).
    """
    n, value = len(values), float(np.median(values))
    if n < FEWEST_PAIRS:
        return value, -math.inf, math.inf
    ordered, rank = np.sort(values), _rank(n)
    return value, float(ordered[rank - 1]), float(ordered[n - rank])


@lru_cache(maxsize=None)  # noqa: UP033 (functools.cache is not in Python 3.8)
def _rank(n: int) -> int:
    return int(np.searchsorted(np.cumsum(_binomial(n, 0.5)), (1 - LEVEL) / 2))


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
