"""The corridor: distill -> quantize -> export -> verify -> bench -> report. Each call takes what the one before returned.

Stages that are finished are taken as they are; `last` is where to stop, `first` what may be made (the stages before it must
be finished, so that `edgekd export` never trains a model unasked).
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import manifest as manifests
from . import run_folder
from .distributed import is_main_process
from .errors import BadInput
from .materials import Materials
from .plan import Plan, Step
from .progress import bar, say
from .run_folder import Stage

ORDER = ("distill", "quantize", "export", "verify", "bench", "report")
Manifest = dict[str, Any]


def run(plan: Plan, first: str = "distill", last: str = "report") -> Manifest:
    """Carry out a plan and return the manifest. Raises BadInput, Diverged, Missing; the gate's outcome is in the verdicts."""
    run_folder.claim(plan.out, plan.recipe.model_dump(mode="json"))
    if not is_main_process():
        return _train_along(plan)
    with run_folder.locked(plan.out):
        record = manifests.Record(plan)
        materials = Materials(plan)
        makers = {"distill": distill, "quantize": quantize, "export": export, "verify": verify, "bench": bench}
        for name in ORDER[: ORDER.index(last) + 1]:
            if name == "report":
                report(plan, record)
            else:
                may_make = ORDER.index(name) >= ORDER.index(first)
                makers[name](plan, materials, record, may_make)
        return record.manifest


def distill(plan: Plan, materials: Materials, record: manifests.Record, may_make: bool = True) -> None:
    """Fit the student (or take it as it is), score teacher and student, and write the student's graphs."""
    for step in plan.steps:
        fill: Callable[[Path], None]
        match step.name.split("/"):
            case ["teacher-cache"]:
                if plan.cached(next(s for s in plan.steps if s.folder == "student")):
                    continue  # the cache served its purpose, whether or not it is still there
                fill = lambda folder: _cache_teacher(plan, materials, folder)  # noqa: E731
            case ["distill"]:
                fill = lambda folder: _distill(plan, materials, folder)  # noqa: E731
            case ["student"]:
                fill = lambda folder: _take_student(materials, folder)  # noqa: E731
            case ["score", role]:
                fill = lambda folder, role=role: _score(materials, role, folder)  # noqa: E731
            case ["graphs"]:
                fill = lambda folder: _write_graphs(materials, folder)  # noqa: E731
            case _:
                continue
        record.add(_stage(plan, step, fill, may_make, "distill"))


def quantize(plan: Plan, materials: Materials, record: manifests.Record, may_make: bool = True) -> None:
    """Make every variant of the student."""
    from . import quantize as methods

    for variant in plan.recipe.quantize:
        step = plan.step(f"quantize/{variant.name}")
        record.add(_stage(plan, step, lambda folder, v=variant: methods.fill(v, plan, materials, folder), may_make, "quantize"))


def export(plan: Plan, materials: Materials, record: manifests.Record, may_make: bool = True) -> None:
    """Write every variant for every target."""
    from .export import artifact

    for target, variant in plan.pairs():
        step = plan.step(f"export/{target.name}/{variant}")
        record.add(
            _stage(
                plan, step, lambda folder, t=target, v=variant: artifact.fill(plan, materials, t, v, folder), may_make, "export"
            )
        )


def verify(plan: Plan, materials: Materials, record: manifests.Record, may_make: bool = True) -> None:
    """Judge every artifact by the gate, on its runtime."""
    from . import verify as gate

    for target, variant in plan.pairs():
        step = plan.step(f"verify/{target.name}/{variant}")
        record.add(
            _stage(plan, step, lambda folder, t=target, v=variant: gate.fill(plan, materials, t, v, folder), may_make, "verify")
        )


def bench(plan: Plan, materials: Materials, record: manifests.Record, may_make: bool = True) -> None:
    """Time every artifact whose runtime is here, alternately with its full-precision control."""
    from . import bench as clock

    for target in plan.targets:
        step = plan.step(f"bench/{target.name}")
        record.add(_stage(plan, step, lambda folder, t=target: clock.fill(plan, t, folder), may_make, "bench"))


