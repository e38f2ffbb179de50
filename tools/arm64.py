#!/usr/bin/env python3
"""Run the artifacts for ARM64 under qemu, on the very runtime that the board has: for what they compute, never for their time.

    make arm64                          (RUN=runs/digits)
    python tools/arm64.py RUN [TARGET/VARIANT ...]

Builds, once, a folder with Python and ONNX Runtime for aarch64 (build/arm64, or $ARM64_ROOT): Debian's packages by apt-get, which
needs no rights of root for it, and wheels by pip. Then runs check.py of each artifact there and writes what it finds to
build/arm64-checks/TARGET-VARIANT.json, for `edgekd verify RUN --import FILE`. Exit codes as check.py's.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
QEMU = ("qemu-aarch64-static", "qemu-aarch64")
CPU = "cortex-a76"  # the Raspberry Pi 5's
DEBIAN = ("python3", "libstdc++6")
PACKAGES = ("numpy", "onnxruntime")
BACKENDS = ("onnxruntime", "onnxruntime_mobile")
# ONNX Runtime reads the processor's name here, and ends with a segmentation fault when it finds an x86's.
CPUINFO = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

Model\t\t: qemu, Cortex-A76
"""


def main() -> int:
    """Build what is missing, run every artifact, say what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("only", nargs="*", help="TARGET/VARIANT: these artifacts alone")
    parser.add_argument("-o", "--out", type=Path, default=Path("build/arm64-checks"), help="where the JSON files go")
    asked = parser.parse_args()
    qemu = next((found for name in QEMU if (found := shutil.which(name))), None)
    if qemu is None:
        print("no qemu-aarch64 here: apt-get install qemu-user-static", file=sys.stderr)
        return 4
    found = artifacts(asked.run, asked.only)
    if not found:
        print(f"{asked.run}: no artifacts for aarch64 here; add raspberry-pi-5 to the recipe's targets", file=sys.stderr)
        return 2
    root = Path(os.environ.get("ARM64_ROOT", "build/arm64")).absolute()
    if not (root / "done").is_file():
        print(f"building {root}", flush=True)
        build(root)
    asked.out.mkdir(parents=True, exist_ok=True)
    return max(run(qemu, root, folder, asked.out) for folder in found)


def artifacts(run_folder: Path, only: list[str]) -> list[Path]:
    """Return the folders of a run's artifacts that ONNX Runtime on aarch64 reads."""
    sys.path.insert(0, str(ROOT))
    from edgekd.errors import BadInput
    from edgekd.targets import load_target

    found = []
    for file in sorted(run_folder.glob("targets/*/*/artifact.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        if only and f"{record['target']}/{record['variant']}" not in only:
            continue
        try:
            target = load_target(record["target"])
        except BadInput:
            continue  # a target file of somebody's own
        if target.architecture == "aarch64" and target.backend in BACKENDS:
            found.append(file.parent)
    return found


def run(qemu: str, root: Path, folder: Path, out: Path) -> int:
    """Run one check.py; return its exit code."""
    name = "/".join(folder.parts[-2:])
    emulator = f"{Path(qemu).name} -cpu {CPU}"
    command = [qemu, "-cpu", CPU, "-L", root, python_of(root), "-S", folder.absolute() / "check.py"]
    known = {
        "PYTHONHOME": str(root / "usr"),
        "PYTHONPATH": str(root / "packages"),
        "QEMU_LD_PREFIX": str(root),
        "PATH": os.environ["PATH"],
    }
    made = subprocess.run(
        [*command, "--json", "--threads", "1", "--emulator", emulator], env=known, capture_output=True, text=True, check=False
    )
    try:
        told = json.loads(made.stdout)
    except ValueError:
        last = (made.stderr.strip().splitlines() or ["it said nothing"])[-1]
        print(f"{name}: check.py ended with {made.returncode}: {last}", file=sys.stderr)
        return max(1, made.returncode)
    file = out / f"{name.replace('/', '-')}.json"
    file.write_text(made.stdout, encoding="utf-8")
    ratios = [f"{key} {graph['sqnr_db'] or 0:.1f} dB" for key, graph in told["graphs"].items()]
    state = "right" if told["right"] else f"WRONG: {told['problems'][0]}"
    print(
        f"{name}: {state}; {', '.join(ratios)} on {told['machine']}, onnxruntime {told['versions']['onnxruntime']}: {file}",
        flush=True,
    )
    return made.returncode


def build(root: Path) -> None:
    """Put Python, its libraries and the wheels for aarch64 into `root`. A build that is broken off leaves none."""
    for needed in ("apt-get", "dpkg-deb"):
        if shutil.which(needed) is None:
            raise SystemExit(f"{needed} is not here: the aarch64 Python comes from Debian's or Ubuntu's packages")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix="arm64-") as folder:
        new = Path(folder) / "root"
        new.mkdir()
        for package in debian(Path(folder) / "apt"):
            command("dpkg-deb", "-x", package, new)
        for link in ("lib", "bin", "sbin"):
            if not (new / link).exists():  # merged into /usr in newer Debians
                (new / link).symlink_to(f"usr/{link}")
        version = python_of(new).name.removeprefix("python")
        platforms = [
            f"--platform={kind}_aarch64" for kind in ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
        ]
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--only-binary=:all:",
            "--no-compile",
        ]
        command(*pip, *platforms, f"--python-version={version}", f"--target={new / 'packages'}", *pins())
        (new / "proc").mkdir(exist_ok=True)
        (new / "proc" / "cpuinfo").write_text(CPUINFO)
        (new / "done").write_text("\n".join(pins()) + "\n")
        if root.exists():
            shutil.rmtree(root)
        new.rename(root)


def debian(folder: Path) -> list[Path]:
    """Download Debian packages for arm64 and all that they depend on, with a package list of our own beside the system's."""
    for part in ("state/lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True)
    (folder / "status").touch()
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "Dir::State": folder / "state",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder / "cache",
        "Debug::NoLocking": "1",
    }
    apt = ["apt-get", "-q", *(word for key, value in settings.items() for word in ("-o", f"{key}={value}"))]
    command(*apt, "update")
    command(*apt, "install", "-y", "--no-install-recommends", "--download-only", *DEBIAN)
    return sorted((folder / "cache" / "archives").glob("*.deb"))


def pins() -> list[str]:
    """Return the wheels' versions, from requirements.lock."""
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    return [found[0] for name in PACKAGES if (found := re.search(rf"^{name}==\S+", lock, re.MULTILINE))]


def python_of(root: Path) -> Path:
    """Return the aarch64 Python itself, not a link to it."""
    return next(file for file in sorted((root / "usr" / "bin").glob("python3.*")) if re.fullmatch(r"python3\.\d+", file.name))


def command(*words: object) -> None:
    """Run a command quietly; end with what it said when it fails."""
    made = subprocess.run([str(word) for word in words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if made.returncode:
        raise SystemExit(f"{words[0]} failed: {(made.stderr or made.stdout).strip()}")


if __name__ == "__main__":
    sys.exit(main())
