"""The roofline: how fast each thing could be here at most, by its arithmetic and by the bytes it moves, and how near it came.

Williams, Waterman and Patterson, "Roofline" (CACM 2009).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from . import svg
from .bench_charts import Spot, named
from .formats import DASH, digits, duration, number, prefixed, share, size
from .labels import Box, width
from .svg import line, path, text
from .words import sentence

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 340.0, 236.0, 54.0, 330.0, 14.0, 190.0

Named = tuple[Mapping[str, Any], str, int]
"""A measurement, its name and its colour."""


def roofline(things: Sequence[Named], rates: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return chart, rows and sentences of one device's things; None where nothing is known of any.

    rates: what was measured of the device, else the rates that the measurements were held against are drawn.
    """
    rows, spots, said = [], [], []
    threads = set()
    for m, name, colour in things:
        roof = m.get("roofline")
        if not roof:
            continue
        threads.add(m.get("threads"))
        # the roof counts multiply-accumulates; a graph without any has other operations alone
        work = 2 * roof["macs"] if roof.get("macs") else roof.get("flops")
        median, moved = (m.get("warm") or {}).get("median_s"), roof.get("bytes")
        intensity = work / moved if work and moved else None
        rows.append(
            {
                "artifact": name,
                "colour": colour,
                "work": prefixed(work, "FLOP"),
                "bytes": size(moved),
                "intensity": digits(intensity) if intensity else DASH,
                "attainable": duration(roof.get("attainable_s")),
                "median": duration(median),
                "fraction": share(roof.get("fraction")),
                "bound": roof.get("bound") or DASH,
            }
        )
        if median and work and intensity:
            spots.append(
                Spot(name, f"{name} {share(roof.get('fraction'))}".removesuffix(f" {DASH}"), intensity, work / median, colour)
            )
        if roof.get("said"):
            said.append(f"{name}: {sentence(roof['said'])}")
    if not rows:
        return None
    ceilings, slopes = _roofs([m["roofline"] for m, _, _ in things if m.get("roofline")], rates, threads)
    drawn = _chart(spots, ceilings, slopes) if spots and ceilings and slopes else None
    return {"chart": drawn, "rows": rows, "said": said}


def _roofs(
    roofs: Sequence[Mapping[str, Any]], rates: Mapping[str, Any] | None, threads: set[Any]
) -> tuple[dict[str, float], list[float]]:
    """Return the ceilings by name, operations a second, and the bandwidths, bytes a second.

    The rates measured at the things' numbers of threads; where there are none, those that the measurements were held against.
    """
    slopes = _distinct([r["bandwidth"] for r in roofs if r.get("bandwidth")])
    found: dict[str, float] = {}
    known = _measured(rates)
    measured = [rate for rate in known if len(known) == 1 or rate.get("threads") in threads]
    for rate in measured:
        of = f", {rate.get('threads')} threads" if len(measured) > 1 else ""
        float32 = max(rate.get("float32_flops") or 0.0, rate.get("runtime_float32_flops") or 0.0)
        found |= {f"float32{of}": float32} if float32 else {}
        found |= {f"int8{of}": rate["runtime_int8_ops"]} if rate.get("runtime_int8_ops") else {}
    if not found:
        used = _distinct([r["rate"] for r in roofs if r.get("rate")])
        found = {"matrix rate" if len(used) == 1 else f"matrix rate {i + 1}": rate for i, rate in enumerate(used)}
    if not slopes:
        curves = [rate["bandwidth"] for rate in measured if rate.get("bandwidth")]
        slopes = _distinct([points[-1][1] for points in curves])  # of the largest working set: memory, not a cache
    return found, slopes


