"""What raw blocks say: one thing's measurement, every number of which can be worked out again from the samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import generation, statistics, sustained
from .drift import drift


def measured(
    one: Mapping[str, Any],
    samples: np.ndarray,
    begins: np.ndarray,
    batch: int,
    surrounding: Mapping[str, Any],
    told: Mapping[str, Any],
    prompt_tokens: int,
    streams: int | None = None,
) -> dict[str, Any]:
    """Return the numbers of a measurement (manifest.schema.json) from what schedule.run told of a thing.

    samples: seconds, (blocks, calls). begins: seconds at which each block began. surrounding: of its
    environment. Of several streams throughput counts them together, by the clock on the wall.
    """
    blocks: Sequence[Mapping[str, Any]] = one["blocks"]
    walls = np.array([block["wall"] / 1e9 for block in blocks])
    counts = calls_of(blocks)
    marks = _marks(blocks)
    launches = [block["launch"] for block in blocks]
    lasting = one["stopped_by"] == "minutes"
    watched = [look for look in told["watched"] if look["label"] == one["label"]]
    made: dict[str, Any] = {
        "load_s": one["load_s"],
        "first_call_s": one["first_call_s"],
        "warm_up": one["warm_up"],
        "warm": statistics.summary(samples, launches),
        "throughput_per_s": float(counts.sum() * batch / walls.sum() if streams else samples.size * batch / samples.sum()),
        "peak_memory_bytes": one["peak_memory_bytes"],
        "peak_memory_above_runtime_bytes": one["peak_memory_above_runtime_bytes"],
        "blocks": {
            "count": len(blocks),
            "calls": one["calls"],
            "settle": one["settle"],
            "launches": [launches.count(number) for number in dict.fromkeys(launches)],
        },
        "stopped_by": one["stopped_by"],
        "providers": one["providers"],
        "parts": None,
        "generation": None,
        "drift": None if lasting else drift(samples, begins),
        "outliers": statistics.outliers(samples),
        "sustained": _sustained(begins, counts * batch / walls, watched) if lasting else None,
        "energy": _energy(one, told["energy"]),
        "environment": {**surrounding, "runtime": one["runtime"]},
    }
    if "tokens" in marks:
        made["generation"] = generation.summarise(marks, prompt_tokens, batch, launches)
    elif marks:
        made["parts"] = {part: statistics.summary(values, launches) for part, values in marks.items()}
    return made


def calls_of(blocks: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return how many calls each block holds, (blocks,): of streams, one across an edge counts by its part inside; in a browser a
    sample may be the mean of several.
    """
    counted = (block.get("finished", block.get("calls", len(block["nanoseconds"]))) for block in blocks)
    return np.array(list(counted), dtype=np.float64)


def _sustained(begins: np.ndarray, per_s: np.ndarray, watched: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Analyse a sustained run; what was watched beside it stands in `temperature_c` and `frequency_mhz`, [[seconds, value], ...]."""
    told = sustained.analyse(begins, per_s, watched)
    for name in ("temperature_c", "frequency_mhz"):
        told[name] = [[look["at_s"], look[name]] for look in watched if look.get(name) is not None] or None
    return told


def _marks(blocks: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Return part -> durations in seconds, (blocks, calls) or (blocks, calls, k)."""
    names = blocks[0].get("marks") or {}
    return {name: np.array([block["marks"][name] for block in blocks], dtype=np.float64) / 1e9 for name in names}


def _energy(one: Mapping[str, Any], meter: Mapping[str, Any]) -> dict[str, Any]:
    """Return joules a call and watts over all blocks, or why there are none. The calls that settle a block are metered too."""
    blocks = one["blocks"]
    known = [block["joules"] for block in blocks]
    if any(joules is None for joules in known):
        return {"joules_per_call": None, "watts": None, **meter}
    calls = calls_of(blocks).sum() * (one["calls"] + one["settle"]) / one["calls"]
    seconds = sum(block["metered_s"] for block in blocks)
    return {"joules_per_call": sum(known) / calls, "watts": sum(known) / seconds, **meter}
