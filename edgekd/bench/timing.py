"""Time things on a device: what is timed together, what comes of it, raw samples kept."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BadInput
from . import generation
from .compare import compare, control_of
from .measured import measured
from .scenarios import batch_of, random_inputs
from .schedule import block_costs
from .things import GraphFacts, Thing, facts_of, fingerprint, interfaces

if TYPE_CHECKING:
    from ..devices import Device
    from ..recipe import Bench

Measurement = dict[str, Any]
"""One thing in one scenario, as in the manifest (manifest.schema.json: `measurement`)."""

Comparison = dict[str, Any]
"""One candidate against its control, as in the manifest (manifest.schema.json: `comparison`)."""

Progress = Callable[[float, str], None]

MOST_THREADS = 4
"""Threads on each usable core at most."""


@dataclass(frozen=True)
class Known:
    """What is known of a thing before it is timed. scenario: how a call of it is made."""

    thing: Thing
    facts: GraphFacts | None
    interfaces: dict[str, dict[str, list[dict[str, Any]]]]
    digest: str
    size: int
    scenario: str


@dataclass(frozen=True)
class Cell:
    """Things that are timed together, in alternation, in one scenario."""

    scenario: str
    known: tuple[Known, ...]
    batch: int = 1
    streams: int | None = None

    @property
    def name(self) -> str:
        """Names its files, and what a person sees of it."""
        return (
            f"batch{self.batch}"
            + (f"-streams{self.streams}" if self.streams else "")
            + (f"-{self.scenario}" if self.scenario in ("sustained", "generation") else "")
        )


def know(things: Sequence[Thing]) -> list[Known]:
    """Look at the files of things. Raises BadInput (two things with one label, a file that is missing or cannot be read)."""
    labels = [thing.label for thing in things]
    for label in labels:
        if labels.count(label) > 1:
            raise BadInput(f"two things to time are called `{label}`: give them different labels")
    found = []
    for thing in things:
        told, known = interfaces(thing), facts_of(thing)
        if generation.detect(told):
            scenario = "generation"
        else:
            scenario = "chain" if len(thing.files) > 1 else "single-stream"
        found.append(Known(thing, known, told, *fingerprint(thing), scenario))
    return found


def fixed_batch(interfaces: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> int | None:
    """Return the batch that graphs are made for; None where they take any."""
    first = {one["shape"][0] for told in interfaces.values() for one in told["inputs"] if one["shape"]}
    (only,) = first if len(first) == 1 else (None,)
    return only if isinstance(only, int) and only > 0 else None


def cells(known: Sequence[Known], settings: Bench) -> Iterator[Cell]:
    """Yield what is timed together: each way of calling and batch size, then each number of streams, then sustained runs.

    Graphs that are made for one batch size are timed with that alone.
    """
    for scenario in dict.fromkeys(one.scenario for one in known):
        alike = [one for one in known if one.scenario == scenario]
        made_for = {one.thing.label: fixed_batch(one.interfaces) for one in alike}
        for batch in dict.fromkeys([*settings.batch_sizes, *(size for size in made_for.values() if size)]):
            asked = batch in settings.batch_sizes
            here = tuple(
                one for one in alike if made_for[one.thing.label] == batch or (asked and not made_for[one.thing.label])
            )
            if not here:
                continue
            if settings.latency:
                yield Cell(scenario, here, batch)
            if batch == settings.batch_sizes[0] or batch not in settings.batch_sizes:
                for streams in settings.streams:
                    yield Cell(scenario, here, batch, streams)
    if settings.sustained_minutes:
        for batch in dict.fromkeys(fixed_batch(one.interfaces) or settings.batch_sizes[0] for one in known):
            yield Cell(
                "sustained",
                tuple(one for one in known if batch == (fixed_batch(one.interfaces) or settings.batch_sizes[0])),
                batch,
            )


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
    was timed in the same round, in the order A B B A; with streams rows differ in length and are filled up with NaN.
    progress(share done, what is being done). one_control: compare everything with one thing, else within each target.
    Raises BadInput (two things with one label, a file that is missing) and process.WorkerDied (names the thing).
    """
    from ..devices import open_device

    tell = progress or (lambda share, what: None)
    measurements: list[Measurement] = []
    comparisons: list[Comparison] = []
    planned = list(cells(know(things), settings)) if things else []
    with device or open_device("local") as there:
        for place, cell in enumerate(planned):

            def part(share: float, what: str, place: int = place, cell: Cell = cell) -> None:
                tell((place + share) / len(planned), f"{cell.name}: {what}")

            made, compared = run_cell(cell, there, settings, folder, part, seed, one_control)
            measurements += made
            comparisons += compared
    tell(1.0, "done")
    return measurements, comparisons


