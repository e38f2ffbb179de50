"""The teacher's outputs on every training sample, computed once and read through memory mapping.

A cache is a folder: key.json (what it was made from), one NUMPY file for each output and view, and files.json, which is
there when all is whole. Views are seeded augmentations: epoch e reads view e % views.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .. import recipe
from ..errors import BadInput
from ..models.identity import identity
from ..progress import bar
from ..text import tokenizer
from . import allocator, keys, objectives
from .memory_format import channels_last, contiguous
from .samples import Samples
from .taps import Taps

if TYPE_CHECKING:
    from ..data import Split
    from ..materials import Materials
    from ..models import LoadedModel
    from ..plan import Plan
    from ..tasks import Task

CHUNK = 1024
"""Samples between two marks of how far an interrupted build had come."""
BATCH = 128


@dataclass(frozen=True)
class Cache:
    """An open cache. views: view -> output name -> float32, first axis the position in the training split."""

    views: list[dict[str, np.ndarray]]

    def read(self, view: int, positions: np.ndarray, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
        """Return the teacher's outputs for those samples, as augmented in that view."""
        arrays = self.views[view]
        return {name: torch.from_numpy(array.take(positions, axis=0)).to(device) for name, array in arrays.items()}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return each output's shape for one sample."""
        return {name: array.shape[1:] for name, array in self.views[0].items()}


def key(
    teacher: LoadedModel, split: Split, settings: recipe.Distill, seed: int, outputs: Sequence[str] = ("logits",)
) -> dict[str, Any]:
    """Return what a cache depends on. Without augmentation all views are one, and the seed does not matter."""
    augmented = settings.augment != recipe.Augment()
    return keys.plain(
        {
            "teacher": identity(teacher),
            "weights": keys.weights_hash(teacher.module),
            "preprocess": teacher.preprocess.model_dump() if teacher.preprocess else None,
            "tokenizer": tokenizer.fingerprint(teacher.tokenizer) if teacher.tokenizer is not None else None,
            "pooling": teacher.pooling,
            "data": split.fingerprint,
            "samples": len(split),
            "augment": settings.augment.model_dump() if augmented else None,
            "seed": seed if augmented else None,
            "views": settings.views if augmented else 1,
            "outputs": sorted(set(outputs)),
        }
    )


def build(
    teacher: LoadedModel, split: Split, task: Task, settings: recipe.Distill, folder: Path, key: dict[str, Any], *,
    device: torch.device | str = "cpu",
) -> None:  # fmt: skip
    """Make the cache, or what is missing of it: an interrupted build goes on, a damaged cache is made anew.

    Raises BadInput when the folder holds a cache of something else, when the teacher gives NaN or infinity, or when the
    disk is full.
    """
    _refuse_another(folder, key)
    if _whole(folder, verify=True):
        return
    folder.mkdir(parents=True, exist_ok=True)
    if not _resumable(folder, key, len(split)):
        _clear(folder)
    _write_json(folder / "key.json", key)
    layers = [name for name in key["outputs"] if name not in task.outputs]
    module = teacher.module.to(device).eval()
    samples = Samples(split, settings.augment, key["seed"] or 0, device)
    two = samples.batch(samples.read(np.arange(2)), 0)
    channels_last(module, lambda: task.forward(module, two))
    _refuse_ragged(module, task, samples, key["outputs"])
    total = key["views"] * len(split)
    try:
        with Taps(module, layers, "teacher") as taps, torch.inference_mode(), bar("teacher cache", total) as advance:
            for view in range(key["views"]):
                for start in range(0, len(split), CHUNK):
                    stop = min(start + CHUNK, len(split))
                    mark = folder / "done" / f"{view}-{start}"
                    if not mark.exists():
                        rows = _forward(module, task, samples, taps, key["outputs"], view, np.arange(start, stop))
                        _check(rows, teacher, start)
                        _put(folder, view, start, rows, len(split), key["views"])
                        mark.parent.mkdir(exist_ok=True)
                        mark.touch()
                    advance(stop - start)
        files = {path.name: [path.stat().st_size, _crc(path)] for path in sorted(folder.glob("*.npy"))}
        _write_json(folder / "files.json", files)
    except OSError as error:
        raise BadInput(
            f"cannot write the teacher's outputs to {folder}: {error}. Free some space, or set distill.teacher: live"
        ) from None
    shutil.rmtree(folder / "done", ignore_errors=True)
    contiguous(module)


def open(folder: Path, key: dict[str, Any], *, verify: bool = True) -> Cache:
    """Open a whole cache. verify: read the files once to see that no byte changed.

    Raises BadInput when it was made from something else (naming what), or is incomplete or damaged.
    """
    _refuse_another(folder, key)
    if not _whole(folder, verify):
        raise BadInput(
            f"the teacher's outputs in {folder} are incomplete or damaged: delete the folder, and they are made anew"
        )
    views: list[dict[str, np.ndarray]] = [{} for _ in range(key["views"])]
    for view, outputs in enumerate(views):
        for name in key["outputs"]:
            # As a plain array: indexing numpy's memmap class costs several times as much.
            outputs[name] = np.asarray(np.load(_file(folder, view, name), mmap_mode="r"))
    return Cache(views)


