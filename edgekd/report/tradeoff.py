"""Size, latency and score against each other, and the variants in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import charts
from .formats import DASH, Metric, duration, number, size, times
from .gate import score_axis
from .svg import COLOURS
from .words import Manifest, method, numbers, one_way, shipped_bytes, short, targets, unusual


def tradeoff(manifest: Manifest, metric: Metric, colours: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return the two plots for each target that has something to show."""
    found = []
    for target in targets(manifest):
        verdicts = {k: v for k, v in manifest["verdicts"].items() if k.startswith(f"{target}/") and "runtime" in v["scores"]}
        if not verdicts:
            continue
        _, floor = score_axis(verdicts, manifest["gate"]["max_drop"], metric)
        by_size, by_time = [], []
        timed, _ = one_way(target, manifest["measurements"], manifest["comparisons"])
        axis = ", ".join(["median of a warm call", *(said for m in timed[:1] if (said := unusual(m)))])
        for key, v in verdicts.items():
            name, shape = short(key), "ring" if v["status"] == "failed" else "dot"
            score, colour = v["scores"]["runtime"], colours.get(short(key))
            if count := shipped_bytes(manifest, key):
                by_size.append(charts.Point(name, count, score, colour, shape))
            if m := next((m for m in timed if m["artifact"] == key), None):
                by_time.append(charts.Point(name, m["warm"]["median_s"], score, colour, shape))
        teacher = manifest["models"].get("teacher")
        if teacher and manifest["scores"].get("teacher") is not None and by_size:
            by_size.append(charts.Point("teacher", teacher["bytes"], manifest["scores"]["teacher"], None))
        plots = []
        if by_size:
            plots.append(charts.scatter(by_size, metric, "size of the model files", size, floor))
        if by_time:
            plots.append(charts.scatter(by_time, metric, axis, lambda v: duration(v, plain=True), floor))
        if plots:
            found.append({"target": target, "plots": plots, "failed": any(v["status"] == "failed" for v in verdicts.values())})
    return found


def models(manifest: Manifest, metric: Metric) -> list[dict[str, str]]:
    """Return teacher and student, those there are."""
    found = []
    for role in ("teacher", "student"):
        model = manifest["models"].get(role)
        if model:
            found.append(
                {
                    "role": role,
                    "reference": _reference(model["reference"]),
                    "parameters": number(model["parameters"]),
                    "size": size(model["bytes"]),
                    "score": metric.score(manifest["scores"].get(role)),
                }
            )
    return found


def _reference(reference: str) -> str:
    """Leave out most of a long path: py:.../model.py:teacher."""
    kind, colon, rest = reference.partition(":")
    parts = rest.replace("\\", "/").split("/")
    return f"{kind}{colon}…/{parts[-1]}" if len(parts) > 2 else reference


def variants(manifest: Manifest, metric: Metric, colours: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return a row for each variant."""
    teacher = manifest["models"].get("teacher")
    return [
        {
            "name": name,
            "colour": colours[name] % COLOURS,
            "method": method(v),
            "scheme": numbers(manifest, name),
            "size": size(v["size_bytes"]),
            "smaller": times(teacher["bytes"] / v["size_bytes"]) if teacher and v["size_bytes"] else DASH,
            "score": metric.score(v.get("score")),
        }
        for name, v in manifest["variants"].items()
    ]
