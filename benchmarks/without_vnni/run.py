"""Is int8 faster than float32 on a processor without VNNI? `edgekd bench` asked with the kernels that ONNX Runtime has for one.

python benchmarks/without_vnni/run.py      # Linux on x86-64; namespaces of mounts must be allowed (root, or unprivileged ones)

Networks and quantization are those of benchmarks/int8_speed, and beside them what onnxruntime.quantization makes by itself. Writes
results/CPU.json network by network, keeps what it has of others there, and prints the verdicts.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import kernels
import numpy as np

from edgekd import host
from edgekd.run_folder import write_text

HERE = Path(__file__).parent
NETWORKS = ("mobilenetv3_small_100", "resnet18")
KERNELS = ("all", "no-vnni", "avx2")
"""`all`: ONNX Runtime as installed; the others: see kernels.FLAGS."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Make what is missing, measure, write the result file. Returns the exit code."""
    options = _options(arguments)
    lacking = sorted(kernels.NOT_COVERED & host.cpu_flags())
    if lacking or not host.vnni():
        raise SystemExit(f"this processor {'has ' + lacking[0] if lacking else 'has no VNNI anyway'}: nothing to compare here")
    out = HERE / "results" / f"{re.sub(r'[^A-Za-z0-9]+', '-', host.cpu_model()).strip('-')}.json"
    before = json.loads(out.read_text()) if out.is_file() else {}
    told: dict[str, Any] = {
        "schema": 1,
        "command": shlex.join(["python", "benchmarks/without_vnni/run.py", *sys.argv[1:]]),
        "host": host.describe(),
        "threads": options.threads,
        "kernels": {},
        "networks": before.get("networks", {}),
    }
    for name in options.networks:
        told["networks"][name] = {"files": {}, "seen": {}}
        _measure(name, _files(name, options.work / name), options, told)
        write_text(out, json.dumps(told, indent=1) + "\n")
    return 0


def _measure(name: str, files: dict[str, Path], options: argparse.Namespace, told: dict[str, Any]) -> None:
    """Time a network's files with each kind of kernels; add what was seen to `told`."""
    mine = told["networks"][name]
    mine["files"] = {kind: file.stat().st_size for kind, file in files.items()}
    outputs: dict[str, dict[str, np.ndarray]] = {}
    for kind in KERNELS:
        with TemporaryDirectory() as scratch, _as(kind) as (prefix, environment, changed):
            pictures = options.work / name / "pictures.npy"
            asked = [f"{file}={scratch}/{label}.npy" for label, file in files.items()]
            probe = _run([*prefix, sys.executable, str(HERE / "probe.py"), str(pictures), *asked], environment)
            seen = json.loads(probe.splitlines()[-1])
            told["kernels"].setdefault(kind, {"changed": changed, **seen})
            if seen["vnni"] != (kind == "all"):
                raise SystemExit(
                    f"edgekd was told of another processor than meant: vnni is {seen['vnni']} with kernels `{kind}`"
                )
            outputs[kind] = {label: np.load(f"{scratch}/{label}.npy") for label in files}
            command = [*prefix, sys.executable, "-m", "edgekd", "bench", *map(str, files.values())]
            command += ["--threads", str(options.threads), "-o", f"{scratch}/bench", "--json"]
            bench = json.loads(_run(command, environment))
        mine["seen"][kind] = {
            "vnni": bench["devices"]["local"]["host"]["vnni"],
            "median_s": {one["artifact"]: one["warm"]["median_s"] for one in bench["measurements"]},
            "comparisons": [
                {key: one[key] for key in ("candidate", "ratio", "low", "high", "verdict", "why")}
                for one in bench["comparisons"]
            ],
            "sqnr_db": {label: _sqnr(outputs["all"]["fp32"], made) for label, made in outputs[kind].items() if label != "fp32"},
        }
        for one in bench["comparisons"]:
            print(f"{name}, {kind}: {one['verdict']}" + (f": {one['why']}" if one["why"] else ""), flush=True)


@contextmanager
def _as(kind: str) -> Iterator[tuple[list[str], dict[str, str], list[str]]]:
    """Give how to start a process that has these kernels: the command's beginning, its environment, and the places that were changed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])}
    if kind == "all":
        yield [], environment, []
        return
    with TemporaryDirectory() as scratch:
        changed = kernels.copy(kind, Path(scratch))
        environment["PYTHONPATH"] = f"{scratch}{os.pathsep}{environment['PYTHONPATH']}"
        flags = Path(scratch) / "cpuinfo"
        flags.write_text(kernels.cpuinfo_without(kernels.FLAGS[kind], Path("/proc/cpuinfo").read_text()))
        mounts = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
        mounted = f'mount --bind {shlex.quote(str(flags))} /proc/cpuinfo && exec "$@"'
        yield [*mounts, "sh", "-c", mounted, "sh"], environment, changed


def _files(name: str, folder: Path) -> dict[str, Path]:
    """Return label -> ONNX file, made where missing: full precision, edgekd's int8 with and without VNNI, ONNX Runtime's own int8."""
    labels = ("fp32", "int8", "int8-7bit", "ort-s8s8", "ort-u8s8-7bit")
    files = {label: folder / f"{label}.onnx" for label in labels}
    if all(file.is_file() for file in [*files.values(), folder / "pictures.npy"]):
        return files
    int8_speed = _module("int8_speed", HERE.parent / "int8_speed" / "run.py")
    network = int8_speed._networks().Network(name, folder / "made")
    made = int8_speed._files(network, folder / "made")
    for label, kind in zip(labels, ("fp32", "int8", "int8 of 7 bits"), strict=False):
        shutil.copyfile(made[kind], files[label])
    np.save(folder / "pictures.npy", network.pictures[:4])
    _by_onnxruntime(files, network.pictures)
    return files


def _by_onnxruntime(files: dict[str, Path], pictures: np.ndarray) -> None:
    """Quantize as a user without edgekd would: onnxruntime.quantization, QDQ, per channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Pictures(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left: Iterator[np.ndarray] = iter(pictures[:32].reshape(4, 8, *pictures.shape[1:]))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.left, None)
            return None if batch is None else {"image": batch}

    prepared = files["fp32"].with_name("prepared.onnx")
    quant_pre_process(str(files["fp32"]), str(prepared), skip_symbolic_shape=True)
    for label, activations, narrow in (("ort-s8s8", QuantType.QInt8, False), ("ort-u8s8-7bit", QuantType.QUInt8, True)):
        quantize_static(
            str(prepared), str(files[label]), Pictures(), quant_format=QuantFormat.QDQ, per_channel=True, reduce_range=narrow,
            activation_type=activations, weight_type=QuantType.QInt8, op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        )  # fmt: skip
    prepared.unlink()


def _sqnr(reference: np.ndarray, made: np.ndarray) -> float:
    error = float(((reference - made) ** 2).sum())
    return round(10 * float(np.log10((reference**2).sum() / error)), 1)


def _run(command: Sequence[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"failed: {shlex.join(command)}\n{done.stderr[-2000:]}")
    return done.stdout


def _module(name: str, file: Path) -> Any:
    """Import a file under a name of its own: several benchmarks have a run.py."""
    sys.path.insert(0, str(file.parent))
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS, metavar="NAME")
    parser.add_argument("--threads", type=int, default=1, help="of the runtime (default 1)")
    parser.add_argument("--work", type=Path, default=Path("runs/without_vnni"), help="where the ONNX files are kept")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
