"""Small SVG pieces: everything that comes from outside is escaped; colours are the page's own variables, so both schemes work."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from markupsafe import Markup, escape

COLOURS = 8
"""Of series, in style.css: c0 to c7, then from the beginning."""


def tag(name: str, content: str | Markup = "", **attributes: object) -> Markup:
    """Return one element. Underscores in attribute names become hyphens; numbers are rounded to a tenth."""
    told = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_short(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{told}>{escape(content)}</{name}>" if content else f"<{name}{told}/>")


def _short(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.1f}".removesuffix(".0")
    return value


def text(x: float, y: float, words: str, anchor: str = "start", class_: str = "") -> Markup:
    """Return words at a place."""
    return tag("text", words, x=float(x), y=float(y), text_anchor=None if anchor == "start" else anchor, class_=class_ or None)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """Return a straight line."""
    return tag("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=class_)


def path(points: Iterable[tuple[float, float]], class_: str, close: bool = False) -> Markup:
    """Return a line through points."""
    steps = " ".join(f"{'L' if i else 'M'}{_short(float(x))} {_short(float(y))}" for i, (x, y) in enumerate(points))
    return tag("path", d=steps + (" Z" if close else ""), class_=class_)


def chart(width: float, height: float, parts: Iterable[Markup], label: str, class_: str = "chart") -> Markup:
    """Put parts together; label is what a screen reader says."""
    content = Markup("").join([tag("title", label), *parts])
    return Markup(
        f'<svg class="{escape(class_)}" viewBox="0 0 {_short(float(width))} {_short(float(height))}" role="img" '
        f'aria-label="{escape(label)}">{content}</svg>'
    )


def scale(domain: tuple[float, float], pixels: tuple[float, float], log: bool = False) -> Callable[[float], float]:
    """Return the map from values to pixels. A domain of one value lies in the middle."""
    turn = (lambda v: math.log(max(v, 1e-300))) if log else (lambda v: float(v))
    low, high = turn(domain[0]), turn(domain[1])
    if high - low <= 0:
        return lambda value: (pixels[0] + pixels[1]) / 2
    return lambda value: pixels[0] + (turn(value) - low) / (high - low) * (pixels[1] - pixels[0])


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Return round values between low and high, near `about` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((m * power for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(math.log(s / raw)))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Return round values between low and high on a logarithmic axis: 1 2 5 10, fewer where they would crowd."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    for marks in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1, 3), (1,)):
        found = [m * 10.0**d for d in decades for m in marks if low * 0.999 <= m * 10.0**d <= high * 1.001]
        if 2 <= len(found) <= about + 1:
            return found
    inside = [10.0**d for d in decades if low <= 10.0**d <= high]
    if len(inside) > about:
        return inside[:: -(-len(inside) // about)]
    return inside or [t for t in ticks(low, high, about) if t > 0]


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move label positions apart so that neighbours keep `gap`, each group around where it was wanted, within low and high."""
    groups: list[list[int]] = []
    starts: list[float] = []
    for i in sorted(range(len(wanted)), key=lambda i: wanted[i]):
        groups.append([i])
        starts.append(wanted[i])
        while len(groups) > 1 and starts[-2] + gap * len(groups[-2]) > starts[-1]:
            last = groups.pop()
            groups[-1] += last
            starts.pop()
            starts[-1] = sum(wanted[j] - gap * k for k, j in enumerate(groups[-1])) / len(groups[-1])
    order = [i for group in groups for i in group]
    placed = [start + gap * k for start, group in zip(starts, groups, strict=True) for k in range(len(group))]
    for k in range(len(placed)):
        placed[k] = max(placed[k], placed[k - 1] + gap if k else low)
    for k in reversed(range(len(placed))):
        placed[k] = min(placed[k], placed[k + 1] - gap if k + 1 < len(placed) else high)
    result = [0.0] * len(wanted)
    for place, i in zip(placed, order, strict=True):
        result[i] = place
    return result
