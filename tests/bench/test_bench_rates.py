"""The machine's rates: what is measured, by which operation, with how many threads, and that it can travel."""

import ast
import json
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from patience import patient

from edgekd.bench import rates
from edgekd.errors import EdgekdError


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch):
    """Measure small matrices and working sets."""
    monkeypatch.setattr(rates, "SIZES", (64, 128))
    monkeypatch.setattr(rates, "LARGEST", 1 << 20)


def test_what_comes_back(quick: None):
    told = json.loads(json.dumps(rates.measure_here(1, 0.3)))
    assert (told["format"], told["threads"], told["numpy"]) == (rates.FORMAT, 1, np.__version__)
    assert [size for size, _ in told["bandwidth"]] == [2**power for power in range(15, 21)]
    assert all(speed > 1e8 for _, speed in told["bandwidth"])
    assert told["float32_size"] in rates.SIZES
    # any machine that runs this does more than 0.1 and less than 100,000 GFLOP/s
    for name in ("float32_flops", "runtime_float32_flops", "runtime_int8_ops"):
        assert 1e8 < told[name] < 1e14
    assert told["runtime"].startswith("onnxruntime ")
    assert told["why"] is None
    assert told["seconds"] < 20


def test_the_matrix_rate_is_that_of_the_product(monkeypatch: pytest.MonkeyPatch):
    """A clock that says each call took 1 ms gives 2 n^3 flops a ms, and the larger matrix is the better."""
    monkeypatch.setattr(rates, "SIZES", (64, 128))
    monkeypatch.setattr(rates, "_fastest", lambda call, seconds: call() is None or 1e-3)
    assert rates.matrix_rate(1.0) == (2 * 128**3 / 1e-3, 128)


def test_the_fastest_call_counts(monkeypatch: pytest.MonkeyPatch):
    """One that others slow says nothing about what the machine can do. The first is warm-up, however fast."""
    lasts, now = iter([0.5, 3.0, 9.0, 2.0, 4.0, 7.0, 1.0]), [0.0]

    def call() -> None:
        now[0] += next(lasts)

    monkeypatch.setattr(rates.time, "perf_counter", lambda: now[0])
    assert rates._fastest(call, 1.0) == 2.0
    assert next(lasts) == 1.0  # five calls were enough