def report(plan: Plan, record: manifests.Record) -> Path:
    """Write the manifest and the report."""
    from . import report as html

    record.write()
    return html.write(plan.out)


def train(plan: Plan, role: str) -> Manifest:
    """Carry out `edgekd train`: fit one model on labels alone, score it on the test samples."""
    run_folder.claim(plan.out, plan.recipe.model_dump(mode="json"))
    if not is_main_process():
        _fit_alone(plan, role, plan.out / ".partial" / "rank")
        return {}
    with run_folder.locked(plan.out):
        record = manifests.Record(plan)
        record.add(_stage(plan, plan.step("train"), lambda folder: _fit_alone(plan, role, folder), True, "train"))
        record.write()
        return record.manifest


# --- what fills each stage ---------------------------------------------------------------------


def _stage(plan: Plan, step: Step, fill: Callable[[Path], None], may_make: bool, verb: str) -> Stage:
    if found := run_folder.finished(plan.out, step.folder, step.fingerprint):
        say(f"[dim]{step.name:<28} cached[/]")
        return found
    if not may_make:
        state = "is out of date" if (plan.out / step.folder).exists() else "is not there yet"
        raise BadInput(f"{plan.out / step.folder} {state}: run `edgekd {verb}` first (or `edgekd compress` for the whole way)")
    made = run_folder.make(plan.out, step.name, step.folder, step.fingerprint, fill)
    say(f"{step.name:<28} {made.seconds:.1f} s")
    return made


def _cache_teacher(plan: Plan, materials: Materials, folder: Path) -> None:
    from .distill import teacher_cache

    teacher_cache.fill(plan, materials, folder)


def _distill(plan: Plan, materials: Materials, folder: Path) -> None:
    from . import models
    from .distill import distill as fit_to_teacher

    student, history = fit_to_teacher(plan, materials, folder)
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    models.save(student, folder)
    run_folder.write_text(folder / "history.json", json.dumps(history))


def _take_student(materials: Materials, folder: Path) -> None:
    from . import models

    models.save(materials.fresh_student, folder)


def _fit_alone(plan: Plan, role: str, folder: Path) -> None:
    from . import models
    from .distill import train as fit

    model, history, score = fit(plan, role, folder)
    if is_main_process():
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)
        models.save(model, folder)
        run_folder.write_text(folder / "history.json", json.dumps(history))
        facts = {"score": score, "reference": model.reference, "parameters": model.parameters}
        run_folder.write_text(folder / "score.json", json.dumps(facts))


def _train_along(plan: Plan) -> Manifest:
    """Do this process's part of a distributed training; everything else is the first process's work."""
    from .distill import distill as fit_to_teacher

    step = next(s for s in plan.steps if s.folder == "student")
    if step.name == "distill" and not plan.cached(step):
        for cache in (s for s in plan.steps if s.name == "teacher-cache"):
            while not plan.cached(cache):  # the first process makes it; hours are fine, a collective would time out
                time.sleep(1)
        fit_to_teacher(plan, Materials(plan), plan.out / ".partial" / "rank")
    return {}


def _score(materials: Materials, role: str, folder: Path) -> None:
    import numpy as np

    from .export.graph import torch_runner

    model = materials.teacher if role == "teacher" else materials.student
    samples = materials.splits.test
    with bar(f"score {role}", len(samples)) as advance:
        made = materials.task.evaluate(torch_runner(materials.task.graphs(model, materials.splits)), samples, advance=advance)
    for name, values in {**made.outputs, "per_sample": made.per_sample}.items():
        np.save(folder / f"{name}.npy", values)
    facts = {"score": made.score, "samples": len(samples), "reference": model.reference, "parameters": model.parameters}
    run_folder.write_text(folder / "score.json", json.dumps(facts))


def _write_graphs(materials: Materials, folder: Path) -> None:
    from .export import onnx

    for graph in materials.student_graphs:
        onnx.write(graph, folder / f"{graph.name}.onnx")
