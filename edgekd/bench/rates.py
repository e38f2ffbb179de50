"""What this machine can reach: matrix rate and read bandwidth at a number of threads. numpy and the standard library alone.

python -m edgekd.bench.rates --threads 2          prints what `measure` returns, as JSON

float32_flops          flop/s of NumPy's BLAS, a float32 matrix product of square matrices: the best of the sizes. A
                       multiply-accumulate is 2 flops.
runtime_float32_flops  the same product by ONNX Runtime where it is installed, the right matrix constant as weights are
runtime_int8_ops       the same of 8-bit integers, by ONNX Runtime (MatMulInteger)
bandwidth              [[bytes, bytes/s], ...]: threads that each read their own part of a working set over and over; only
                       bytes read count, as nothing else moves (a maximum of whole numbers, one result a pass)
last_level_bytes       size of the last-level cache, None where the system does not tell

A limit is what was reached, not what is usual: of warm calls the fastest counts, since others on the machine only slow them.
Every thread count gets a process of its own, since a BLAS reads its number of threads when it is loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import EdgekdError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FORMAT = 1
"""Changes when a number gets another meaning: rates of another format are measured again."""

VARIABLES = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
    "GOTO_NUM_THREADS",
)  # fmt: skip
"""What the BLAS libraries of NumPy's builds read their number of threads from."""

SIZES = (256, 384, 512, 1024, 2048)
"""Large ones are the faster on a quiet machine; on a busy one a short call is the likelier to be left alone."""
SMALLEST, LARGEST = 32 << 10, 256 << 20
PATIENCE = 120.0
_FLOAT, _UINT8, _INT8, _INT32 = 1, 2, 3, 6  # ONNX's names of types


