"""Who is timed when, and until when: loading, warm-up, blocks in alternation, the stop rule. numpy and the standard library alone:
this runs on the device, so that no network lies between two blocks.

A job, plain JSON: {"things": [thing], "scenario", "batch", "threads", "streams", "prompt_tokens", "new_tokens", "minutes", "control",
"min_seconds", "min_count", "max_seconds", "interval", "seed"}; a thing: {"label", "backend", "target", "files": {graph: path},
"inputs": path of an .npz with GRAPH/NAME -> array, or null, "interfaces": {graph: {"inputs": [{name, dtype, shape}],
"outputs"}}, "scenario": how it is called}. control: which thing the
others are compared with. `run` says what comes back.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from . import energy, environment, statistics

ROUNDS = 20
"""min_seconds is cut into so many blocks, each of one thing: the interval of a ratio is over the pairs of blocks."""

LONGEST_BLOCK = 0.25
"""Seconds of a block at most: a long measurement gets more blocks, not longer ones."""

FEWEST_ROUNDS = 10
"""Blocks for each thing at least, time allowing, where the machine turns out slower than during warm-up."""

WARM_UP = (0.2, 2.0, 10)
"""Warm-up: this share of min_seconds (or max_seconds, if less), at most so many seconds, and so many calls."""

SETTLED = 0.05
"""Calls longer than these seconds need no settling after another process had the caches."""

IDLE = 1.0
"""Seconds in which nothing runs, to learn what the device uses then; where it has a meter."""

LOOK = 5.0
"""Seconds between two looks at temperature, frequency and load in a sustained run."""

if TYPE_CHECKING:  # Python 3.8 could not evaluate it
    Tell = Callable[[float, str], None]


@dataclass
class Timed:
    """What is known of one thing while it is being timed."""

    label: str
    worker: Any
    seconds: float = 0.0  # spent on it so far, warm-up and settling included
    warm: float = 0.0  # seconds of all counted calls
    calls: int = 1
    count: int = 0
    settle: int = 0
    blocks: list[dict[str, Any]] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)


def run(job: Mapping[str, Any], open_worker: Callable[[str], Any], tell: Tell = lambda share, what: None) -> dict[str, Any]:
    """Time a job's things here; return {"timed": [one for each thing], "around": what surrounded it, "watched": [...]}.

    timed: label, load_s, first_call_s, warm_up, blocks, calls, settle, stopped_by, providers, runtime, peak_memory_bytes,
    peak_memory_above_runtime_bytes. A block: {"nanoseconds": each call's, "wall": of all, "at": when it began, on a clock that all
    blocks share, "marks": {part: durations}, "joules", of streams also "finished": how many calls ended, parts of calls at the edges counted}. watched: of a sustained run, environment.point every LOOK seconds, "at_s" from the run's begin, with its "label".
    open_worker(label): a context manager with send, receive and ask, see worker.py. tell(share done, what is being done).
    """
    watched: list[dict[str, Any]] = []
    meter, no_meter = energy.meter()
    with contextlib.ExitStack() as stack:
        if meter is not None:
            stack.callback(meter.close)
        timed = [Timed(thing["label"], stack.enter_context(open_worker(thing["label"]))) for thing in job["things"]]
        for one, thing in zip(timed, job["things"]):  # noqa: B905 - not in Python 3.8  # all import their runtime at the same time
            one.worker.send(do="start", backend=thing["backend"])
        for one in timed:
            answer = one.worker.receive()
            one.told = {"runtime": answer["runtime"], "bare": answer["bytes"]}
        for place, one in enumerate(timed):
            tell(0.1 * place / len(timed), f"{one.label}: load, first call, warm-up")
            _prepare(one, job["things"][place], job)
        idle = None if meter is None else meter.idle_watts(IDLE)
        before = environment.now()
        if job["scenario"] == "sustained":
            _sustain(timed, job, tell, meter, watched)
        else:
            names = f"timing {len(timed)} in alternation" if len(timed) > 1 else f"timing {timed[0].label}"
            _alternate(timed, job, lambda share: tell(0.1 + 0.9 * share, names), meter)
        after = environment.now()
        for one in timed:
            peak, bare = one.worker.ask(do="memory")["bytes"], one.told.pop("bare")
            one.told["peak_memory_bytes"] = peak
            one.told["peak_memory_above_runtime_bytes"] = None if peak is None or bare is None else max(0, peak - bare)
    return {
        "timed": [
            {"label": one.label, "blocks": one.blocks, "calls": one.calls, "settle": one.settle, **one.told} for one in timed
        ],
        "around": environment.around(before, after, job["threads"] * (job.get("streams") or 1)),
        "energy": {"source": meter.source if meter else None, "idle_watts": idle, "why": no_meter},
        "watched": watched,
    }


def _prepare(one: Timed, thing: Mapping[str, Any], job: Mapping[str, Any]) -> None:
    """Load, give inputs, make the first call, warm up; then choose how many calls make a block."""
    ask, told = one.worker.ask, one.told
    copies = job.get("streams") or 1
    loaded = ask(do="load", files=thing["files"], target=thing.get("target"), threads=job["threads"], copies=copies)
    told.update(load_s=loaded["seconds"], providers=loaded["providers"])
    wanted = {key: job.get(key) for key in ("batch", "seed", "prompt_tokens", "new_tokens")}
    wanted["scenario"] = thing.get("scenario") or job["scenario"]
    ask(do="prepare", inputs=thing.get("inputs"), interfaces=thing.get("interfaces"), **wanted)
    told["first_call_s"] = ask(do="first")["seconds"]
    spend = min(job["min_seconds"], job["max_seconds"])
    seconds = min(WARM_UP[0] * spend, WARM_UP[1])
    warm = np.array(ask(expected=4 * seconds, do="warm-up", seconds=seconds, count=WARM_UP[2])["nanoseconds"]) / 1e9
    told["warm_up"] = {"count": len(warm), "seconds": float(warm.sum())}
    call = float(np.mean(warm[len(warm) // 2 :]))
    one.seconds = told["first_call_s"] + told["warm_up"]["seconds"]
    one.calls = max(1, math.ceil(min(spend / ROUNDS, LONGEST_BLOCK) / max(call, 1e-7)))
    one.settle = 0 if call > SETTLED else max(1, one.calls // 10)
    one.told["call"] = call


def _block(one: Timed, job: Mapping[str, Any], meter: Any) -> None:
    """Time one block and keep it."""
    expected = _expected(one)
    before = meter.joules() if meter else None
    command = {"do": "streams", "count": one.calls} if job.get("streams") else {"do": "time", "count": one.calls}
    answer = one.worker.ask(expected=10 * expected, settle=one.settle, **command)
    answer["joules"] = None if before is None else meter.joules() - before
    one.blocks.append(answer)
    one.count += len(answer["nanoseconds"])
    seconds = answer["wall"] / 1e9
    one.warm += seconds
    one.seconds += seconds * (one.calls + one.settle) / max(one.calls, 1)


def _expected(one: Timed) -> float:
    """Return the seconds that another block will take."""
    if one.blocks:
        return one.warm / len(one.blocks) * (one.calls + one.settle) / one.calls
    return float(one.told["call"]) * (one.calls + one.settle)


def _alternate(timed: Sequence[Timed], job: Mapping[str, Any], tell: Callable[[float], None], meter: Any) -> None:
    """Time blocks in rounds, forwards and backwards in turn (A B, B A, A B, ...), until every thing has enough and the intervals
    are as narrow as wanted.

    A thing that would pass max_seconds with another block ends there; each gets one block whatever it takes.
    """
    running, rounds = list(timed), 0
    while running:
        for one in running if rounds % 2 == 0 else running[::-1]:
            if one.blocks and one.seconds + _expected(one) > job["max_seconds"]:
                one.told["stopped_by"] = "max_seconds"
                continue
            _block(one, job, meter)
        rounds += 1
        running = [one for one in running if "stopped_by" not in one.told]
        shares = [min(one.warm / job["min_seconds"], one.count / job["min_count"], rounds / FEWEST_ROUNDS) for one in running]
        limit = [one.seconds / job["max_seconds"] for one in running]
        tell(min([1.0, *(max(share / (2 if job.get("interval") else 1), spent) for share, spent in zip(shares, limit))]))  # noqa: B905
        if (
            running
            and min(shares) >= 1
            and rounds % 2 == 0
            and (not job.get("interval") or widest(timed, job) <= job["interval"])
        ):
            break
    for one in timed:
        one.told.setdefault("stopped_by", "interval" if job.get("interval") else "min_seconds and min_count")
        one.told.pop("call")


def widest(timed: Sequence[Timed], job: Mapping[str, Any]) -> float:
    """Return the width of the widest interval, relative to its value: of the ratios to the control, or of a lone thing's median."""
    medians = [block_costs(one.blocks, job.get("streams")) for one in timed]
    control = medians[job.get("control") or 0]
    if len(timed) == 1:
        return statistics.relative_width(statistics.block_interval(control[:, None]))
    others = [median for place, median in enumerate(medians) if place != (job.get("control") or 0)]
    pairs = [min(len(control), len(other)) for other in others]
    return max(
        statistics.relative_width(statistics.ratio(control[:n, None], other[:n, None]))
        for n, other in zip(pairs, others)  # noqa: B905
    )


