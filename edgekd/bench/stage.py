"""Timing as a stage of a run, and as `edgekd bench` for files that belong to none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..errors import BadInput
from .local import measure
from .things import Thing, thing_from

if TYPE_CHECKING:
    from ..plan import Plan
    from ..recipe import Bench
    from ..targets import Target

RECORD = "bench.json"


def fill(plan: Plan, target: Target, folder: Path) -> None:
    """Time a target's artifacts into `folder`: bench.json {measurements, comparisons, skipped}, and the raw samples.

    skipped: why nothing was timed (this machine is not the device, or has not its runtime), else null. Sample paths are relative to the run.
    """
    from ..backends import backend_of

    home = plan.step(f"bench/{target.name}").folder
    means = backend_of(target.backend).executes(target)
    reason = None if means.seconds_are_the_devices else means.why or f"{target.title} is not this machine"
    told: dict[str, Any] = {"measurements": [], "comparisons": [], "skipped": reason}
    if not reason:
        folders = [plan.out / "targets" / target.name / name for t, name in plan.pairs() if t.name == target.name]
        things = [replace(thing_from(artifact), target_file=target.file or None) for artifact in folders]
        told["measurements"], told["comparisons"] = _with_a_bar(things, plan.recipe.bench, folder)
        for one in told["measurements"]:
            one["samples"] = f"{home}/{one['samples']}"
    (folder / RECORD).write_text(json.dumps(told, indent=1, allow_nan=False), encoding="utf-8")


def measure_paths(paths: Sequence[Path], settings: Sequence[str] = (), folder: Path = Path("runs/bench")) -> dict[str, Any]:
    """Time artifact folders, whole run folders and .onnx files side by side; all are compared with one control.

    settings: such as "bench.min_seconds=3". Samples and bench.json land in `folder`, in the place of an earlier call's. The same file given twice is timed
    twice: then the answer should be that no difference is seen. Raises BadInput and process.WorkerDied.
    """
    wrong = next((s for s in settings if not s.startswith("bench.")), None)
    if wrong:
        raise BadInput(f"--set {wrong}: only bench.* matters to files that belong to no run, such as bench.min_seconds=3")
    from ..recipe_file import from_manifest

    recipe = from_manifest({"data": {"source": "-"}, "student": {"model": "-"}}, Path("--set"), settings)
    things = _things(paths)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".partial-", dir=folder) as made:
        measurements, comparisons = _with_a_bar(things, recipe.bench, Path(made), one_control=True)
        _forget_samples(folder)
        for one in measurements:
            (Path(made) / one["samples"]).replace(folder / one["samples"])
    told = {"measurements": measurements, "comparisons": comparisons, "folder": str(folder)}
    (folder / RECORD).write_text(json.dumps(told, indent=1, allow_nan=False), encoding="utf-8")
    return told


def _forget_samples(folder: Path) -> None:
    """Remove the samples that an earlier call left in the folder, those that its bench.json names and nothing else."""
    try:
        told = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        names = [str(one["samples"]) for one in told["measurements"]]
    except (OSError, ValueError, KeyError, TypeError):
        return
    for name in names:
        if name == Path(name).name and name.endswith(".npy"):
            (folder / name).unlink(missing_ok=True)


def _things(paths: Sequence[Path]) -> list[Thing]:
    found: list[Path] = []
    for path in paths:
        artifacts = sorted(record.parent for record in path.glob("targets/*/*/artifact.json"))
        found += artifacts or [path]
    things = [thing_from(path) for path in found]
    labels = [thing.label for thing in things]
    named: list[Thing] = []
    for path, thing in zip(found, things, strict=True):
        label = thing.label if labels.count(thing.label) == 1 else str(path)
        again = sum(label == other.label or other.label.startswith(f"{label} (") for other in named)
        named.append(replace(thing, label=f"{label} ({again + 1})" if again else label))
    return named


def _with_a_bar(things: Sequence[Thing], settings: Bench, folder: Path, one_control: bool = False) -> Any:
    from ..progress import bar

    with bar("bench", 100) as advance:
        shown = 0

        def progress(share: float, what: str) -> None:
            nonlocal shown
            advance(round(100 * share) - shown, what)
            shown = round(100 * share)

        return measure(things, settings, folder, progress, one_control=one_control)
