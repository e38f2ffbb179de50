"""What bench.json holds, put in order: the devices, and on each what was timed side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInput
from .words import how, short

Told = Mapping[str, Any]

KEYS = (
    "threads", "streams", "load_s", "first_call_s", "warm_up", "throughput_per_s", "peak_memory_bytes",
    "peak_memory_above_runtime_bytes", "samples", "blocks", "stopped_by", "providers", "parts", "generation", "drift", "outliers",
    "sustained", "energy", "roofline", "score",
)  # fmt: skip
"""Of a measurement: what may be absent, and is None then."""


@dataclass(frozen=True)
class Cell:
    """Things timed side by side: one device, one scenario, one batch size. Only within a cell is anything compared.

    streams: how many calls ran at once, None outside that scenario.
    """

    device: str
    title: str
    scenario: str
    batch: int
    streams: int | None
    measurements: Sequence[Told]
    comparisons: Sequence[Told]

    @property
    def words(self) -> str:
        """Say how it was timed: single-stream, batch 1."""
        return how({"scenario": self.scenario, "batch": self.batch, "streams": self.streams})


def read(path: Path) -> dict[str, Any]:
    """Read bench.json; every measurement gets the keys that the page asks for, None where nothing is known.

    Raises BadInput where the file is missing, is not JSON, or holds no list of measurements.
    """
    try:
        told = _finite(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; `edgekd bench THING...` writes it") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read ({error}); run `edgekd bench` again") from None
    if not isinstance(told, dict) or not isinstance(told.get("measurements") or [], list):
        raise BadInput(f"{path}: not what `edgekd bench` writes: it has no list of measurements")
    skipped = told.get("skipped") or []
    return {
        **told,
        "devices": told.get("devices") or {},
        "measurements": [_measurement(m) for m in told.get("measurements") or []],
        "comparisons": [_comparison(c) for c in told.get("comparisons") or []],
        "skipped": skipped if isinstance(skipped, list) else [{"reason": str(skipped)}],
        "scores": told.get("scores") or {},
    }


def cells(told: Told) -> list[Cell]:
    """Return the cells in the order of their first measurement, a device's together."""
    found: dict[tuple[Any, ...], tuple[list[Told], list[Told]]] = {}
    for m in told["measurements"]:
        found.setdefault((m["device"], m["scenario"], m["batch"], m["streams"]), ([], []))[0].append(m)
    for c in told["comparisons"]:
        side = (c["device"], c["scenario"], c["batch"], c["streams"])
        if side in found:
            found[side][1].append(c)
    order = list(dict.fromkeys(key[0] for key in found))
    keys = sorted(found, key=lambda key: order.index(key[0]))
    return [Cell(key[0], title(told, key[0]), key[1], key[2], key[3], *found[key]) for key in keys]


def addresses(told: Told) -> list[str]:
    """Return every device's address: those described, those measured on, those left out."""
    named = [*told["devices"], *(m["device"] for m in told["measurements"])]
    return list(dict.fromkeys([*named, *(s["device"] for s in told["skipped"] if s.get("device"))]))


def title(told: Told, address: str) -> str:
    """Return what a device is called, with its address where that says more."""
    named = (told["devices"].get(address) or {}).get("title")
    known = "this machine" if address == "local" else address
    return known if not named else named if address in (named, "local") else f"{named} ({address})"


def names(labels: Sequence[str]) -> dict[str, str]:
    """Return a short name for each label: without its target where the rest tells them apart."""
    labels = list(dict.fromkeys(labels))
    brief = [short(label) for label in labels]
    return dict(zip(labels, brief if len(set(brief)) == len(labels) and all(brief) else labels, strict=True))


def _measurement(m: Any) -> dict[str, Any]:
    m = m if isinstance(m, dict) else {}
    first = {"artifact": "unnamed", "device": "local", "scenario": "single-stream", "batch": 1, "warm": {}, "environment": {}}
    return {**dict.fromkeys(KEYS), **m, **{key: m.get(key) or value for key, value in first.items()}}


def _comparison(c: Any) -> dict[str, Any]:
    c = c if isinstance(c, dict) else {}
    first = {"control": "unnamed", "candidate": "unnamed", "device": "local", "scenario": "single-stream", "batch": 1}
    asked = ("ratio", "low", "high", "verdict", "why", "streams", "target")
    return {**dict.fromkeys(asked), **c, **{key: c.get(key) or value for key, value in first.items()}}


def _finite(value: Any) -> Any:
    """Put None for every number that is none."""
    if isinstance(value, dict):
        return {key: _finite(inside) for key, inside in value.items()}
    if isinstance(value, list):
        return [_finite(inside) for inside in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
