"""The gate: one task metric on the same samples through every stage, and how far the stages' outputs lie apart."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import divergence
from .backends import backend_of
from .export import artifact as artifacts
from .export.graph import torch_runner
from .parity import Parity, compare
from .quantize.variant import Variant, file_runner
from .tasks import Evaluation
from .verdict import Verdict, Wrong, decide, not_verified

if TYPE_CHECKING:
    from .backends import Session
    from .data import Split
    from .export.artifact import Artifact
    from .export.graph import Arrays, Graph, Runner
    from .materials import Materials
    from .plan import Plan
    from .recipe import Gate
    from .targets import Target
    from .tasks import Task

UNTRAINED = ("ptq", "round-to-nearest")
"""Methods whose outputs should be the student's, but for noise."""


@dataclass(frozen=True)
class Question:
    """What is to be judged, and what with. Without task and split (a bare .onnx) the golden inputs take their place.

    teacher, student: evaluated on the same split; None where there is none. graphs: the variant's torch graphs, the student's where
    it has no weights of its own: for the score of what was made in torch, and for the layer that departs first. source: the full-precision ONNX files that the variant was made from.
    """

    artifact: Artifact
    variant: Variant
    target: Target
    gate: Gate
    task: Task | None = None
    split: Split | None = None
    teacher: Evaluation | None = None
    student: Evaluation | None = None
    graphs: tuple[Graph, ...] = ()
    source: Mapping[str, Path] = field(default_factory=dict)
    threads: int | None = None
    seed: int = 0


def verify(asked: Question) -> Verdict:
    """Judge one artifact. What is wrong with it is the verdict, not an exception."""
    metric = asked.task.metric if asked.task and asked.split else None
    evaluations = {name: e for name in ("teacher", "student") if (e := getattr(asked, name)) is not None}
    backend = backend_of(asked.target.backend)
    if reason := backend.missing() or asked.target.elsewhere():
        return not_verified(reason, metric, evaluations)
    wrong, providers = _wrong_from_outside(asked), Counter[str]()
    parity: dict[str, Parity] = {}
    stage = "variant"
    try:
        evaluations["variant"] = _variant(asked)
        stage = "file"
        same = _same_files(asked)
        exact = file_runner(asked.artifact.graphs, asked.target.backend)
        evaluations["file"] = evaluations["variant"] if same else _evaluate(asked, exact)
        stage = "runtime"
        evaluations["runtime"] = _evaluate(asked, _runtime(asked, providers))
        parity, apart = _parity(asked, evaluations)
        wrong += apart
    except Exception as error:  # a file can be wrong in any way, and each runtime has its own exceptions
        wrong.append(Wrong(stage, f"the {stage} does not run: {(str(error).strip() or repr(error)).splitlines()[0]}"))
    diverged = _first_divergence(asked, parity) if any(w.stage in ("variant", "file") for w in wrong) else None
    return decide(metric, asked.gate, evaluations, parity, wrong, diverged=diverged, providers=providers, seed=asked.seed)


def _variant(asked: Question) -> Evaluation:
    """Evaluate the variant on what it says is its reference: its torch network, or its files in exact arithmetic."""
    if asked.variant.reference == "torch":
        if asked.student is not None and asked.variant.weights is None:
            return asked.student
        if asked.graphs:
            return _evaluate(asked, torch_runner(list(asked.graphs)))
    return _evaluate(asked, file_runner(asked.variant.graphs))


def _runtime(asked: Question, providers: Counter[str]) -> Runner:
    """Run the artifact as its runtime does; note in `providers` which took how many nodes."""
    sessions: dict[str, Session] = {}

    def run(name: str, inputs: Arrays) -> dict[str, np.ndarray]:
        if name not in sessions:
            file = asked.artifact.graphs[name]
            sessions[name] = backend_of(asked.target.backend).load(file, asked.target, asked.threads)
            providers.update(sessions[name].providers)
        return sessions[name].run(inputs)

    return run


def _evaluate(asked: Question, run: Runner) -> Evaluation:
    if asked.task is not None and asked.split is not None:
        return asked.task.evaluate(run, asked.split)
    inputs, _ = asked.artifact.golden()
    made = {f"{name}/{key}": v for name, given in inputs.items() if given for key, v in run(name, given).items()}
    return Evaluation(float("nan"), np.empty(0), made)


def _wrong_from_outside(asked: Question) -> list[Wrong]:
    """Find what is wrong without running anything: damaged files, classes in another order."""
    found = []
    if reason := artifacts.damage(asked.artifact):
        found.append(Wrong("file", reason))
    if asked.split is not None and (told := list(asked.artifact.record["classes"])) != list(asked.split.classes):
        pairs = enumerate(zip(told, asked.split.classes, strict=False))
        at = next(
            (f"class {i} is `{a}`, in the data `{b}`" for i, (a, b) in pairs if a != b), "there is another number of them"
        )
        found.append(Wrong("file", f"the artifact's classes differ from the data's: {at}"))
    return found


def _same_files(asked: Question) -> bool:
    """Say whether the artifact ships the variant's very bytes: then both have the same exact arithmetic."""
    if asked.variant.reference != "graph" or asked.variant.graphs.keys() != asked.artifact.graphs.keys():
        return False
    from .export.onnx import files_of

    def content(graphs: Mapping[str, Path]) -> list[bytes]:
        return [f.read_bytes() for main in graphs.values() for f in files_of(main)]

    try:
        return content(asked.variant.graphs) == content(asked.artifact.graphs)
    except Exception:  # an unreadable file is found out by loading it
        return False


