#!/usr/bin/env python3
"""Check this artifact on the device: are the files whole, are the outputs right, how fast is it?

    python check.py            (needs numpy and onnxruntime, nothing else)
    python check.py --json     (one JSON object on the standard output)

Exit codes: 0 all right; 3 a file or an output is wrong; 4 onnxruntime or numpy is not installed.
"""

import argparse
import hashlib
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RIGHT, WRONG, MISSING = 0, 3, 4


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
    except OSError as error:
        return f"artifact.json: cannot be read ({error.strerror}); {again}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"artifact.json: damaged ({first_line(error)}); {again}"
    return record


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no more is known'])[0]}"


def damaged_files(record: Any) -> list[str]:
    """Return what is wrong with the files, in words; [] when each has the SHA-256 of artifact.json."""
    found = []
    for told in record["files"]:
        path = HERE / told["path"]
        if not path.is_file():
            found.append(f"{told['path']}: missing")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != told["sha256"]:
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


def open_session(ort: Any, path: Path, threads: int) -> tuple[Any, float]:
    """Load one graph file; return (session, seconds)."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    start = time.perf_counter()
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session, time.perf_counter() - start


def time_it(np: Any, ort: Any, path: Path, inputs: Any, threads: int, seconds: float) -> dict[str, Any]:
    """Time a graph on its first golden sample: load, first call, warm calls for `seconds` (20 calls at least)."""
    session, load = open_session(ort, path, threads)
    one = {name: values[:1] for name, values in inputs.items()}
    start = time.perf_counter()
    session.run(None, one)
    first = time.perf_counter() - start
    warm: list[float] = []
    begun = time.perf_counter()
    while len(warm) < 20 or (time.perf_counter() - begun < seconds and len(warm) < 100_000):
        start = time.perf_counter()
        session.run(None, one)
        warm.append(time.perf_counter() - start)
    times = {"load_s": load, "first_call_s": first, "warm_count": len(warm), "warm_median_s": float(np.median(warm))}
    if len(warm) >= 100:  # ten samples beyond it: fewer say little about a 90th percentile
        times["warm_p90_s"] = float(np.quantile(warm, 0.9))
    return times


def check(np: Any, ort: Any, record: Any, threads: int, seconds: float) -> dict[str, Any]:
    """Return the findings: {problems, graphs: {name: {relative_error, sqnr_db, load_s, ...}}, ...}."""
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
        session, _ = open_session(ort, HERE / graph["file"], threads)
        made = dict(zip(expected, session.run(list(expected), inputs)))  # noqa: B905 - `strict` is newer than some devices' Python
        differences = [difference(np, expected[key], made[key]) for key in expected]
        error, sqnr = max(d[0] for d in differences), min(d[1] for d in differences)
        graphs[name] = {"relative_error": error, "sqnr_db": sqnr}
        if golden["max_error"] is not None and not error <= golden["max_error"]:
            problems.append(
                f"{name}: outputs differ from the golden ones by {error:.2g} of the largest, above {golden['max_error']:.2g}"
            )
        if golden["min_sqnr_db"] is not None and not sqnr >= golden["min_sqnr_db"]:
            problems.append(
                f"{name}: the ratio of the outputs to their error against the golden ones is {sqnr:.1f} dB, below {golden['min_sqnr_db']:g} dB"
                " (int8 sums saturate on x86 without VNNI)"
            )
        graphs[name].update(time_it(np, ort, HERE / graph["file"], inputs, threads, seconds))
    return {
        "artifact": f"{record['target']}/{record['variant']}",
        "right": not problems,
        "problems": problems,
        "graphs": graphs,
        "machine": platform.machine(),
        "onnxruntime": ort.__version__,
        "threads": threads,
    }


def main() -> int:
    """Parse the command line, check, say what was found; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--threads", type=int, default=0, help="threads of the runtime (0: all cores)")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long to time warm calls, for each graph")
    options = parser.parse_args()
    try:
        import numpy as np
        import onnxruntime as ort
    except ImportError as error:
        print(f"{error.name} is not installed here: pip install numpy onnxruntime", file=sys.stderr)
        return MISSING
    record = read_record()
    name = HERE.name if isinstance(record, str) else f"{record['target']}/{record['variant']}"
    found: dict[str, Any] = {"artifact": name, "right": False, "problems": [record], "graphs": {}}
    if not isinstance(record, str):
        try:
            found = check(np, ort, record, options.threads, options.seconds)
        except Exception as error:  # a file that the runtime cannot load or run is a finding, not a crash
            found["problems"] = [*damaged_files(record), first_line(error)]
    if options.json:
        finite = {"Infinity": None, "-Infinity": None, "NaN": None}
        print(json.dumps(json.loads(json.dumps(found), parse_constant=finite.get)))
    else:
        for name, graph in found["graphs"].items():
            print(f"{name}: {graph['sqnr_db']:.1f} dB, largest error {graph['relative_error']:.2g} of the largest output")
            p90 = f", p90 {graph['warm_p90_s'] * 1e3:.3f} ms" if "warm_p90_s" in graph else ""
            print(
                f"  load {graph['load_s'] * 1e3:.1f} ms, first call {graph['first_call_s'] * 1e3:.2f} ms, "
                f"warm median {graph['warm_median_s'] * 1e3:.3f} ms{p90} ({graph['warm_count']} calls)"
            )
        for problem in found["problems"]:
            print(f"WRONG {problem}")
        print(f"{found['artifact']}: {'all right' if found['right'] else 'wrong'}")
    return RIGHT if found["right"] else WRONG


if __name__ == "__main__":
    sys.exit(main())