def block_costs(blocks: Sequence[Mapping[str, Any]], streams: Any = None) -> np.ndarray:
    """Return what a call cost in each block, seconds, shape (blocks,): the median call; with streams, wall time / calls."""
    if streams:
        return np.array([block["wall"] / block["finished"] / 1e9 for block in blocks])
    return np.array([np.median(block["nanoseconds"]) / 1e9 for block in blocks])


def _sustain(timed: Sequence[Timed], job: Mapping[str, Any], tell: Tell, meter: Any, watched: list[dict[str, Any]]) -> None:
    """Time one thing after the other without a pause, each for job["minutes"], and look at the machine every LOOK seconds."""
    for place, one in enumerate(timed):
        begin, before = time.perf_counter(), environment.now()
        looked = 0.0
        while (spent := time.perf_counter() - begin) < 60 * job["minutes"] or not one.blocks:
            if spent - looked >= LOOK:
                looked, after = spent, environment.now()
                watched.append({**environment.point(before, after), "label": one.label, "at_s": spent})
                before = after
            tell(
                (place + spent / (60 * job["minutes"])) / len(timed),
                f"{one.label}: {spent / 60:.1f} of {job['minutes']:g} minutes",
            )
            _block(one, job, meter)
        one.told["stopped_by"] = "minutes"
        one.told.pop("call")