def run_cell(
    cell: Cell,
    device: Device,
    settings: Bench,
    folder: Path,
    tell: Progress = lambda share, what: None,
    seed: int = 0,
    one_control: bool = False,
) -> tuple[list[Measurement], list[Comparison]]:
    """Time one cell on a device that was entered; save its raw samples in `folder`."""
    host = device.describe()
    threads = threads_for(settings, host)
    with TemporaryDirectory(prefix="edgekd-bench-") as scratch:
        told = device.run(job_of(cell, settings, threads, Path(scratch), seed), tell)
    rates = device.rates(threads) if settings.roofline and _counted(cell) else None
    return outcome(cell, told, Where(device.address, host, threads, rates), settings, folder, one_control)


@dataclass(frozen=True)
class Where:
    """A device, as far as a measurement says: address, bench.environment.describe() of it, threads used, its rates (or None)."""

    address: str
    host: Mapping[str, Any]
    threads: int
    rates: dict[str, Any] | None = None


def outcome(
    cell: Cell, told: Mapping[str, Any], where: Where, settings: Bench, folder: Path, one_control: bool = False
) -> tuple[list[Measurement], list[Comparison]]:
    """Return what schedule.run's answer for a cell says; save its raw samples in `folder`."""
    things = [known.thing for known in cell.known]
    kept = {thing.label: _samples(one["blocks"]) for thing, one in zip(things, told["timed"], strict=True)}
    labels = [thing.label for thing in things]
    folder.mkdir(parents=True, exist_ok=True)
    measurements = []
    for known, one in zip(cell.known, told["timed"], strict=True):
        name = f"{_file_name(known.thing.label, labels)}-{cell.name}"
        np.save(folder / f"{name}.npy", kept[known.thing.label], allow_pickle=False)
        begins = np.array([block["at"] for block in one["blocks"]], dtype=np.float64) / 1e9
        np.save(folder / f"{name}-times.npy", begins - begins[0], allow_pickle=False)
        described = {"artifact": known.thing.label, "device": where.address, "scenario": cell.scenario, "batch": cell.batch}
        described |= {"threads": where.threads, "streams": cell.streams, "samples": f"{name}.npy", "times": f"{name}-times.npy"}
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
        found["roofline"] = _roofline(known, cell, found["warm"]["median_s"], where) if where.rates else None
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


def threads_for(settings: Bench, host: Mapping[str, Any]) -> int:
    """Return how many threads the runtime gets on a device. BadInput for many times the cores: they would wait for each other."""
    cores = host["cores"]
    if settings.threads and settings.threads > MOST_THREADS * cores:
        raise BadInput(
            f"bench.threads: {settings.threads} threads on {cores} usable cores; give at most {MOST_THREADS * cores}, "
            "or leave it out for one a core"
        )
    return int(settings.threads or host.get("physical_cores") or cores)


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
    if not _counted(cell) or known.facts is None or where.rates is None:
        return None
    from . import roofline
    from .cost import cost

    ((graph, file),) = known.thing.files.items()
    golden = known.thing.inputs.get(graph)
    inputs = batch_of(golden, cell.batch) if golden else random_inputs(known.interfaces[graph]["inputs"], cell.batch)
    shapes = {name: list(value.shape) for name, value in inputs.items()}
    return roofline.roofline(cost(file, shapes), where.rates, median, where.threads)


def _samples(blocks: Sequence[dict[str, Any]]) -> np.ndarray:
    """Return the calls of blocks in seconds, (blocks, calls); filled up with NaN where blocks differ in length."""
    longest = max(len(block["nanoseconds"]) for block in blocks)
    made = np.full((len(blocks), longest), np.nan)
    for row, block in zip(made, blocks, strict=True):
        row[: len(block["nanoseconds"])] = np.asarray(block["nanoseconds"], dtype=np.float64) / 1e9
    return made


def _walls(one: dict[str, Any]) -> np.ndarray:
    """Return what a call cost in each block when all streams are counted together, seconds, (blocks, 1)."""
    return block_costs(one["blocks"], streams=True)[:, None]


def _file_name(label: str, labels: Sequence[str]) -> str:
    """Return a file name for a label; two labels that differ only in odd characters get different ones."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "__", label).lstrip(".") or "thing"
    same = [other for other in labels if (re.sub(r"[^A-Za-z0-9._-]+", "__", other).lstrip(".") or "thing") == name]
    return name if len(same) == 1 else f"{name}-{same.index(label) + 1}"
