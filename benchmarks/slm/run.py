"""Encoder-decoder against decoder-only, equal in parameters: first-token latency, tokens a second, memory, operations.

python benchmarks/slm/run.py [--sizes 30M 100M 330M] [--variants fp32 int8 w4] [--prompts 128 512 1024 2048 4096]

Both forms are timed alternately, by edgekd's clock, on ONNX Runtime, with a prompt of each length and 128 new tokens, batch 1. Goes on
where it was stopped. Writes results/CPU.json after every cell and prints a table; plot.py draws it.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import make_models
from plans import SIZES

from edgekd import bench, host
from edgekd.bench.cost import cost
from edgekd.bench.things import Thing
from edgekd.progress import bar, say
from edgekd.recipe import Bench
from edgekd.run_folder import write_text

HERE = Path(__file__).parent
FORMS = ("decoder-only", "encoder-decoder")
"""The first is the control: a ratio above 1 says how much faster the other is."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every cell that is missing, write the result file, print the table. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--variants", nargs="+", default=["fp32", "int8"], choices=make_models.VARIANTS)
    parser.add_argument("--prompts", nargs="+", type=int, default=[128, 512, 1024, 2048, 4096], metavar="TOKENS")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument(
        "--max-seconds", type=float, default=120.0, help="of each network, for one cell; 5 calls are made at least"
    )
    parser.add_argument("--models", type=Path, default=Path("build/slm"), help="where the ONNX files are kept")
    parser.add_argument("--out", type=Path, default=None, help="goes on from what it has")
    options = parser.parse_args(arguments)
    (HERE / "results").mkdir(exist_ok=True)
    out = options.out or HERE / "results" / f"{re.sub(r'[^A-Za-z0-9]+', '-', host.cpu_model()).strip('-')}.json"
    told = _begun(out, options.new_tokens)
    cells = [(size, variant, prompt) for size in options.sizes for variant in options.variants for prompt in options.prompts]
    with bar("slm", len(cells)) as advance:
        for size, variant, prompt in cells:
            key = f"{size}/{variant}/{prompt}"
            if key not in told["cells"]:
                told["cells"][key] = _cell(options, size, variant, prompt)
                told["parameters"][size] = {form: make_models.facts(options.models, size, form)["parameters"] for form in FORMS}
                write_text(out, json.dumps(told, indent=1) + "\n")
                say(f"{key}: {told['cells'][key]['verdict']}")
            advance(1, key)
    print(table(told))
    return 0


def _cell(options: argparse.Namespace, size: str, variant: str, prompt: int) -> dict[str, Any]:
    """Time both forms alternately; return each one's numbers and the ratios."""
    files = {form: make_models.files(options.models, size, form, variant) for form in FORMS}
    things = [Thing(form, "onnxruntime", files[form], control=form == FORMS[0]) for form in FORMS]
    settings = Bench(
        min_seconds=1, min_count=5, interval=None, launches=1, max_seconds=options.max_seconds, prompt_tokens=prompt,
        new_tokens=options.new_tokens, roofline=False,
    )  # fmt: skip
    folder = options.models / "samples" / f"{size}-{variant}-{prompt}"
    measurements, (compared,) = bench.measure(things, settings, folder)
    forms = {}
    for one in measurements:
        made = one["generation"]
        forms[one["artifact"]] = {
            "ttft_s": made["ttft"]["median_s"],
            "ttft_low_s": made["ttft"]["median_low_s"],
            "ttft_high_s": made["ttft"]["median_high_s"],
            "tokens_per_s": made["tokens_per_s"],
            "prefill_per_s": made["prefill_per_s"],
            "whole_s": one["warm"]["median_s"],
            "calls": one["warm"]["count"],
            "peak_memory_bytes": one["peak_memory_bytes"],
            "bytes": sum(file.stat().st_size for file in files[one["artifact"]].values()),
            "flops": _flops(files[one["artifact"]], prompt, options.new_tokens),
        }
    return {
        "forms": forms,
        "whole_ratio": [compared[name] for name in ("ratio", "low", "high")],
        "verdict": compared["verdict"],
    }


def _flops(files: dict[str, Path], prompt: int, new_tokens: int) -> dict[str, int]:
    """Count the operations up to the first token, and of all that come after it (each step with the cache that it sees)."""
    first, later = 0, 0
    if "encoder" in files:
        first += _cost(files["encoder"], {"batch": 1, "source": prompt})
    steps = range(new_tokens)
    for step in (0, *steps[1 :: max(1, len(steps) // 8)]):  # nearly linear in the length: a few of them tell all
        behind = "encoder" in files
        tokens = prompt if step == 0 and not behind else 1
        past = 0 if step == 0 else step if behind else prompt + step - 1
        axes = {"batch": 1, "tokens": tokens, "past": past, "past + tokens": past + tokens, "kept": 1, "source": prompt}
        spent = _cost(files["decoder"], axes)
        if step == 0:
            first += spent
        else:
            later += spent
    sampled = len(steps[1 :: max(1, len(steps) // 8)])
    return {"first_token": first, "after_it": round(later / max(1, sampled) * (new_tokens - 1))}


def _cost(file: Path, axes: dict[str, int]) -> int:
    """Count one call's operations, axes named as in the graph."""
    import onnx

    shapes = {}
    for value in onnx.load(str(file), load_external_data=False).graph.input:
        dims = value.type.tensor_type.shape.dim
        shapes[value.name] = [axes[dim.dim_param] if dim.dim_param else dim.dim_value for dim in dims]
    return cost(file, shapes).flops


def _begun(out: Path, new_tokens: int) -> dict[str, Any]:
    fresh: dict[str, Any] = {
        "schema": 1,
        "command": shlex.join(["python", "benchmarks/slm/run.py", *sys.argv[1:]]),
        "host": host.describe(),
        "new_tokens": new_tokens,
        "parameters": {},
        "cells": {},
    }
    try:
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return fresh
    return found if found["new_tokens"] == new_tokens else fresh


def table(told: dict[str, Any]) -> str:
    """Return the result as a Markdown table: one row a cell, decoder-only / encoder-decoder."""
    rows = [
        "| size, variant | prompt | first token | lower by | tokens/s | times | operations to the first token | peak memory |"
    ]
    rows.append("|---|---|---|---|---|---|---|---|")
    for key, cell in told["cells"].items():
        size, variant, prompt = key.split("/")
        one, other = (cell["forms"][form] for form in FORMS)
        rows.append(
            f"| {size}, {variant} | {prompt} | {one['ttft_s']:.3f} / {other['ttft_s']:.3f} s | {1 - other['ttft_s'] / one['ttft_s']:.0%} "
            f"| {one['tokens_per_s']:.1f} / {other['tokens_per_s']:.1f} | {other['tokens_per_s'] / one['tokens_per_s']:.2f}x "
            f"| {one['flops']['first_token'] / 1e9:.1f} / {other['flops']['first_token'] / 1e9:.1f} G "
            f"| {one['peak_memory_bytes'] / 2**20:.0f} / {other['peak_memory_bytes'] / 2**20:.0f} MiB |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
