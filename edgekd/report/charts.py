"""The report's charts, drawn for a phone's width (340 units) and scaled up where there is room."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from markupsafe import Markup

from . import labels, svg
from .formats import Metric, duration, times
from .svg import chart, line, path, tag, text

WIDTH = 340.0
STAGES = ("teacher", "student", "variant", "file", "runtime")


def through_stages(
    scores: Mapping[str, float], metric: Metric, domain: tuple[float, float], floor: float | None, lost_at: str | None
) -> Markup:
    """Draw one artifact's score from stage to stage. floor: the score that the gate allows at least, shaded beyond."""
    width, height, left, right, top, bottom = 300.0, 140.0, 25.0, 275.0, 24.0, 98.0
    y = svg.scale(domain, (bottom, top))
    step = (right - left) / (len(STAGES) - 1)
    at = {stage: left + step * i for i, stage in enumerate(STAGES)}
    parts = []
    if floor is not None and domain[0] <= floor <= domain[1]:
        below = bottom + 22 if metric.higher_is_better else top - 14
        parts.append(tag("rect", x=0, y=min(y(floor), below), width=width, height=abs(below - y(floor)), class_="beyond"))
        parts.append(line(0, y(floor), width, y(floor), "gate"))
    known = [stage for stage in STAGES if stage in scores]
    for before, stage in pairwise(known):
        lost = stage == lost_at
        parts.append(path([(at[before], y(scores[before])), (at[stage], y(scores[stage]))], "lost" if lost else "way"))
    previous = None
    for stage in known:
        value = scores[stage]
        place = y(value)
        parts.append(
            tag(
                "circle",
                cx=at[stage],
                cy=place,
                r=4.5 if stage == lost_at else 3.5,
                class_="lost-dot" if stage == lost_at else "dot",
            )
        )
        if previous is None or value != previous:
            down = previous is not None and y(value) > y(previous)
            parts.append(text(at[stage], place + (18 if down else -9), metric.score(value), "middle", "value"))
        previous = value
    for stage in STAGES:
        parts.append(
            text(
                at[stage],
                134,
                stage,
                "middle",
                "axis lost-text" if stage == lost_at else "axis" if stage in scores else "axis faint",
            )
        )
    told = ", ".join(f"{stage} {metric.score(scores[stage])}" for stage in known)
    return chart(width, height, parts, f"{metric.name} by stage: {told}")


@dataclass(frozen=True)
class Point:
    """One artifact (or the teacher) in a scatter plot. colour: index of the page's series colours, None for neutral."""

    label: str
    x: float
    y: float
    colour: int | None
    shape: str = "dot"  # dot, ring (failed the gate)


def scatter(
    points: Sequence[Point], metric: Metric, x_label: str, write_x: Callable[[float], str], floor: float | None
) -> Markup:
    """Draw score against size or latency, x logarithmic. Labels beside the points, moved apart."""
    height, left, right, top, bottom = 218.0, 52.0, 328.0, 14.0, 172.0
    xs, ys = [p.x for p in points], [p.y for p in points] + ([floor] if floor is not None else [])
    low, high = min(xs) / 1.25, max(xs) * 1.25
    if high / low < 2:
        middle = math.sqrt(low * high)
        low, high = middle / 1.5, middle * 1.5
    pad = 0.12 * (max(ys) - min(ys)) or 0.01 * max(abs(max(ys)), 1e-9)
    y_domain = (min(ys) - pad, max(ys) + pad)
    x, y = svg.scale((low, high), (left, right), log=True), svg.scale(y_domain, (bottom, top))
    parts = []
    if floor is not None:
        beyond = bottom if metric.higher_is_better else top
        parts.append(
            tag("rect", x=left, y=min(y(floor), beyond), width=right - left, height=abs(beyond - y(floor)), class_="beyond")
        )
        parts.append(line(left, y(floor), right, y(floor), "gate"))
    marks = svg.ticks(*y_domain)
    places = 2 if len(marks) > 1 and marks[1] - marks[0] < 0.001 else 1 if len(marks) > 1 and marks[1] - marks[0] < 0.01 else 0
    for value in marks:
        parts.append(line(left, y(value), right, y(value), "grid"))
        parts.append(text(left - 6, y(value) + 4, metric.score(value, places), "end", "axis"))
    for value in svg.log_ticks(low, high):
        parts.append(line(x(value), bottom, x(value), bottom + 4, "tick"))
        parts.append(text(x(value), bottom + 16, write_x(value), "middle", "axis"))
    parts.append(text((left + right) / 2, height - 6, x_label, "middle", "axis"))
    at = [(x(p.x), y(p.y)) for p in points]
    taken = []
    if floor is not None:
        words, middle = "beyond the gate", y(floor) + (8 if metric.higher_is_better else -8)
        wide = labels.width(words)
        boxes = [(begin, middle - 6, begin + wide, middle + 6) for begin in (right - 4 - wide, left + 4)]
        box = min(boxes, key=lambda box: sum(box[0] - 8 < px < box[2] + 8 and box[1] - 6 < py < box[3] + 6 for px, py in at))
        parts.append(text(box[0], middle + 4, words, class_="axis gate-text"))
        taken.append(box)
    placed = labels.place(at, [p.label for p in points], (left, top, right + 8, bottom), taken)
    for point, (px, py), label in zip(points, at, placed, strict=True):
        colour = "s-none" if point.colour is None else f"s{point.colour % svg.COLOURS}"
        parts.append(tag("circle", cx=px, cy=py, r=5, class_=f"{'ring' if point.shape == 'ring' else 'fill'} {colour}"))
        if abs(label.y - py) > 7:
            near = px + (label.x - px) * 0.7
            parts.append(line(near, py + math.copysign(3, label.y - py), label.x, label.y, "lead"))
        parts.append(text(label.x, label.y + 4, point.label, label.anchor, "value"))
    told = ", ".join(f"{p.label}: {metric.score(p.y)} at {write_x(p.x)}" for p in points)
    return chart(WIDTH, height, parts, f"{metric.name} against {x_label}: {told}")


