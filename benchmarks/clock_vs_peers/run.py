"""Time the same ONNX files by edgekd, by optimum-benchmark and by ONNX Runtime's own tools, in turn, in one run.

python benchmarks/clock_vs_peers/run.py --peers-python PEERS/bin/python
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import readings
import table

from edgekd import host
from edgekd.bench import environment
from edgekd.progress import bar, say
from edgekd.run_folder import write_text

HERE = Path(__file__).parent
CELLS = (("nothing",), ("resnet",), ("bert", "bert-int8"), ("vit",))
"""What is timed next to each other; of two files, the ratio is the first's time / the second's."""
TOOLS = ("edgekd", "optimum", "onnxruntime_test", "bert_perf_test", "optimum-process")
PACKAGES = ("onnxruntime", "optimum-benchmark", "optimum", "optimum-onnx", "transformers", "torch", "numpy")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the result file after every repeat, print the table. Returns the exit code."""
    options = _options(arguments)
    threads = (
        host.describe()["physical_cores"] or host.usable_cores()
    )  # onnxruntime_test takes what the runtime takes: no choice
    files = _files(options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    result = _begun(options, files, threads)
    with readings.optimum(options.peers_python) as optimum, bar("clock_vs_peers", options.repeats) as advance:
        optimum.read(files["nothing"], 0.1, threads)  # its first imports are over before anything counts
        result["call_s"] = result["call_s"] or {
            name: optimum.read(file, 0.3, threads)["median_s"] for name, file in files.items()
        }
        advance(len(result["repeats"]))
        while len(result["repeats"]) < options.repeats:
            result["repeats"].append(_repeat(len(result["repeats"]), files, optimum, options, threads, result["call_s"]))
            result["summary"] = table.summary(result)
            write_text(options.out, json.dumps(result, indent=1) + "\n")
            advance(1)
            say(f"repeat {len(result['repeats'])} of {options.repeats}: {result['repeats'][-1]['seconds']:.0f} s")
    print(table.table(result))
    return 0


def _repeat(
    number: int,
    files: dict[str, Path],
    optimum: readings.Optimum,
    options: argparse.Namespace,
    threads: int,
    call: dict[str, float],
) -> dict[str, Any]:
    """Time every file once by every tool; who begins, and which of two files, changes from repeat to repeat."""
    begin, before = time.perf_counter(), environment.now()
    tools = options.tools
    order = [tools[(place + number) % len(tools)] for place in range(len(tools))]
    made: dict[str, dict[str, Any]] = {tool: {} for tool in tools}
    ratio = None
    for cell in CELLS:
        seconds = options.pair_seconds if len(cell) == 2 else options.seconds / 3 if cell == ("nothing",) else options.seconds
        calls = {name: readings.calls_in(seconds, call[name]) for name in cell}
        for tool in order:
            if tool == "edgekd":
                found, compared = readings.by_edgekd({name: files[name] for name in cell}, seconds, threads)
                made[tool] |= found
                ratio = compared or ratio
                continue
            for name in cell[:: -1 if number % 2 else 1]:
                if tool == "optimum":
                    made[tool][name] = optimum.read(files[name], seconds, threads)
                elif tool == "onnxruntime_test":
                    made[tool][name] = readings.by_onnxruntime_test(options.peers_python, files[name], calls[name])
                elif tool == "optimum-process" and name == "resnet":
                    made[tool][name] = optimum.read(files[name], seconds, threads, "process")
                elif tool == "bert_perf_test" and "bert" in name:
                    made[tool][name] = readings.by_bert_perf_test(options.peers_python, files[name], calls[name], threads)
    return {
        "order": order,
        "readings": made,
        "ratio": ratio,
        "load_average": [before["load_average"], environment.now()["load_average"]],
        "seconds": time.perf_counter() - begin,
    }


def _files(options: argparse.Namespace) -> dict[str, Path]:
    """Return name -> ONNX file; make them where one is missing."""
    files = {name: options.models / name / "model.onnx" for cell in CELLS for name in cell}
    if not all(file.is_file() for file in files.values()):
        say(f"making the models in {options.models}")
        command = [options.peers_python, str(HERE / "make_models.py"), str(options.models)]
        subprocess.run(command, check=True, env=readings.OFFLINE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return files


def _begun(options: argparse.Namespace, files: dict[str, Path], threads: int) -> dict[str, Any]:
    """Return what was measured before of the same files with the same settings and versions, or the beginning of a new result."""
    asked = f"import importlib.metadata as m, json; print(json.dumps({{p: m.version(p) for p in {PACKAGES}}}))"
    told = subprocess.run([options.peers_python, "-c", asked], capture_output=True, text=True, check=False)
    if told.returncode:
        raise SystemExit(f"{options.peers_python} has not all of requirements.txt:\n{told.stderr.strip().splitlines()[-1]}")
    here = host.describe()
    fresh: dict[str, Any] = {
        "schema": 1,
        "command": shlex.join(["python", "benchmarks/clock_vs_peers/run.py", *_said(options)]),
        "settings": {
            "seconds": options.seconds,
            "pair_seconds": options.pair_seconds,
            "tools": options.tools,
            "threads": threads,
            "batch_size": 1,
        },
        "files": {name: {"sha256": _digest(file), "bytes": file.stat().st_size} for name, file in files.items()},
        "peers": json.loads(told.stdout),
        "host": {**here, "virtual_machine": "hypervisor" in host.cpu_flags()},
        "call_s": {},
        "repeats": [],
        "summary": {},
    }
    if fresh["peers"]["onnxruntime"] != here["packages"].get("onnxruntime"):
        raise SystemExit(
            f"onnxruntime is {fresh['peers']['onnxruntime']} there and {here['packages'].get('onnxruntime')} here: install the same"
        )
    try:
        found: dict[str, Any] = json.loads(options.out.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return fresh
    if all(found.get(key) == fresh[key] for key in ("settings", "files", "peers")):
        say(f"going on after {len(found['repeats'])} repeats in {options.out.name}")
        return found
    raise SystemExit(f"{options.out} was measured with other settings, files or versions: remove it, or give another --out")


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--peers-python", required=True, metavar="PATH", help="of an environment with requirements.txt, see README.md"
    )
    parser.add_argument("--repeats", type=int, default=10, help="of every reading (default 10; intervals need 6)")
    parser.add_argument("--seconds", type=float, default=2.5, help="that a tool gets for a file in a repeat (default 2.5)")
    parser.add_argument(
        "--pair-seconds", type=float, default=15.0, help="the same for each of the two files whose ratio is asked (default 15)"
    )
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), choices=TOOLS, metavar="TOOL", help=f"of {', '.join(TOOLS)}")
    parser.add_argument(
        "--models", type=Path, default=HERE.parents[1] / "build" / "clock_vs_peers", metavar="FOLDER", help="made where missing"
    )
    parser.add_argument(
        "--out", type=Path, default=HERE / "results" / "measured.json", metavar="FILE", help="goes on from what it has"
    )
    options = parser.parse_args(arguments)
    if options.repeats < 1 or min(options.seconds, options.pair_seconds) <= 0:
        parser.error("--repeats, --seconds and --pair-seconds must be positive")
    if "edgekd" not in options.tools:
        parser.error("--tools: edgekd is what the others are compared with")
    return options


def _said(options: argparse.Namespace) -> list[str]:
    said = ["--peers-python", "PEERS/bin/python", "--repeats", str(options.repeats), "--seconds", f"{options.seconds:g}"]
    said += ["--pair-seconds", f"{options.pair_seconds:g}"]
    return said if options.tools == list(TOOLS) else [*said, "--tools", *options.tools]


if __name__ == "__main__":
    sys.exit(main())
