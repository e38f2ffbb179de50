"""Time things on a device: what is timed together, what comes of it, raw samples kept."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BadInput
from .compare import compare, control_of
from .measured import calls_of, measured
from .planned import Cell, Known, cannot, cells, input_shapes, know, possible, threads_for
from .schedule import block_costs
from .things import Thing

if TYPE_CHECKING:
    from ..devices import Device
    from ..recipe import Bench

__all__ = [
    "Cell", "Comparison", "Known", "Measurement", "Progress", "Where", "cells", "input_shapes", "job_of", "know", "measure",
    "outcome", "run_cell", "threads_for",
]  # fmt: skip

Measurement = dict[str, Any]
"""One thing in one scenario, as in the manifest (manifest.schema.json: `measurement`)."""

Comparison = dict[str, Any]
"""One candidate against its control, as in the manifest (manifest.schema.json: `comparison`)."""

Progress = Callable[[float, str], None]

INPUTS = ".inputs"
"""Folder beside the samples where a cell's inputs lie while it is timed."""


def measure(
    things: Sequence[Thing],
    settings: Bench,
    folder: Path,
    progress: Progress | None = None,
    seed: int = 0,
    one_control: bool = False,
    device: Device | None = None,
) -> tuple[list[Measurement], list[Comparison]]:
    """Time things side by side on a device (None: this machine); save their raw samples in `folder`.

    Each cell in turn, each thing in a fresh process. Samples are .npy of seconds, shape (blocks, calls): row k of every thing
    was timed in the same round, in the order A B in one launch and B A in the next; with streams rows differ in length and are filled up with NaN.
    progress(share done, what is being done). one_control: compare everything with one thing, else within each target.
    Raises BadInput (two things with one label, a file that is missing, what the device takes not or cannot do, told before anything
    is timed), Missing, and process.WorkerDied (names the thing).
    """
    from ..devices import open_device

    tell = progress or (lambda share, what: None)
    measurements: list[Measurement] = []
    comparisons: list[Comparison] = []
    planned = list(cells(know(things), settings)) if things else []
    with device or open_device("local") as there:
        _check(planned, there, settings, asked=device is not None)
        rates = cache(there.rates)
        for place, cell in enumerate(planned):

            def part(share: float, what: str, place: int = place, cell: Cell = cell) -> None:
                tell((place + share) / len(planned), f"{cell.name}: {what}")

            made, compared = run_cell(cell, there, settings, folder, part, seed, one_control, rates)
            measurements += made
            comparisons += compared
    tell(1.0, "done")
    return measurements, comparisons


def _check(planned: Sequence[Cell], device: Device, settings: Bench, asked: bool) -> None:
    """Raise BadInput for things and scenarios that are not for a device. asked: it was chosen, so it has to take every thing."""
    threads_for(settings, device.describe(), [one.thing for cell in planned for one in cell.known])
    wrong = {}
    for cell in planned:
        for one in cell.known if asked else ():
            if reason := device.takes(one.thing):
                wrong[f"{one.thing.label} on {device.address}: {reason}"] = True
        for label, scenario in possible(cell, device)[1].items():
            wrong[f"{label}: {cannot(device.address, scenario)}"] = True
    if wrong:
        raise BadInput("; ".join(wrong))


def run_cell(
    cell: Cell,
    device: Device,
    settings: Bench,
    folder: Path,
    tell: Progress = lambda share, what: None,
    seed: int = 0,
    one_control: bool = False,
    rates: Callable[[int], dict[str, Any] | None] | None = None,
) -> tuple[list[Measurement], list[Comparison]]:
    """Time one cell on a device that was entered; save its raw samples in `folder`.

    rates: asked for the device's rates, where they are wanted; None: the device itself.
    """
    host = device.describe()
    threads = threads_for(settings, host)
    scratch = (folder / INPUTS).resolve()
    shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
    scratch.mkdir(parents=True)
    try:
        told = device.run(job_of(cell, settings, threads, scratch, seed), tell)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    counts = {one.thing.threads or threads for one in cell.known} if settings.roofline and _counted(cell) else ()
    found = {count: (rates or device.rates)(count) for count in sorted(counts)}
    return outcome(cell, told, Where(device.address, host, threads, found), settings, folder, one_control)