def _measured(rates: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """Return a device's rates, one for each number of threads: there is one, or several by their number."""
    if not rates:
        return []
    if "float32_flops" in rates or "bandwidth" in rates:
        return [rates]
    return [rate for rate in rates.values() if isinstance(rate, dict)]


def _distinct(values: Sequence[float], most: int = 3) -> list[float]:
    """Return values that differ by more than a tenth, the smallest first; of more than `most` the ends alone."""
    found: list[float] = []
    for value in sorted(values):
        if not found or value > 1.1 * found[-1]:
            found.append(value)
    return found if len(found) <= most else [found[0], found[-1]]


def _chart(spots: Sequence[Spot], ceilings: Mapping[str, float], slopes: Sequence[float]) -> Markup:
    """Draw operations a second against operations a byte, both logarithmic; ceilings by name, slopes in bytes a second."""
    ridges = [ceiling / slope for ceiling in ceilings.values() for slope in slopes]
    x_domain = min([s.x for s in spots] + ridges) / 3, max([s.x for s in spots] + ridges) * 3
    y_domain = min(s.y for s in spots) / 2, max([s.y for s in spots] + list(ceilings.values())) * 2
    x, y = svg.scale(x_domain, (LEFT, RIGHT), log=True), svg.scale(y_domain, (BOTTOM, TOP), log=True)
    parts: list[Markup] = []
    for value in svg.log_ticks(*y_domain):
        parts.append(line(LEFT, y(value), RIGHT, y(value), "grid"))
        parts.append(text(LEFT - 6, y(value) + 4, prefixed(value, "", plain=True), "end", "axis"))
    for value in svg.log_ticks(*x_domain):
        parts.append(line(x(value), BOTTOM, x(value), BOTTOM + 4, "tick"))
        parts.append(text(x(value), BOTTOM + 16, f"{value:g}" if value < 1e5 else number(value), "middle", "axis"))
    parts.append(text((LEFT + RIGHT) / 2, HEIGHT - 8, "FLOP a byte moved", "middle", "axis"))
    parts.append(text(2, 9, "FLOP/s", class_="axis"))
    taken: list[Box] = []
    highest = max(ceilings.values())
    at = [(x(s.x), y(s.y)) for s in spots]
    for slope in slopes:
        begin, end = max(x_domain[0], y_domain[0] / slope), highest / slope
        if begin < end:
            ends = (x(begin), y(slope * begin)), (x(end), y(highest))
            parts.append(path(ends, "roof"))
            if slope == slopes[0]:
                said = " and ".join(prefixed(s, "B/s") for s in slopes)
                parts.append(_beside(ends, said, at, taken, alone=len(slopes) == 1))
    heights = svg.spread([y(v) - 6 for v in ceilings.values()], 12, TOP - 4, BOTTOM)
    for (name, ceiling), height in zip(ceilings.items(), heights, strict=True):
        begin = max(x_domain[0], min(ceiling / slope for slope in slopes))
        parts.append(path([(x(begin), y(ceiling)), (RIGHT, y(ceiling))], "roof"))
        parts.append(_words(RIGHT, height, f"{name} {prefixed(ceiling, 'FLOP/s')}".strip(), "end", taken))
    parts += named(spots, x, y, (LEFT, TOP, RIGHT + 8, BOTTOM), taken)
    told = ", ".join(f"{s.name} {prefixed(s.y, 'FLOP/s')} at {digits(s.x)} FLOP a byte" for s in spots)
    return svg.chart(WIDTH, HEIGHT, parts, f"Roofline: {told}")


def _beside(
    ends: tuple[tuple[float, float], tuple[float, float]],
    words: str,
    spots: Sequence[tuple[float, float]],
    taken: list[Box],
    alone: bool,
) -> Markup:
    """Write beside a slope: to its left where it is the only one and the axis leaves room, else to its right, off the points."""
    (left, bottom), (right, top) = ends
    middle, wide = max((left + right) / 2, LEFT + width(words) + 9), width(words)
    if alone and middle <= right:
        return _words(middle - 7, bottom + (middle - left) / (right - left) * (top - bottom), words, "end", taken)

    def hit(rise: float) -> int:
        x, y = left + rise * (right - left) + 9, bottom + rise * (top - bottom)
        return sum(x - 6 < px < x + wide + 6 and y - 12 < py < y + 12 for px, py in spots)

    rise = min((0.3, 0.15, 0.45, 0.6), key=hit)
    return _words(left + rise * (right - left) + 9, bottom + rise * (top - bottom), words, "start", taken)


def _words(x: float, y: float, words: str, anchor: str, taken: list[Box]) -> Markup:
    """Write beside a roof, and note the place as taken."""
    wide = width(words)
    begin = max(2.0, x - wide) if anchor == "end" else x
    taken.append((begin, y - 6, begin + wide, y + 6))
    return text(begin + wide if anchor == "end" else begin, y + 3, words, anchor, "axis halo")
