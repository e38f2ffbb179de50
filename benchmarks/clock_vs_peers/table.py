"""What the readings say together: how far each tool is from ours, and how far its ratios spread.

python benchmarks/clock_vs_peers/table.py benchmarks/clock_vs_peers/results/measured.json     # the table once more
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.bench import statistics

GOAL = 0.05
WIDTH = 2 * 1.96
"""Standard deviations that 95 % of single readings lie within; ten of them range over 3.1 on average."""
NAMES = {
    "edgekd": "edgekd",
    "optimum": "optimum-benchmark",
    "onnxruntime_test": "onnxruntime_test (mean)",
    "bert_perf_test": "bert_perf_test",
    "optimum-process": "optimum-benchmark, process launcher",
}
MEAN_ALONE = ("onnxruntime_test",)
"""Tools that give a mean alone: compared with our mean."""
PAIR = ("bert", "bert-int8")


def summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return agreement: [one for each file and tool], ratio: tool -> its spread, and met: which goals."""
    repeats: Sequence[Mapping[str, Any]] = result["repeats"]
    agreement = []
    for tool in (name for name in NAMES if name != "edgekd"):
        for name in repeats[0]["readings"].get(tool, {}):
            kind = "mean_s" if tool in MEAN_ALONE else "median_s"
            theirs, ours = _of(repeats, tool, name, kind), _of(repeats, "edgekd", name, kind)
            paired = statistics.ratio(theirs[:, None], ours[:, None], between=0)
            agreement.append(
                {
                    "file": name, "tool": tool, "compared": kind.removesuffix("_s"),
                    "theirs_s": float(np.median(theirs)), "ours_s": float(np.median(ours)),
                    "of_ours": paired.value, "low": _finite(paired.low), "high": _finite(paired.high),
                    "within": abs(paired.value - 1) <= GOAL,
                }
            )  # fmt: skip
    ratios = {"edgekd": _spread(np.array([one["ratio"]["ratio"] for one in repeats]))}
    widths = [(one["ratio"]["high"] - one["ratio"]["low"]) / one["ratio"]["ratio"] for one in repeats if one["ratio"]["high"]]
    middle = ratios["edgekd"]["median"]
    ratios["edgekd"] |= {
        "width": float(np.median(widths)) if widths else None,
        "widest": max(widths, default=None),
        "holding_the_median": sum(
            bool(one["ratio"]["low"] <= middle <= one["ratio"]["high"]) for one in repeats if one["ratio"]["high"]
        ),
    }
    for tool in (name for name in NAMES if PAIR[0] in repeats[0]["readings"].get(name, {}) and name != "edgekd"):
        kind = "mean_s" if tool in MEAN_ALONE else "median_s"
        ratios[tool] = _spread(_of(repeats, tool, PAIR[0], kind) / _of(repeats, tool, PAIR[1], kind))
    width = ratios["edgekd"]["width"]
    counted = [one for one in agreement if one["file"] != "nothing" and one["tool"] != "optimum-process"]
    met = {
        "all_within": all(one["within"] for one in counted),
        "narrower_than_the_range_of": [tool for tool in ratios if tool != "edgekd" and width and width < ratios[tool]["range"]],
    }
    return {"agreement": agreement, "ratio": ratios, "met": met}


def _of(repeats: Sequence[Mapping[str, Any]], tool: str, name: str, kind: str) -> np.ndarray:
    return np.array([one["readings"][tool][name][kind] for one in repeats])


def _spread(values: np.ndarray) -> dict[str, Any]:
    return {
        "values": values.tolist(),
        "median": float(np.median(values)),
        "sd": float(values.std(ddof=1) / values.mean()) if len(values) > 1 else None,
        "range": float(values.max() / values.min() - 1),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) and value > 0 else None


def table(result: Mapping[str, Any]) -> str:
    """Return two Markdown tables."""
    told = result["summary"]
    ours = {(one["file"], one["compared"]): one["ours_s"] for one in told["agreement"]}
    pair = f" ({result['settings']['pair_seconds']:g} s of the two)" if "pair_seconds" in result["settings"] else ""
    lines = [
        f"{len(result['repeats'])} repeats, {result['settings']['seconds']:g} s a file and tool{pair}, {result['settings']['threads']} threads",
        "",
        "| file | tool | theirs | ours | theirs / ours (95 %) | within 5 % |",
        "|---|---|---|---|---|---|",
    ]
    for one in sorted(told["agreement"], key=lambda one: [name for name, _ in ours].index(one["file"])):
        between = f" ({one['low']:.3f}-{one['high']:.3f})" if one["low"] and one["high"] else ""
        within = "-" if one["file"] == "nothing" or one["tool"] == "optimum-process" else "yes" if one["within"] else "NO"
        lines.append(
            f"| {one['file']} | {NAMES[one['tool']]} | {_ms(one['theirs_s'])} | {_ms(one['ours_s'])} | {one['of_ours']:.3f}{between} | {within} |"
        )
    lines += [
        "",
        "| bert / bert-int8 | median | highest / lowest - 1 | 95 % of single ratios | interval that one run gives |",
        "|---|---|---|---|---|",
    ]
    for tool, spread in told["ratio"].items():
        within = f"{100 * WIDTH * spread['sd']:.1f} % wide" if spread["sd"] is not None else "-"
        width = (
            f"{100 * spread['width']:.1f} % wide (widest {100 * spread['widest']:.1f} %)"
            if spread.get("width")
            else "none given"
        )
        lines.append(f"| {NAMES[tool]} | {spread['median']:.3f} | {100 * spread['range']:.1f} % | {within} | {width} |")
    narrower = ", ".join(NAMES[tool] for tool in told["met"]["narrower_than_the_range_of"])
    lines += ["", f"All within 5 %: {'yes' if told['met']['all_within'] else 'NO'}. "]
    lines[-1] += f"Our interval is narrower than the range of: {narrower or 'none'}."
    return "\n".join(lines)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.4f} ms" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


if __name__ == "__main__":
    found = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(table({**found, "summary": summary(found)}))
