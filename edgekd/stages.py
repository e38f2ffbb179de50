"""What fills the stages around the student: the teacher's outputs, training, scores, graphs. The last argument is the folder to fill."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from . import run_folder
from .distributed import is_main_process
from .errors import BadInput
from .plan import without
from .progress import bar

if TYPE_CHECKING:
    from .materials import Materials
    from .models import LoadedModel
    from .plan import Plan, Step
    from .recipe import VariantRecipe
    from .targets import Target


def check(plan: Plan, materials: Materials) -> None:
    """Check before training what only the loaded models can tell: that teacher, student and data fit, and that the layers named exist."""
    from . import distill

    distill.check(
        plan.recipe.teaching, materials.task, materials.fresh_student, materials.teacher if plan.recipe.teacher else None
    )
    check_variants(plan, materials, plan.recipe.quantize)
    check_graphs(plan, materials, plan.targets)
    if plan.recipe.bench.devices:
        from .bench import stage

        graphs = materials.task.graphs(materials.fresh_student, materials.splits)
        stage.check(plan, {graph.name: graph.interface for graph in graphs})


def check_graphs(plan: Plan, materials: Materials, targets: Collection[Target]) -> None:
    """Show targets the student's graphs before it is trained. Raises BadInput for an operator or a shape that one cannot take."""
    from .backends import backend_of, refuses_network
    from .export import onnx

    refused: dict[str, str] = {}
    with TemporaryDirectory() as folder:
        for graph in materials.task.graphs(materials.fresh_student, materials.splits):
            file = Path(folder) / f"{graph.name}.onnx"
            onnx.write(graph, file)
            for target in targets:
                backend = backend_of(target.backend)
                if reason := backend.refuses_graph(file, target) or refuses_network(target.backend, graph, target):
                    refused[target.name] = f"target `{target.name}`: graph `{graph.name}`: {reason}"
    if refused:
        raise BadInput("\n".join(refused.values()) + without(plan.targets, refused))


def check_variants(plan: Plan, materials: Materials, variants: Iterable[VariantRecipe]) -> None:
    """Check all variants before the first of them is made: layers to keep, budgets, layers to match. Without any it loads nothing."""
    from . import distill, quantize
    from .quantize import chain, keep

    for variant in variants:
        student = materials.fresh_student
        if quantize.from_the_network(variant):
            chain.check(variant, student.module.net)
            for method, settings in variant.lessons(plan.recipe.teaching):
                adapted = (
                    "lora" in variant.methods and method != "lora"
                )  # what comes after adapters learns from the student with them
                teacher = materials.teacher if plan.recipe.teacher and not adapted else student
                distill.check(settings, materials.task, student, teacher)
        else:
            names = [name for name, _ in student.module.net.named_modules() if name]
            try:
                keep.check(variant.keep, names, "module of the student")
            except BadInput as error:
                raise BadInput(f"quantize `{variant.name}`: {error}") from None


SAME = 0.01
"""Of the largest output: the same network in torch and in ONNX Runtime differs by a thousandth of that."""


def check_student(plan: Plan, materials: Materials) -> None:
    """Check that the code still makes the student that was trained, by what its graphs give. Raises BadInput.

    A change in the code makes another student of its own accord, but for what `imports.sources` cannot see.
    """
    if "student_graphs" in vars(materials):  # they were written just now
        return
    from .export.graph import torch_runner
    from .parity import compare
    from .quantize.variant import file_runner

    for graph in materials.student_graphs:
        example = {name: values.numpy() for name, values in graph.example.items()}
        there, here = file_runner(materials.source_graphs())(graph.name, example), torch_runner([graph])(graph.name, example)
        if not (apart := compare(there, here)).relative <= SAME:
            raise BadInput(
                f"the student {materials.student.reference} is no longer the one that {plan.out} was made with: with the same weights its outputs "
                f"differ by {apart.relative:.0%} of the largest. Its code must read something that is neither a module beside it nor a file named in "
                f"it, and that has changed. Undo that, or give another -o to train it again"
            )


def cache_teacher(plan: Plan, materials: Materials, folder: Path) -> None:
    """Compute the teacher's outputs on the training samples once."""
    from .distill import teacher_cache

    teacher_cache.fill(plan, materials, folder)


def distill(plan: Plan, materials: Materials, folder: Path) -> None:
    """Fit the student to the teacher."""
    from .distill import distill as fit

    student, history = fit(plan, materials, folder)
    _keep(student, history, folder)


def train(plan: Plan, role: str, folder: Path) -> None:
    """Fit one model on labels alone."""
    from .distill import train as fit

    model, history, score = fit(plan, role, folder)
    if is_main_process():
        _keep(model, history, folder)
        _write(folder / "score.json", {"score": score, "reference": model.reference, "parameters": model.parameters})


def train_along(plan: Plan, materials: Materials, parts: Collection[str]) -> None:
    """Do this process's part of a distributed training; everything else is the first process's work.

    parts: of the corridor, those that the first process goes through and may make something in.
    """
    from . import quantize
    from .distill import distill as fit

    rank = plan.out / ".partial" / "rank"
    step = next(step for step in plan.steps if step.folder == "student")
    cache = [s for s in plan.steps if s.name == "teacher-cache"]
    if "distill" in parts and step.name == "distill" and not plan.cached(step):
        _wait_for(plan, cache)
        fit(plan, materials, rank)
    for variant in plan.recipe.quantize if "quantize" in parts else ():
        if variant.trains and not plan.cached(plan.step(f"quantize/{variant.name}")):
            _wait_for(plan, [step, *cache])
            quantize.train_along(variant, plan, materials, rank / variant.name)


def _wait_for(plan: Plan, steps: Sequence[Step]) -> None:
    """Wait until the first process has made them: that may take hours, and a collective would time out."""
    while not all(plan.cached(step) for step in steps):
        time.sleep(1)


def take_student(materials: Materials, folder: Path) -> None:
    """Take a student as it is: without `distill`, the recipe compresses a finished model."""
    from . import models

    models.save(materials.fresh_student, folder)


def score(materials: Materials, role: str, folder: Path) -> None:
    """Score teacher or student on the test samples, and keep its outputs."""
    import numpy as np

    from .export.graph import torch_runner

    model = materials.teacher if role == "teacher" else materials.student
    samples = materials.splits.test
    with bar(f"score {role}", len(samples)) as advance:
        made = materials.task.evaluate(torch_runner(materials.task.graphs(model, materials.splits)), samples, advance=advance)
    for name, values in {**made.outputs, "per_sample": made.per_sample}.items():
        np.save(folder / f"{name}.npy", values)
    facts = {"score": made.score, "samples": len(samples), "reference": model.reference, "parameters": model.parameters}
    beside = getattr(materials.task, "facts", None)
    _write(folder / "score.json", {**facts, **({"beside": beside(made, samples)} if beside else {})})


def write_graphs(materials: Materials, folder: Path) -> None:
    """Write the finished student as ONNX, full precision."""
    from .export import onnx

    for graph in materials.student_graphs:
        onnx.write(graph, folder / f"{graph.name}.onnx")


def _keep(model: LoadedModel, history: dict[str, Any], folder: Path) -> None:
    from . import models

    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    models.save(model, folder)
    _write(folder / "history.json", history)


def _write(file: Path, content: dict[str, Any]) -> None:
    run_folder.write_text(file, json.dumps(content))
