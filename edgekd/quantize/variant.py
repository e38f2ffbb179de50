"""A variant: a student whose weights obey one scheme, and how it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BadInput
from ..recipe import Scheme

if TYPE_CHECKING:
    from ..export.graph import Arrays, Runner, Running
    from ..targets import Target


@dataclass(frozen=True)
class Variant:
    """What a quantize stage left in RUN/variants/NAME: one ONNX file a graph, and how it came about.

    graphs: graph name -> ONNX file (the interchange form that every backend converts from).
    reference: what the variant's own score is measured on: "torch" (the student, or with `weights` that network with other
    weights) or "graph" (the exact arithmetic of its ONNX files: the runtime with every optimisation off).
    dialects: for runtimes that need int8 files of their own making, dialect -> graph name -> file (see `for_target`).
    facts: what the method has to tell, plain JSON values. weights: safetensors of the student's network with the quantized
    weights as plain numbers, for methods that made them in torch.
    """

    name: str
    method: str
    scheme: Scheme
    folder: Path
    graphs: dict[str, Path]
    reference: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    weights: Path | None = None
    dialects: Mapping[str, dict[str, Path]] = field(default_factory=dict)

    def for_target(self, target: Target) -> Variant:
        """Return the variant with the graphs that the target's runtime needs."""
        return replace(self, graphs=self.dialects.get(target.quantizer, self.graphs))

    @property
    def size_bytes(self) -> int:
        """Bytes of the graph files as written, external data included."""
        return sum(f.stat().st_size for f in self.folder.glob("*") if f.is_file() and f.suffix in {".onnx", ".data"})

    def record(self) -> dict[str, Any]:
        """Return the variant as plain JSON values, paths relative to its folder."""
        return {
            "name": self.name,
            "method": self.method,
            "scheme": self.scheme.model_dump(mode="json") | {"label": self.scheme.label},
            "graphs": self._relative(self.graphs),
            "dialects": {name: self._relative(graphs) for name, graphs in self.dialects.items()},
            "reference": self.reference,
            "weights": self.weights.relative_to(self.folder).as_posix() if self.weights else None,
            "size_bytes": self.size_bytes,
            "facts": dict(self.facts),
        }

    def _relative(self, graphs: Mapping[str, Path]) -> dict[str, str]:
        return {name: file.relative_to(self.folder).as_posix() for name, file in graphs.items()}


def save(variant: Variant) -> Path:
    """Write variant.json into the variant's folder."""
    path = variant.folder / "variant.json"
    path.write_text(json.dumps(variant.record(), indent=1) + "\n")
    return path


def load(folder: Path) -> Variant:
    """Read a variant back. Raises BadInput when the folder holds none."""
    path = folder / "variant.json"
    try:
        told = json.loads(path.read_text())
        scheme = Scheme.model_validate({key: told["scheme"].get(key) for key in Scheme.model_fields})
        graphs = {name: folder / file for name, file in told["graphs"].items()}
        dialects = {name: {g: folder / file for g, file in made.items()} for name, made in told["dialects"].items()}
        weights = folder / told["weights"] if told.get("weights") else None
        return Variant(
            told["name"], told["method"], scheme, folder, graphs, told["reference"], told["facts"], weights, dialects
        )
    except FileNotFoundError:
        raise BadInput(f"{folder}: no variant.json here; make the variant with `edgekd quantize`") from None
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path}: damaged ({error}); make the variant again with `edgekd quantize`") from None


def file_runner(files: Mapping[str, Path], backend: str = "onnxruntime", exact: bool = True, **options: Any) -> Running:
    """Return a Runner over graph files, each loaded when first called. exact: the arithmetic as written."""
    from ..backends import backend_of
    from ..export.graph import Running

    sessions: dict[str, Any] = {}

    def run(name: str, inputs: Arrays) -> dict[str, np.ndarray]:
        if name not in sessions:
            sessions[name] = backend_of(backend).load(files[name], exact=exact, **options)
        return sessions[name].run(inputs)

    return Running(run, lambda: {name: backend_of(backend).interface(file) for name, file in files.items()})


def reference_runner(variant: Variant, network: Runner | None) -> Runner:
    """Return what the variant's own score is measured on: its torch network, or the exact arithmetic of its ONNX files."""
    if variant.reference == "torch" and network is not None:
        return network
    return file_runner(variant.graphs)
