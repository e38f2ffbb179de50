"""What the charts of a bench show, device by device: chosen from the measurements, drawn by charts.py, bench_charts.py and roofline.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import charts, generation
from .bench_cells import Cell, Told
from .bench_charts import Course, Spot, brief, front, over_time, over_time_beside, stacked, unbeaten
from .formats import Metric, clock, duration, number, share, throughput
from .roofline import roofline
from .svg import COLOURS
from .words import sentence

Names = Mapping[str, str]
Colours = Mapping[str, int]
Samples = Mapping[str, np.ndarray]


def distributions(cells: Sequence[Cell], samples: Samples, names: Names, colours: Colours) -> list[dict[str, Any]]:
    """Return for each cell the spread of its calls, and how many lie far out; cells without samples are left out."""
    found = []
    for cell in cells:
        ridges, remarks = [], []
        for m in cell.measurements:
            name, raw = names[m["artifact"]], samples.get(m["samples"] or "")
            out = m["outliers"] or {}
            if raw is not None:
                median = m["warm"].get("median_s") or float(np.nanmedian(raw))
                ridges.append(charts.Row(brief(name, 36), raw[np.isfinite(raw)], median, colours[m["artifact"]]))
            if out.get("count") is not None:
                count = f"{number(out['count'])} outlier{'' if out['count'] == 1 else 's'}"
                part = f" ({share(out['share'])})" if out.get("share") is not None and out["count"] else ""
                slow = f", the slowest {duration(out['slowest_s'])}" if out.get("slowest_s") and out["count"] else ""
                remarks.append(f"{name}: {count}{part}{slow}")
        if ridges:
            found.append({"title": cell.title, "how": cell.words, "chart": charts.distribution(ridges), "outliers": remarks})
    return found


def over_times(cells: Sequence[Cell], names: Names, colours: Colours) -> list[dict[str, Any]]:
    """Return for each cell with sustained runs their throughput over time, and what was recorded beside it."""
    found = []
    for cell in cells:
        courses, said, beside = [], [], []
        for m in cell.measurements:
            lasting, name = m["sustained"] or {}, names[m["artifact"]]
            series = _series(lasting.get("series"))
            if series:
                courses.append(Course(name, series, colours[m["artifact"]], lasting.get("fell_at_s")))
            if lasting:
                said.append(f"{name}: {_sustained(lasting)}")
            for key, what, write in BESIDE:
                seen = _series(lasting.get(key))
                if len(seen) > 1 and series:
                    beside.append({"what": f"{what}, {name}", "chart": over_time_beside(seen, series[-1][0], write)})
        if courses or said:
            drawn = over_time(courses) if courses else None
            lines = [(c.name, c.colour) for c in courses]
            found.append({"title": cell.title, "how": cell.words, "chart": drawn, "said": said, "beside": beside, "key": lines})
    return found


BESIDE = (
    ("temperature_c", "Temperature", lambda v: f"{v:.0f}\u202f°C"),
    ("frequency_mhz", "Clock rate", lambda v: f"{v:,.0f}\u202fMHz"),
)


def _series(told: Any) -> list[tuple[float, float]]:
    return [(float(p[0]), float(p[1])) for p in told or [] if p and p[0] is not None and p[1] is not None]


def _sustained(lasting: Told) -> str:
    """Say how a sustained run went: in its own words, else in numbers."""
    if lasting.get("said"):
        return sentence(lasting["said"])
    first, last = lasting.get("first_per_s"), lasting.get("last_per_s")
    if first is None or last is None:
        return "How its throughput went is not recorded."
    fell = f"; it falls at {clock(lasting['fell_at_s'])}" if lasting.get("fell_at_s") is not None else ""
    return f"From {throughput(first)} to {throughput(last)} a second{fell}."


def rooflines(cells: Sequence[Cell], told: Told, names: Names, colours: Colours) -> list[dict[str, Any]]:
    """Return for each device its roofline, where the work of anything is known."""
    found = []
    for device in dict.fromkeys(cell.device for cell in cells):
        mine = [cell for cell in cells if cell.device == device]
        known = [(m, cell) for cell in mine for m in cell.measurements if m["roofline"]]
        again = Counter(m["artifact"] for m, _ in known)
        things = [
            (m, names[m["artifact"]] + (f", {cell.words}" if again[m["artifact"]] > 1 else ""), colours[m["artifact"]])
            for m, cell in known
        ]
        drawn = roofline(things, (told["devices"].get(device) or {}).get("rates"))
        if drawn:
            found.append({"title": mine[0].title, **drawn})
    return found


def fronts(cells: Sequence[Cell], told: Told, names: Names, colours: Colours) -> list[dict[str, Any]]:
    """Return for each cell with two things or more their latency against their size."""
    found = []
    for cell in cells:
        if cell.scenario == "sustained":
            continue
        spots, scored = [], None
        for m in cell.measurements:
            size, median = m["environment"].get("artifact_bytes"), m["warm"].get("median_s")
            if not size or not median:
                continue
            name, (score, metric) = names[m["artifact"]], _score(m, told)
            scored = scored or metric
            spots.append(Spot(name, f"{name}  {score}" if score else name, size, median, colours[m["artifact"]]))
        if len({spot.name for spot in spots}) > 1:
            best = [spot.name for spot in unbeaten(spots)]
            found.append({"title": cell.title, "how": cell.words, "chart": front(spots), "best": best, "metric": scored})
    return found


def _score(m: Told, told: Told) -> tuple[str | None, str | None]:
    """Return a thing's score as text and its metric's name; None where it has none."""
    given = m["score"] if m["score"] is not None else told["scores"].get(m["artifact"])
    if given is None:
        return None, None
    value, metric = (given.get("value"), given.get("metric")) if isinstance(given, dict) else (given, m.get("metric"))
    if value is None:
        return None, None
    described = Metric(metric if isinstance(metric, dict) else {"name": metric or "score", "higher_is_better": True})
    return described.score(value), described.name


def generations(cells: Sequence[Cell], names: Names, colours: Colours) -> list[dict[str, Any]]:
    """Return for each cell that generates its rows: first token, each token, rates."""
    found = []
    for cell in cells:
        made = [generation.row(m, names[m["artifact"]], colours[m["artifact"]]) for m in cell.measurements]
        rows = [row for row in made if row]
        if rows:
            found.append({"title": cell.title, "how": cell.words, "rows": rows})
    return found


def partings(cells: Sequence[Cell], names: Names) -> list[dict[str, Any]]:
    """Return for each cell with split models a bar for each, and which colour is which part."""
    found = []
    for cell in cells:
        bars, rows, known = [], [], []
        for m in cell.measurements:
            medians = {part: s["median_s"] for part, s in (m["parts"] or {}).items() if s and s.get("median_s")}
            if not medians:
                continue
            known += [part for part in medians if part not in known]
            whole = m["warm"].get("median_s") or sum(medians.values())
            bars.append((names[m["artifact"]], medians, whole))
            rows.append(
                {
                    "artifact": names[m["artifact"]],
                    "parts": [(part, *generation.median(m["parts"][part])) for part in medians],
                    "whole": generation.median(m["warm"]),
                }
            )
        if bars:
            key = [(part, i % COLOURS) for i, part in enumerate(known)]
            found.append({"title": cell.title, "how": cell.words, "chart": stacked(bars, known), "key": key, "rows": rows})
    return found


def absent(told: Told, shown: Mapping[str, Any], samples: Samples) -> list[str]:
    """Say what the page has no section for, and why."""
    found = []
    lost = sorted({m["samples"] for m in told["measurements"] if m["samples"]} - set(samples))
    unnamed = [m["artifact"] for m in told["measurements"] if not m["samples"]]
    if lost:
        found.append(
            f"The raw samples {', '.join(lost)} are not beside bench.json, or are damaged: their distribution is missing."
        )
    if unnamed:
        found.append(f"No raw samples were kept of {', '.join(dict.fromkeys(unnamed))}.")
    if not told["measurements"]:
        return ["Nothing was timed."]
    for key, what in WITHOUT.items():
        if not shown[key]:
            found.append(what)
    return found


WITHOUT = {
    "over_time": "Throughput over time: nothing was timed in the scenario sustained.",
    "rooflines": "Roofline: the operations and bytes of no file here are known.",
    "fronts": "Size against latency: it takes two things of known size, timed side by side.",
    "generations": "Time to first token and tokens a second: nothing here generates tokens.",
    "parts": "Parts of a call: nothing here is split into several graphs.",
}
"""Section -> what to say where it is empty."""
