"""What one timed call is, and what goes into it. numpy and the standard library alone.

A call takes nothing and returns None, or its marks: the nanoseconds of its named parts. Scenarios: `single-stream` (one graph, the
next call starting when the last returned), `streams` (several such at once), `chain` (several graphs one after the other), and
`generation`, which has a file of its own.
"""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BadInput

if TYPE_CHECKING:
    Arrays = Mapping[str, np.ndarray]
    Call = Callable[[], Any]

UNKNOWN_AXIS = 16
"""Length given to a dynamic axis that is not the batch."""


def single_stream(session: Any, inputs: Arrays) -> Call:
    """Return the call to time: a session's run on inputs that lie in memory, contiguous.

    session: has run(inputs) -> outputs, and may have bind(inputs) -> a call that does the same without looking names up again.
    """
    ready = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
    run = session.bind(ready) if hasattr(session, "bind") else lambda: session.run(ready)

    def call() -> None:
        run()

    return call


def time_streams(calls: Sequence[Call], count: int) -> dict[str, Any]:
    """Time calls that run at once, each again and again in a thread of its own; return a block.

    {"nanoseconds": of each call that ended in the window, "finished": calls, "wall": ns of the window, "at": perf_counter_ns when it
    opened, "marks": {}}. Throughput is finished x batch / wall, and no ramp at either end biases it: the window opens when every
    stream has finished its first call and closes when all together have finished len(calls) x count more; every stream works until
    then; and a call across an edge counts in `finished` by its part inside, so that it is no matter how the streams' calls lie to
    the edges. Raises what a call raises.
    """
    now, wanted = time.perf_counter_ns, len(calls) * count
    ready, first, finished = threading.Barrier(len(calls)), itertools.count(1), itertools.count(1)
    timed: list[list[tuple[int, int]]] = [[] for _ in calls]
    opened: list[int] = []
    failed: list[BaseException] = []
    stop = threading.Event()

    def work(call: Call, keep: Callable[[tuple[int, int]], None]) -> None:
        try:
            ready.wait()
            call()
            if next(first) == len(calls):
                opened.append(now())
            while wanted and not stop.is_set():
                start = now()
                call()
                end = now()
                keep((start, end))
                if opened and end > opened[0] and next(finished) >= wanted:
                    stop.set()
        except BaseException as error:  # raised below, by the thread that asked
            failed.append(error)
            ready.abort()
            stop.set()

    threads = [threading.Thread(target=work, args=(call, kept.append), daemon=True) for call, kept in zip(calls, timed)]  # noqa: B905 - Python 3.8
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in failed:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    stamps = sorted((end, start) for kept in timed for start, end in kept)
    inside = [(end, start) for end, start in stamps if end > opened[0]][:wanted]
    opens, closes = opened[0], inside[-1][0] if inside else opened[0]
    parts = [
        (min(end, closes) - max(start, opens)) / max(end - start, 1) for end, start in stamps if end > opens and start < closes
    ]
    return {
        "nanoseconds": [end - start for end, start in inside],
        "finished": float(sum(parts)),
        "wall": closes - opens,
        "at": opens,
        "marks": {},
    }


