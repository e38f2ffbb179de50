"""Backends: convert a variant for a runtime, load it there, run it. One file each; a new one is a file plus a line here.

Other packages add theirs through the entry point group `edgekd.backends`: NAME = "module".
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .. import plugins

if TYPE_CHECKING:
    from ..export.graph import Arrays, Graph
    from ..quantize.variant import Variant
    from ..recipe import Scheme
    from ..targets import Target

BACKENDS = {
    "onnxruntime": "edgekd.backends.onnxruntime",
    "onnxruntime_mobile": "edgekd.backends.onnxruntime_mobile",
    "openvino": "edgekd.backends.openvino",
    "qnn": "edgekd.backends.qnn",
    "tensorrt": "edgekd.backends.tensorrt",
    "coreml": "edgekd.backends.coreml",
    "web": "edgekd.backends.web",
}


@dataclass(frozen=True)
class Means:
    """How this machine executes what is made for a target.

    by: "runtime" (the target's own), "simulator" (the vendor's), "reference" (an interpreter of the same file); None: not at all.
    why: what is missing and how to get it, by None; else what to know about it. seconds_are_the_devices: timing it here says
    something about the device. slow: so much slower than a device that fewer samples have to do.
    """

    by: str | None
    why: str = ""
    seconds_are_the_devices: bool = False
    slow: bool = False


class Session(Protocol):
    """A loaded graph, ready to run."""

    providers: dict[str, int]
    """Execution provider -> how many nodes it really took."""

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run any number of samples. inputs and outputs: tensor name -> array.

        It may have `bind(inputs)` too, which returns a call that runs these very arrays: what the clock times, no names looked up.
        """


class Backend(Protocol):
    """A module under backends/ has these functions. It may have more: `refuses_network`, `wrong_with`, `form_of` and `tensors_of` say which.

    OPTIONS, where it has them: a target's options that it reads, name -> what each must be (targets.py). IMPORTS: modules that
    have to be importable, found out once, when a target of this backend is used.
    """

    PACKAGES: tuple[str, ...]
    """Distributions that its results depend on."""
    CHECK: Path
    """The part of an artifact's check.py that opens a session with this runtime."""

    def missing(self) -> str | None:
        """Say what must be installed here to convert, and how to get it; None when all is here."""

    def executes(self, target: Target) -> Means:
        """Say how this machine can execute what is made for a target."""

    def refuses(self, scheme: Scheme, target: Target) -> str | None:
        """Say why this scheme cannot be stored for this target, and what to change; None when it can."""

    def refuses_graph(self, file: Path, target: Target) -> str | None:
        """Say which operator, shape or rule of an ONNX file the target cannot take, and what to change; None when it can.

        file: of the student before it is trained, in full precision. Takes seconds at most.
        """

    def convert(self, variant: Variant, target: Target, folder: Path, graphs: Callable[[], Sequence[Graph]]) -> dict[str, Path]:
        """Write the variant's graphs for the target into `folder`; return graph name -> main file. All that lies there ships.

        graphs: gives the variant's torch graphs, loaded when called.
        """

    def interface(self, file: Path) -> dict[str, list[dict[str, Any]]]:
        """Return a written file's {"inputs": [{name, dtype, shape}], "outputs": [...]}; a dynamic axis is its name."""

    def load(self, file: Path, target: Target | None = None, threads: int | None = None, exact: bool = False) -> Session | None:
        """Load one graph file, to compute as near to the device as this machine can.

        exact: the arithmetic as written instead, in float32; None from a backend that has no such thing.
        """


def names() -> list[str]:
    """Return the names of all backends, those of other packages included."""
    return [*BACKENDS, *(name for name in plugins.found(plugins.BACKENDS) if name not in BACKENDS)]


def backend_of(name: str) -> Backend:
    """Return the backend of that name. Raises KeyError for an unknown one."""
    return importlib.import_module(BACKENDS[name]) if name in BACKENDS else plugins.load(plugins.BACKENDS, name)


def refuses_network(name: str, graph: Graph, target: Target) -> str | None:
    """Say which operation of a torch graph the target cannot take, and what to change; None when it can, or where the backend
    converts from ONNX alone, which `refuses_graph` answers for. Takes seconds.
    """
    refuse: Callable[[Graph, Target], str | None] | None = getattr(backend_of(name), "refuses_network", None)
    return refuse(graph, target) if refuse else None


def wrong_with(name: str, file: Path, target: Target) -> list[str]:
    """Return the rules of the target that a written file breaks, in words, as far as the backend knows any."""
    find: Callable[[Path, Target], list[str]] | None = getattr(backend_of(name), "wrong", None)
    return find(file, target) if find else []


def form_of(name: str, file: Path) -> dict[str, Any]:
    """Return {"form": what a written file was made into, operator -> how often, or why not}; {} for one that is plain."""
    tell: Callable[[Path], dict[str, Any]] | None = getattr(backend_of(name), "form", None)
    told = tell(file) if tell else {}
    return {"form": told} if told else {}


def tensors_of(name: str, file: Path, target: Target, inputs: Arrays) -> dict[str, np.ndarray]:
    """Return the intermediate values of a written file in order of execution; {} where the backend cannot give them."""
    give: Callable[[Path, Target, Arrays], dict[str, np.ndarray]] | None = getattr(backend_of(name), "tensors", None)
    return give(file, target, inputs) if give else {}


def packages_of(name: str) -> dict[str, str]:
    """Return the versions of the packages that a backend's results depend on; "-" for one that is not installed."""
    found = {}
    for package in backend_of(name).PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "-"
    return found
