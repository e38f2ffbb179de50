"""Write the study's ONNX files: FOLDER/SIZE/FORM/VARIANT/GRAPH.onnx. Run as a program, it makes the named variants of one network.

python benchmarks/slm/make_models.py FOLDER 30M encoder-decoder fp32 int8
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from plans import SIZES, network, parameters

VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {"method": "none"},
    "int8": {"method": "dynamic", "weights": {"bits": 8}, "activations": {"bits": 8}},
    "w4": {"method": "round-to-nearest", "weights": {"bits": 4, "group": 32, "symmetric": True}},
    "w4-a8": {"method": "round-to-nearest", "weights": {"bits": 4, "group": 32, "symmetric": True}},
}
OPTIONS: dict[str, dict[str, str]] = {"w4-a8": {"activations": "int8"}}
"""Variant -> options of its target: the same weights as w4, multiplied by activations that are rounded to 8 bits."""
CONTEXT = 4096 + 256
"""Positions: the longest prompt and what is written after it."""
START = 2
SEED = 0


def files(folder: Path, size: str, form: str, variant: str) -> dict[str, Path]:
    """Return graph -> file; make what is missing (minutes, and four times the weights in memory)."""
    made = folder / size / form
    known = facts(folder, size, form) if (made / "facts.json").is_file() else {}
    if known.get("variants", {}).get(variant) != _told(variant):
        subprocess.run([sys.executable, __file__, str(folder), size, form, variant], check=True)
    return {file.stem: file for file in sorted((made / variant).glob("*.onnx"), reverse=True)}  # encoder before decoder


def facts(folder: Path, size: str, form: str) -> dict[str, Any]:
    """Return {"parameters", "variants"} of a network of which files are made."""
    return dict(json.loads((folder / size / form / "facts.json").read_text(encoding="utf-8")))


def seeded(size: str, form: str) -> Any:
    """Return a network of transformers, the same weights every time."""
    import torch

    torch.manual_seed(SEED)
    return network(SIZES[size][form], CONTEXT).eval()


class Graphs:
    """Of a task, what is needed to write a network's graphs: there are no data."""

    name = "slm"
    outputs = ("logits",)

    def graphs(self, model: Any, splits: Any) -> list[Any]:
        """Return `decoder`, behind an encoder-decoder's `encoder`."""
        from edgekd.models.causal_lm import CausalLM, decoder_graph
        from edgekd.models.seq2seq_lm import graphs

        return [decoder_graph(model.module)] if isinstance(model.module, CausalLM) else list(graphs(model.module))


def make(folder: Path, size: str, form: str, *names: str) -> None:
    """Make variants of a network with seeded random weights, as ONNX Runtime gets them; its graphs in full precision once for all."""
    from edgekd import quantize
    from edgekd.backends import onnxruntime
    from edgekd.export import onnx
    from edgekd.models import LoadedModel
    from edgekd.models.causal_lm import CausalLM
    from edgekd.models.seq2seq_lm import Seq2SeqLM
    from edgekd.recipe import VariantRecipe
    from edgekd.targets import load_target

    net = seeded(size, form)
    module = CausalLM(net) if form == "decoder-only" else Seq2SeqLM(net, START)
    student = LoadedModel(module, f"{form} of {size}", None, None, parameters(net))
    into = folder / size / form
    plain = into / "plain"
    told = facts(folder, size, form) if (into / "facts.json").is_file() else {"variants": {}}
    graphs = Graphs().graphs(student, None)
    source = {graph.name: plain / f"{graph.name}.onnx" for graph in graphs}
    if not all(file.is_file() for file in source.values()):
        shutil.rmtree(plain, ignore_errors=True)
        plain.mkdir(parents=True)
        for graph in graphs:
            onnx.write(graph, source[graph.name])
    target = load_target("onnxruntime-cpu")
    job = quantize.Job(source, (target,), task=Graphs(), splits=lambda: None, student=lambda: student)
    for name in names:
        ships, work = into / name, into / f"{name}-variant"
        for folder_of_it in (ships, work):
            shutil.rmtree(folder_of_it, ignore_errors=True)
        ships.mkdir()
        variant = quantize.make(VariantRecipe.model_validate({"name": name, **VARIANTS[name]}), job, work)
        onnxruntime.convert(variant, replace(target, options=OPTIONS.get(name, {})), ships)
        shutil.rmtree(work, ignore_errors=True)
        told = {"parameters": student.parameters, "variants": {**told["variants"], name: _told(name)}}
        (into / "facts.json").write_text(json.dumps(told) + "\n", encoding="utf-8")


def _told(name: str) -> dict[str, Any]:
    return {**VARIANTS[name], "options": OPTIONS.get(name, {})}


if __name__ == "__main__":
    make(Path(sys.argv[1]), *sys.argv[2:])
