"""Five networks of different kinds on every target: does it convert, does it compute what torch computes, what does it weigh?

python benchmarks/targets/run.py [--networks resnet18 ...] [--targets browser ...] [--variants fp32 w8 int8]

Random weights at 224 x 224 pixels, so no score: outputs alone are compared, on the golden samples. Resumes cell by cell: what
results/targets.json has from the same versions is not done again. --again NAME makes a network's, a target's or a variant's cells anew.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import table
import torch
from torch.nn import functional

from edgekd import host, models, quantize
from edgekd.backends import backend_of, packages_of
from edgekd.errors import EdgekdError
from edgekd.export import artifact, onnx
from edgekd.export.graph import Graph, torch_runner
from edgekd.parity import compare
from edgekd.quantize.post_training import overflow_fix
from edgekd.quantize.variant import Variant, load, reference_runner
from edgekd.recipe import Gate, Model, VariantRecipe
from edgekd.run_folder import write_text
from edgekd.targets import Target, covers, load_target, target_names
from edgekd.verify import Question, verify

HERE = Path(__file__).parent
NETWORKS = ("resnet18", "mobilenetv3_small_100", "efficientvit_b0", "vit_tiny_patch16_224", "tiny_vit_5m_224")
VARIANTS = {
    "fp32": VariantRecipe(name="fp32", method="none"),
    "w8": VariantRecipe(name="w8", method="ptq", weights={"bits": 8}),
    "int8": VariantRecipe(name="int8", method="ptq", weights={"bits": 8}, activations={"bits": 8}, calibration={"samples": 32, "batch_size": 8}),
    "w8a16": VariantRecipe(name="w8a16", method="ptq", weights={"bits": 8}, activations={"bits": 16}, calibration={"samples": 32, "batch_size": 8}),
}  # fmt: skip
ARGUMENTS = {"resnet18": {"zero_init_last": False}}
"""Else the residual branches of a network that was never trained are all zero."""
SIDE, GOLDEN = 224, 2
GATE = Gate(min_variant_sqnr_db=5.0, min_sqnr_db=20.0)
"""Wider than a recipe's for int8: networks that were never trained are loud in their last bits."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is missing, cell by cell; write results/targets.json and the table. Returns the exit code."""
    options = _options(arguments)
    file = HERE / "results" / "targets.json"
    file.parent.mkdir(exist_ok=True)
    told = json.loads(file.read_text()) if file.is_file() else {"cells": {}}
    told |= {"samples": GOLDEN, "side": SIDE, "host": host.describe(), "gate": GATE.model_dump(mode="json")}
    for name in options.networks:
        network = None
        if options.again:
            shutil.rmtree(options.work / name / "variants", ignore_errors=True)
        for target in map(load_target, options.targets):
            versions = packages_of(target.backend)
            for variant in options.variants:
                key = f"{name}/{target.name}/{variant}"
                known = told["cells"].get(key)
                if known and known["versions"] == versions and not {name, target.name, variant} & set(options.again):
                    continue
                network = network or Network(name, options.work / name)
                began = time.perf_counter()
                cell = _cell(network, target, variant, options.work / key) | {"versions": versions}
                told["cells"][key] = cell | {"seconds": round(time.perf_counter() - began, 1)}
                write_text(file, json.dumps(told, indent=1) + "\n")
                print(f"{key}: {cell['status']} {cell['reason'][:120]}", flush=True)
    write_text(HERE / "results" / "targets.md", table.write(told))
    return 0


class Network:
    """A timm network with random weights, the statistics of its BatchNorms from pictures; as ONNX, and the variants made so far."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        made = models.load(
            Model(model=f"timm:{name}", arguments=ARGUMENTS.get(name, {})), role="student", num_classes=1000, image_shape=(SIDE, SIDE, 3), shared=None, seed=0,
            need_weights=False,
        )  # fmt: skip
        self.pictures = pictures(40)
        module = made.module.train()
        with torch.no_grad():
            for start in range(0, 32, 8):
                module(torch.from_numpy(self.pictures[start : start + 8]))
        example = {"image": torch.from_numpy(self.pictures[:2])}
        self.graph = Graph("model", module.eval(), ("image",), ("logits",), example, {"image": {0: "batch"}})
        self.parameters = made.parameters
        self.source = folder / "source" / "model.onnx"
        onnx.write(self.graph, self.source)
        self.golden = {"image": self.pictures[-GOLDEN:]}
        self.outputs = torch_runner([self.graph])("model", self.golden)

    def variant(self, name: str, target: Target) -> Variant:
        """Make a variant as a run would for this target alone."""
        config = VARIANTS[name]
        narrow = overflow_fix(config, [target])[0] if config.activations else False
        folder = self.folder / "variants" / f"{name}-{target.quantizer}{'-narrow' if narrow else ''}"
        if (folder / "variant.json").is_file():
            return load(folder)
        job = quantize.Job({"model": self.source}, (target,), lambda graph, settings: self._batches(settings))
        return quantize.make(config, job, folder)

    def _batches(self, settings: Any) -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, settings.samples, settings.batch_size):
            yield {"image": self.pictures[start : start + settings.batch_size]}


def pictures(count: int) -> np.ndarray:
    """Return smooth coloured noise, uint8 (count, SIDE, SIDE, 3), the same every time."""
    rng = torch.Generator().manual_seed(0)
    layers = [torch.rand((count, 3, side, side), generator=rng) for side in (4, 16, 64)]
    mixed = sum(functional.interpolate(x, (SIDE, SIDE), mode="bicubic") / 2**i for i, x in enumerate(layers)) / 1.75
    return (mixed.clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).numpy()


def _cell(network: Network, target: Target, name: str, folder: Path) -> dict[str, Any]:
    """Make and judge one artifact. What does not work is the cell's answer."""
    backend = backend_of(target.backend)
    scheme = VARIANTS[name].scheme
    reason = backend.refuses(scheme, target) or backend.refuses_graph(network.source, target)
    if reason:
        return {"status": "refused", "reason": reason}
    if not covers(target.stores, scheme.label):
        return {"status": "refused", "reason": f"{target.name} does not store {scheme.label}"}
    shutil.rmtree(folder, ignore_errors=True)
    try:
        variant = network.variant(name, target).for_target(target)
        floating = torch_runner([network.graph]) if variant.reference == "torch" else None
        made = artifact.make(
            variant, target, folder, golden={"model": network.golden}, reference=reference_runner(variant, floating), gate=GATE,
            graphs=lambda: [network.graph],
        )  # fmt: skip
    except EdgekdError as error:
        return {"status": "refused", "reason": str(error)}
    verdict = verify(Question(made, variant, target, GATE, graphs=(network.graph,), source={"model": network.source}))
    shipped = [f["bytes"] for f in made.record["files"] if not f["path"].endswith((".npz", ".py", ".html", ".config"))]
    shutil.rmtree(folder)
    return {
        "status": verdict.status,
        "by": verdict.by,
        "reason": verdict.reason,
        "lost_at": verdict.lost_at,
        "sqnr_db": {stage: parity["sqnr_db"] for stage, parity in verdict.parity.items()},
        "variant_sqnr_db": compare(network.outputs, reference_runner(variant, floating)("model", network.golden)).sqnr_db,
        "bytes": sum(shipped),
        "providers": dict(verdict.providers),
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--targets", nargs="+", metavar="NAME", default=target_names())
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument(
        "--again", nargs="+", metavar="NAME", default=[], help="networks, targets or variants whose cells are made anew"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/targets"), help="where files are made (default: runs/targets)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
