"""Charts of a bench: throughput over time, size against latency, the parts of a call. Drawn like charts.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from . import labels, svg
from .charts import WIDTH
from .formats import clock, duration, share, size, throughput
from .svg import chart, line, path, tag, text

LONGEST_NAME = 30
"""Characters of a name beside its point; the tables have it whole."""


@dataclass(frozen=True)
class Spot:
    """A thing's place in a chart. words: what stands beside it, its name first."""

    name: str
    words: str
    x: float
    y: float
    colour: int


def named(
    spots: Sequence[Spot],
    x: Callable[[float], float],
    y: Callable[[float], float],
    frame: labels.Box,
    taken: Sequence[labels.Box],
) -> list[Markup]:
    """Draw spots and the words beside them, moved apart."""
    at = [(x(s.x), y(s.y)) for s in spots]
    words = [brief(s.words) for s in spots]
    parts = []
    for spot, (px, py), said, label in zip(spots, at, words, labels.place(at, words, frame, taken), strict=True):
        parts.append(tag("circle", cx=px, cy=py, r=5, class_=f"fill s{spot.colour % svg.COLOURS}"))
        if abs(label.y - py) > 7:
            near = px + (label.x - px) * 0.7
            parts.append(line(near, py + math.copysign(3, label.y - py), label.x, label.y, "lead"))
        parts.append(text(label.x, label.y + 4, said, label.anchor, "value halo"))
    return parts


def brief(words: str, longest: int = LONGEST_NAME) -> str:
    """Leave out the middle of long words."""
    keep = (longest - 1) // 2
    return words if len(words) <= longest else f"{words[:keep].rstrip()}…{words[-keep:].lstrip()}"


def front(spots: Sequence[Spot]) -> Markup:
    """Draw latency (seconds) against size (bytes), both logarithmic, and the line below which nothing lies."""
    height, left, right, top, bottom = 218.0, 52.0, 328.0, 14.0, 172.0
    x_domain, y_domain = _around([s.x for s in spots]), _around([s.y for s in spots])
    x, y = svg.scale(x_domain, (left, right), log=True), svg.scale(y_domain, (bottom, top), log=True)
    parts = []
    for value in svg.log_ticks(*y_domain):
        parts.append(line(left, y(value), right, y(value), "grid"))
        parts.append(text(left - 6, y(value) + 4, duration(value, plain=True), "end", "axis"))
    for value in svg.log_ticks(*x_domain):
        parts.append(line(x(value), bottom, x(value), bottom + 4, "tick"))
        parts.append(text(min(x(value), WIDTH - 18), bottom + 16, size(value), "middle", "axis"))
    parts.append(text((left + right) / 2, height - 6, "size of the files", "middle", "axis"))
    best = unbeaten(spots)
    corners = [(x(best[0].x), y(best[0].y))]
    for before, after in pairwise(best):
        corners += [(x(after.x), y(before.y)), (x(after.x), y(after.y))]
    if len(corners) > 1:
        parts.append(path(corners, "front"))
    parts += named(spots, x, y, (left, top, right + 8, bottom), ())
    told = ", ".join(f"{s.words}: {duration(s.y)} at {size(s.x)}" for s in spots)
    return chart(WIDTH, height, parts, f"Median latency against size: {told}")


def unbeaten(spots: Sequence[Spot]) -> list[Spot]:
    """Return those than which none is both smaller and faster, by size."""
    found: list[Spot] = []
    for spot in sorted(spots, key=lambda s: (s.x, s.y)):
        if not found or spot.y < found[-1].y:
            found.append(spot)
    return found


def _around(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values) / 1.25, max(values) * 1.25
    if high / low < 2:
        middle = math.sqrt(low * high)
        low, high = middle / 1.5, middle * 1.5
    return low, high


@dataclass(frozen=True)
class Course:
    """Throughput of one thing over time: (seconds, a second). fell_at: where it falls, seconds."""

    name: str
    series: Sequence[tuple[float, float]]
    colour: int
    fell_at: float | None