def _parity(asked: Question, evaluations: Mapping[str, Evaluation]) -> tuple[dict[str, Parity], list[Wrong]]:
    """Compare each stage with the one before; return the numbers, and what is too far apart."""
    gate, variant = asked.gate, asked.variant
    found, wrong = {}, []
    if (variant.reference == "graph" or variant.weights) and "student" in evaluations:
        found["variant"] = near = compare(evaluations["student"].outputs, evaluations["variant"].outputs)
        if variant.method in UNTRAINED and not near.sqnr_db >= gate.min_variant_sqnr_db:
            said = near.reason or f"{_over_error(near.sqnr_db)} against the student's"
            wrong.append(Wrong("variant", f"the variant's outputs: {said} (gate {gate.min_variant_sqnr_db:g} dB)"))
    found["file"] = near = compare(evaluations["variant"].outputs, evaluations["file"].outputs)
    if not near.relative <= gate.max_error:
        said = near.reason or f"off by {near.relative:.2g} of the largest from the variant's"
        wrong.append(Wrong("file", f"the file's outputs: {said} (gate {gate.max_error:g})"))
    found["runtime"] = near = compare(evaluations["file"].outputs, evaluations["runtime"].outputs)
    if variant.reference == "torch":  # floating point on both sides
        if not near.relative <= gate.max_error:
            said = near.reason or f"off by {near.relative:.2g} of the largest from the file's exact arithmetic"
            wrong.append(Wrong("runtime", f"the runtime's outputs: {said} (gate {gate.max_error:g})"))
    elif not near.sqnr_db >= gate.min_sqnr_db:
        said = near.reason or f"{_over_error(near.sqnr_db)} against the file's exact arithmetic"
        hint = asked.target.saturates()
        advice = f": {hint}; set calibration.overflow_fix to `on`" if hint else ""
        wrong.append(Wrong("runtime", f"the runtime's outputs: {said} (gate {gate.min_sqnr_db:g} dB){advice}"))
    return found, wrong


def _over_error(sqnr_db: float) -> str:
    return f"{-sqnr_db:.1f} dB below their error" if sqnr_db < 0 else f"only {sqnr_db:.1f} dB above their error"


def _first_divergence(asked: Question, parity: Mapping[str, Parity]) -> divergence.Divergence | None:
    """Find the layer: torch against the file, or for a quantized variant the stage before it (its file, then its source)."""
    try:
        return _search(asked, parity)
    except Exception:  # the files are known to be wrong, and may be so in any way: a hint must not hide the verdict
        return None


def _search(asked: Question, parity: Mapping[str, Parity]) -> divergence.Divergence | None:
    from .export.onnx import modules_of

    name = next(iter(asked.artifact.graphs))
    golden = asked.artifact.golden()[0][name]
    inputs = {key: values[: divergence.SAMPLES] for key, values in golden.items()}
    source = asked.source.get(name)
    modules = modules_of(source) if source else {}
    file, own = asked.artifact.graphs[name], asked.variant.graphs[name]
    if asked.variant.reference == "torch":
        graph = next((g for g in asked.graphs if g.name == name), None)
        if graph is None:
            return None
        tensors, fresh = divergence.torch_tensors(graph, inputs)
        known = modules_of(own) or {**modules, **fresh}  # an export of its own has nodes of its own
        return divergence.first(tensors, file, inputs, known, max_error=asked.gate.max_error)
    if "file" in parity and not parity["file"].relative <= asked.gate.max_error:
        return divergence.first(divergence.file_tensors(own, inputs), file, inputs, modules, max_error=asked.gate.max_error)
    if source is None:
        return None
    graph = next((g for g in asked.graphs if g.name == name), None)
    if graph is not None:
        tensors, fresh = divergence.torch_tensors(graph, inputs)
        if found := divergence.first(tensors, source, inputs, {**modules, **fresh}, max_error=asked.gate.max_error):
            return found
    tensors = divergence.file_tensors(source, inputs)
    return divergence.first(tensors, own, inputs, modules, min_sqnr_db=asked.gate.min_variant_sqnr_db)


def fill(plan: Plan, materials: Materials, target: Target, variant_name: str, folder: Path) -> None:
    """Judge one artifact of a run; write verdict.json."""
    from .quantize import variant as variants

    verdict = verify(
        Question(
            artifact=artifacts.load(plan.out / "targets" / target.name / variant_name),
            variant=variants.load(plan.out / "variants" / variant_name),
            target=target,
            gate=plan.recipe.gate,
            task=materials.task,
            split=materials.splits.test,
            teacher=evaluation(plan.out / "scores" / "teacher") if plan.recipe.teacher else None,
            student=evaluation(plan.out / "scores" / "student"),
            graphs=tuple(materials.variant_graphs(variant_name)),
            source=materials.source_graphs(),
            threads=plan.recipe.bench.threads,
            seed=plan.recipe.seed,
        )
    )
    (folder / "verdict.json").write_text(json.dumps(verdict.record(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def evaluation(folder: Path) -> Evaluation:
    """Read an evaluation that a score stage left: score.json, per_sample.npy, and one .npy for each output."""
    arrays = {file.stem: np.load(file, allow_pickle=False) for file in sorted(folder.glob("*.npy"))}
    score = json.loads((folder / "score.json").read_text())["score"]
    return Evaluation(score, arrays.pop("per_sample"), arrays)