@dataclass(frozen=True)
class Where:
    """A device, as far as a measurement says: address, bench.environment.describe() of it, threads of a thing that asks for no number
    of its own, and the device's rates by number of threads, as far as they are known.
    """

    address: str
    host: Mapping[str, Any]
    threads: int
    rates: Mapping[int, dict[str, Any] | None] = field(default_factory=dict)


def outcome(
    cell: Cell, told: Mapping[str, Any], where: Where, settings: Bench, folder: Path, one_control: bool = False
) -> tuple[list[Measurement], list[Comparison]]:
    """Return what schedule.run's answer for a cell says; save its raw samples in `folder`."""
    things = [known.thing for known in cell.known]
    kept = {thing.label: _samples(one["blocks"]) for thing, one in zip(things, told["timed"], strict=True)}
    names = file_names([thing.label for thing in things])
    folder.mkdir(parents=True, exist_ok=True)
    measurements = []
    for known, one in zip(cell.known, told["timed"], strict=True):
        name = f"{names[known.thing.label]}-{cell.name}"
        np.save(folder / f"{name}.npy", kept[known.thing.label], allow_pickle=False)
        begins = np.array([block["at"] for block in one["blocks"]], dtype=np.float64) / 1e9
        np.savez_compressed(folder / f"{name}-times.npz", **_times(one["blocks"]))  # type: ignore[arg-type]
        described = {"artifact": known.thing.label, "device": where.address, "scenario": cell.scenario, "batch": cell.batch}
        described |= {
            "threads": known.thing.threads or where.threads,
            "streams": cell.streams,
            "samples": f"{name}.npy",
            "times": f"{name}-times.npz",
        }
        surrounding = {**told["around"], "artifact_sha256": known.digest, "artifact_bytes": known.size}
        found = measured(
            one,
            kept[known.thing.label],
            begins - begins[0],
            cell.batch,
            surrounding,
            told,
            settings.prompt_tokens,
            cell.streams,
        )
        found["roofline"] = _roofline(known, cell, found["warm"]["median_s"], where)
        measurements.append({**described, **found})
    if cell.scenario == "sustained":
        return measurements, []
    costs = kept if not cell.streams else {one["label"]: _walls(one) for one in told["timed"]}
    providers = {one["label"]: one["providers"] for one in told["timed"]}
    launches = {one["label"]: [block["launch"] for block in one["blocks"]] for one in told["timed"]}
    facts = {known.thing.label: known.facts for known in cell.known}
    compared = compare(
        things, costs, facts, cell.batch, providers, one_control, where.address, where.host.get("vnni"), launches
    )
    return measurements, [{**one, "scenario": cell.scenario, "streams": cell.streams} for one in compared]