def over_time(courses: Sequence[Course]) -> Markup:
    """Draw throughput over time from zero on, with a mark where each falls."""
    height, left, right, top, bottom = 200.0, 50.0, 330.0, 26.0, 158.0
    end = max(t for c in courses for t, _ in c.series) or 1.0
    high = max(v for c in courses for _, v in c.series) * 1.08
    unit = 60.0 if end > 150 else 1.0
    x, y = svg.scale((0, end), (left, right)), svg.scale((0, high), (bottom, top))
    parts = []
    for value in svg.ticks(0, high):
        parts.append(line(left, y(value), right, y(value), "grid"))
        parts.append(text(left - 6, y(value) + 4, throughput(value), "end", "axis"))
    for value in svg.ticks(0, end / unit, 6):
        parts.append(text(min(x(value * unit), right - 6), bottom + 16, f"{value:g}", "middle", "axis"))
    parts.append(text((left + right) / 2, height - 6, "minutes" if unit > 1 else "seconds", "middle", "axis"))
    parts.append(text(2, 9, "a second", class_="axis"))
    for course in courses:
        seen = [(x(t), y(v)) for t, v in course.series]
        kind = f"s{course.colour % svg.COLOURS}"
        parts.append(
            path(seen, f"curve {kind}")
            if len(seen) > 1
            else tag("circle", cx=seen[0][0], cy=seen[0][1], r=3.5, class_=f"fill {kind}")
        )
    fallen = [c for c in courses if c.fell_at is not None and 0 <= c.fell_at <= end]
    rows = _rows(
        [(x(c.fell_at or 0.0), f"{brief(c.name, 16)} falls at {clock(c.fell_at or 0.0)}") for c in fallen], left, right
    )
    for course, (anchor, begin, said, down) in zip(fallen, rows, strict=True):
        at = x(course.fell_at or 0.0)
        parts.append(line(at, top - 12 + 12 * down, at, bottom, "fall"))
        parts.append(text(begin, top - 4 + 12 * down, said, anchor, "value halo"))
    told = ", ".join(f"{c.name} from {throughput(c.series[0][1])} to {throughput(c.series[-1][1])} a second" for c in courses)
    return chart(WIDTH, height, parts, f"Throughput over time: {told}")


def _rows(wanted: Sequence[tuple[float, str]], left: float, right: float) -> list[tuple[str, float, str, int]]:
    """Return (anchor, x, words, row) for words beside vertical marks; each on a row of its own."""
    found = []
    for down, (at, said) in enumerate(wanted):
        fits = at + 5 + labels.width(said) <= right
        found.append(("start" if fits else "end", at + 5 if fits else at - 5, said, down))
    return found


def over_time_beside(series: Sequence[tuple[float, float]], end: float, write: Callable[[float], str]) -> Markup:
    """Draw what was recorded beside the throughput (a temperature, a clock rate), on the same time axis."""
    height, left, right, top, bottom = 70.0, 50.0, 330.0, 8.0, 60.0
    low, high = min(v for _, v in series), max(v for _, v in series)
    pad = 0.1 * (high - low) or 0.05 * abs(high) or 1.0
    x, y = svg.scale((0, end), (left, right)), svg.scale((low - pad, high + pad), (bottom, top))
    parts = []
    for value in svg.ticks(low - pad, high + pad, 2):
        parts.append(line(left, y(value), right, y(value), "grid"))
        parts.append(text(left - 6, y(value) + 4, write(value), "end", "axis"))
    parts.append(path([(x(min(t, end)), y(v)) for t, v in series], "beside"))
    return chart(WIDTH, height, parts, f"From {write(series[0][1])} to {write(series[-1][1])}")


def stacked(rows: Sequence[tuple[str, Mapping[str, float], float]], parts_of: Sequence[str]) -> Markup:
    """Draw each whole call (name, its parts' medians, its own median, seconds) as a bar of parts; what no part has is hollow.

    parts_of: every part's name; its place is its colour.
    """
    band, left, right = 40.0, 8.0, 332.0
    height = band * len(rows) + 30
    longest = max(max(whole, sum(parts.values())) for _, parts, whole in rows)
    x = svg.scale((0, longest), (left, right))
    drawn = []
    for value in svg.ticks(0, longest):
        drawn.append(line(x(value), 4, x(value), height - 26, "grid"))
        place = min(max(x(value), left + 8), right - 14)
        drawn.append(text(place, height - 12, duration(value, plain=True) if value else "0", "middle", "axis"))
    for i, (name, parts, whole) in enumerate(rows):
        base, at = band * i + 8, 0.0
        drawn.append(text(left, base + 8, f"{brief(name, 36)}  {duration(whole)}", class_="value halo"))
        if whole > sum(parts.values()):
            drawn.append(tag("rect", x=x(0), y=base + 13, width=max(x(whole) - x(0), 1.0), height=13, class_="hollow"))
        for part, seconds in parts.items():
            wide = max(x(at + seconds) - x(at), 1.0)
            colour = parts_of.index(part) % svg.COLOURS
            drawn.append(tag("rect", x=x(at), y=base + 13, width=wide, height=13, class_=f"slice s{colour}"))
            percent = share(seconds / whole) if whole else ""
            if wide > 6.5 * len(percent) + 4:
                drawn.append(text(x(at) + wide / 2, base + 23, percent, "middle", "inside"))
            at += seconds
    told = "; ".join(
        f"{name} {duration(whole)}: " + ", ".join(f"{p} {duration(s)}" for p, s in parts.items()) for name, parts, whole in rows
    )
    return chart(WIDTH, height, drawn, f"Parts of a call: {told}")
