"""tools/arm64.py: which artifacts it runs, and what it says without qemu. The run itself is `make arm64`."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parent.parent / "tools" / "arm64.py"


@pytest.fixture
def run_folder(tmp_path):
    """A run's artifacts for four targets."""
    for target in ("raspberry-pi-5", "android-cpu", "onnxruntime-cpu", "somebodys-own"):
        folder = tmp_path / "targets" / target / "int8"
        folder.mkdir(parents=True)
        (folder / "artifact.json").write_text(json.dumps({"target": target, "variant": "int8"}))
    return tmp_path


def test_it_takes_the_artifacts_that_onnx_runtime_reads_on_aarch64(run_folder):
    artifacts = runpy.run_path(str(TOOL))["artifacts"]
    found = [folder.relative_to(run_folder).as_posix() for folder in artifacts(run_folder, [])]
    assert found == ["targets/android-cpu/int8", "targets/raspberry-pi-5/int8"]
    assert [f.parent.name for f in artifacts(run_folder, ["raspberry-pi-5/int8"])] == ["raspberry-pi-5"]


def test_its_wheels_are_those_that_were_tried():
    lock = TOOL.parent.parent.joinpath("requirements.lock").read_text().splitlines()
    pins = runpy.run_path(str(TOOL))["pins"]()
    assert [pin.partition("==")[0] for pin in pins] == ["numpy", "onnxruntime"]
    assert set(pins) <= set(lock)


def test_without_qemu_it_says_how_to_get_it(run_folder):
    ran = subprocess.run(
        [sys.executable, TOOL, run_folder], env={"PATH": ""}, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 4
    assert "apt-get install qemu-user-static" in ran.stderr


CHECK = """
import json, sys
print(json.dumps({"right": False, "problems": ["wrong"], "graphs": {}, "machine": "x", "versions": {"onnxruntime": "1"}, "said": sys.argv}))
sys.exit(3)
"""


def test_what_check_py_finds_is_kept_and_its_exit_code_too(tmp_path):
    """A stand-in for qemu runs check.py here, with the options that it would get."""
    folder = tmp_path / "raspberry-pi-5" / "int8"
    folder.mkdir(parents=True)
    (folder / "check.py").write_text(CHECK)
    qemu = tmp_path / "qemu-aarch64"
    qemu.write_text(f'#!/bin/sh\nshift 5\nexec env -u PYTHONHOME -u PYTHONPATH {sys.executable} "$@"\n')
    qemu.chmod(0o755)
    (tmp_path / "root" / "usr" / "bin").mkdir(parents=True)
    (tmp_path / "root" / "usr" / "bin" / "python3.11").touch()
    run = runpy.run_path(str(TOOL))["run"]
    assert run(str(qemu), tmp_path / "root", folder, tmp_path) == 3
    told = json.loads((tmp_path / "raspberry-pi-5-int8.json").read_text())
    assert told["said"][told["said"].index("--emulator") + 1] == "qemu-aarch64 -cpu cortex-a76"
    (folder / "check.py").write_text("import sys; sys.exit('no numpy')")
    assert run(str(qemu), tmp_path / "root", folder, tmp_path) == 1
