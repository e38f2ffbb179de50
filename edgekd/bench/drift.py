"""Did calls become slower or faster over a run? numpy alone."""

from __future__ import annotations

import math

import numpy as np

from .statistics import t_quantile

DRIFT = 0.02
"""No smaller change over a run is reported as drift."""


def drift(samples: np.ndarray, times: np.ndarray) -> dict[str, float | str] | None:
    """Say whether calls became slower or faster over the run: from_s, to_s, change (relative), low, high, said; or None.

    samples: (blocks, calls) in seconds; times: (blocks,), when each block began, in seconds. A line through the logs of the
    block medians (in at most 24 parts; slope: Theil 1950, Sen 1968), from the first block to the last. Neighbours resemble
    each other, so the interval counts as many independent parts as their autocorrelation leaves: shrunk towards 0.7 as if 16
    more parts had it, since a short run underestimates it. None: fewer than 20 blocks, an interval that holds 0, or a change
    below DRIFT. In simulations without drift, AR(1) noise up to 0.8 between neighbours gives 8 % false with 20 blocks, 5 %
    with 40; 5 % of drift on 2 % of noise a block is found in 30 %, 59 %, and 98 % with 120.
    """
    if len(samples) < 20 or times[-1] <= times[0]:
        return None
    logs, at = np.log(np.median(samples, axis=1)), (np.asarray(times, dtype=np.float64) - times[0]) / (times[-1] - times[0])
    count = min(len(logs), 24)
    y = np.array([np.median(part) for part in np.array_split(logs, count)])
    x = np.array([part.mean() for part in np.array_split(at, count)])
    i, j = np.triu_indices(count, 1)
    slope = float(np.median((y[j] - y[i]) / (x[j] - x[i])))
    start = float(np.median(y - slope * x))
    rest = y - start - slope * x
    robust = 3 * 1.4826 * float(np.median(np.abs(rest)))
    rest = np.clip(rest, -robust, robust)
    centred = rest - rest.mean()
    alike = float((centred[1:] * centred[:-1]).sum() / max(float((centred**2).sum()), 1e-300)) + 4 / count
    alike = min(max((count * alike + 16 * 0.7) / (count + 16), 0.0), 0.95)
    fewer = (1 + alike) / (1 - alike)
    error = math.sqrt(float((rest**2).sum()) / (count - 2) * fewer / float(((x - x.mean()) ** 2).sum()))
    half = 1.05 * t_quantile(max(count / fewer - 1, 2.5)) * error  # 1.05: a median's slope is that much less certain
    change, low, high = math.expm1(slope), math.expm1(slope - half), math.expm1(slope + half)
    if low <= 0 <= high or abs(change) < DRIFT:
        return None
    said = f"calls became {abs(change):.0%} {'slower' if change > 0 else 'faster'} over the run ({low:+.0%} to {high:+.0%})"
    return {
        "from_s": math.exp(start),
        "to_s": math.exp(start + slope),
        "change": change,
        "low": low,
        "high": high,
        "said": said,
    }
