"""The page of `edgekd bench`: one static HTML file, made from FOLDER/bench.json and the raw samples beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..bench.definitions import DEFINITIONS
from ..run_folder import write_text
from .background import around, machine
from .bench_answer import answers, unmeasured
from .bench_cells import Cell, Told, addresses, cells, names, read, title
from .bench_plots import absent, distributions, fronts, generations, over_times, partings, rooflines
from .formats import DASH, duration, times
from .page import filled, samples_of
from .speed import comparison_cards, row, shows
from .svg import COLOURS
from .words import sentence

MOST_RAW = 150_000
"""Characters of bench.json that are put into the page; longer ones are only linked."""

GENERATION = ("ttft", "token", "prefill", "encoder")
"""Words in the names of the definitions that are about generation."""


def write_bench(folder: Path) -> Path:
    """Write FOLDER/report.html from FOLDER/bench.json and the raw samples beside it; return its path.

    The same record and samples give the same bytes. Whatever is null or missing is said to be, and leaves out no more than its
    own part. Raises BadInput where bench.json is not there or is no record of `edgekd bench`.
    """
    folder = Path(folder)
    record = folder / "bench.json"
    told = read(record)
    page = folder / "report.html"
    raw = record.read_text(encoding="utf-8")
    shown = view(told, samples_of(folder, told["measurements"]))
    write_text(page, filled("bench.html.jinja", {**shown, "raw": raw if len(raw) <= MOST_RAW else None}))
    return page


def view(told: Told, samples: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return all that the template shows. told: from bench_cells.read; samples: file -> (blocks, calls) of seconds."""
    found = cells(told)
    labels = list(dict.fromkeys(m["artifact"] for m in told["measurements"]))
    short = names(labels)
    colours = {label: i % COLOURS for i, label in enumerate(labels)}
    devices = addresses(told)
    timed = {cell.device for cell in found}
    said = [answer for cell in found for answer in answers(cell, short, samples)]
    said += [unmeasured(told, address, title(told, address)) for address in devices if address not in timed]
    shown = {
        "distributions": distributions(found, samples, short, colours),
        "over_time": over_times(found, short, colours),
        "rooflines": rooflines(found, told, short, colours),
        "fronts": fronts(found, told, short, colours),
        "generations": generations(found, short, colours),
        "parts": partings(found, short),
    }
    return {
        **shown,
        "title": _title(labels, short, [title(told, address) for address in devices]),
        "version": told.get("edgekd") or __version__,
        "when": str(told.get("when") or "").replace("T", " ")[:16] or None,
        "command": told.get("command"),
        "answers": said,
        "tables": [_table(told, address, found, short, colours) for address in devices],
        "compared": [
            {"title": c.title, "how": c.words, "cards": comparison_cards(c.comparisons)} for c in found if c.comparisons
        ],
        "across": _across(found, short, colours),
        "missing": absent(told, shown, samples),
        "environments": [_environment(told, address) for address in devices],
        "definitions": DEFINITIONS,
        "generation_meaning": [(k, v) for k, v in DEFINITIONS.items() if any(word in k.lower() for word in GENERATION)],
        "key": [(short[label], colours[label]) for label in labels],
    }


def _title(labels: list[str], short: Mapping[str, str], devices: list[str]) -> str:
    things = ", ".join(short[label] for label in labels) if 0 < len(labels) <= 3 else f"{len(labels)} things"
    return f"{things} on {devices[0]}" if len(devices) == 1 else f"{things} on {len(devices)} devices"


def _table(told: Told, address: str, found: list[Cell], short: Mapping[str, str], colours: Mapping[str, int]) -> dict[str, Any]:
    """Return one device's rows, what was left out there and why, and notes."""
    mine = [cell for cell in found if cell.device == address]
    many = len({m["threads"] for cell in mine for m in cell.measurements}) > 1
    rows = [
        row(
            m,
            short[m["artifact"]],
            colours[m["artifact"]],
            [cell.words, *([f"{m['threads']} threads"] if many and m["threads"] else [])],
        )
        for cell in mine
        for m in cell.measurements
    ]
    skipped = [
        {
            "artifact": short.get(s.get("artifact"), s.get("artifact")) or "everything",
            "scenario": s.get("scenario"),
            "reason": sentence(s.get("reason") or "no reason is recorded"),
        }
        for s in told["skipped"]
        if s.get("device", address) == address
    ]
    notes, energy = [], []
    for cell in mine:
        said = []
        for m in cell.measurements:
            if (m["drift"] or {}).get("said"):
                said.append(f"{short[m['artifact']]}: {sentence(m['drift']['said'])}")
            said += [sentence(note) for note in m["environment"].get("notes") or []]
            if (m["energy"] or {}).get("joules_per_call") is None:
                energy.append(sentence((m["energy"] or {}).get("why") or "not measured"))
        if said:
            notes.append((f"{cell.words}. " if len(mine) > 1 else "") + " ".join(dict.fromkeys(said)))
    energies = [f"Energy: {why[:1].lower() + why[1:]}" for why in dict.fromkeys(energy)]
    return {
        "title": title(told, address),
        "rows": rows,
        "shows": shows(rows),
        "skipped": skipped,
        "notes": list(dict.fromkeys(notes)),
        "energy": energies,
    }


def _across(found: list[Cell], short: Mapping[str, str], colours: Mapping[str, int]) -> dict[str, Any] | None:
    """Return medians of the same thing on several devices, side by side; None where no thing was timed on two.

    Devices are not timed in alternation, so a quotient of their medians has no interval and is no comparison.
    """
    devices = {cell.device: cell.title for cell in found}
    cases: dict[tuple[Any, ...], dict[str, float]] = {}
    for cell in found:
        for m in cell.measurements:
            if m["warm"].get("median_s"):
                cases.setdefault((m["artifact"], cell.words), {})[cell.device] = m["warm"]["median_s"]
    if len(devices) < 2 or not any(len(medians) > 1 for medians in cases.values()):
        return None
    rows = []
    for (label, how), medians in cases.items():
        if len(medians) < 2:
            continue
        first = next(iter(d for d in devices if d in medians))
        row = []
        for device in devices:
            median = medians.get(device)
            against = f"{times(median / medians[first])} unpaired" if median and device != first else None
            row.append((duration(median) if median else DASH, against, devices[device]))
        rows.append({"artifact": short[label], "colour": colours[label], "how": how, "cells": row})
    return {"devices": list(devices.values()), "rows": rows}


def _environment(told: Told, address: str) -> dict[str, Any]:
    """Return what a device is, its packages, and what surrounded each measurement there."""
    host = (told["devices"].get(address) or {}).get("host") or {}
    mine = [m for m in told["measurements"] if m["device"] == address]
    return {
        "title": title(told, address),
        "machine": machine(host) if host else None,
        "packages": sorted((host.get("packages") or {}).items()),
        "timing": [around(m) for m in mine],
    }
