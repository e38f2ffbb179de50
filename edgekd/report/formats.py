"""Numbers as a person reads them. What is not there is a dash."""

from __future__ import annotations

import math
from typing import Any

DASH = "–"
MINUS = "−"
THIN = "\u202f"  # narrow no-break space, between number and unit


def size(count: float | None) -> str:
    """Bytes: 1 KB is 1000 bytes.

    >>> size(61207)
    '61.2\\u202fKB'
    """
    if count is None:
        return DASH
    for unit in ("B", "KB", "MB", "GB"):
        if count < 999.5 or unit == "GB":
            return f"{count:.3g}{THIN}{unit}" if count < 999.5 else f"{count:,.0f}{THIN}{unit}"
        count /= 1000
    raise AssertionError


def duration(seconds: float | None, plain: bool = False) -> str:
    """Seconds of one call, three digits: 247 us, 1.52 ms, 2.30 s. plain: without trailing zeros."""
    if seconds is None:
        return DASH
    write = (lambda v: f"{v:.3g}") if plain else digits
    for scale, unit in ((1e-6, "µs"), (1e-3, "ms")):
        if seconds < 999.5 * scale:
            return f"{write(seconds / scale)}{THIN}{unit}"
    return f"{write(seconds)}{THIN}s"


def clock(seconds: float) -> str:
    """Seconds of a stage: 0.4 s, 1 min 44 s, 2 h 5 min."""
    if seconds < 59.95:
        return f"{seconds:.1f}{THIN}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{THIN}min {rest}{THIN}s"
    return f"{minutes // 60}{THIN}h {minutes % 60}{THIN}min"


def digits(value: float, count: int = 3) -> str:
    """Return `count` significant digits, never in exponent form for what has few zeros."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else DASH
    value = float(f"{value:.{count - 1}e}")  # first, for 0.9999 has its digits where 1.00 has them
    places = count - 1 - math.floor(math.log10(abs(value)))
    if places > 8 or places < -8:
        return f"{value:.{count - 1}e}"
    return f"{round(value, places):,.{max(0, places)}f}"


def small(value: float | None) -> str:
    """A number near zero, two digits: 0.021, 8.4e-06. What is not finite is stored as None."""
    if value is None:
        return "∞"
    return "0" if value == 0 else digits(value, 2) if value >= 1e-4 else f"{value:.1e}"


def number(value: float | None) -> str:
    """A count with thousands separated, or 1.25 M."""
    if value is None:
        return DASH
    if value >= 1e6:
        return f"{digits(value / 1e6)}{THIN}M"
    return f"{value:,.0f}"


def throughput(value: float | None) -> str:
    """Samples or tokens a second: 4,050, 3.21."""
    return number(value) if value is None or value >= 10 else digits(value)


def times(ratio: float) -> str:
    """A ratio: 1.31x, 12x."""
    return f"{ratio:.2f}×" if ratio < 10 else f"{ratio:.0f}×"


def prefixed(value: float | None, unit: str, plain: bool = False) -> str:
    """A quantity with its unit's prefix, three digits: 45.3 GFLOP/s, 12.0 mJ. plain: without trailing zeros."""
    if value is None or not math.isfinite(value):
        return DASH
    write = (lambda v: f"{v:.3g}") if plain else digits
    for scale, prefix in ((1e-6, "µ"), (1e-3, "m"), (1.0, ""), (1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T")):
        if abs(value) < 999.5 * scale:
            return f"{write(value / scale)}{THIN}{prefix}{unit}"
    return f"{write(value / 1e15)}{THIN}P{unit}"


def share(value: float | None) -> str:
    """A part of a whole: 38 %, 0.42 %."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{100 * value:.0f}{THIN}%" if value >= 0.0995 or value == 0 else f"{digits(100 * value, 2)}{THIN}%"


class Metric:
    """How the run's metric is written: a share such as accuracy in percent and points, anything else as it is."""

    def __init__(self, metric: dict[str, Any]) -> None:
        self.name: str = metric["name"]
        self.higher_is_better: bool = metric["higher_is_better"]
        self.share = any(word in self.name.lower() for word in ("accuracy", "recall", "precision", "iou", "top-"))

    def score(self, value: float | None, places: int = 2) -> str:
        """A score: 91.99 %."""
        if value is None or not math.isfinite(value):
            return DASH
        return f"{100 * value:.{places}f}{THIN}%" if self.share else digits(value, 4)

    def tick(self, value: float) -> str:
        """A value on an axis, with as many places as it needs, two at most: 99 %, 99.25 %."""
        return self.score(value, next((n for n in (0, 1) if abs(100 * value - round(100 * value, n)) < 1e-6), 2))

    def drop(self, value: float | None, unit: bool = True) -> str:
        """A loss, positive is worse, as the change that the reader sees: −0.63 points."""
        if value is None or not math.isfinite(value):
            return DASH
        change = -value if self.higher_is_better else value
        text = f"{abs(100 * change):.2f}" if self.share else digits(abs(change), 3)
        sign = "" if float(text.replace(",", "")) == 0 else "+" if change > 0 else MINUS
        return f"{sign}{text}" + (f"{THIN}points" if self.share and unit else "")

    def gate(self, value: float) -> str:
        """The largest drop allowed: 1 point, 0.5 points."""
        if not self.share:
            return digits(value)
        return f"{100 * value:g}{THIN}point{'' if value == 0.01 else 's'}"
