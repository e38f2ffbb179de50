"""The corridor: distill -> quantize -> export -> verify -> bench -> report. Each call goes on from what the one before left.

Stages that are finished are taken as they are. `first` is the first verb that may make something (what comes before must
be finished, so that `edgekd export` never trains a model unasked), `last` is where to stop.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from . import memory, run_folder, stages
from .distributed import is_main_process
from .errors import BadInput
from .manifest import Record
from .materials import Materials
from .plan import Plan, Step
from .progress import say

Manifest = dict[str, Any]
Make = Callable[[Step, Callable[[Path], None]], None]
"""Makes a stage by filling its folder, unless it is finished."""


def run(plan: Plan, first: str = "distill", last: str = "report") -> Manifest:
    """Carry out a plan and return the manifest. Raises BadInput, Diverged, Missing; the gate's outcome is in the verdicts."""
    run_folder.claim(plan.out, plan.recipe.model_dump(mode="json"), plan.kind)
    materials = Materials(plan)
    corridor = (distill, quantize, export, verify, bench)
    names = [part.__name__ for part in corridor]
    start, end = names.index(first), names.index(last) + 1 if last != "report" else len(names)
    if not is_main_process():
        stages.train_along(plan, materials, names[start:end])
        return {}
    with run_folder.locked(plan.out):
        record = Record(plan)
        for number, part in enumerate(corridor[:end]):
            part(plan, materials, partial(_make, plan, record, part.__name__, number >= start))
        _add_later_stages(plan, record)
        record.write()
        if last == "report" or (plan.out / "report.html").exists():
            report(plan)
        return record.manifest


def distill(plan: Plan, materials: Materials, make: Make) -> None:
    """Fit the student (or take it as it is), score teacher and student, and write the student's graphs."""
    fillers: dict[str, Callable[[Path], None]] = {
        "teacher-cache": partial(stages.cache_teacher, plan, materials),
        "distill": partial(stages.distill, plan, materials),
        "student": partial(stages.take_student, materials),
        "score/teacher": partial(stages.score, materials, "teacher"),
        "score/student": partial(stages.score, materials, "student"),
        "graphs": partial(stages.write_graphs, materials),
    }
    student_is_there = any(plan.cached(step) for step in plan.steps if step.folder == "student")
    if not student_is_there:
        with memory.guarded("the check before training", memory.ways_out("check", plan.recipe)):
            stages.check(plan, materials)
        materials.shown.update(target.name for target in plan.targets)
    for step in plan.steps:
        if step.name in fillers and not (step.name == "teacher-cache" and student_is_there and not plan.cached(step)):
            make(step, fillers[step.name])


def quantize(plan: Plan, materials: Materials, make: Make) -> None:
    """Make every variant of the student."""
    from . import quantize

    missing = [variant for variant in plan.recipe.quantize if not plan.cached(plan.step(f"quantize/{variant.name}"))]

    @cache
    def check() -> None:
        stages.check_variants(plan, materials, missing)  # all that are missing, before the first is made
        stages.check_student(plan, materials)

    def after_check(fill: Callable[[Path], None], folder: Path) -> None:
        check()
        fill(folder)

    outputs = next((step for step in plan.steps if step.name == "teacher-cache"), None)
    for variant in plan.recipe.quantize:
        if outputs and variant.trains and variant in missing and not plan.cached(outputs):
            # a finished student does without
            make(outputs, partial(after_check, partial(stages.cache_teacher, plan, materials)))
        make(plan.step(f"quantize/{variant.name}"), partial(after_check, partial(quantize.fill, variant, plan, materials)))


def export(plan: Plan, materials: Materials, make: Make) -> None:
    """Write every variant for every target."""
    from .export import artifact

    missing = [pair for pair in plan.wanted_pairs() if not plan.cached(plan.step(f"export/{pair[0].name}/{pair[1]}"))]
    added = {target.name: target for target, _ in missing if target.name not in materials.shown}
    if added:  # to a run whose student is finished
        stages.check_graphs(plan, materials, list(added.values()))
    for target, variant in plan.wanted_pairs():
        make(plan.step(f"export/{target.name}/{variant}"), partial(artifact.fill, plan, materials, target, variant))


def verify(plan: Plan, materials: Materials, make: Make) -> None:
    """Judge every artifact by the gate, on its runtime."""
    from . import verify

    for target, variant in plan.wanted_pairs():
        make(plan.step(f"verify/{target.name}/{variant}"), partial(verify.fill, plan, materials, target, variant))


def bench(plan: Plan, materials: Materials, make: Make) -> None:
    """Time every artifact whose runtime is here, alternately with its full-precision control."""
    from . import bench

    for target in plan.wanted():
        make(plan.step(f"bench/{target.name}"), partial(bench.fill, plan, target))


def report(plan: Plan) -> None:
    """Write the report from the manifest."""
    from . import report

    report.write(plan.out)


def train(plan: Plan, role: str) -> Manifest:
    """Carry out `edgekd train`: fit one model on labels alone, score it on the test samples."""
    run_folder.claim(plan.out, plan.recipe.model_dump(mode="json"), plan.kind)
    if not is_main_process():
        stages.train(plan, role, plan.out / ".partial" / "rank")
        return {}
    with run_folder.locked(plan.out):
        record = Record(plan)
        _make(plan, record, "train", True, plan.step("train"), partial(stages.train, plan, role))
        record.write()
        return record.manifest


def _add_later_stages(plan: Plan, record: Record) -> None:
    """Note what an earlier, longer run has finished and is still right, so that the manifest does not forget it."""
    known = {stage.name for stage in record.stages}
    for step in plan.steps:
        if step.name not in known and (stage := run_folder.finished(plan.out, step.folder, step.fingerprint)):
            record.stages.append(stage)


def _make(plan: Plan, record: Record, verb: str, may_make: bool, step: Step, fill: Callable[[Path], None]) -> None:
    stage = run_folder.finished(plan.out, step.folder, step.fingerprint)
    if stage is None:
        changed = run_folder.changed_file(plan.out, step.folder, step.fingerprint)
        if changed and not may_make:
            raise BadInput(
                f"{plan.out / changed}: not the file that was made (its SHA-256 differs): make it again with `edgekd {verb}`"
            )
        if changed:
            say(f"[yellow]{changed} is not the file that was made: making it again[/]")
        if not may_make:
            state = "is out of date" if (plan.out / step.folder).exists() else "is not there yet"
            raise BadInput(
                f"{plan.out / step.folder} {state}: run `edgekd {verb}` first (or `edgekd compress` for the whole way)"
            )
        say(f"{step.name:<28} ...", passing=True)
        with memory.guarded(step.name, memory.ways_out(step.name, plan.recipe)):
            stage = run_folder.make(plan.out, step.name, step.folder, step.fingerprint, fill)
    say(f"[dim]{step.name:<28} cached[/]" if stage.cached else f"{step.name:<28} {stage.seconds:.1f} s")
    record.add(stage)
