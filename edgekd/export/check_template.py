#!/usr/bin/env python3
"""Check this artifact on the device: are the files whole, are the outputs right, how fast is it?

    python check.py            (needs its runtime and numpy, nothing else)
    python check.py --json     (one JSON object on the standard output: `edgekd verify --import` reads it)

Exit codes: 0 all right; 3 a file or an output is wrong; 4 the runtime, numpy or the device that it is for is not here: nothing
was checked then, and there is no JSON.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SCHEMA = 2
RIGHT, WRONG, MISSING = 0, 3, 4

clock = time.perf_counter  # a part may define its own, where calls are timed elsewhere
about: Any = dict  # and this: what it knows better of the device than can be seen here, key of the JSON -> value

# --- the runtime: assemble() puts one of check_parts/ in the place of these lines
NEEDS = ("numpy",)
"""What is to be installed, as pip calls it, the runtime last."""


def version() -> str:
    """Return the runtime's version. Raises ImportError where it is not installed."""
    return "none"


def open_session(path: Path, threads: int) -> tuple[Any, float]:
    """Load one graph file (threads 0: all cores); return (call, seconds). call: name -> array, to the same of the outputs.

    call.providers, where it has them: execution provider -> nodes. Raises OSError(ENODEV) where the device it is for is not here.
    """
    raise NotImplementedError(f"no runtime opens {path} with {threads} threads")


# --- end of the runtime


def read_record() -> Any:
    """Return what artifact.json says; a sentence instead, when it is missing, damaged or not whole."""
    again = "copy the artifact's folder again"
    try:
        record = json.loads((HERE / "artifact.json").read_text(encoding="utf-8"))
        for graph in record["graphs"].values():
            graph["file"]
        for told in record["files"]:
            told["path"], told["sha256"]
        record["golden"]["file"], record["golden"]["max_error"], record["golden"]["min_sqnr_db"]
        record["target"], record["variant"]
        if record["sha256"] != digest(record):
            return f"artifact.json: changed since it was made (its SHA-256 differs); {again}"
    except OSError as error:
        return f"artifact.json: cannot be read ({error.strerror}); {again}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"artifact.json: damaged ({first_line(error)}); {again}"
    return record


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no more is known'])[0]}"


def digest(record: Any) -> str:
    """Return the SHA-256 of what artifact.json says, however it is written: tolerances, files and graphs are part of it."""
    told = json.dumps({key: value for key, value in record.items() if key != "sha256"}, sort_keys=True)
    return hashlib.sha256(told.encode("utf-8")).hexdigest()


def hashes(paths: Any) -> dict[str, Any]:
    """Return path -> SHA-256 of each file as it lies here; None where it is missing."""
    found: dict[str, Any] = {}
    for name in paths:
        path = HERE / name
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
    return found


def identity(files: dict[str, Any]) -> str:
    """Return one SHA-256 for all files: of the lines "HASH  PATH" in the order of their paths, as sha256sum writes them."""
    lines = "".join(f"{files[path]}  {path}\n" for path in sorted(files))
    return hashlib.sha256(lines.encode("utf-8")).hexdigest()


def damaged_files(record: Any) -> list[str]:
    """Return what is wrong with the files, in words; [] when each has the SHA-256 of artifact.json."""
    found, here = [], hashes(told["path"] for told in record["files"])
    for told in record["files"]:
        if here[told["path"]] is None:
            found.append(f"{told['path']}: missing")
        elif here[told["path"]] != told["sha256"]:
            found.append(f"{told['path']}: damaged or replaced (SHA-256 differs)")
    return found


def difference(np: Any, expected: Any, made: Any) -> tuple[float, float]:
    """Return (largest difference relative to the largest expected value, SQNR in dB; 200 dB stands for no difference)."""
    if made.shape != expected.shape or not np.array_equal(np.isfinite(made), np.isfinite(expected)):
        return float("inf"), float("-inf")
    expected, made = expected.astype(np.float64), made.astype(np.float64)
    noise, signal = float(((made - expected) ** 2).sum()), float((expected**2).sum())
    if noise == 0:
        return 0.0, 200.0
    if signal == 0:
        return float("inf"), float("-inf")
    return float(abs(made - expected).max() / abs(expected).max()), float(min(200, 10 * np.log10(signal / noise)))


