"""Draw a results file: points lost at 2 and 4 bits, ours as dots (one a seed), the paper's as crosses.

python benchmarks/polino/plot.py benchmarks/polino/results/cifar10.json     # needs matplotlib; writes .svg beside
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import results
from matplotlib import pyplot as plt

METHODS = {"pm-tensor": "PM\nno bucket", "pm-bucket": "PM\nbucket", "dq": "DQ", "qd": "QD", "qd+": "qd+"}
COLOURS = {"1M": "#3b6fb6", "0.3M": "#d1702a", "0.1M": "#3a8f5c"}


def draw(file: Path) -> Path:
    """Write FILE.svg and return its path. Losses are on a symmetric log axis: 70 points and a tenth are both to be seen."""
    made = json.loads(file.read_text())
    students = [s for s in results.ORDER if results.scores(made, s, "distilled")]
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
    for panel, bits in zip(panels, (2, 4), strict=True):
        for place, method in enumerate(METHODS):
            for number, student in enumerate(students):
                x = place + 0.2 * (number - (len(students) - 1) / 2)
                lost = results.gaps(made, student, f"{method}-{bits}")
                panel.plot([x] * len(lost), lost, "o", color=COLOURS[student], ms=5, label=student if not place else None)
                paper = results.PAPER[student]
                if made["data"] == "cifar10" and f"{method}-{bits}" in paper:
                    panel.plot(x, paper["distilled"] - paper[f"{method}-{bits}"], "x", color=COLOURS[student], ms=6)
        panel.axhline(0, color="#888", lw=0.8)
        panel.set_yscale("symlog", linthresh=1)
        panel.set_yticks([-1, 0, 1, 3, 10, 30, 80], ["-1", "0", "1", "3", "10", "30", "80"])
        panel.set_xticks(range(len(METHODS)), METHODS.values())
        panel.set_title(f"{bits} bit", loc="left")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("points lost to full precision")
    if made["data"] == "cifar10":
        panels[1].plot([], [], "x", color="#555", label="the paper")
    panels[0].legend(frameon=False, title="student")
    if made["data"] == "cifar10":
        panels[1].legend(frameon=False)
    out = file.with_suffix(".svg")
    plt.rcParams["svg.hashsalt"] = "edgekd"
    figure.savefig(out, metadata={"Date": None})
    return out


if __name__ == "__main__":
    print(draw(Path(sys.argv[1])))
