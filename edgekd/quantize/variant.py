"""A variant: a student whose weights obey one scheme, and how it was made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..recipe import Scheme


@dataclass(frozen=True)
class Variant:
    """What a quantize stage left in RUN/variants/NAME: one ONNX file a graph, and how it came about.

    graphs: graph name -> ONNX file (the interchange form that every backend converts from).
    reference: what the variant's own score is measured on: "torch" (the student, or a fake-quantized copy of it) or
    "graph" (the exact arithmetic of its ONNX files: the runtime with every optimisation off).
    """

    name: str
    method: str
    scheme: Scheme
    folder: Path
    graphs: dict[str, Path]
    reference: str

    @property
    def size_bytes(self) -> int:
        """Bytes of the graph files as written, external data included."""
        return sum(f.stat().st_size for f in self.folder.rglob("*") if f.is_file() and f.suffix in {".onnx", ".data"})
