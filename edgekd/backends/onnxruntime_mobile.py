"""ONNX Runtime's mobile format: an .ort file, optimised beforehand for ARM, and the list of operators that a reduced build needs.

A build that has these operators alone is made with ONNX Runtime's build.py --minimal_build --include_ops_by_config
required_operators.config. The usual packages for Android and iOS read .ort files too.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import host
from ..errors import BadInput, Missing, first_line
from . import Means, onnxruntime, ort_file

if TYPE_CHECKING:
    from ..export.graph import Arrays, Graph
    from ..quantize.variant import Variant
    from ..recipe import Scheme
    from ..targets import Target

PACKAGES = ("onnx", "onnxruntime", "flatbuffers")
IMPORTS = onnxruntime.IMPORTS
OPTIONS: dict[str, Any] = {}
CHECK = onnxruntime.CHECK
OPERATORS = "required_operators.config"

_PROVIDER = "CPUExecutionProvider"

missing = onnxruntime.missing
refuses_graph = onnxruntime.refuses_graph


def executes(target: Target) -> Means:
    """Say how this machine can execute what is made for a target: the same runtime, on this processor."""
    if reason := missing():
        return Means(None, reason)
    why = f"run on {platform.machine()} here; {target.title} is {target.architecture or 'another processor'}"
    if host.vnni() is False and target.saturates() is None:
        why += ". Full-range int8 saturates on this CPU, which has no VNNI, and not on the device"
    return Means("runtime", why)


def refuses(scheme: Scheme, target: Target) -> str | None:
    """Say why this scheme cannot be stored for this target, and what to change; None when it can."""
    if scheme.weights and not scheme.activations:
        return (
            f"{target.title} cannot store {scheme.label}: an .ort file has its weights expanded beforehand, so they take the space of "
            "fp32. Quantize activations too (w8a8), or ship ONNX (a target with backend onnxruntime)"
        )
    return onnxruntime.refuses(scheme, target)


def convert(variant: Variant, target: Target, folder: Path, graphs: Callable[[], Sequence[Graph]] = tuple) -> dict[str, Path]:
    """Write the variant's graphs as .ort files, and which operators they need together."""
    made = {name: folder / f"{source.stem}.ort" for name, source in variant.graphs.items()}
    for name, source in variant.graphs.items():
        ort_file.write(source, made[name])
    (folder / OPERATORS).write_text(_listed(made.values()), encoding="utf-8")
    return made


def _listed(files: Iterable[Path]) -> str:
    """Return the operators of all files as ONNX Runtime's build reads them: a line for each domain and version."""
    found: Counter[tuple[str, int, str]] = Counter()
    for file in files:
        found.update(ort_file.operators(file))
    lines: dict[tuple[str, int], list[str]] = {}
    for domain, version, operator in sorted(found):
        lines.setdefault((domain, version), []).append(operator)
    return "".join(f"{domain};{version};{','.join(names)}\n" for (domain, version), names in lines.items())


def wrong(file: Path, target: Target) -> list[str]:
    """Return the operators of a file that its list lacks: a build reduced to the list could not run it."""
    beside = file.with_name(OPERATORS)
    if not beside.is_file():
        return [f"{OPERATORS} is missing beside {file.name}"]
    listed = set()
    for line in beside.read_text(encoding="utf-8").splitlines():
        domain, version, names = (*line.split(";"), "", "")[:3]
        listed |= {(domain, version, name) for name in names.split(",")}
    needed = ((domain, str(version), operator) for domain, version, operator in ort_file.operators(file))
    lacking = sorted(";".join(one) for one in needed if one not in listed)
    return [f"{OPERATORS} lacks {', '.join(lacking)}: a build reduced to it cannot run {file.name}"] if lacking else []


def interface(file: Path) -> dict[str, list[dict[str, Any]]]:
    """Return a file's {"inputs": [{name, dtype, shape}], "outputs": [...]}; a dynamic axis is its name."""

    def described(values: Any) -> list[dict[str, Any]]:
        return [{"name": v.name, "dtype": _dtype(v.type), "shape": list(v.shape)} for v in values]

    session = _open(file, None)
    return {"inputs": described(session.get_inputs()), "outputs": described(session.get_outputs())}


def _dtype(told: str) -> str:
    """Return NumPy's name of ONNX Runtime's: tensor(float) is float32.

    >>> _dtype("tensor(double)")
    'float64'
    """
    name = told.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(name, name)


class MobileSession:
    """An .ort file loaded by ONNX Runtime. providers: all its nodes are the CPU's, for no other provider is there."""

    def __init__(self, session: Any, nodes: int) -> None:
        self._session = session
        self._inputs = [value.name for value in session.get_inputs()]
        self._outputs = [value.name for value in session.get_outputs()]
        self.providers = {_PROVIDER: nodes}

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run once. Inputs that the graph does not have are left out."""
        made = self._session.run(self._outputs, {name: inputs[name] for name in self._inputs})
        return dict(zip(self._outputs, made, strict=True))


def load(file: Path, target: Target | None = None, threads: int | None = None, exact: bool = False) -> MobileSession | None:
    """Load one graph file; threads: of one operation (every core when None). Raises BadInput for a broken file.

    exact: None, there is no such thing: the kernels for int8 stand in the file already.
    """
    if exact:
        return None
    return MobileSession(_open(file, threads), sum(ort_file.operators(file).values()))


def _open(file: Path, threads: int | None) -> Any:
    if reason := missing():
        raise Missing(reason)
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    try:
        return ort.InferenceSession(str(file), options, providers=[_PROVIDER])
    except Exception as error:  # the binding's exceptions share no base
        reason = first_line(error)
        raise BadInput(f"{file}: ONNX Runtime cannot load it: {reason}") from None
