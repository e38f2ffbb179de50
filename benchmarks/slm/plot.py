"""Draw a result file of run.py: what the encoder-decoder gains over the decoder-only model, against the prompt's length.

python benchmarks/slm/plot.py benchmarks/slm/results/AMD-EPYC.json     # needs matplotlib; writes .svg and .png beside

Left: how much lower its first-token latency is; right: how many times as many tokens a second. Dotted: what counting alone would
give, of the first token by its operations and of a token by the weights and caches it reads. Dashed: the paper's figures, 47 % and 4.7 times.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

PAPER = {"first token": 47.0, "throughput": 4.7}
COLOURS = {"30M": "#3b6fb6", "100M": "#d1702a", "330M": "#3a8f5c"}
MARKERS = {"fp32": "o", "int8": "s", "w4": "^", "w4-a8": "D"}
FORMS = ("decoder-only", "encoder-decoder")

Form = dict[str, Any]


def _read(form: Form) -> float:
    """Return the bytes that a token goes through."""
    step = form["step"]
    return float(step["weights_bytes"] + step["cache_bytes"])


PANELS: tuple[tuple[str, str, Callable[[Form, Form], float], Callable[[Form, Form], float]], ...] = (
    (
        "first token",
        "first token sooner by, %",
        lambda one, other: 100 * (1 - other["ttft_s"] / one["ttft_s"]),
        lambda one, other: 100 * (1 - other["first_token"]["flops"] / one["first_token"]["flops"]),
    ),
    (
        "throughput",
        "tokens a second, times",
        lambda one, other: one["token_s"] / other["token_s"],
        lambda one, other: _read(one) / _read(other),
    ),
)


def draw(file: Path) -> list[Path]:
    """Write FILE.svg and FILE.png; return their paths."""
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    lines: dict[tuple[str, str], list[tuple[int, dict[str, Form]]]] = {}
    for key, cell in cells.items():
        size, variant, prompt = key.split("/")
        lines.setdefault((size, variant), []).append((int(prompt), cell["forms"]))
    plt.rcParams["svg.hashsalt"] = "edgekd"
    figure, panels = plt.subplots(1, 2, figsize=(9.5, 3.9), layout="constrained")
    for panel, (name, label, measured, counted) in zip(panels, PANELS, strict=True):
        panel.axhline(PAPER[name], color="#888", lw=1, ls="--")
        panel.text(
            1,
            PAPER[name],
            "the paper ",
            color="#666",
            fontsize=8,
            ha="right",
            va="bottom",
            transform=panel.get_yaxis_transform(),
        )
        for (size, variant), points in lines.items():
            prompts = [prompt for prompt, _ in sorted(points, key=lambda point: point[0])]
            forms = [tuple(told[form] for form in FORMS) for _, told in sorted(points, key=lambda point: point[0])]
            marker = {"color": COLOURS.get(size, "#222"), "marker": MARKERS.get(variant, "o"), "ms": 5}
            filled = {} if variant == "fp32" else {"mfc": "white"}
            panel.plot(prompts, [measured(*pair) for pair in forms], lw=1.4, label=f"{size}, {variant}", **marker, **filled)
            if variant == "fp32" or (size, "fp32") not in lines or name == "throughput":
                panel.plot(prompts, [counted(*pair) for pair in forms], lw=0.9, ls=":", color=COLOURS.get(size, "#222"))
        panel.set_xscale("log", base=2)
        ticks = sorted({prompt for points in lines.values() for prompt, _ in points})
        panel.set_xticks(ticks, [str(tick) for tick in ticks])
        panel.minorticks_off()
        panel.set_xlabel("prompt, tokens")
        panel.set_ylabel(label)
        panel.set_ylim(bottom=min(0, panel.get_ylim()[0]))
        panel.spines[["top", "right"]].set_visible(False)
    panels[1].plot([], [], lw=0.9, ls=":", color="#222", label="counted")
    panels[1].legend(frameon=False, fontsize=8, ncols=2)
    made = [file.with_suffix(ending) for ending in (".svg", ".png")]
    figure.savefig(made[0], metadata={"Date": None})
    figure.savefig(made[1], dpi=130)
    return made


if __name__ == "__main__":
    for path in draw(Path(sys.argv[1])):
        print(path)
