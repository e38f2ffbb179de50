"""Who is timed when, and until when: loading, warm-up, blocks in alternation, the stop rule. numpy and the standard library alone:
this runs on the device, so that no network lies between two blocks.

A job, plain JSON: {"things": [thing], "scenario", "batch", "threads", "streams", "prompt_tokens", "new_tokens", "minutes", "control",
"min_seconds", "min_count", "max_seconds", "interval", "launches", "seed"}; a thing: {"label", "backend", "target", "files": {graph: path},
"inputs": path of an .npz with GRAPH/NAME -> array, or null, "interfaces": {graph: {"inputs": [{name, dtype, shape}],
"outputs"}}, "scenario": how it is called, "threads": of it alone, or null}. control: which thing the
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

SHARE_ROUNDS = 6
"""Blocks of each thing in one launch among several, at least: what launches differ by outweighs what more blocks would tell."""

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
    worker: Any = None
    seconds: float = 0.0  # spent on it so far, starting, loading, warm-up and settling included
    warm: float = 0.0  # seconds of all counted calls
    calls: int = 1
    count: int = 0
    settle: int = 0
    call: float = 0.0  # seconds, as warm-up saw it
    begun: float = 0.0  # `seconds` when the present launch began
    starts: dict[str, list[float]] = field(default_factory=dict)
    blocks: list[dict[str, Any]] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)


def run(job: Mapping[str, Any], open_worker: Callable[[str], Any], tell: Tell = lambda share, what: None) -> dict[str, Any]:
    """Time a job's things here; return {"timed": [one for each thing], "around": what surrounded it, "watched": [...]}.

    timed: label, load_s and first_call_s (medians over launches), warm_up, blocks, calls, settle, stopped_by, providers, runtime,
    peak_memory_bytes, peak_memory_above_runtime_bytes. A block: {"nanoseconds": each call's, "wall": of all, "at": when it began, on
    a clock that all blocks share, "marks": {part: durations}, "joules" (in "metered_s", settling included), "launch": in which
    process; of streams also "finished": how many calls ended, parts of calls at the edges counted; "calls" where a sample is the
    mean of several}. watched: of a sustained run, environment.point every LOOK seconds, "at_s" from the run's begin, with its "label".
    open_worker(label): a context manager with send, receive and ask, see worker.py. tell(share done, what is being done).

    Everything is started afresh job["launches"] times, and again until the intervals are narrow: two processes that run the same
    file differ for as long as they live, more so beside other work, and only other processes can show it (Kalibera and Jones,
    Rigorous Benchmarking in Reasonable Time, ISMM 2013). Where so many do not fit into max_seconds there is one.
    """
    watched: list[dict[str, Any]] = []
    # what another machine uses, or heats up to, is not read here
    meter, no_meter = energy.meter() if job.get("meter", True) else (None, "not available here: it is another device")
    timed = [Timed(thing["label"]) for thing in job["things"]]
    with contextlib.ExitStack() as stack:
        if meter is not None:
            stack.callback(meter.close)
        idle = None if meter is None else meter.idle_watts(IDLE)
        before, launch = environment.now(), 0
        while True:
            after = _launch(timed, job, open_worker, tell, meter, watched, launch)
            launch += 1
            if all("stopped_by" in one.told for one in timed) or _enough(timed, job, launch):
                break
    return {
        "timed": [
            {
                **one.told,
                "label": one.label,
                "blocks": one.blocks,
                "calls": one.calls,
                "settle": one.settle,
                **{name: float(np.median(values)) for name, values in one.starts.items()},
            }
            for one in timed
        ],
        "around": environment.around(
            before, after, max(threads_of(thing, job) for thing in job["things"]) * (job.get("streams") or 1)
        ),
        "energy": {"source": meter.source if meter else None, "idle_watts": idle, "why": no_meter},
        "watched": watched,
    }


def _launch(
    timed: Sequence[Timed],
    job: Mapping[str, Any],
    open_worker: Callable[[str], Any],
    tell: Tell,
    meter: Any,
    watched: list[dict[str, Any]],
    launch: int,
) -> dict[str, Any]:
    """Start a process for each thing, time them, and let the processes end; return environment.now() of before they ended.

    A launch after which no other fits into max_seconds goes on to the end: the only one of things that start slowly.
    """
    with contextlib.ExitStack() as stack:
        places = _round(range(len(timed)), launch)
        for place in places:
            one = timed[place]
            one.begun = one.seconds
            one.worker = stack.enter_context(open_worker(one.label))
        begin = time.perf_counter()
        bare: dict[int, int | None] = {}
        for place in places:  # all import their runtime at the same time
            timed[place].worker.send(do="start", backend=job["things"][place]["backend"])
        for place in places:
            answer = timed[place].worker.receive()
            timed[place].told["runtime"], bare[place] = answer["runtime"], answer["bytes"]
        for one in timed:
            one.seconds += (time.perf_counter() - begin) / len(timed)
        for done, place in enumerate(places):
            one = timed[place]
            if not launch:
                tell(0.1 * done / len(timed), f"{one.label}: load, first call, warm-up")
            begin = time.perf_counter()
            _prepare(one, job["things"][place], job)
            one.seconds += time.perf_counter() - begin
        if job["scenario"] == "sustained":
            _sustain(timed, job, tell, meter, watched)
        else:
            names = f"timing {len(timed)} in alternation" if len(timed) > 1 else f"timing {timed[0].label}"
            alternate = _to_the_end if _last(timed, job, launch) else _a_share
            alternate(timed, job, lambda share: tell(0.1 + 0.9 * share, names), meter, launch)
        for place, one in enumerate(timed):
            peak, least = one.worker.ask(do="memory")["bytes"], bare[place]
            above = None if peak is None or least is None else max(0, peak - least)
            for name, value in (("peak_memory_bytes", peak), ("peak_memory_above_runtime_bytes", above)):
                one.told[name] = value if value is None else max(value, one.told.get(name) or 0)
        return environment.now()


def _last(timed: Sequence[Timed], job: Mapping[str, Any], launch: int) -> bool:
    """Say whether the launch that was prepared is the last: the only one wanted, or five like it or one more would not fit."""
    wanted = _launches(job)
    for one in timed:
        rounds = max(SHARE_ROUNDS, math.ceil(job["min_count"] / wanted / one.calls))
        share = max(rounds * one.call * (one.calls + one.settle), job["min_seconds"] / wanted)
        this = one.seconds - one.begun + share
        if (this * wanted if not launch else one.begun + 2 * this) > job["max_seconds"]:
            return True
    return wanted == 1


def _prepare(one: Timed, thing: Mapping[str, Any], job: Mapping[str, Any]) -> None:
    """Load, give inputs, make the first call, warm up; in the first launch, choose how many calls make a block."""
    ask, told = one.worker.ask, one.told
    copies = job.get("streams") or 1
    loaded = ask(do="load", files=thing["files"], target=thing.get("target"), threads=threads_of(thing, job), copies=copies)
    told["providers"] = loaded["providers"]
    wanted = {key: job.get(key) for key in ("batch", "seed", "prompt_tokens", "new_tokens")}
    wanted["scenario"] = thing.get("scenario") or job["scenario"]
    ask(do="prepare", inputs=thing.get("inputs"), interfaces=thing.get("interfaces"), **wanted)
    one.starts.setdefault("load_s", []).append(loaded["seconds"])
    one.starts.setdefault("first_call_s", []).append(ask(do="first")["seconds"])
    spend = min(job["min_seconds"], job["max_seconds"])
    seconds = min(WARM_UP[0] * spend, WARM_UP[1])
    warm = np.array(ask(expected=4 * seconds, do="warm-up", seconds=seconds, count=WARM_UP[2])["nanoseconds"]) / 1e9
    if "warm_up" in told:
        return
    told["warm_up"] = {"count": len(warm), "seconds": float(warm.sum())}
    one.call = float(np.median(warm[len(warm) // 2 :]))
    one.calls = max(1, math.ceil(min(spend / ROUNDS, LONGEST_BLOCK) / max(one.call, 1e-7)))
    one.settle = 0 if one.call > SETTLED else max(1, one.calls // 10)


def threads_of(thing: Mapping[str, Any], job: Mapping[str, Any]) -> int:
    """Return how many threads each session of a thing gets."""
    return int(thing.get("threads") or job["threads"])


def _launches(job: Mapping[str, Any]) -> int:
    return int(job.get("launches") or 1)


def _block(one: Timed, job: Mapping[str, Any], meter: Any, launch: int = 0) -> None:
    """Time one block and keep it."""
    expected = _expected(one)
    before, begin = (meter.joules() if meter else None), time.perf_counter()
    command = {"do": "streams", "count": one.calls} if job.get("streams") else {"do": "time", "count": one.calls}
    answer = one.worker.ask(expected=10 * expected, settle=one.settle, **command)
    answer["metered_s"] = time.perf_counter() - begin
    answer["joules"] = None if before is None else meter.joules() - before
    answer["launch"] = launch
    one.blocks.append(answer)
    one.count += len(answer["nanoseconds"])
    seconds = answer["wall"] / 1e9
    one.warm += seconds
    one.seconds += seconds * (one.calls + one.settle) / max(one.calls, 1)


def _expected(one: Timed) -> float:
    """Return the seconds that another block will take."""
    if one.blocks:
        return one.warm / len(one.blocks) * (one.calls + one.settle) / one.calls
    return one.call * (one.calls + one.settle)


def _round(running: Sequence[Any], launch: int) -> Sequence[Any]:
    """Return the order of starts, loads and rounds of blocks: A B, A B, ... in one launch, B A, B A, ... in the next.

    In the order A B, B A every other block follows one of its own thing, and was up to 3 % faster for it (1 ms a call, weights of 10 MB, two
    cores): of six blocks B had three such and A two, which made B 1 % faster than its own copy in 60 launches. And what is loaded
    first stays slower for as long as the processes live: 2 % in 91 launches (one core, beside a training).
    """
    return running if launch % 2 == 0 else running[::-1]


def _to_the_end(timed: Sequence[Timed], job: Mapping[str, Any], tell: Callable[[float], None], meter: Any, launch: int) -> None:
    """Time blocks in rounds in one launch, until every thing has enough and the intervals are as narrow as wanted.

    A thing that would pass max_seconds with another block ends there; each gets one block whatever it takes.
    """
    running, rounds = list(timed), 0
    while running:
        for one in _round(running, launch):
            if one.blocks and one.seconds + _expected(one) > job["max_seconds"]:
                one.told["stopped_by"] = "max_seconds"
                continue
            _block(one, job, meter, launch)
        rounds += 1
        running = [one for one in running if "stopped_by" not in one.told]
        shares = [min(one.warm / job["min_seconds"], one.count / job["min_count"], rounds / FEWEST_ROUNDS) for one in running]
        limit = [one.seconds / job["max_seconds"] for one in running]
        tell(min([1.0, *(max(share / (2 if job.get("interval") else 1), spent) for share, spent in zip(shares, limit))]))  # noqa: B905
        if running and min(shares) >= 1 and rounds % 2 == 0 and _narrow(timed, job):
            break
    for one in timed:
        one.told.setdefault("stopped_by", _satisfied(job))


def _a_share(timed: Sequence[Timed], job: Mapping[str, Any], tell: Callable[[float], None], meter: Any, launch: int) -> None:
    """Time blocks in rounds, of one launch among several: its share of min_seconds and min_count, SHARE_ROUNDS at least."""
    before = [(one.warm, one.count) for one in timed]
    rounds = 0
    while True:
        for one in _round(timed, launch):
            _block(one, job, meter, launch)
        rounds += 1
        spent = max(one.seconds for one in timed) / job["max_seconds"]
        tell(min(1.0, max(spent, 0.5 * (launch + rounds / SHARE_ROUNDS) / _launches(job))))
        enough = all(
            (one.warm - warm) * _launches(job) >= job["min_seconds"]
            and (one.count - count) * _launches(job) >= job["min_count"]
            for one, (warm, count) in zip(timed, before)  # noqa: B905
        )
        if spent >= 1 or (rounds % 2 == 0 and rounds >= SHARE_ROUNDS and enough):
            break


def _enough(timed: Sequence[Timed], job: Mapping[str, Any], launches: int) -> bool:
    """Say whether no further launch is wanted, or another would pass max_seconds; note which."""
    done = launches >= _launches(job) and _narrow(timed, job)
    over = max(one.seconds for one in timed) * (launches + 1) / launches > job["max_seconds"]
    if done or over:
        for one in timed:
            one.told["stopped_by"] = _satisfied(job) if done else "max_seconds"
    return done or over


def _satisfied(job: Mapping[str, Any]) -> str:
    return "interval" if job.get("interval") else "min_seconds and min_count"


def _narrow(timed: Sequence[Timed], job: Mapping[str, Any]) -> bool:
    return not job.get("interval") or widest(timed, job) <= job["interval"]


def widest(timed: Sequence[Timed], job: Mapping[str, Any]) -> float:
    """Return the width of the widest interval, relative to its value: of the ratios to the control, or of a lone thing's median.

    Of a single launch only what more blocks can make narrower counts.
    """
    costs = [block_costs(one.blocks, job.get("streams"))[:, None] for one in timed]
    launches = [[block["launch"] for block in one.blocks] for one in timed]
    place = job.get("control") or 0
    if len(timed) == 1:
        several = len(set(launches[0])) >= statistics.FEWEST_LAUNCHES
        return statistics.relative_width(statistics.block_interval(costs[0], launches[0] if several else None))
    widths = []
    for other, cost in enumerate(costs):
        if other != place:
            n = min(len(costs[place]), len(cost))
            found = statistics.ratio(costs[place][:n], cost[:n], launches=launches[other][:n], between=0.0)
            widths.append(statistics.relative_width(found))
    return max(widths)


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
        while (spent := time.perf_counter() - begin) < 60 * job["minutes"] or len(one.blocks) < 2:
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
