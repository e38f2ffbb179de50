"""Our exported decoder beside onnxruntime-genai's, on the same weights: time to the first token, time per output token, in turn.

python benchmarks/slm/genai_peer.py --peers-python PEERS/bin/python [--sizes 30M] [--variants fp32 w4 w4-a8] [--prompts 128 1024]

PEERS: an environment with requirements-peer.txt. Each launch starts both in processes of their own; they then generate in turn from the same
prompt's ids, A B A B in one launch and B A B A in the next, greedily, the same number of tokens on as many threads. Goes on where it
was stopped. Writes results/genai-CPU.json after every cell and prints a table.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import make_models
import numpy as np
from plans import SIZES, VOCABULARY

from edgekd import host
from edgekd.bench import environment, statistics
from edgekd.progress import bar, say
from edgekd.run_folder import write_text

HERE = Path(__file__).parent
FORM = "decoder-only"
BUILT: dict[str, list[str]] = {
    "fp32": ["-p", "fp32"],
    "w4": ["-p", "int4", "int4_accuracy_level=1"],
    "w4-a8": ["-p", "int4", "int4_accuracy_level=4"],
}
"""Variant -> what the model builder is told. Its four bits are symmetric, round to nearest in blocks of 32, as ours are."""
SIDES = ("genai", "edgekd")
"""The first is the control: a ratio above 1 says how much faster the other is."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every cell that is missing, write the result file, print the table. Returns the exit code."""
    options = _options(arguments)
    out = options.out or HERE / "results" / f"genai-{re.sub(r'[^A-Za-z0-9]+', '-', host.cpu_model()).strip('-')}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    told = _begun(out, options)
    cells = [(size, variant, prompt) for size in options.sizes for variant in options.variants for prompt in options.prompts]
    with bar("genai", len(cells)) as advance:
        for size, variant, prompt in cells:
            key = f"{size}/{variant}/{prompt}"
            if key not in told["cells"]:
                told["cells"][key] = _cell(options, size, variant, prompt)
                write_text(out, json.dumps(told, indent=1) + "\n")
                for what, found in told["cells"][key]["verdicts"].items():
                    say(f"{key}, {what}: {found}")
            advance(1, key)
    print(table(told))
    return 0


def _cell(options: argparse.Namespace, size: str, variant: str, prompt: int) -> dict[str, Any]:
    """Time both sides in turn, over several launches; return their numbers, the ratios, and how often their tokens agree."""
    ids = np.random.default_rng(0).integers(3, VOCABULARY, prompt).tolist()
    paths = {
        "edgekd": make_models.files(options.models, size, FORM, variant)["decoder"],
        "genai": _built(options, size, variant),
    }
    pythons = {"edgekd": sys.executable, "genai": options.peers_python}
    raw: dict[str, dict[str, list[Any]]] = {side: {"ttft_s": [], "per_token_s": [], "ids": []} for side in SIDES}
    launches: list[int] = []
    before = environment.now()
    for launch in range(options.launches):
        with _side("genai", pythons["genai"]) as genai, _side("edgekd", pythons["edgekd"]) as ours:
            sides = {"genai": genai, "edgekd": ours}
            for name, side in sides.items():
                versions = _asked(
                    side, do="load", path=str(paths[name]), threads=options.threads, prompt=ids, new_tokens=options.new_tokens
                )["versions"]
                raw[name]["versions"] = versions
                _asked(side, do="call")  # not counted
            for _ in range(options.calls):
                launches.append(launch)
                for name in SIDES if launch % 2 == 0 else SIDES[::-1]:
                    for what, value in _asked(sides[name], do="call").items():
                        raw[name][what].append(value)
    return _summary(raw, launches, [before["load_average"], environment.now()["load_average"]])


def _summary(raw: dict[str, dict[str, Any]], launches: Sequence[int], load: list[Any]) -> dict[str, Any]:
    """Return sides, ratios [value, low, high] and verdicts of "ttft" and "per_token", agreement of tokens, raw samples."""
    samples = {
        name: {"ttft": np.array(one["ttft_s"])[:, None], "per_token": np.array(one["per_token_s"])} for name, one in raw.items()
    }
    sides: dict[str, Any] = {}
    for name, of in samples.items():
        sides[name] = {what: statistics.summary(values, launches) for what, values in of.items()}
        sides[name] |= {
            "tokens_per_s": of["per_token"].size / float(of["per_token"].sum()),
            "versions": raw[name]["versions"],
            "raw": {"ttft_s": raw[name]["ttft_s"], "per_token_s": [round(float(np.median(row)), 7) for row in of["per_token"]]},
        }
    ratios = {
        what: statistics.ratio(*(samples[name][what] for name in SIDES), between=0, launches=launches)
        for what in ("ttft", "per_token")
    }
    tokens = [np.array(raw[name]["ids"]) for name in SIDES]
    return {
        "sides": sides,
        "ratios": {what: [one.value, one.low, one.high] for what, one in ratios.items()},
        "verdicts": {what: statistics.verdict(one, *SIDES[::-1]) for what, one in ratios.items()},
        "same_tokens": float((tokens[0] == tokens[1]).mean()),
        "load_average": load,
    }


