"""Draw a result file: how far each tool's readings are from ours, and the ratios of ten repeats beside our intervals.

python benchmarks/clock_vs_peers/plot.py benchmarks/clock_vs_peers/results/measured.json     # needs matplotlib; writes .svg beside
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from matplotlib import pyplot as plt
from table import GOAL, MEAN_ALONE, NAMES

COLOURS = {"edgekd": "#222", "optimum": "#3b6fb6", "onnxruntime_test": "#d1702a", "bert_perf_test": "#3a8f5c"}


def draw(file: Path) -> Path:
    """Write FILE.svg and return its path. Left: a dot a repeat, the band is within 5 %; right: our bars are the 95 % intervals."""
    made = json.loads(file.read_text(encoding="utf-8"))
    repeats = made["repeats"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    files = [name for name in made["files"] if name != "nothing"]
    tools = [tool for tool in COLOURS if tool in repeats[0]["readings"]]
    left.axhspan(-100 * GOAL, 100 * GOAL, color="#eee")
    left.axhline(0, color="#888", lw=0.8)
    for place, tool in enumerate(tool for tool in tools if tool != "edgekd"):
        kind = "mean_s" if tool in MEAN_ALONE else "median_s"
        for number, name in enumerate(files):
            pairs = [(one["readings"][tool].get(name), one["readings"]["edgekd"][name]) for one in repeats]
            off = [100 * (theirs[kind] / ours[kind] - 1) for theirs, ours in pairs if theirs]
            left.plot(
                [number + 0.2 * (place - 1)] * len(off),
                off,
                "o",
                ms=4,
                color=COLOURS[tool],
                label=None if number else NAMES[tool],
            )
    left.set_xticks(range(len(files)), files)
    left.set_ylabel("theirs against ours, %")
    left.legend(frameon=False, fontsize=8)
    for place, tool in enumerate(tools):
        values = made["summary"]["ratio"][tool]["values"]
        x = [number + 0.15 * (place - 1.5) for number in range(1, len(values) + 1)]
        if tool == "edgekd":
            told = [one["ratio"] for one in repeats]
            below = [one["ratio"] - one["low"] if one["low"] else 0 for one in told]
            above = [one["high"] - one["ratio"] if one["high"] else 0 for one in told]
            right.errorbar(
                x, values, yerr=[below, above], fmt="o", ms=4, lw=1, color=COLOURS[tool], label="edgekd, 95 % interval"
            )
        else:
            right.plot(x, values, "o", ms=4, color=COLOURS[tool])
    right.set_xticks(range(1, len(repeats) + 1))
    right.set_xlabel("repeat")
    right.set_ylabel("bert / bert-int8")
    right.legend(frameon=False, fontsize=8)
    for panel in (left, right):
        panel.spines[["top", "right"]].set_visible(False)
    out = file.with_suffix(".svg")
    plt.rcParams["svg.hashsalt"] = "edgekd"
    figure.savefig(out, metadata={"Date": None})
    return out


if __name__ == "__main__":
    print(draw(Path(sys.argv[1])))