def job_of(cell: Cell, settings: Bench, threads: int, scratch: Path, seed: int = 0) -> dict[str, Any]:
    """Return what schedule.run is to do, with this machine's paths; the things' inputs are written into `scratch`."""
    control = control_of([one.thing for one in cell.known], {one.thing.label: one.facts for one in cell.known})
    things = []
    for place, known in enumerate(cell.known):
        thing, inputs = known.thing, None
        if thing.inputs:
            inputs = str(scratch / f"{place}.npz")
            arrays = {f"{graph}/{name}": value for graph, named in thing.inputs.items() for name, value in named.items()}
            np.savez(inputs, **arrays)  # type: ignore[arg-type]
        things.append(
            {
                "label": thing.label,
                "backend": thing.backend,
                "target": thing.target_file,
                "files": {graph: str(file.resolve()) for graph, file in thing.files.items()},
                "inputs": inputs,
                "interfaces": known.interfaces,
                "scenario": known.scenario,
                "threads": thing.threads and max(1, thing.threads // (cell.streams or 1)),
            }
        )
    return {
        "things": things,
        "scenario": cell.scenario,
        "batch": cell.batch,
        "streams": cell.streams,
        "threads": max(1, threads // (cell.streams or 1)),
        "control": next(place for place, one in enumerate(cell.known) if one.thing is control),
        "seed": seed,
        "minutes": settings.sustained_minutes,
        **{
            name: getattr(settings, name)
            for name in ("min_seconds", "min_count", "max_seconds", "interval", "launches", "prompt_tokens", "new_tokens")
        },
    }


def _counted(cell: Cell) -> bool:
    """Say whether operations and bytes of a cell's calls can be counted: one graph, one stream, ONNX."""
    return cell.scenario == "single-stream" and not cell.streams and any(one.facts for one in cell.known)


def _roofline(known: Known, cell: Cell, median: float, where: Where) -> dict[str, Any] | None:
    """Say how near one thing came to what the device can do."""
    threads = known.thing.threads or where.threads
    rates = where.rates.get(threads)
    if not _counted(cell) or known.facts is None or rates is None:
        return None
    from . import roofline
    from .cost import cost

    ((graph, file),) = known.thing.files.items()
    shapes = input_shapes(known, graph, cell.batch)
    return roofline.roofline(cost(file, shapes), rates, median, threads)


def _samples(blocks: Sequence[dict[str, Any]]) -> np.ndarray:
    """Return the calls of blocks in seconds, (blocks, calls); filled up with NaN where blocks differ in length."""
    longest = max(len(block["nanoseconds"]) for block in blocks)
    made = np.full((len(blocks), longest), np.nan)
    for row, block in zip(made, blocks, strict=True):
        row[: len(block["nanoseconds"])] = np.asarray(block["nanoseconds"], dtype=np.float64) / 1e9
    return made


def _times(blocks: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Return what else is known of blocks, each (blocks,) but for the parts, that every number can be worked out again.

    begin_s (of the first: 0), wall_s, calls (of streams, parts of calls at the edges counted), launch, joules and metered_s where
    there is a meter, and part/NAME: seconds, (blocks, calls) or, of "tokens", (blocks, calls, new tokens - 1).
    """
    begins = np.array([block["at"] for block in blocks], dtype=np.float64) / 1e9
    told = {
        "begin_s": begins - begins[0],
        "wall_s": np.array([block["wall"] for block in blocks]) / 1e9,
        "calls": calls_of(blocks),
        "launch": np.array([block["launch"] for block in blocks]),
    }
    if all(block.get("joules") is not None for block in blocks):
        told |= {name: np.array([block[name] for block in blocks]) for name in ("joules", "metered_s")}
    for name in blocks[0].get("marks") or {}:
        told[f"part/{name}"] = np.array([block["marks"][name] for block in blocks], dtype=np.float64) / 1e9
    return told


def _walls(one: dict[str, Any]) -> np.ndarray:
    """Return what a call cost in each block when all streams are counted together, seconds, (blocks, 1)."""
    return block_costs(one["blocks"], streams=True)[:, None]


def file_names(labels: Sequence[str]) -> dict[str, str]:
    """Return a file name for each label: all differ, also where capitals and small letters are the same (macOS, Windows).

    >>> file_names(["a/int8", "A int8", "b"])
    {'a/int8': 'a__int8', 'A int8': 'A__int8-2', 'b': 'b'}
    """
    names: dict[str, str] = {}
    for label in labels:
        plain = name = re.sub(r"[^A-Za-z0-9._-]+", "__", label).lstrip(".") or "thing"
        number = 1
        while name.casefold() in {other.casefold() for other in names.values()}:
            number += 1
            name = f"{plain}-{number}"
        names[label] = name
    return names
