"""An artifact: the files that ship to one device class, with all that is needed to use and to check them there."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..backends import backend_of, form_of
from ..backends.fixed import filled
from ..errors import BadInput
from . import check, check_template

if TYPE_CHECKING:
    from ..materials import Materials
    from ..plan import Plan
    from ..quantize.variant import Variant
    from ..recipe import Gate
    from ..targets import Target
    from .graph import Arrays, Graph, Runner

SCHEMA = 1


@dataclass(frozen=True)
class Artifact:
    """A folder to ship. graphs: graph name -> main file. record: what artifact.json says (its keys: see `make`)."""

    folder: Path
    target: str
    variant: str
    backend: str
    graphs: dict[str, Path]
    record: Mapping[str, Any]

    @property
    def rounds(self) -> bool:
        """Whether the files round activations that the variant leaves in floating point."""
        return _rounds(self.record["graphs"])

    def golden(self) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, dict[str, np.ndarray]]]:
        """Return the golden inputs and the outputs expected for them, each graph name -> tensor name -> array."""
        inputs: dict[str, dict[str, np.ndarray]] = {name: {} for name in self.graphs}
        outputs: dict[str, dict[str, np.ndarray]] = {name: {} for name in self.graphs}
        with np.load(self.folder / "golden.npz", allow_pickle=False) as stored:
            for key in stored.files:
                graph, side, name = key.split("/", 2)
                (inputs if side == "in" else outputs)[graph][name] = stored[key]
        return inputs, outputs


def make(
    variant: Variant,
    target: Target,
    folder: Path,
    *,
    golden: Mapping[str, Arrays],
    reference: Runner,
    gate: Gate,
    task: str = "",
    classes: tuple[str, ...] = (),
    preprocess: Mapping[str, Any] | None = None,
    graphs: Callable[[], Sequence[Graph]] = tuple,
) -> Artifact:
    """Write the variant for the target into `folder`: model files, artifact.json, golden.npz and check.py.

    golden: graph name -> a few inputs; reference: what their expected outputs come from. preprocess: {"host": [...], "graph":
    [...]}, what is to be done before and what the graph does. graphs: gives the variant's torch graphs. The same inputs give the same bytes. Raises BadInput for a
    scheme that the target cannot store.
    """
    backend = backend_of(target.backend)
    if reason := backend.refuses(variant.scheme, target):
        raise BadInput(f"{target.name}/{variant.name}: {reason}")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        made = backend.convert(variant, target, folder, graphs)
    except BadInput as error:
        raise BadInput(f"{target.name}/{variant.name}: {error}") from None
    shapes = {name: {one["name"]: one["shape"] for one in backend.interface(file)["inputs"]} for name, file in made.items()}
    arrays: dict[str, np.ndarray] = {}
    for name, given in golden.items():
        inputs = filled(given, shapes.get(name, {}))  # as the runtime wants them: check.py knows nothing of shapes
        arrays |= {f"{name}/in/{key}": value for key, value in inputs.items()}
        arrays |= {f"{name}/out/{key}": value for key, value in reference(name, inputs).items()}
    write_npz(folder / "golden.npz", arrays)
    (folder / "check.py").write_text(check.assemble(backend.CHECK), encoding="utf-8")
    forms = {name: form_of(target.backend, file) for name, file in made.items()}
    floating = variant.reference == "torch" and not _rounds(forms)
    max_error, min_sqnr_db = gate.tolerance(floating, target.precision)
    record = {
        "schema": SCHEMA,
        "edgekd": __version__,
        "task": task,
        "target": target.name,
        "variant": variant.name,
        "scheme": variant.scheme.label,
        "backend": target.backend,
        "runtime": check.runtime_of(backend.CHECK),
        "device": {
            "title": target.title,
            "kind": target.device,
            "architecture": target.architecture,
            "vnni": target.vnni,
        },
        "graphs": {
            name: {"file": file.relative_to(folder).as_posix(), **backend.interface(file), **forms[name]}
            for name, file in made.items()
        },
        "preprocess": dict(preprocess or {"host": [], "graph": []}),
        "classes": list(classes),
        "golden": {
            "file": "golden.npz",
            "samples": max((len(v) for inputs in golden.values() for v in inputs.values()), default=0),
            "max_error": max_error,
            "min_sqnr_db": min_sqnr_db,
        },
        "files": describe(folder),
    }
    record["sha256"] = check_template.digest(record)  # check.py sees whether any of this was changed
    (folder / "artifact.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return Artifact(folder, target.name, variant.name, target.backend, made, record)


def _rounds(graphs: Mapping[str, Mapping[str, Any]]) -> bool:
    from ..backends import ort_form

    return any(ort_form.rounds(graph.get("form", {})) for graph in graphs.values())


def load(folder: Path) -> Artifact:
    """Read an artifact back. Raises BadInput when the folder holds none. Its files are checked by `damage`, not here."""
    path = folder / "artifact.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        graphs = {name: folder / graph["file"] for name, graph in record["graphs"].items()}
        return Artifact(folder, record["target"], record["variant"], record["backend"], graphs, record)
    except FileNotFoundError:
        raise BadInput(f"{folder}: no artifact.json here; make the artifact with `edgekd export`") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"{path}: damaged ({error!r}); make the artifact again with `edgekd export`") from None


def damage(artifact: Artifact) -> str | None:
    """Say which file is missing or is not the one that artifact.json describes; None when all are whole."""
    for told in artifact.record["files"]:
        file = artifact.folder / told["path"]
        if not file.is_file():
            return f"{told['path']} is missing"
        if hashlib.sha256(file.read_bytes()).hexdigest() != told["sha256"]:
            return f"{told['path']} is not the file that artifact.json describes (its SHA-256 differs)"
    return None


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as .npz with fixed times, so that the same arrays give the same bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, values in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(values), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(entry, buffer.getvalue())


def describe(folder: Path) -> list[dict[str, Any]]:
    """Return [{path, bytes, sha256}] of all files below `folder` but artifact.json, sorted by path."""
    found = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / "artifact.json"):
        content = file.read_bytes()
        path = file.relative_to(folder).as_posix()
        found.append({"path": path, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()})
    return found


def fill(plan: Plan, materials: Materials, target: Target, variant_name: str, folder: Path, samples: int = 8) -> None:
    """Write one variant of a run for one target."""
    from ..quantize import variant as variants
    from .graph import torch_runner

    variant = variants.load(plan.out / "variants" / variant_name).for_target(target)
    network = torch_runner(materials.variant_graphs(variant_name)) if variant.reference == "torch" else None
    test = materials.splits.test
    chosen = np.unique(np.linspace(0, len(test) - 1, samples).round().astype(np.int64))
    reference = variants.reference_runner(variant, network)
    folder.mkdir(parents=True, exist_ok=True)
    make(
        variant,
        target,
        folder,
        golden=materials.task.golden(reference, test, chosen),
        reference=reference,
        gate=plan.recipe.gate,
        task=materials.task.name,
        classes=test.classes,
        preprocess=materials.task.preprocessing(materials.student, test, folder),
        graphs=lambda: materials.variant_graphs(variant_name),
    )