@dataclass(frozen=True)
class Row:
    """The raw samples of one measurement."""

    label: str
    samples: np.ndarray
    median: float
    colour: int


def distribution(rows: Sequence[Row]) -> Markup:
    """Draw how the times of single calls spread, one ridge a row, on one logarithmic axis. Nothing is left out.

    Heights are square roots of shares, so that a single slow call can be seen.
    """
    left, right, band = 8.0, 332.0, 52.0
    height = band * len(rows) + 40
    low = min(float(row.samples.min()) for row in rows) / 1.04
    high = max(float(row.samples.max()) for row in rows) * 1.04
    x = svg.scale((low, high), (left, right), log=True)
    edges = np.geomspace(low, high, 109)
    parts = []
    bottom = band * len(rows) + 6
    for value in svg.log_ticks(low, high, 5):
        parts.append(line(x(value), 4, x(value), bottom, "grid"))
        parts.append(
            text(min(max(x(value), left + 14), right - 14), bottom + 14, duration(value, plain=True), "middle", "axis")
        )
    for i, row in enumerate(rows):
        base = band * (i + 1) - 2
        counts, _ = np.histogram(row.samples, edges)
        tall = np.sqrt(counts / max(counts.max(), 1)) * (band - 22)
        outline = [(x(edges[0]), base)]
        for k, h in enumerate(tall):
            outline += [(x(edges[k]), base - h), (x(edges[k + 1]), base - h)]
        outline.append((x(edges[-1]), base))
        parts.append(path(_without_flat(outline), f"ridge s{row.colour % svg.COLOURS}", close=True))
        parts.append(line(x(row.median), base + 3, x(row.median), base - (band - 20), "median"))
        words = f"{row.label}  {duration(row.median)}"
        near_end = x(row.median) + 8 + 6.2 * len(words) > right
        parts.append(
            text(
                right if near_end else x(row.median) + 6,
                base - (band - 24) - 1,
                words,
                "end" if near_end else "start",
                "value halo",
            )
        )
    parts.append(text((left + right) / 2, height - 6, "one call", "middle", "axis"))
    return chart(
        WIDTH, height, parts, "Times of single calls: " + ", ".join(f"{r.label} median {duration(r.median)}" for r in rows)
    )


