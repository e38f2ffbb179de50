"""Time things on this machine: one process each, blocks of calls in alternation, raw samples kept."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import host
from ..errors import BadInput
from . import environment, statistics
from .compare import compare
from .process import Worker
from .scenarios import SCENARIO
from .things import GraphFacts, Thing, facts, fingerprint

if TYPE_CHECKING:
    from ..recipe import Bench

Measurement = dict[str, Any]
"""One thing at one batch size, as in the manifest (manifest.schema.json: `measurement`)."""

Comparison = dict[str, Any]
"""One candidate against its control, as in the manifest (manifest.schema.json: `comparison`)."""

ROUNDS = 20
"""min_seconds is cut into so many blocks, each of one thing: the interval of a ratio is over the pairs of blocks."""

LONGEST_BLOCK = 0.25
"""Seconds of a block at most: a long measurement gets more blocks, not longer ones."""

FEWEST_ROUNDS = 10
"""Blocks for each thing at least, time allowing, where the machine turns out slower than during warm-up."""

WARM_UP = (0.2, 2.0, 10)
"""Warm-up: this share of min_seconds (or max_seconds, if less), at most so many seconds, and so many calls."""

MOST_THREADS = 4
"""Threads on each usable core at most."""

SETTLED = 0.05
"""Calls longer than these seconds need no settling after another process had the caches."""


@dataclass
class _Timed:
    """What is known of one thing while it is being timed."""

    thing: Thing
    worker: Worker
    seconds: float = 0.0  # spent on it so far, warm-up and settling included
    warm: float = 0.0  # seconds of all counted calls
    calls: int = 1
    settle: int = 0
    blocks: list[np.ndarray] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return len(self.blocks) * self.calls


def measure(
    things: Sequence[Thing],
    settings: Bench,
    folder: Path,
    progress: Callable[[float, str], None] | None = None,
    seed: int = 0,
    one_control: bool = False,
) -> tuple[list[Measurement], list[Comparison]]:
    """Time things side by side on this machine; save their raw samples in `folder`.

    Each batch size in turn, each thing in a fresh process. Samples are .npy of seconds, shape (blocks, calls): row k of
    every thing was timed in the same round, in the order A B B A. progress(share done, what is being done).
    one_control: compare everything with one thing, else within each target.
    Raises BadInput (two things with one label, a file that is missing) and process.WorkerDied (names the thing).
    """
    labels = [thing.label for thing in things]
    for label in labels:
        if labels.count(label) > 1:
            raise BadInput(f"two things to time are called `{label}`: give them different labels")
    tell = progress or (lambda share, what: None)
    threads = _threads(settings)
    found = {thing.label: _facts(thing) for thing in things}
    hashes = {thing.label: fingerprint(thing) for thing in things}
    measurements: list[Measurement] = []
    comparisons: list[Comparison] = []
    for place, batch in enumerate(settings.batch_sizes if things else ()):

        def part(share: float, what: str, place: int = place, batch: int = batch) -> None:
            tell((place + share) / len(settings.batch_sizes), f"batch {batch}: {what}")

        before = environment.now()
        timed = _time_batch(things, settings, batch, threads, found, part, seed)
        around = environment.around(before, environment.now(), threads)
        samples = {one.thing.label: np.stack(one.blocks) for one in timed}
        for one in timed:
            digest, size = hashes[one.thing.label]
            path = folder / f"{_file_name(one.thing.label, labels)}-batch{batch}.npy"
            folder.mkdir(parents=True, exist_ok=True)
            np.save(path, samples[one.thing.label], allow_pickle=False)
            measurements.append(
                {
                    "artifact": one.thing.label,
                    "device": "local",
                    "scenario": SCENARIO,
                    "batch": batch,
                    "threads": threads,
                    "load_s": one.told["load_s"],
                    "first_call_s": one.told["first_call_s"],
                    "warm_up": one.told["warm_up"],
                    "warm": statistics.summary(samples[one.thing.label]),
                    "throughput_per_s": statistics.throughput(samples[one.thing.label], batch),
                    "peak_memory_bytes": one.told["peak_memory_bytes"],
                    "peak_memory_above_runtime_bytes": one.told["peak_memory_above_runtime_bytes"],
                    "samples": path.name,
                    "blocks": {"count": len(one.blocks), "calls": one.calls, "settle": one.settle},
                    "stopped_by": one.told["stopped_by"],
                    "providers": one.told["providers"],
                    "environment": {
                        **around,
                        "runtime": one.told["runtime"],
                        "artifact_sha256": digest,
                        "artifact_bytes": size,
                    },
                }
            )
        comparisons += compare(
            things, samples, found, batch, {one.thing.label: one.told["providers"] for one in timed}, one_control
        )
    tell(1.0, "done")
    return measurements, comparisons


def _threads(settings: Bench) -> int:
    """Return how many threads the runtime gets. BadInput for many times the cores: they would wait for each other for minutes."""
    cores = host.usable_cores()
    if settings.threads and settings.threads > MOST_THREADS * cores:
        raise BadInput(
            f"bench.threads: {settings.threads} threads on {cores} usable cores; give at most {MOST_THREADS * cores}, "
            "or leave it out for one a core"
        )
    return settings.threads or host.physical_cores()


def _facts(thing: Thing) -> GraphFacts | None:
    if not thing.file.is_file():
        raise BadInput(f"{thing.file}: no such file, wanted for {thing.label}")
    return facts(thing.file) if thing.file.suffix == ".onnx" else None


def _time_batch(
    things: Sequence[Thing],
    settings: Bench,
    batch: int,
    threads: int,
    found: dict[str, GraphFacts | None],
    tell: Callable[[float, str], None],
    seed: int,
) -> list[_Timed]:
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix="edgekd-bench-")))
        timed = [_Timed(thing, stack.enter_context(Worker(thing.label))) for thing in things]
        for one in timed:  # all import their runtime at the same time, before anything is timed
            one.worker.send(do="start", backend=one.thing.backend)
        for one in timed:
            answer = one.worker.receive()
            one.told = {"runtime": answer["runtime"], "bare": answer["bytes"]}
        for place, one in enumerate(timed):
            tell(0.1 * place / len(timed), f"{one.thing.label}: load, first call, warm-up")
            _prepare(one, settings, batch, threads, found[one.thing.label], scratch / f"{place}.npz", seed)
        _alternate(timed, settings, lambda share: tell(0.1 + 0.9 * share, f"timing {len(timed)} in alternation"))
        for one in timed:
            peak, bare = one.worker.ask(do="memory")["bytes"], one.told["bare"]
            one.told["peak_memory_bytes"] = peak
            one.told["peak_memory_above_runtime_bytes"] = None if peak is None or bare is None else max(0, peak - bare)
        return timed


def _prepare(
    one: _Timed, settings: Bench, batch: int, threads: int, known: GraphFacts | None, scratch: Path, seed: int
) -> None:
    """Load, give inputs, make the first call, warm up; then choose how many calls make a block."""
    ask, told, thing = one.worker.ask, one.told, one.thing
    loaded = ask(do="load", file=str(thing.file.resolve()), target=thing.target_file, threads=threads)
    told |= {"load_s": loaded["seconds"], "providers": loaded["providers"]}
    if thing.inputs is not None:
        np.savez(scratch, **dict(thing.inputs))  # type: ignore[arg-type]
        ask(do="inputs", file=str(scratch), batch=batch)
    elif known is not None:
        ask(do="inputs", declared=list(known.inputs), batch=batch, seed=seed)
    else:
        raise BadInput(f"{thing.label}: what it takes as input is known neither from golden.npz nor from its file")
    told["first_call_s"] = ask(do="first")["seconds"]
    wanted = min(settings.min_seconds, settings.max_seconds)
    seconds = min(WARM_UP[0] * wanted, WARM_UP[1])
    warm = np.array(ask(expected=4 * seconds, do="warm-up", seconds=seconds, count=WARM_UP[2])["nanoseconds"]) / 1e9
    told["warm_up"] = {"count": len(warm), "seconds": float(warm.sum())}
    call = float(np.mean(warm[len(warm) // 2 :]))
    one.seconds = told["first_call_s"] + told["warm_up"]["seconds"]
    one.calls = max(1, math.ceil(min(wanted / ROUNDS, LONGEST_BLOCK) / max(call, 1e-7)))
    one.settle = 0 if call > SETTLED else max(1, one.calls // 10)


def _alternate(timed: list[_Timed], settings: Bench, tell: Callable[[float], None]) -> None:
    """Time blocks in rounds, forwards and backwards in turn (A B, B A, A B, ...), until every thing has enough.

    A thing that would pass max_seconds with another block ends there; each gets one block whatever it takes.
    """
    running, rounds = list(timed), 0
    while running:
        for one in running if rounds % 2 == 0 else running[::-1]:
            expected = (one.warm / max(one.count, 1) or one.seconds / max(one.told["warm_up"]["count"], 1)) * (
                one.calls + one.settle
            )
            if one.blocks and one.seconds + expected > settings.max_seconds:
                one.told["stopped_by"] = "max_seconds"
                continue
            answer = one.worker.ask(expected=10 * expected, do="time", settle=one.settle, count=one.calls)
            block = np.array(answer["nanoseconds"], dtype=np.float64) / 1e9
            one.blocks.append(block)
            one.warm += float(block.sum())
            one.seconds += float(block.mean()) * (one.calls + one.settle)
        rounds += 1
        running = [one for one in running if "stopped_by" not in one.told]
        shares = [min(o.warm / settings.min_seconds, o.count / settings.min_count, rounds / FEWEST_ROUNDS) for o in running]
        tell(min([1.0, *shares]))
        if running and min(shares) >= 1 and rounds % 2 == 0:
            break
    for one in timed:
        one.told.setdefault("stopped_by", "min_seconds and min_count")


def _file_name(label: str, labels: Sequence[str]) -> str:
    """Return a file name for a label; two labels that differ only in odd characters get different ones."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "__", label).lstrip(".") or "thing"
    same = [other for other in labels if (re.sub(r"[^A-Za-z0-9._-]+", "__", other).lstrip(".") or "thing") == name]
    return name if len(same) == 1 else f"{name}-{same.index(label) + 1}"