def batch_of(graph: Any) -> int:
    """Return the batch that a graph is made for; 0 where it takes any."""
    first = [given["shape"][0] for given in graph.get("inputs", []) if given.get("shape")]
    return first[0] if first and all(isinstance(axis, int) and axis == first[0] for axis in first) else 0


def run(np: Any, call: Any, inputs: Any, batch: int) -> Any:
    """Run all samples; those of a graph made for one batch size in such batches, the last one filled up."""
    count = max(len(values) for values in inputs.values())
    if not batch or count == batch:
        return call(inputs)
    parts = []
    for start in range(0, count, batch):
        chosen = np.minimum(np.arange(start, start + batch), count - 1)
        parts.append(call({name: values[chosen] for name, values in inputs.items()}))
    return {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}


def time_it(np: Any, path: Path, inputs: Any, threads: int, seconds: float) -> dict[str, Any]:
    """Time a graph on one batch: load, first call, warm calls for `seconds` (20 calls at least)."""
    call, load = open_session(path, threads)
    start = clock()
    call(inputs)
    first = clock() - start
    warm: list[float] = []
    begun = time.perf_counter()
    while len(warm) < 20 or (time.perf_counter() - begun < seconds and len(warm) < 100_000):
        start = clock()
        call(inputs)
        warm.append(clock() - start)
    times = {"load_s": load, "first_call_s": first, "warm_count": len(warm), "warm_median_s": float(np.median(warm))}
    if len(warm) >= 100:  # ten samples beyond it: fewer say little about a 90th percentile
        times["warm_p90_s"] = float(np.quantile(warm, 0.9))
    return times


def check(np: Any, record: Any, threads: int, seconds: float, emulator: str) -> dict[str, Any]:
    """Return {problems, graphs: {name: {relative_error, sqnr_db, load_s, ...}}}. An emulator's seconds are not taken."""
    golden, graphs, problems = record["golden"], {}, damaged_files(record)
    stored = {}
    if not problems:
        with np.load(HERE / golden["file"], allow_pickle=False) as file:
            stored = {key: file[key] for key in file.files}
    for name, graph in record["graphs"].items():
        inputs = {key.split("/", 2)[2]: v for key, v in stored.items() if key.startswith(f"{name}/in/")}
        expected = {key.split("/", 2)[2]: v for key, v in stored.items() if key.startswith(f"{name}/out/")}
        if not expected:
            continue
        call, _ = open_session(HERE / graph["file"], threads)
        batch = batch_of(graph)
        made = run(np, call, inputs, batch)
        differences = [difference(np, expected[key], made[key]) for key in expected]
        error, sqnr = max(d[0] for d in differences), min(d[1] for d in differences)
        graphs[name] = {"relative_error": error, "sqnr_db": sqnr}
        if getattr(call, "providers", None):
            graphs[name]["providers"] = call.providers
        if golden["max_error"] is not None and not error <= golden["max_error"]:
            problems.append(
                f"{name}: outputs differ from the golden ones by {error:.2g} of the largest, above {golden['max_error']:.2g}"
            )
        if golden["min_sqnr_db"] is not None and not sqnr >= golden["min_sqnr_db"]:
            problems.append(
                f"{name}: the ratio of the outputs to their error against the golden ones is {sqnr:.1f} dB, below {golden['min_sqnr_db']:g} dB"
                " (int8 sums saturate on x86 without VNNI)"
            )
        if not (emulator or about().get("emulator")):
            one = {key: values[: batch or 1] for key, values in inputs.items()}
            graphs[name].update(time_it(np, HERE / graph["file"], one, threads, seconds))
    return {"right": not problems, "problems": problems, "graphs": graphs}