def test_slow_machines_leave_large_matrices_out(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def slow(call, seconds):
        asked.append(len(call.args[0]))
        return 1.0

    monkeypatch.setattr(rates, "_fastest", slow)
    assert rates.matrix_rate(1.0) == (2 * 256**3, 256)
    assert asked == [256]


@pytest.mark.parametrize("threads", [1, 3])
def test_each_pass_reads_every_word_of_every_part_once(threads: int, monkeypatch: pytest.MonkeyPatch):
    """By a clock on which a pass of all threads takes 1 ms, and a stand-in that notes what NumPy's operation is given."""
    parts, seen = [np.arange(4096, dtype=np.int64) for _ in range(threads)], []

    class Passes:
        @staticmethod
        def reduce(view: np.ndarray, axis: int, out: np.ndarray) -> None:
            seen.append(view)
            np.maximum.reduce(view, axis=axis, out=out)
            assert (out == 2047).all()

    def together(calls: list) -> float:
        for call in calls:
            call()
        return 1e-3 * len(seen[-1])

    monkeypatch.setattr(rates, "_together", together)
    assert rates._streams(Passes, parts, threads * 16384, 0.05) == pytest.approx(threads * 16384 / 1e-3)
    assert {view.strides for view in seen} == {(0, 8)}
    assert {view.shape[1] for view in seen} == {2048}
    assert {view.__array_interface__["data"][0] for view in seen} == {
        part.ctypes.data for part in parts
    }  # nobody reads another's
    assert len(seen[-1]) == 10  # a fifth of 50 ms


def test_the_parts_are_read_at_the_same_time():
    """Threads that wait for each other inside their work come through only if both are at work at once."""
    meet = threading.Barrier(2, timeout=10)
    assert rates._together([meet.wait, meet.wait]) < 10


@patient
def test_numpy_lets_go_of_the_lock_while_it_reads():
    """Else two threads would take turns, and the curve would be one thread's: a pass of some 50 ms must not stop the others."""
    words = np.ones(1 << 17, np.int64)
    again, out = np.lib.stride_tricks.as_strided(words, (1000, words.size), (0, 8)), np.empty(1000, np.int64)
    ended, counted = threading.Event(), []

    def passes():
        np.maximum.reduce(again, axis=1, out=out)
        ended.set()

    other = threading.Thread(target=passes)
    other.start()
    while not ended.wait(0.001):
        counted.append(1)
    other.join()
    assert len(counted) >= 3


@pytest.mark.parametrize("kind", ["float", "integer"])
def test_the_file_written_by_hand_is_onnx_and_multiplies(kind: str):
    random = np.random.default_rng(0)
    weights = random.integers(-5, 5, (8, 8))
    left, right, made = (1, 1, 1) if kind == "float" else (2, 3, 6)
    operator = "MatMul" if kind == "float" else "MatMulInteger"
    model = onnx.load_from_string(rates.product_model(operator, left, right, made, weights))
    onnx.checker.check_model(model, full_check=True)
    a = random.integers(0, 9, (8, 8)).astype(np.float32 if kind == "float" else np.uint8)
    (y,) = ReferenceEvaluator(model).run(None, {"a": a})
    np.testing.assert_array_equal(y, a.astype(int) @ weights)


def test_the_number_of_threads_reaches_a_fresh_process(monkeypatch: pytest.MonkeyPatch):
    seen = {}

    def run(command, env, **more):
        seen.update(command=command, env=env)
        return subprocess.CompletedProcess(command, 0, b'{"threads": 3}', b"")

    monkeypatch.setattr(rates.subprocess, "run", run)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert rates.measure(3, 1.0) == {"threads": 3}
    assert {seen["env"][name] for name in rates.VARIABLES} == {"3"}
    assert seen["command"][:3] == [sys.executable, "-m", "edgekd.bench.rates"]


def test_numpys_blas_takes_the_number_of_threads(quick: None):
    """Seen from outside: what a library reports that looks into the loaded BLAS."""
    pytest.importorskip("threadpoolctl")
    code = "import numpy, threadpoolctl; print([t['num_threads'] for t in threadpoolctl.threadpool_info() if t['user_api'] == 'blas'])"
    for threads in (1, 2):
        around = {**os.environ, **{name: str(threads) for name in rates.VARIABLES}}
        told = subprocess.run([sys.executable, "-c", code], env=around, capture_output=True, text=True, check=True).stdout
        assert set(json.loads(told)) == {threads}


def test_what_goes_wrong_in_the_process_is_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        rates.subprocess, "run", lambda command, **more: subprocess.CompletedProcess(command, 1, b"", b"no memory\nleft")
    )
    with pytest.raises(EdgekdError, match=r"could not be measured \(exit code 1\)\n  no memory\n  left"):
        rates.measure(1)


def test_it_measures_from_inside_a_zip(tmp_path: Path):
    """As on a device: a file on sys.path that holds these modules alone."""
    source = Path(rates.__file__).parents[1]
    kit = tmp_path / "kit.pyz"
    with zipfile.ZipFile(kit, "w") as packed:
        for name in ("edgekd/__init__.py", "edgekd/bench/__init__.py"):
            packed.writestr(name, "")
        packed.write(source / "errors.py", "edgekd/errors.py")
        packed.write(source / "bench" / "rates.py", "edgekd/bench/rates.py")
    code = (
        f"import sys, json; sys.path.insert(0, {str(kit)!r}); from edgekd.bench import rates; "
        "assert '.pyz' in rates.__file__; print(json.dumps(rates.measure(2, 0.2)))"
    )
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    told = subprocess.run([sys.executable, "-c", code], env=alone, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["threads"] == 2


def test_it_is_written_for_python_3_8_and_numpy_alone():
    tree = ast.parse(Path(rates.__file__).read_text(), feature_version=(3, 8))
    roots = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add("." * node.level + (node.module or ""))
    own = {root for root in roots if root.partition(".")[0] not in sys.stdlib_module_names}
    assert own == {"numpy", "..errors", "onnxruntime"}  # the last where it is installed
