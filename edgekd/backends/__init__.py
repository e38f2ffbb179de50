"""Backends: convert an ONNX graph for a runtime, load it there, run it. One file each; a new one is a file plus a line here."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from ..export.graph import Arrays
    from ..quantize.variant import Variant
    from ..recipe import Scheme
    from ..targets import Target

BACKENDS = {"onnxruntime": "edgekd.backends.onnxruntime"}


class Session(Protocol):
    """A loaded graph, ready to run."""

    providers: dict[str, int]
    """Execution provider -> how many nodes it really took."""

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run once. inputs and outputs: tensor name -> array."""


class Backend(Protocol):
    """A module under backends/ has these functions."""

    def missing(self) -> str | None:
        """Say what is not installed here and how to get it; None when all is here."""

    def refuses(self, scheme: Scheme, target: Target) -> str | None:
        """Say why this scheme cannot be stored for this target, and what to change; None when it can."""

    def convert(self, variant: Variant, target: Target, folder: Path) -> dict[str, Path]:
        """Write the variant's graphs for the target into `folder`; return graph name -> main file."""

    def load(self, file: Path, target: Target | None = None, threads: int | None = None, exact: bool = False) -> Session:
        """Load one graph file. exact: the arithmetic as written, every optimisation off (the reference for parity)."""


def backend_of(name: str) -> Backend:
    """Return the backend of that name."""
    return importlib.import_module(BACKENDS[name])