def cpuinfo() -> dict[str, str]:
    """Return what Linux says of its first processor; {} elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}


def vnni() -> Any:
    """Say whether this x86 sums int8 products in 32 bits; None where that is not known."""
    flags = cpuinfo().get("flags", "").split()
    return any(flag in flags for flag in ("avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8")) if flags else None


def processor() -> str:
    """Return the processor's name, or at least its architecture."""
    told = cpuinfo()
    known = told.get("model name") or told.get("Hardware") or told.get("Model")
    return known or platform.processor() or platform.machine() or "unknown"


def say(found: dict[str, Any]) -> None:
    """Tell people what was found."""
    for name, graph in found["graphs"].items():
        print(f"{name}: {graph['sqnr_db']:.1f} dB, largest error {graph['relative_error']:.2g} of the largest output")
        if "warm_median_s" not in graph:
            continue
        p90 = f", p90 {graph['warm_p90_s'] * 1e3:.3f} ms" if "warm_p90_s" in graph else ""
        print(
            f"  load {graph['load_s'] * 1e3:.1f} ms, first call {graph['first_call_s'] * 1e3:.2f} ms, "
            f"warm median {graph['warm_median_s'] * 1e3:.3f} ms{p90} ({graph['warm_count']} calls)"
        )
    for problem in found["problems"]:
        print(f"WRONG {problem}")
    print(f"{found['artifact']}: {'all right' if found['right'] else 'wrong'}")


def absent(reason: str) -> int:
    """Say what is not here; return the exit code: that says nothing about the artifact."""
    print(reason, file=sys.stderr)
    return MISSING


def main() -> int:
    """Parse the command line, check, say what was found; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--threads", type=int, default=0, help="threads of the runtime (0: all cores)")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long to time warm calls, for each graph")
    parser.add_argument(
        "--emulator", default="", help="what this machine is emulated by: nothing is timed, and the JSON says so"
    )
    options = parser.parse_args()
    if options.json:
        answer = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # runtimes print, natively too: the standard output is the JSON's alone
    try:
        import numpy as np

        versions = {"python": platform.python_version(), "numpy": np.__version__}
        versions[NEEDS[-1]] = version()
    except ImportError as error:
        return absent(f"{error.name} is not installed here: pip install {' '.join(NEEDS)}" if error.name else str(error))
    record = read_record()
    whole = not isinstance(record, str)
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "artifact": f"{record['target']}/{record['variant']}" if whole else f"{HERE.parent.name}/{HERE.name}",
        "files": hashes(["artifact.json", *(told["path"] for told in record["files"])] if whole else ["artifact.json"]),
        "identity": "",
        "right": False,
        "problems": [record],
        "graphs": {},
        "runtime": NEEDS[-1],
        "versions": versions,
        "machine": platform.machine(),
        "processor": processor(),
        "vnni": vnni(),
        "system": platform.platform(),
        "threads": options.threads,
        "emulator": options.emulator or None,
        "simulator": False,
        "seconds_are_the_devices": False,
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    found["identity"] = identity(found["files"])
    if whole:
        try:
            found.update(check(np, record, options.threads, options.seconds, options.emulator))
        except Exception as error:  # a file that the runtime cannot load or run is a finding, not a crash
            if isinstance(error, OSError) and error.errno == errno.ENODEV:
                return absent(str(error.strerror))
            found["problems"] = [*damaged_files(record), first_line(error)]
        known = about()
        found.update(known, emulator=options.emulator or known.get("emulator"))
        found["seconds_are_the_devices"] = not found["emulator"]
    if options.json:
        finite = {"Infinity": None, "-Infinity": None, "NaN": None}
        print(json.dumps(json.loads(json.dumps(found), parse_constant=finite.get)), file=answer, flush=True)
    else:
        say(found)
    return RIGHT if found["right"] else WRONG


if __name__ == "__main__":
    sys.exit(main())
