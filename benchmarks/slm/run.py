"""Encoder-decoder against decoder-only, equal in parameters: first-token latency, tokens a second, memory, operations.

python benchmarks/slm/run.py [--sizes 30M 100M 330M] [--variants fp32 int8 w4-a8] [--prompts 128 512 1024 2048 4096] [--threads N]

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
from plans import SIZES, cache_bytes, first_token, step

from edgekd import bench, host
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
        "--max-seconds",
        type=float,
        default=120.0,
        help="of each network, for one cell: 5 calls, and fewer where they do not fit in (default: 120)",
    )
    parser.add_argument("--threads", type=int, default=None, help="of the runtime; every core when absent")
    parser.add_argument("--models", type=Path, default=Path("build/slm"), help="where the ONNX files are kept")
    parser.add_argument("--out", type=Path, default=None, help="goes on from what it has")
    options = parser.parse_args(arguments)
    (HERE / "results").mkdir(exist_ok=True)
    out = options.out or HERE / "results" / f"{re.sub(r'[^A-Za-z0-9]+', '-', host.cpu_model()).strip('-')}.json"
    told = _begun(out, options.new_tokens, options.threads)
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
        new_tokens=options.new_tokens, roofline=False, threads=options.threads,
    )  # fmt: skip
    folder = options.models / "samples" / f"{size}-{variant}-{prompt}"
    measurements, (compared,) = bench.measure(things, settings, folder)
    forms = {}
    for one in measurements:
        made, plan = one["generation"], SIZES[size][one["artifact"]]
        forms[one["artifact"]] = {
            "ttft_s": made["ttft"]["median_s"],
            "ttft_low_s": made["ttft"]["median_low_s"],
            "ttft_high_s": made["ttft"]["median_high_s"],
            "token_s": made["per_token"]["median_s"],
            "tokens_per_s": made["tokens_per_s"],
            "prefill_per_s": made["prefill_per_s"],
            "whole_s": one["warm"]["median_s"],
            "calls": one["warm"]["count"],
            "peak_memory_bytes": one["peak_memory_bytes"],
            "bytes": sum(file.stat().st_size for file in files[one["artifact"]].values()),
            "first_token": {"flops": first_token(plan, prompt)},
            "step": {
                "flops": step(plan, prompt, options.new_tokens // 2),
                "weights_bytes": files[one["artifact"]]["decoder"].stat().st_size,
                "cache_bytes": cache_bytes(plan, prompt, options.new_tokens // 2),
            },
        }
    return {
        "forms": forms,
        "whole_ratio": [compared[name] for name in ("ratio", "low", "high")],
        "verdict": compared["verdict"],
    }


def _begun(out: Path, new_tokens: int, threads: int | None) -> dict[str, Any]:
    fresh: dict[str, Any] = {
        "schema": 1,
        "command": shlex.join(["python", "benchmarks/slm/run.py", *sys.argv[1:]]),
        "host": host.describe(),
        "new_tokens": new_tokens,
        "threads": threads,
        "parameters": {},
        "cells": {},
    }
    try:
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return fresh
    return found if (found["new_tokens"], found["threads"]) == (new_tokens, threads) else fresh


def table(told: dict[str, Any]) -> str:
    """Return the result as a Markdown table: one row a cell, decoder-only / encoder-decoder; what counting alone would give in brackets."""
    rows = [
        "| size, variant | prompt | first token | sooner by | tokens/s | times | G operations to the first token | MB read for a token "
        "| peak memory | calls |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    order = list(SIZES), list(make_models.VARIANTS)
    places = {key: key.split("/") for key in told["cells"]}
    for key in sorted(
        places, key=lambda key: (order[0].index(places[key][0]), order[1].index(places[key][1]), int(places[key][2]))
    ):
        size, variant, prompt = places[key]
        one, other = (told["cells"][key]["forms"][form] for form in FORMS)
        work = [form["first_token"]["flops"] / 1e9 for form in (one, other)]
        read = [(form["step"]["weights_bytes"] + form["step"]["cache_bytes"]) / 1e6 for form in (one, other)]
        memory = [form["peak_memory_bytes"] / 2**20 for form in (one, other)]
        rows.append(
            f"| {size}, {variant} | {prompt} | {one['ttft_s']:.3f} / {other['ttft_s']:.3f} s "
            f"| {1 - other['ttft_s'] / one['ttft_s']:.0%} ({1 - work[1] / work[0]:.0%}) "
            f"| {1 / one['token_s']:.1f} / {1 / other['token_s']:.1f} | {one['token_s'] / other['token_s']:.2f} ({read[0] / read[1]:.2f}) "
            f"| {work[0]:.1f} / {work[1]:.1f} | {read[0]:.0f} / {read[1]:.0f} | {memory[0]:.0f} / {memory[1]:.0f} MiB "
            f"| {one['calls']} / {other['calls']} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