def measure(threads: int, seconds: float = 6.0) -> dict[str, Any]:
    """Measure in a fresh process with so many threads, in about `seconds`; see above for what comes back.

    Raises EdgekdError when the process fails, with the end of what it printed.
    """
    root = str(Path(__file__).parents[2])  # a folder, or the file of a zip
    paths = [root] + [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    around = dict(os.environ, PYTHONPATH=os.pathsep.join(paths), **{name: str(threads) for name in VARIABLES})
    command = [sys.executable, "-m", "edgekd.bench.rates", "--threads", str(threads), "--seconds", str(seconds)]
    try:
        done = subprocess.run(command, env=around, capture_output=True, timeout=PATIENCE + 10 * seconds)
    except subprocess.TimeoutExpired:
        raise EdgekdError(f"the machine's rates: not measured within {PATIENCE + 10 * seconds:.0f} s") from None
    try:
        told = json.loads(done.stdout.decode() or "null")
        if done.returncode == 0 and isinstance(told, dict):
            return told
    except ValueError:
        pass
    tail = "\n".join("  " + line for line in done.stderr.decode(errors="replace").strip().splitlines()[-8:])
    raise EdgekdError(f"the machine's rates could not be measured (exit code {done.returncode})\n{tail}")


def measure_here(threads: int, seconds: float = 6.0) -> dict[str, Any]:
    """Measure in this process, whose BLAS got its number of threads when it was loaded."""
    began, load = time.perf_counter(), _load()
    flops, size = matrix_rate(seconds * 0.25)
    curve = bandwidth(threads, seconds * 0.35)
    return {
        "format": FORMAT,
        "threads": threads,
        "float32_flops": flops,
        "float32_size": size,
        "bandwidth": [list(point) for point in curve],
        "last_level_bytes": last_level_bytes(),
        **_runtime_rates(threads, seconds * 0.25),
        "blas": blas(),
        "numpy": np.__version__,
        "load_average": load,
        "seconds": round(time.perf_counter() - began, 3),
    }


def matrix_rate(seconds: float) -> tuple[float, int]:
    """Return (flop/s, n): the best float32 product of n x n matrices over SIZES, in about `seconds`."""
    best = (0.0, 0)
    random = np.random.default_rng(0)
    for n in SIZES:
        # A slow machine leaves the large ones out, once a small one has told how long it would take.
        if best[0] and 5 * 2 * n**3 / best[0] > 2 * seconds:
            break
        a, b = (random.standard_normal((n, n)).astype(np.float32) for _ in "ab")
        out = np.empty((n, n), np.float32)
        taken = _fastest(partial(np.matmul, a, b, out=out), seconds / len(SIZES))
        best = max(best, (2 * n**3 / taken, n))
    return best


def bandwidth(threads: int, seconds: float) -> list[tuple[int, float]]:
    """Return [(working set in bytes, bytes read a second)], powers of two from SMALLEST to LARGEST or a quarter of memory."""
    memory = _memory()
    largest = LARGEST if memory is None else min(LARGEST, max(SMALLEST, memory // 4))
    sizes = [SMALLEST << k for k in range(40) if SMALLEST << k <= largest]
    words = largest // threads // 8
    parts: list[np.ndarray] = []
    # Each thread touches its own part first: on a machine with several memories it lies near.
    _together([lambda: parts.append(np.ones(words, np.int64))] * threads)
    # Which of the two has vector instructions depends on NumPy's version; both read each word once.
    passes = max((np.maximum, np.bitwise_or), key=lambda operation: _streams(operation, parts, 1 << 20, 0.01))
    return [(size, _streams(passes, parts, size, seconds / len(sizes))) for size in sizes]


def _streams(passes: Any, parts: Sequence[np.ndarray], size: int, seconds: float, rounds: int = 5) -> float:
    """Return the bytes a second at which one thread a part reads the first `size` bytes of all parts together."""
    words = size // len(parts) // 8
    views = [part[:words] for part in parts]

    def run(repeats: int) -> float:
        # A first axis of step 0 repeats the pass inside one call of NumPy, which lets go of the interpreter's lock.
        again = [np.lib.stride_tricks.as_strided(v, (repeats, words), (0, 8)) for v in views]
        results = [np.empty(repeats, np.int64) for _ in views]
        calls = [partial(passes.reduce, a, axis=1, out=r) for a, r in zip(again, results)]  # noqa: B905 (Python 3.8)
        return _together(calls)

    run(1)
    repeats = 1
    while True:
        taken = run(repeats)
        if taken > seconds / rounds / 3 or repeats >= 1 << 20:
            break
        repeats *= 4
    repeats = max(1, int(repeats * seconds / rounds / taken))
    taken = min(run(repeats) for _ in range(rounds))
    return repeats * words * 8 * len(parts) / taken


def _together(calls: Sequence[Callable[[], Any]]) -> float:
    """Run the calls at once, each in a thread of its own; return the seconds from the first's beginning to the last's end."""
    ready, times = threading.Barrier(len(calls)), []

    def one(call: Callable[[], Any]) -> None:
        ready.wait()
        began = time.perf_counter()
        call()
        times.append((began, time.perf_counter()))

    others = [threading.Thread(target=one, args=(call,)) for call in calls[1:]]
    for other in others:
        other.start()
    one(calls[0])
    for other in others:
        other.join()
    return max(end for _, end in times) - min(began for began, _ in times)


def _fastest(call: Callable[[], Any], seconds: float) -> float:
    """Return the seconds of the fastest call, warm, of at least 5."""
    call()
    began, samples = time.perf_counter(), []  # type: float, list[float]
    while len(samples) < 5 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        call()
        samples.append(time.perf_counter() - start)
    return min(samples)


def _runtime_rates(threads: int, seconds: float, n: int = 1024) -> dict[str, Any]:
    """Return what ONNX Runtime reaches on products of n x n; without it, None and why."""
    nothing: dict[str, Any] = {"runtime_float32_flops": None, "runtime_int8_ops": None, "runtime": None}
    try:
        import onnxruntime as ort
    except ImportError:
        return {**nothing, "why": "not available here: ONNX Runtime is not installed"}
    random = np.random.default_rng(0)
    weights = random.integers(-64, 64, (n, n))
    found = {**nothing, "runtime": f"onnxruntime {ort.__version__}", "why": None}
    # (kind, operator, left, right, result): which signs the fast int8 kernel takes differs between x86 and ARM
    for kind, operator, left, right, made in (
        ("runtime_float32_flops", "MatMul", _FLOAT, _FLOAT, _FLOAT),
        ("runtime_int8_ops", "MatMulInteger", _UINT8, _INT8, _INT32),
        ("runtime_int8_ops", "MatMulInteger", _INT8, _INT8, _INT32),
    ):
        try:
            options = ort.SessionOptions()
            options.log_severity_level = 3  # errors
            options.intra_op_num_threads = threads
            model = product_model(operator, left, right, made, weights)
            session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            given = {"a": np.abs(weights).astype(_DTYPES[left])}
            taken = _fastest(partial(session.run, None, given), seconds / 3)
        except Exception as error:  # the binding's exceptions share no base
            found["why"] = f"{operator}: {(str(error).splitlines() or [''])[0]}"
            continue
        found[kind] = max(found[kind] or 0.0, 2 * n**3 / taken)
    return found


_DTYPES = {_FLOAT: np.float32, _UINT8: np.uint8, _INT8: np.int8, _INT32: np.int32}


def product_model(operator: str, left: int, right: int, made: int, weights: np.ndarray) -> bytes:
    """Return an ONNX file: y = operator(a, weights), square matrices. Written by hand: a device has no `onnx`."""
    n = len(weights)

    def value(name: str, kind: int) -> bytes:
        shape = _field(1, _field(1, n)) * 2
        return _field(1, name) + _field(2, _field(1, _field(1, kind) + _field(2, shape)))

    node = _field(1, "a") + _field(1, "b") + _field(2, "y") + _field(4, operator)
    tensor = _field(1, n) * 2 + _field(2, right) + _field(8, "b") + _field(9, weights.astype(_DTYPES[right]).tobytes())
    graph = (
        _field(1, node) + _field(2, "product") + _field(5, tensor) + _field(11, value("a", left)) + _field(12, value("y", made))
    )
    return _field(1, 7) + _field(8, _field(2, 13)) + _field(7, graph)


def _field(number: int, value: int | str | bytes) -> bytes:
    """Return one field of a protocol buffer."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    return bytes([*made, value])


def blas() -> str:
    """Name NumPy's BLAS and its version, as far as NumPy tells: "scipy-openblas 0.3.30"."""
    described: Any = np.__config__
    try:
        told = described.show(mode="dicts")["Build Dependencies"]["blas"]
        return f"{told.get('name', 'unknown')} {told.get('version', '')}".strip()
    except (TypeError, KeyError):  # before NumPy 1.26
        pass
    for name in ("openblas64__info", "openblas_info", "blas_mkl_info", "accelerate_info", "blas_opt_info", "blas_info"):
        told = getattr(described, name, None)
        if told and told.get("libraries"):
            return str(told["libraries"][0])
    return "unknown"


def last_level_bytes() -> int | None:
    """Return the size of the cache that is farthest from the core, in bytes; None where the system does not tell."""
    found = []
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            level, size = (index / "level").read_text().strip(), (index / "size").read_text().strip()
            found.append((int(level), int(size[:-1]) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[size[-1]]))
        except (OSError, ValueError, KeyError, IndexError):
            continue
    if found:
        return max(found)[1]
    for name in ("hw.l3cachesize", "hw.perflevel0.l2cachesize", "hw.l2cachesize"):
        try:
            told = subprocess.run(["sysctl", "-n", name], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=2)
        except (OSError, subprocess.SubprocessError):
            return None
        if told.stdout.strip().isdigit() and int(told.stdout):
            return int(told.stdout)
    return None


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _load() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def main() -> int:
    """Measure in this process and print JSON."""
    parser = argparse.ArgumentParser(description="Measure this machine's matrix rate and memory bandwidth; prints JSON.")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=6.0)
    options = parser.parse_args()
    if any(os.environ.get(name) != str(options.threads) for name in VARIABLES):
        told = measure(options.threads, options.seconds)  # started by hand: the BLAS has its threads already
    else:
        told = measure_here(options.threads, options.seconds)
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
