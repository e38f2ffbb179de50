"""Speed: the measurements, their raw samples, and the comparisons."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import charts
from .formats import digits, duration, number, size
from .svg import COLOURS
from .words import Manifest, gain, sentence, short, stored, weights_alone

Samples = Mapping[str, np.ndarray]


def speed(manifest: Manifest, samples: Samples, colours: Mapping[str, int]) -> dict[str, Any]:
    """Return a row for each measurement, the plot of raw samples, what is absent, and notes on what makes the numbers less sure."""
    many_targets = len({m["artifact"].partition("/")[0] for m in manifest["measurements"]}) > 1
    many_batches = len({m["batch"] for m in manifest["measurements"]}) > 1
    rows, ridges = [], []
    for m in manifest["measurements"]:
        name, warm = m["artifact"] if many_targets else short(m["artifact"]), m["warm"]
        colour = colours.get(short(m["artifact"]), 0) % COLOURS
        above = m.get("peak_memory_above_runtime_bytes")
        rows.append(
            {
                "artifact": name,
                "colour": colour,
                "batch": m["batch"],
                "load": duration(m["load_s"]),
                "first": duration(m["first_call_s"]),
                "median": duration(warm["median_s"]),
                "interval": f"{duration(warm['median_low_s'])} to {duration(warm['median_high_s'])}",
                "tail": [(f"p{p}", duration(warm[f"p{p}_s"])) for p in (90, 95, 99) if f"p{p}_s" in warm],
                "count": number(warm["count"]),
                "throughput": number(m["throughput_per_s"]) if m["throughput_per_s"] >= 10 else digits(m["throughput_per_s"]),
                "memory": size(m["peak_memory_bytes"]),
                "above": size(above) if above is not None else None,
                "cut": m["stopped_by"] == "max_seconds",
            }
        )
        raw = samples.get(m["samples"])
        if raw is not None and raw.size:
            label = f"{name}, batch {m['batch']}" if many_batches else name
            ridges.append(charts.Row(label, raw.ravel(), warm["median_s"], colour))
    absent = sorted({m["samples"] for m in manifest["measurements"]} - set(samples))
    return {"rows": rows, "chart": charts.distribution(ridges) if ridges else None, "absent": absent, "notes": _notes(manifest)}


def _notes(manifest: Manifest) -> list[str]:
    return list(dict.fromkeys(sentence(note) for m in manifest["measurements"] for note in m["environment"].get("notes", [])))


def comparisons(manifest: Manifest) -> list[dict[str, Any]]:
    """Return each comparison's sentence, its reason and its chart."""
    many_batches = len({c["batch"] for c in manifest["comparisons"]}) > 1
    ends = [abs(math.log(v)) for c in manifest["comparisons"] for v in (c["ratio"], c["low"], c["high"]) if v]
    reach = next((r for r in (1.25, 1.5, 2, 3, 4, 6, 10, 20, 50, 100) if not ends or math.log(r) > max(ends)), 1000)
    found = []
    for c in manifest["comparisons"]:
        said = c["verdict"]
        kind = "bad" if "SLOWER" in said else "good" if "faster" in said else "same"
        found.append(
            {
                "say": said,
                "failed": manifest["verdicts"].get(c["candidate"], {}).get("status") == "failed",
                "target": c["target"],
                "batch": c["batch"] if many_batches else None,
                "why": " ".join(why(manifest, c)),
                "kind": kind,
                "chart": charts.ratio(c["ratio"], c["low"], c["high"], reach, kind),
            }
        )
    return found


def why(manifest: Manifest, comparison: Mapping[str, Any]) -> list[str]:
    """Return the sentences that say why a candidate is no faster than its control."""
    name, said = short(comparison["candidate"]), []
    if weights_alone(manifest, name) and "faster than" not in comparison["verdict"]:
        said.append(f"Stored in {stored(manifest, [name])}, computed in float32: {gain(manifest, [comparison])}.")
    if comparison["why"] and not (said and "SLOWER" not in comparison["verdict"]):
        said.append(sentence(comparison["why"]))
    return said
