"""Throughput over minutes: where it falls, by how much, whether it comes back, and what probably did it. numpy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SMALLEST = 0.03
"""No smaller fall is reported."""

POINTS = 600
"""Points of the series at most."""

CHANCE = 0.01
"""How often noise alone may look like a fall."""

WARMER, SLOWER, BUSIER = 5.0, 0.03, 0.05
"""What counts as a cause: degrees Celsius, share of the clock rate, share of the machine's cores that others took more."""

FEWEST = 60
"""Blocks below which nothing is said of falls: too few pieces to shuffle."""

_BINS, _SHUFFLES, _SHORTEST = 100, 300, 5
_MARGIN = 2.0  # shuffled noise looks milder than it is, since the fit took a part of it along


def analyse(
    times_s: Sequence[float] | np.ndarray,
    per_s: Sequence[float] | np.ndarray,
    environment: Sequence[Mapping[str, float | None]] = (),
) -> dict[str, Any]:
    """Analyse a sustained run: times_s (n,) in seconds when each block began, increasing; per_s (n,) samples a second in it.

    environment: points in time, each {"at_s" (on the clock of times_s), "temperature_c", "frequency_mhz", "others"} (others: share of the machine's
    cores that other processes used around then, 0 to 1); what is not known is None or absent.
    Returns minutes, first_per_s and last_per_s (medians of the first and last tenth), fell_at_s, back_at_s, change (while it was
    slow, relative to before), cause ("warm", "clock", "others", "unknown"), all four None where it did not fall or not come
    back, said, series [[seconds, samples a second], ...]. Raises ValueError where there is nothing to analyse.

    The fall is the stretch [i, j) whose mean log rate lies furthest below the rest, by least squares; j may be the end
    (circular binary segmentation: Olshen et al., Biostatistics 5, 2004). It is believed if CHANCE of the shuffled runs, at most,
    have one half as deep, the fall taken out first. Neighbours resemble each other, so whole pieces of the run are shuffled.
    Simulated, 300 blocks with 2 to 3 % of noise: no false fall in 120 runs, falls of 5 % found in 95 to 100 %.
    """
    at, rates = np.asarray(times_s, dtype=np.float64), np.asarray(per_s, dtype=np.float64)
    if len(at) != len(rates) or len(at) < 2 or not (rates > 0).all():
        raise ValueError(f"a sustained run needs times and rates above 0, two at least: {len(at)} and {len(rates)}")
    recorded = [{**point, "at_s": (point.get("at_s") or 0.0) - float(at[0])} for point in environment]
    at = at - at[0]
    series = _bins(at, rates, POINTS)
    tenth = max(1, len(rates) // 10)
    told: dict[str, Any] = {
        "minutes": float(at[-1]) / 60,
        "first_per_s": float(np.median(rates[:tenth])),
        "last_per_s": float(np.median(rates[-tenth:])),
        "fell_at_s": None,
        "back_at_s": None,
        "change": None,
        "cause": None,
        "series": [[round(float(t), 3), float(r)] for t, r in series],
    }
    found = _fall(_bins(at, rates, _BINS)) if len(at) >= FEWEST else None
    if found is None:
        middle = float(np.median(rates))
        said = f"throughput held for {_minutes(at[-1])}: {middle:.3g} a second"
        if len(at) < FEWEST:
            said = f"{len(at)} blocks are too few to say whether throughput held; {FEWEST} are needed"
        return {**told, "said": said}
    fell, back, change = found
    cause, reason = _cause(recorded, fell, back if back is not None else float(at[-1]) + 1, change)
    lasting = f"came back at {_minutes(back)}" if back is not None else "did not come back"
    said = f"throughput fell by {-change:.0%} at {_minutes(fell)} and {lasting}: {reason}"
    return {**told, "fell_at_s": fell, "back_at_s": back, "change": change, "cause": cause, "said": said}


def _bins(at: np.ndarray, rates: np.ndarray, most: int) -> np.ndarray:
    """Return (bins, 2): time and rate, medians of at most `most` runs of neighbouring blocks."""
    pieces = np.array_split(np.arange(len(at)), min(most, len(at)))
    return np.array([[at[piece[0]], np.median(rates[piece])] for piece in pieces])


def _fall(bins: np.ndarray) -> tuple[float, float | None, float] | None:
    """Return when throughput fell and came back (seconds), and by how much (relative, negative); None where it held."""
    count = len(bins)
    logs = np.log(bins[:, 1])
    smooth = np.array([np.median(logs[max(0, k - 1) : k + 2]) for k in range(count)])  # one odd block is no stretch
    weights = _weights(count)
    depth, i, j = _deepest(smooth, weights)
    rest = smooth - np.mean(np.concatenate([smooth[:i], smooth[j:]]))  # what remains once the fall is taken out: the noise
    rest[i:j] -= rest[i:j].mean()
    random, piece = np.random.default_rng(0), max(2, round(count**0.5))
    deeper = 0
    for _ in range(_SHUFFLES):
        pieces = np.array_split(np.roll(rest, int(random.integers(count))), -(-count // piece))
        deeper += _deepest(np.concatenate([pieces[k] for k in random.permutation(len(pieces))]), weights)[0] >= depth / _MARGIN
    change = float(np.expm1(np.median(logs[i:j]) - np.median(logs[:i])))
    if depth <= 0 or (deeper + 1) / (_SHUFFLES + 1) > CHANCE or change > -SMALLEST:
        return None
    return float(bins[i, 0]), float(bins[j, 0]) if j < count else None, change


def _weights(count: int) -> np.ndarray:
    """Return (count + 1, count + 1): what the squared sum below the mean of stretch [i, j) counts; 0 where none may lie."""
    i, j = np.arange(count + 1)[:, None], np.arange(count + 1)[None, :]
    inside = j - i
    allowed = (i >= _SHORTEST) & (inside >= _SHORTEST) & ((j == count) | (j <= count - _SHORTEST))
    return np.where(allowed, count / np.maximum(inside * (count - inside), 1), 0.0)


def _deepest(logs: np.ndarray, weights: np.ndarray) -> tuple[float, int, int]:
    """Return the gain in squared error, beginning and end of the stretch [i, j) that lies furthest below the rest."""
    sums = np.concatenate([[0.0], np.cumsum(logs - logs.mean())])
    below = sums[:, None] - sums[None, :]
    np.maximum(below, 0.0, out=below)
    below *= below
    below *= weights
    best = int(np.argmax(below))
    return float(below.flat[best]), best // len(sums), best % len(sums)


def _cause(environment: Sequence[Mapping[str, float | None]], fell: float, back: float, change: float) -> tuple[str, str]:
    """Return the likely cause and a reason in words, from what was recorded before and while throughput was low."""

    def values(name: str, begin: float, end: float) -> list[float]:
        return [v for p in environment if begin <= (p.get("at_s") or 0.0) < end and (v := p.get(name)) is not None]

    def levels(name: str, start: float = fell) -> tuple[float, float] | None:
        before, after = values(name, -1.0, start), values(name, fell, back)
        return (float(np.median(before)), float(np.median(after))) if before and after else None

    others, clock = levels("others"), levels("frequency_mhz")
    heat = levels("temperature_c", max(0.2 * fell, 1e-9) if values("temperature_c", -1.0, 0.2 * fell) else fell)
    slower = clock is not None and clock[1] < (1 - SLOWER) * clock[0]
    if others and others[1] - others[0] > max(BUSIER, -change / 3):
        return "others", f"other processes took {others[1]:.0%} of the cores then, {others[0]:.0%} before"
    if heat and heat[1] - heat[0] > WARMER and (slower or clock is None):
        clocked = f", and the clock rate fell from {clock[0]:.0f} to {clock[1]:.0f} MHz" if clock else ""
        return "warm", f"the machine warmed from {heat[0]:.0f} to {heat[1]:.0f} degrees{clocked}"
    if clock and slower:
        return "clock", f"the clock rate fell from {clock[0]:.0f} to {clock[1]:.0f} MHz"
    known = [
        name for name, found in (("temperature", heat), ("clock rate", clock), ("load by others", others)) if found is not None
    ]
    return "unknown", f"{', '.join(known)} did not change with it" if known else "nothing was recorded that could explain it"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
