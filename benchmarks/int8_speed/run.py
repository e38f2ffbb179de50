"""Is int8 faster than float32 on this processor, and if not, why? Five networks on ONNX Runtime, as the clock says it.

python benchmarks/int8_speed/run.py [--networks resnet18 mobilenetv3_small_100]

Networks and quantization are those of benchmarks/targets. Resumes network by network. Writes results/CPU.json and prints the verdicts.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekd import bench, host
from edgekd.bench.things import Thing
from edgekd.recipe import Bench
from edgekd.run_folder import write_text
from edgekd.targets import load_target

HERE = Path(__file__).parent
TARGETS = HERE.parent / "targets"


def main(arguments: Sequence[str] | None = None) -> int:
    """Make what is missing, time it, write the result file. Returns the exit code."""
    networks = _networks()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(networks.NETWORKS), choices=networks.NETWORKS, metavar="NAME")
    parser.add_argument("--work", type=Path, default=Path("runs/int8_speed"), help="where the ONNX files are kept")
    parser.add_argument("--max-seconds", type=float, default=40.0, help="of each file")
    options = parser.parse_args(arguments)
    (HERE / "results").mkdir(exist_ok=True)
    file = HERE / "results" / f"{re.sub(r'[^A-Za-z0-9]+', '-', host.cpu_model()).strip('-')}.json"
    settings = Bench(min_seconds=3, max_seconds=options.max_seconds)
    told: dict[str, Any] = {
        "schema": 1,
        "command": shlex.join(["python", "benchmarks/int8_speed/run.py", *sys.argv[1:]]),
        "host": host.describe(),
        "settings": settings.model_dump(mode="json"),
        "networks": json.loads(file.read_text())["networks"] if file.is_file() else {},
    }
    for name in options.networks:
        if name in told["networks"]:
            continue
        files = _files(networks.Network(name, options.work / name), options.work / name)
        things = [Thing(kind, "onnxruntime", {"model": path}, control=kind == "fp32") for kind, path in files.items()]
        measurements, comparisons = bench.measure(things, settings, options.work / name / "samples", _say(name))
        told["networks"][name] = {"measurements": measurements, "comparisons": comparisons}
        write_text(file, json.dumps(told, indent=1) + "\n")
        for one in comparisons:
            print(f"{name}: {one['verdict']}" + (f": {one['why']}" if one["why"] else ""), flush=True)
    return 0


def _files(network: Any, folder: Path) -> dict[str, Path]:
    """Return kind -> ONNX file: in full precision, and int8 as CPUs with and without VNNI get it (there, weights of 7 bits)."""
    made = {"fp32": network.source}
    for kind, target in (("int8", "x86-64-vnni"), ("int8 of 7 bits", "x86-64")):
        variant = network.variant("int8", load_target(target))
        made[kind] = folder / f"{kind.replace(' ', '-')}.onnx"
        shutil.copyfile(next(iter(variant.graphs.values())), made[kind])
    return made


def _say(name: str) -> Any:
    shown = [-1]

    def tell(share: float, what: str) -> None:
        if int(10 * share) > shown[0]:
            shown[0] = int(10 * share)
            print(f"{name}: {share:.0%} {what}", file=sys.stderr, flush=True)

    return tell


def _networks() -> Any:
    """Import benchmarks/targets/run.py, which is also called run."""
    sys.path.insert(0, str(TARGETS))
    spec = importlib.util.spec_from_file_location("targets_run", TARGETS / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())