def chain(
    sessions: Mapping[str, Any],
    inputs: Mapping[str, Arrays],
    declared: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Call:
    """Return the call that runs several graphs one after the other, in the order of `sessions`; its marks are their nanoseconds.

    An input comes from the output of the same name of the nearest graph before, else from `inputs` (graph -> name -> array).
    declared: graph -> its inputs, each with a "name".
    The first call raises BadInput where an input comes from nowhere.
    """
    given = {graph: {name: np.ascontiguousarray(value) for name, value in inputs.get(graph, {}).items()} for graph in sessions}
    names = {graph: [one["name"] for one in declared[graph]] for graph in sessions}
    now = time.perf_counter_ns

    def call() -> dict[str, int]:
        marks: dict[str, int] = {}
        by_name: dict[str, np.ndarray] = {}
        made: dict[str, Arrays] = {}
        for graph, session in sessions.items():
            feeds = {}
            for name in names[graph]:
                value = by_name[name] if name in by_name else given[graph].get(name)
                if value is None:
                    raise BadInput(_from_nowhere(graph, name, made))
                feeds[name] = value
            start = now()
            made[graph] = outputs = session.run(feeds)
            marks[graph] = now() - start
            by_name.update(outputs)
        return marks

    return call


def _from_nowhere(graph: str, name: str, made: Mapping[str, Arrays]) -> str:
    outputs = ", ".join(f"{maker}.{output}" for maker, values in made.items() for output in values) or "none"
    return (
        f"graph `{graph}`: nothing is given for its input `{name}`, and no earlier graph has an output of that name ({outputs})"
    )


def inputs_of(
    stored: str | None,
    interfaces: Mapping[str, Mapping[str, Any]],
    graphs: Iterable[str],
    batch: int,
    seed: int = 0,
) -> dict[str, dict[str, np.ndarray]]:
    """Return graph -> input -> array of `batch` samples, arrays that nothing else holds.

    stored: path of an .npz with GRAPH/NAME -> array, or None; of a graph that is not in it they are made from what it declares.
    """
    given: dict[str, dict[str, np.ndarray]] = {}
    if stored is not None:
        with np.load(stored, allow_pickle=False) as file:
            for key in file.files:
                graph, _, name = key.partition("/")
                given.setdefault(graph, {})[name] = file[key]
    return {
        graph: batch_of(given[graph], batch) if graph in given else random_inputs(interfaces[graph]["inputs"], batch, seed)
        for graph in graphs
    }


def batch_of(inputs: Arrays, batch: int) -> dict[str, np.ndarray]:
    """Cut or repeat inputs along their first axis to `batch` samples: 3 pictures to 8 are 0 1 2 0 1 2 0 1."""
    chosen = {}
    for name, value in inputs.items():
        if value.ndim == 0:
            chosen[name] = value
            continue
        if len(value) == 0:
            raise ValueError(f"input `{name}` has no samples")
        chosen[name] = np.ascontiguousarray(value[np.arange(batch) % len(value)])
    return chosen


def random_inputs(
    declared: Sequence[Mapping[str, Any]],
    batch: int,
    seed: int = 0,
    vocabulary: int | None = None,
    axes: Mapping[str, int] | None = None,
) -> dict[str, np.ndarray]:
    """Make inputs from a graph's declared inputs: [{name, dtype, shape}], the same for the same seed.

    shape: integers, or anything else for an axis left open: the first axis gets `batch`, one that `axes` names its length there,
    any other UNKNOWN_AXIS; sums of names count ("past + 1"), and what has `past` in its name is empty, as before the first token.
    uint8 covers 0-255, token ids 0 to `vocabulary` - 1, other integers 0-1 (safe as an index), floats are standard normal, booleans
    are True. Masks are 1, positions count from 0, types of tokens are 0, and `use_cache_branch` is False.
    """
    random = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {}
    for one in declared:
        name, dtype = one["name"], np.dtype(one["dtype"])
        shape = tuple(_lengths(one["shape"], batch, axes or {}))
        if dtype == np.uint8:
            made[name] = random.integers(0, 256, shape, dtype=dtype)
        elif dtype == np.bool_:
            made[name] = np.full(shape, name != "use_cache_branch", dtype)
        elif np.issubdtype(dtype, np.integer):
            made[name] = _integers(name, shape, vocabulary, random).astype(dtype)
        else:
            made[name] = random.standard_normal(shape).astype(dtype)
    return made


def _integers(name: str, shape: tuple[int, ...], vocabulary: int | None, random: np.random.Generator) -> np.ndarray:
    if "mask" in name:
        return np.ones(shape)
    if "position" in name and shape:
        return np.broadcast_to(np.arange(shape[-1]), shape)
    if "token_type" in name:
        return np.zeros(shape)
    return random.integers(0, vocabulary if vocabulary and name.endswith("ids") else 2, shape)


def _lengths(shape: Sequence[Any], batch: int, axes: Mapping[str, int]) -> Iterator[int]:
    """Yield the length of each axis of a declared shape."""
    for place, axis in enumerate(shape):
        if isinstance(axis, int) and axis > 0:
            yield axis
        elif axis in axes:
            yield axes[axis]
        elif place == 0:
            yield batch
        else:
            yield sum(_length(term.strip(), axes) for term in str(axis or "").split("+"))


def _length(term: str, axes: Mapping[str, int]) -> int:
    """Return what one term of an axis' name stands for.

    >>> _length("1", {}), _length("past_sequence_length", {}), _length("source", {"source": 100}), _length("source", {})
    (1, 0, 100, 16)
    """
    if re.fullmatch(r"\d+", term) and int(term) > 0:
        return int(term)
    if term in axes:
        return axes[term]
    return 0 if "past" in term.lower() else UNKNOWN_AXIS
