"""Speed: the measurements, their raw samples, and the comparisons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import charts, generation
from .formats import duration, number, prefixed, share, size, throughput
from .roofline import roofline
from .svg import COLOURS
from .words import Manifest, gain, how, kind_of, sentence, short, stored, unusual, weights_alone, where

Samples = Mapping[str, np.ndarray]


def speed(manifest: Manifest, samples: Samples, colours: Mapping[str, int]) -> dict[str, Any]:
    """Return a row for each measurement, the plot of raw samples, what is absent, and notes on what makes the numbers less sure."""
    measurements = manifest["measurements"]
    many_targets = len({m["artifact"].partition("/")[0] for m in measurements}) > 1
    many_batches = len({m["batch"] for m in measurements}) > 1
    many_devices = len({m["device"] for m in measurements}) > 1
    many_ways = _many_ways(measurements)
    rows, ridges, roofs, generated = [], [], [], []
    for m in measurements:
        name = m["artifact"] if many_targets else short(m["artifact"])
        colour = colours.get(short(m["artifact"]), 0) % COLOURS
        ways = [how(m, batch=False)] if many_ways else []
        rows.append(row(m, name, colour, [*([m["device"]] if many_devices else []), *ways]))
        label = f"{name}, batch {m['batch']}" if many_batches else name
        label = ", ".join([label, *ways, *([m["device"]] if many_devices else [])])
        roofs.append((m, label, colour))
        generated.append(generation.row(m, label, colour))
        raw = samples.get(m["samples"])
        if raw is not None and raw.size:
            ridges.append(charts.Row(label, raw[np.isfinite(raw)], m["warm"]["median_s"], colour))
    absent = sorted({m["samples"] for m in measurements} - set(samples))
    devices = list(dict.fromkeys(m["device"] for m in measurements))
    drawn = [(device, roofline([r for r in roofs if r[0]["device"] == device], None)) for device in devices]
    return {
        "rows": rows,
        "shows": shows(rows),
        "chart": charts.distribution(ridges) if ridges else None,
        "rooflines": [{"title": device if many_devices else None, **found} for device, found in drawn if found],
        "generated": [found for found in generated if found],
        "absent": absent,
        "notes": _notes(manifest),
        "how": _how(measurements),
    }


def _many_ways(told: Sequence[Mapping[str, Any]]) -> bool:
    return len({how(one, batch=False) for one in told}) > 1


def _how(measurements: Sequence[Mapping[str, Any]]) -> str:
    """Say where all was timed, and what alternated: sustained runs do not."""
    devices = dict.fromkeys(m["device"] for m in measurements)
    lasting = [unusual(m) == "sustained" for m in measurements]
    order = "one after the other" if all(lasting) else "in alternating blocks"
    order += ", sustained runs one after the other" if any(lasting) and not all(lasting) else ""
    return f"{' and '.join(map(where, devices))} {order}"


def row(m: Mapping[str, Any], name: str, colour: int, where: Sequence[str] = ()) -> dict[str, Any]:
    """Return one measurement as a row of a table. where: what else tells it from others, below its name."""
    warm, above, rate = m.get("warm") or {}, m.get("peak_memory_above_runtime_bytes"), m.get("throughput_per_s")
    energy, roof, out = (m.get(key) or {} for key in ("energy", "roofline", "outliers"))
    low, high = warm.get("median_low_s"), warm.get("median_high_s")
    return {
        "artifact": name,
        "colour": colour,
        "where": list(where),
        "batch": m["batch"],
        "load": duration(m.get("load_s")),
        "first": duration(m.get("first_call_s")),
        "median": duration(warm.get("median_s")),
        "interval": f"{duration(low)} to {duration(high)}" if low is not None and high is not None else None,
        "tail": [(f"p{p}", duration(warm[f"p{p}_s"])) for p in (90, 95, 99) if warm.get(f"p{p}_s")],
        "count": number(warm.get("count")),
        "outliers": f"{number(out['count'])} outlier{'' if out['count'] == 1 else 's'}" if out.get("count") else None,
        "throughput": throughput(rate),
        "memory": size(m.get("peak_memory_bytes")),
        "above": size(above) if above is not None else None,
        "energy": prefixed(energy["joules_per_call"], "J") if energy.get("joules_per_call") is not None else None,
        "watts": prefixed(energy["watts"], "W") if energy.get("watts") is not None else None,
        "fraction": share(roof["fraction"]) if roof.get("fraction") is not None else None,
        "bound": roof.get("bound"),
        "cut": m.get("stopped_by") == "max_seconds",
    }


def shows(rows: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """Say which of the columns that not every measurement has are worth showing."""
    return {column: any(r[column] for r in rows) for column in ("energy", "fraction")}


def _notes(manifest: Manifest) -> list[str]:
    """Return what makes the numbers less sure: what surrounded them, and what drifted while they were taken."""
    found, many_ways = [], _many_ways(manifest["measurements"])
    for m in manifest["measurements"]:
        found += [sentence(note) for note in m["environment"].get("notes", [])]
        if (m.get("drift") or {}).get("said"):
            of = f", {how(m, batch=False)}" if many_ways else ""
            found.append(f"{short(m['artifact'])}{of}: {sentence(m['drift']['said'])}")
    return list(dict.fromkeys(found))


def comparisons(manifest: Manifest) -> list[dict[str, Any]]:
    """Return each comparison's sentence, its reason and its chart."""
    told = manifest["comparisons"]
    many_batches = len({c["batch"] for c in told}) > 1
    many_devices = len({c.get("device", "local") for c in told}) > 1
    many_ways = _many_ways(told)
    cards = comparison_cards(told)
    for card, c in zip(cards, told, strict=True):
        card["failed"] = manifest["verdicts"].get(c["candidate"], {}).get("status") == "failed"
        card["batch"] = c["batch"] if many_batches else None
        card["device"] = c.get("device", "local") if many_devices else None
        card["how"] = how(c, batch=False) if many_ways else None
        card["why"] = " ".join(why(manifest, c))
    return cards


def comparison_cards(told: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what a card shows for each comparison; their charts have one axis."""
    ends = [abs(math.log(v)) for c in told for v in (c["ratio"], c["low"], c["high"]) if v]
    reach = next((r for r in (1.25, 1.5, 2, 3, 4, 6, 10, 20, 50, 100) if not ends or math.log(r) > max(ends)), 1000)
    cards = []
    for c in told:
        kind = kind_of(c)
        cards.append(
            {
                "say": c["verdict"] or f"{short(c['candidate'])} against {short(c['control'])}: no verdict",
                "failed": False,
                "batch": None,
                "device": None,
                "how": None,
                "why": sentence(c["why"]) if c["why"] else "",
                "kind": kind,
                "chart": charts.ratio(c["ratio"], c["low"], c["high"], reach, kind) if c["ratio"] else "",
            }
        )
    return cards


def why(manifest: Manifest, comparison: Mapping[str, Any]) -> list[str]:
    """Return the sentences that say why a candidate is no faster than its control."""
    name, said = short(comparison["candidate"]), []
    if weights_alone(manifest, name) and kind_of(comparison) in ("same", "bad"):
        said.append(f"Stored in {stored(manifest, [name])}, computed in float32: {gain(manifest, [comparison])}.")
    if comparison["why"] and not (said and "SLOWER" not in comparison["verdict"]):
        said.append(sentence(comparison["why"]))
    return said
