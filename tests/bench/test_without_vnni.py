"""benchmarks/without_vnni: the copy of ONNX Runtime really computes as a processor without VNNI does."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from edgekd import host

FOLDER = Path(__file__).parents[2] / "benchmarks" / "without_vnni"


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    spec = importlib.util.spec_from_file_location("without_vnni_kernels", FOLDER / "kernels.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_flags_are_cut_out_of_every_core(kernels: ModuleType):
    cores = "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_vnni rdpid\nbugs\t\t: avx512_vnni\n\n"
    cut = kernels.cpuinfo_without({"avx512_vnni"}, 2 * cores)
    assert cut == 2 * "processor\t: 0\nflags\t\t: fpu avx2 avx512f rdpid\nbugs\t\t: avx512_vnni\n\n"


@pytest.mark.parametrize("kind", ["no-vnni", "avx2"])
def test_sums_of_pairs_saturate_at_16_bits(kernels: ModuleType, kind: str, tmp_path: Path):
    if platform.machine() != "x86_64" or not host.vnni() or kernels.NOT_COVERED & host.cpu_flags():
        pytest.skip("needs an x86 processor whose only int8 instructions are VNNI")
    kernels.copy(kind, tmp_path)
    sums = {}
    for name, path in (("installed", []), ("copy", [str(tmp_path)])):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*path, *sys.path])}
        told = subprocess.run(
            [sys.executable, str(FOLDER / "probe.py")], env=environment, capture_output=True, text=True, check=True
        )
        sums[name] = json.loads(told.stdout)["sum_of_4_products_of_255_and_127"]
    # two products together are 64,770: a signed 16-bit sum holds 32,767 of it
    assert sums == {"installed": 4 * 255 * 127, "copy": 2 * 32767}