def fill(plan: Plan, materials: Materials, folder: Path) -> None:
    """Fill the run's teacher-cache stage."""
    distill = plan.recipe.distill
    assert distill is not None  # the plan has this stage only then
    outputs = wanted_outputs(objectives.resolve(distill.objectives))
    if not outputs:
        return
    train = materials.splits.train
    made_from = key(materials.teacher, train, distill, plan.recipe.seed, outputs)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with allocator.kept(device == "cpu"):
        build(materials.teacher, train, materials.task, distill, folder, made_from, device=device)
    materials.teacher.module.cpu()


def wanted_outputs(goals: Sequence[objectives.Objective]) -> list[str]:
    """Return which of the teacher's outputs the objectives read: the task's, layers by name."""
    return sorted({name for goal in goals for name in goal.reads})


def _forward(
    module: torch.nn.Module, task: Task, samples: Samples, taps: Taps, outputs: list[str], view: int, positions: np.ndarray
) -> dict[str, np.ndarray]:
    parts: list[dict[str, torch.Tensor]] = []
    lengths = samples.split.lengths
    alike = np.argsort(lengths[positions], kind="stable") if lengths is not None else np.arange(len(positions))
    for start in range(0, len(positions), BATCH):
        batch = samples.batch(samples.read(positions[alike[start : start + BATCH]]), view)
        made = task.forward(module, batch)
        made = {**made, **taps.outputs}
        parts.append({name: made[name] for name in outputs})
    back = torch.from_numpy(np.argsort(alike))
    return {name: torch.cat([part[name].float().cpu() for part in parts])[back].numpy() for name in parts[0]}


def _refuse_ragged(module: torch.nn.Module, task: Task, samples: Samples, outputs: list[str]) -> None:
    """Raise BadInput where a sample's outputs are not one row of one shape: those of a language model, layers that read texts."""
    lengths = samples.split.lengths
    ends = (0, 1) if lengths is None else (int(lengths.argmin()), int(lengths.argmax()))
    layers = [name for name in outputs if name not in task.outputs]
    shapes: list[dict[str, tuple[int, ...]]] = []
    with Taps(module, layers, "teacher") as taps, torch.inference_mode():
        for position in ends:
            made = task.forward(module, samples.batch(samples.read(np.array([position, position])), 0))
            shapes.append({name: tuple(values.shape) for name, values in {**made, **taps.outputs}.items()})
    for name in outputs:
        rows = shapes[0][name][0]
        if rows != 2 or shapes[0][name] != shapes[1][name]:
            what = f"have {rows} rows for two samples" if rows != 2 else "are as long as the text"
            raise BadInput(
                f"distill.teacher: cached: the teacher's `{name}` {what} ({task.name}), which a cache does not keep: set distill.teacher: live"
            )


def _check(rows: dict[str, np.ndarray], teacher: LoadedModel, start: int) -> None:
    for name, values in rows.items():
        bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
        if len(bad):
            raise BadInput(
                f"the teacher {teacher.reference} gives NaN or infinity ({name}, training sample {start + bad[0]}): "
                "check its weights and its preprocessing"
            )


def _put(folder: Path, view: int, start: int, rows: dict[str, np.ndarray], samples: int, views: int) -> None:
    """Write rows with plain writes: a full disk is then an error message, where a memory map would kill the process."""
    for name, values in rows.items():
        path = _file(folder, view, name)
        values = np.ascontiguousarray(values, dtype=np.float32)
        if not path.exists():
            need = values[0].nbytes * samples * (views - view)
            if need > (free := shutil.disk_usage(folder).free):
                raise BadInput(
                    f"the teacher's `{name}` take {need / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free: "
                    "set distill.teacher: live, fewer distill.views, or match a smaller layer"
                )
            temporary = path.with_name(path.name + ".tmp")
            np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=(samples, *values.shape[1:]))
            os.replace(temporary, path)
        offset = path.stat().st_size - values[0].nbytes * (samples - start)
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(values.tobytes())
            file.flush()
            os.fsync(file.fileno())


def _whole(folder: Path, verify: bool) -> bool:
    try:
        files = json.loads((folder / "files.json").read_text())
        return bool(files) and all(
            (folder / name).stat().st_size == size and (not verify or _crc(folder / name) == crc)
            for name, (size, crc) in files.items()
        )
    except (OSError, ValueError, TypeError):
        return False


def _resumable(folder: Path, key: dict[str, Any], samples: int) -> bool:
    """Say whether what an interrupted build left can be trusted: every view begun has its files, at their full length."""
    if (folder / "files.json").exists():
        return False  # it was whole once, so what is left cannot be told from damage
    begun = {mark.name.split("-")[0] for mark in (folder / "done").glob("*-*")}
    try:
        lengths = [len(np.load(_file(folder, int(view), name), mmap_mode="r")) for view in begun for name in key["outputs"]]
    except (OSError, ValueError, EOFError):
        return False
    return all(length == samples for length in lengths)


def _refuse_another(folder: Path, key: dict[str, Any]) -> None:
    try:
        found = json.loads((folder / "key.json").read_text())
    except OSError:
        return
    except ValueError:
        found = {}
    if lines := keys.differences(found, key):
        raise BadInput(
            f"the teacher's outputs in {folder} were made from something else: {'; '.join(lines)}. "
            "Delete the folder, and they are made anew"
        )


def _clear(folder: Path) -> None:
    for path in (*folder.glob("*.npy"), folder / "files.json"):
        path.unlink(missing_ok=True)
    shutil.rmtree(folder / "done", ignore_errors=True)


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            crc = zlib.crc32(piece, crc)
    return crc


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1))
    os.replace(temporary, path)


def _file(folder: Path, view: int, name: str) -> Path:
    return folder / f"{name}.{view}.npy"