def _built(options: argparse.Namespace, size: str, variant: str) -> Path:
    """Return the folder that onnxruntime-genai runs; let its model builder write it where it is missing."""
    into = options.models / size / "genai" / variant
    if (into / "genai_config.json").is_file():
        return into
    plain = options.models / size / "genai" / "transformers"
    if not (plain / "tokenizer.json").is_file():
        _saved(size, plain)
    shutil.rmtree(into, ignore_errors=True)
    kind, precision, *extra = BUILT[variant]
    command = [
        options.peers_python,
        "-m",
        "onnxruntime_genai.models.builder",
        "-i",
        str(plain),
        "-o",
        str(into),
        kind,
        precision,
    ]
    command += ["-e", "cpu", "-c", str(options.models / size / "genai" / "cache")]
    command += ["--extra_options", "prune_lm_head=true", *extra]
    say(f"{size}, {variant}: onnxruntime-genai's model builder")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not (into / "genai_config.json").is_file():
        raise SystemExit(f"failed: {shlex.join(command)}\n{(done.stdout + done.stderr)[-3000:]}")
    return into


def _saved(size: str, folder: Path) -> None:
    """Write the network as transformers keeps it, with a tokenizer that the builder copies and nobody uses."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    make_models.seeded(size, FORM).save_pretrained(folder)
    words = {f"t{number}": number for number in range(VOCABULARY)}
    made = Tokenizer(models.WordLevel(words, unk_token="t0"))
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="t2", bos_token="t1", unk_token="t0").save_pretrained(folder)


@contextmanager
def _side(name: str, python: str) -> Iterator[subprocess.Popen[str]]:
    """Start one side; end it afterwards."""
    pipe = subprocess.PIPE
    command = [python, str(HERE / "one_side.py"), name]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _asked(side: subprocess.Popen[str], **question: Any) -> dict[str, Any]:
    """Ask one side and wait for its answer. Raises SystemExit where it fails."""
    assert side.stdin is not None
    assert side.stdout is not None
    side.stdin.write(json.dumps(question) + "\n")
    side.stdin.flush()
    answer: dict[str, Any] = json.loads(side.stdout.readline() or '{"error": "the process ended without an answer"}')
    if "error" in answer:
        raise SystemExit(f"{shlex.join(map(str, side.args))}: {answer['error']}")  # type: ignore[arg-type]
    return answer


def _begun(out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return what was measured before with the same settings, or the beginning of a new result."""
    settings = {name: getattr(options, name) for name in ("threads", "new_tokens", "launches", "calls")}
    said = ["--peers-python", "PEERS/bin/python", "--sizes", *options.sizes, "--variants", *options.variants]
    said += [
        "--prompts",
        *map(str, options.prompts),
        *(f"--{name.replace('_', '-')}={value}" for name, value in settings.items()),
    ]
    fresh: dict[str, Any] = {
        "schema": 1,
        "command": shlex.join(["python", "benchmarks/slm/genai_peer.py", *said]),
        "settings": settings,
        "host": host.describe(),
        "cells": {},
    }
    try:
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return fresh
    return found if found["settings"] == settings else fresh


def table(told: dict[str, Any]) -> str:
    """Return the result as a Markdown table: one row a cell, theirs / ours."""
    rows = ["| size, variant | prompt | first token | ours is | time per output token | ours is | tokens that agree |"]
    rows.append("|---|---|---|---|---|---|---|")
    for key, cell in told["cells"].items():
        size, variant, prompt = key.split("/")
        theirs, ours = (cell["sides"][side] for side in SIDES)
        parts = [f"{size}, {variant}", prompt]
        for what in ("ttft", "per_token"):
            value, low, high = cell["ratios"][what]
            parts.append(f"{theirs[what]['median_s'] * 1e3:.2f} / {ours[what]['median_s'] * 1e3:.2f} ms")
            parts.append(f"{value:.2f}x ({low:.2f}-{high:.2f})")
        rows.append(f"| {' | '.join([*parts, format(cell['same_tokens'], '.0%')])} |")
    return "\n".join(rows)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers-python", required=True, metavar="PATH", help="of an environment with requirements-peer.txt")
    parser.add_argument("--sizes", nargs="+", default=["30M"], choices=SIZES)
    parser.add_argument("--variants", nargs="+", default=list(BUILT), choices=BUILT)
    parser.add_argument("--prompts", nargs="+", type=int, default=[128, 1024], metavar="TOKENS")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--launches", type=int, default=5, help="each with processes of their own; intervals need 3")
    parser.add_argument("--calls", type=int, default=3, help="of each side in a launch that count")
    parser.add_argument("--threads", type=int, default=host.describe()["physical_cores"] or host.usable_cores())
    parser.add_argument("--models", type=Path, default=Path("build/slm"), help="where the models are kept")
    parser.add_argument("--out", type=Path, default=None, help="goes on from what it has")
    options = parser.parse_args(arguments)
    if min(options.launches, options.calls, options.threads, *options.prompts) < 1 or options.new_tokens < 2:
        parser.error("launches, calls, threads and prompts are 1 at least, new tokens 2")
    return options


if __name__ == "__main__":
    sys.exit(main())