def _without_flat(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Drop points in the middle of a horizontal run."""
    kept = list(points[:1])
    for before, here, after in zip(points, points[1:], points[2:], strict=False):
        if not (before[1] == here[1] == after[1]):
            kept.append(here)
    return [*kept, *points[-1:]]


def ratio(value: float, low: float | None, high: float | None, reach: float, kind: str) -> Markup:
    """Draw one ratio and its interval on a logarithmic axis around 1. reach: how far the axis goes to either side."""
    height, left, right, middle = 40.0, 10.0, 330.0, 14.0
    x = svg.scale((1 / reach, reach), (left, right), log=True)
    parts = [line(left, middle, right, middle, "grid"), line(x(1), 4, x(1), 24, "one")]
    if low is not None and high is not None:
        parts.append(
            tag("rect", x=x(low), y=middle - 4, width=max(2.0, x(high) - x(low)), height=8, rx=2, class_=f"interval {kind}")
        )
    parts.append(tag("circle", cx=x(value), cy=middle, r=4, class_=f"estimate {kind}"))
    for at, anchor in ((1 / reach, "start"), (1.0, "middle"), (reach, "end")):
        words = "same" if at == 1 else f"{reach:g}× {'faster' if at > 1 else 'slower'}"
        parts.append(text(x(at), 36, words, anchor, "axis"))
    return chart(WIDTH, height, parts, f"ratio {times(value)}")


def curves(
    lines: Mapping[str, Sequence[float]],
    x_label: str,
    write: Callable[[float], str],
    log: bool = False,
    mark: int | None = None,
    reference: tuple[str, float] | None = None,
    first: int = 1,
) -> Markup:
    """Draw values by epoch, counted from `first`. mark: an epoch to point out; reference: a horizontal line and its name."""
    height, left, right, top, bottom = 190.0, 46.0, 268.0, 14.0, 148.0
    values = [v for series in lines.values() for v in series if math.isfinite(v)] + ([reference[1]] if reference else [])
    log = log and min(values) > 0
    low, high = min(values), max(values)
    if log:
        low, high = low / 1.1, high * 1.1
    else:
        pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        low, high = low - pad, high + pad
    count = max(len(series) for series in lines.values())
    x, y = svg.scale((first, max(first + count - 1, first + 1)), (left, right)), svg.scale((low, high), (bottom, top), log)
    parts = []
    for value in svg.log_ticks(low, high) if log else svg.ticks(low, high):
        parts.append(line(left, y(value), right, y(value), "grid"))
        parts.append(text(left - 6, y(value) + 4, write(value), "end", "axis"))
    last = first + count - 1
    for epoch in sorted({first, *(int(t) for t in svg.ticks(first, last, 4) if t >= first and t == int(t)), last}):
        if epoch in (first, last) or (x(epoch) - x(first) > 16 and x(last) - x(epoch) > 22):
            parts.append(text(x(epoch), bottom + 16, str(epoch), "middle", "axis"))
    parts.append(text((left + right) / 2, height - 6, x_label, "middle", "axis"))
    ends = [y(series[-1]) for series in lines.values()] + ([y(reference[1])] if reference else [])
    places = svg.spread(ends, 14, top + 2, bottom)
    if mark is not None and mark >= first:
        parts.append(line(x(mark), top, x(mark), bottom, "mark"))
        parts.append(text(x(mark), top - 3, f"kept: {mark or 'start'}", "middle" if x(mark) < right - 24 else "end", "axis"))
    if reference:
        parts.append(line(left, y(reference[1]), right, y(reference[1]), "reference"))
        parts.append(text(right + 6, places[-1] + 4, reference[0], class_="axis"))
    for i, (name, series) in enumerate(lines.items()):
        stride = max(1, len(series) // 300)
        shown = [
            (x(first + k), y(v)) for k, v in enumerate(series) if (k % stride == 0 or k == len(series) - 1) and math.isfinite(v)
        ]
        parts.append(path(shown, f"curve s{i % svg.COLOURS}"))
        if len(shown) == 1:
            parts.append(tag("circle", cx=shown[0][0], cy=shown[0][1], r=3.5, class_=f"fill s{i % svg.COLOURS}"))
        parts.append(text(right + 6, places[i] + 4, name, class_=f"value ink{i % svg.COLOURS}"))
    told = ", ".join(f"{name} from {write(series[0])} to {write(series[-1])}" for name, series in lines.items())
    return chart(WIDTH, height, parts, f"By {x_label}: {told}")


def losses(epochs: Sequence[Mapping[str, Any]]) -> Markup:
    """Draw the loss by epoch: each term before its weight and, where there are several, the total."""
    names = list(dict.fromkeys(name for e in epochs for name in e["terms"]))
    lines = {name: [float(e["terms"].get(name, math.nan)) for e in epochs] for name in names}
    if len(names) != 1:
        lines = {"total": [e["loss"] for e in epochs], **lines}
    return curves(lines, "epoch", lambda v: f"{v:.2g}", log=True)
