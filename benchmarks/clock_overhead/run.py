"""What the clock adds to what it measures: a bare loop of session.run against our worker's path, alternately, on one session.

python benchmarks/clock_overhead/run.py
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgekd import host
from edgekd.backends import onnxruntime
from edgekd.bench import clock, environment, scenarios, statistics

HERE = Path(__file__).parent
SIZES = {20e-6: 2, 100e-6: 8, 1000e-6: 64}
"""Seconds that a call of each model shall take, about -> rows of its products, so that all weights stay in the cache."""
LIMITS = {100e-6: 0.02}
"""How much of it the clock may add."""
BLOCK = 1e-3
"""Seconds of a block: so short that its neighbours see the same machine."""
SETTLE = 3
QUIET = 1.15
"""A four is quiet where none of its blocks took so many times the quickest block of either way: nothing else ran meanwhile."""
WIDTH = 128


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the result file, print the table; return 1 where a limit is passed for sure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--fours", type=int, default=1500, help="so many times loop way way loop, or the reverse, for each model and each way"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results" / "measured.json")
    options = parser.parse_args(arguments)
    before = environment.now()
    with TemporaryDirectory() as folder:
        models = [measured(seconds, options.fours, Path(folder)) for seconds in SIZES]
    result = {
        "schema": 1,
        "command": f"python benchmarks/clock_overhead/run.py --fours {options.fours}",
        "block_s": BLOCK,
        "empty_call_ns": empty(),
        "models": models,
        "environment": {**host.describe(), **environment.around(before, environment.now(), 1)},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result) + "\n")
    print(table(result))
    return int(any(one["limit"] is not None and one["ways"]["worker"]["quiet_mean"]["low"] > one["limit"] for one in models))


def empty() -> float:
    """Return the median nanoseconds that an empty call seems to take: two readings of the clock and the call itself."""
    return float(np.median([np.median(clock.time_calls(lambda: None, 2000)[0]) for _ in range(50)]))


def measured(seconds: float, fours: int, folder: Path) -> dict[str, Any]:
    """Compare three ways of timing a model that takes about `seconds`.

    Each way: how much more the mean and the median of the calls' times are than the bare loop's time for one, over fours of blocks.
    """
    rows = SIZES[seconds]
    feeds = {"x0": np.ones((rows, WIDTH), np.float32)}
    nodes = nodes_for(seconds, feeds, folder)
    session = onnxruntime.load(network(nodes, rows, folder), threads=1)
    bare = session._session  # the very session: another one would have other memory

    def loop(count: int) -> tuple[float, float]:
        start = time.perf_counter_ns()
        for _ in range(count):
            bare.run(None, feeds)
        each = (time.perf_counter_ns() - start) / count
        return each, each

    def timed(call: Callable[[], Any]) -> Callable[[int], tuple[float, float]]:
        def block(count: int) -> tuple[float, float]:
            nanoseconds, _ = clock.time_calls(call, count)
            return float(nanoseconds.mean()), float(np.median(nanoseconds))

        return block

    ways = {
        "worker": timed(scenarios.single_stream(session, feeds)),
        "worker, without bind": timed(scenarios.single_stream(_Unbound(session), feeds)),
    }
    count = max(3, round(BLOCK / seconds))
    told = {name: compare(loop, way, count, fours) for name, way in ways.items()}
    return {
        "asked_s": seconds,
        "rows": rows,
        "nodes": nodes,
        "calls_in_a_block": count,
        "limit": LIMITS.get(seconds),
        "ways": told,
    }


class _Unbound:
    """A session with `run` alone, as most backends have."""

    def __init__(self, session: Any) -> None:
        self.run = session.run


def compare(loop: Any, way: Any, count: int, fours: int) -> dict[str, Any]:
    """Time blocks in fours, loop way way loop and the reverse in turn, so that no place matters; a few calls before each do not count.

    Returns how much more `way` tells than the loop, with the interval over fours, and the raw numbers, ns a call.
    """
    control, candidate = np.empty((fours, 2)), np.empty((fours, 2))
    quickest, slowest = np.empty(fours), np.empty(fours)

    def block(timed: Any) -> np.ndarray:
        loop(SETTLE)
        return np.array(timed(count))

    for four in range(fours):
        outer, inner = (loop, way) if four % 2 == 0 else (way, loop)
        blocks = np.array([block(outer), block(inner), block(inner), block(outer)])
        ends, middle = (blocks[0] + blocks[3]) / 2, (blocks[1] + blocks[2]) / 2
        control[four], candidate[four] = (ends, middle) if outer is loop else (middle, ends)
        quickest[four], slowest[four] = blocks[:, 0].min(), blocks[:, 0].max()
    quiet = slowest <= QUIET * quickest.min()
    found: dict[str, Any] = {"bare_ns": control[:, 0].round(1).tolist(), "quiet": quiet.tolist()}
    for place, name in enumerate(("mean", "median")):
        found[f"{name}_ns"] = candidate[:, place].round(1).tolist()
        for which, chosen in (("", np.full(fours, True)), ("quiet_", quiet)):
            if chosen.any():  # way / loop, in one process
                ratio = statistics.ratio(candidate[chosen, place, None], control[chosen, place, None], between=0)
                found[which + name] = {"excess": ratio.value - 1, "low": ratio.low - 1, "high": ratio.high - 1}
    return found


def network(nodes: int, rows: int, folder: Path) -> Path:
    """Write a chain of products with matrices."""
    random = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(random.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 16, f"w{i}") for i in range(nodes)
    ]
    made = [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"]) for i in range(nodes)]
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [rows, WIDTH]) for name in ("x0", f"x{nodes}")]
    graph = helper.make_graph(made, "products", ends[:1], ends[1:], weights)
    path = folder / f"{rows}-{nodes}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def nodes_for(seconds: float, feeds: dict[str, np.ndarray], folder: Path) -> int:
    """Return how many products take about so long here: from the quickest of many calls of 2 and of 12."""
    took = {}
    for nodes in (2, 12):
        call = scenarios.single_stream(onnxruntime.load(network(nodes, len(feeds["x0"]), folder), threads=1), feeds)
        took[nodes] = float(np.percentile(clock.time_calls(call, 2000)[0], 10)) / 1e9
    each = (took[12] - took[2]) / 10
    return max(1, round((seconds - took[2]) / each) + 2)


def table(result: dict[str, Any]) -> str:
    """Return the result as a Markdown table."""
    lines = [
        "| model | bare loop | way | quiet fours | mean of the calls | median of the calls | mean, all fours | limit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in result["models"]:
        for name, way in one["ways"].items():
            quiet = np.array(way["quiet"])
            bare = np.median(np.array(way["bare_ns"])[quiet]) / 1e3
            limit = "" if one["limit"] is None or name != "worker" else f"{one['limit']:+.0%}"
            model = f"{one['nodes']} products of {one['rows']} rows"
            told = " | ".join(said(way[key]) for key in ("quiet_mean", "quiet_median", "mean"))
            lines.append(f"| {model} | {bare:.1f} us | {name} | {quiet.sum()} of {len(quiet)} | {told} | {limit} |")
    return "\n".join([*lines, "", f"an empty call: {result['empty_call_ns']:.0f} ns"])


def said(excess: dict[str, float]) -> str:
    """Write an excess with its interval."""
    return f"{excess['excess']:+.2%} ({excess['low']:+.2%} to {excess['high']:+.2%})"


if __name__ == "__main__":
    raise SystemExit(main())
