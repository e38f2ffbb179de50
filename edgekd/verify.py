"""The gate: one task metric on the same samples through every stage, and how far the stages' outputs lie apart."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import divergence, imported, memory
from .backends import Means, backend_of, tensors_of, wrong_with
from .errors import Missing
from .export import artifact as artifacts
from .export.graph import Running, torch_runner
from .export.onnx import modules_of
from .parity import Parity, compare
from .quantize.variant import Variant, file_runner
from .tasks import Evaluation
from .verdict import Verdict, Wrong, decide

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

UNTRAINED = ("ptq", "dynamic", "round-to-nearest")
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
    backend = backend_of(asked.target.backend)
    means = backend.executes(asked.target)
    if means.slow or means.by in ("simulator", "reference"):
        asked = _fewer(asked)
    metric = asked.task.metric if asked.task and asked.split else None
    evaluations = {name: e for name in ("teacher", "student") if (e := getattr(asked, name)) is not None}
    wrong, providers = [*_wrong_from_outside(asked), *_nan("student", evaluations)], Counter[str]()
    parity: dict[str, Parity] = {}
    stage = "variant"
    try:
        evaluations["variant"] = _variant(asked)
        wrong += _nan("variant", evaluations) if not wrong else []
        wrong += _wrong_golden(asked)
        stage = "file"
        wrong += [Wrong("file", what) for f in asked.artifact.graphs.values() for what in _rules(asked, f)]
        if exact := _run(asked, exact=True):
            evaluations["file"] = evaluations["variant"] if _same_files(asked) else _evaluate(asked, exact)
        stage = "runtime"
        if means.by is not None and (run := _run(asked, providers=providers)):
            evaluations["runtime"] = _evaluate(asked, run)
        parity, apart = _parity(asked, evaluations)
        wrong += apart
    except Missing as error:
        if means.by is not None:  # it ended while we were at it: no verdict, and none that is kept
            raise
        means = Means(None, str(error))
    except Exception as error:  # a file can be wrong in any way, and each runtime has its own exceptions
        if memory.ran_out(error):  # this machine's lack, not the file's: no verdict that is kept
            raise
        wrong.append(Wrong(stage, f"the {stage} does not run: {(str(error).strip() or repr(error)).splitlines()[0]}"))
    diverged = _first_divergence(asked, parity) if any(w.stage in ("variant", "file", "runtime") for w in wrong) else None
    return decide(
        metric, asked.gate, evaluations, parity, wrong, means=means, diverged=diverged, providers=providers,
        beside=_beside(asked, evaluations), seed=asked.seed,
    )  # fmt: skip


def _beside(asked: Question, evaluations: Mapping[str, Evaluation]) -> dict[str, dict[str, float]]:
    """Return stage -> what the task tells beside its metric; {} of a task that tells nothing."""
    facts: Callable[[Evaluation, Split], dict[str, float]] | None = getattr(asked.task, "facts", None)
    if facts is None or asked.split is None:
        return {}
    told = {stage: facts(made, asked.split) for stage, made in evaluations.items()}
    return {stage: {k: v for k, v in found.items() if np.isfinite(v)} for stage, found in told.items()}


def _fewer(asked: Question) -> Question:
    """Ask about no more samples than a simulator has time for, spread over the split: at every stage the same ones."""
    if asked.task is None or asked.split is None or len(asked.split) <= asked.gate.simulator_samples:
        return asked
    at = np.unique(np.linspace(0, len(asked.split) - 1, asked.gate.simulator_samples).round().astype(np.int64))
    split = asked.split.at(at)
    teacher, student = (_cut(asked.task, split, whole, at) if whole else None for whole in (asked.teacher, asked.student))
    return replace(asked, split=split, teacher=teacher, student=student)


def _cut(task: Task, split: Split, whole: Evaluation, at: np.ndarray) -> Evaluation:
    """Score some of the samples again, from the outputs that were kept."""
    return task.score({key: values[at] for key, values in whole.outputs.items()}, split)


def _nan(stage: str, evaluations: Mapping[str, Evaluation]) -> list[Wrong]:
    """Find NaN in a stage's own outputs: where every stage has it they all agree, and nothing may ship all the same."""
    if stage not in evaluations:
        return []
    found = [name for name, values in evaluations[stage].outputs.items() if np.isnan(values).any()]
    return [Wrong(stage, f"the {stage}'s `{found[0]}` has NaN")] if found else []


def _wrong_golden(asked: Question) -> list[Wrong]:
    """Compute the golden outputs again: on a device that is not here they are all that the artifact is judged by."""
    run = _reference(asked)
    for name, inputs in asked.artifact.golden()[0].items():
        if not inputs:
            continue
        near = compare(run(name, inputs), asked.artifact.golden()[1][name])
        if not near.relative <= asked.gate.max_error:
            said = near.reason or f"off by {near.relative:.2g} of the largest from the variant's"
            return [Wrong("file", f"the golden outputs of `{name}` are not the variant's: {said}")]
    return []


def _rules(asked: Question, file: Path) -> list[str]:
    return wrong_with(asked.target.backend, file, asked.target)


def _variant(asked: Question) -> Evaluation:
    """Evaluate the variant on what it says is its reference: its torch network, or its files in exact arithmetic."""
    if asked.variant.reference == "torch" and asked.student is not None and asked.variant.weights is None:
        return asked.student
    return _evaluate(asked, _reference(asked))


def _reference(asked: Question) -> Runner:
    if asked.variant.reference == "torch" and asked.graphs:
        return torch_runner(list(asked.graphs))
    return file_runner(asked.variant.graphs)


def _run(asked: Question, *, exact: bool = False, providers: Counter[str] | None = None) -> Runner | None:
    """Run the artifact's files, as the device does or in exact arithmetic; None where the backend has none.

    providers: what took how many nodes is added to it.
    """
    backend = backend_of(asked.target.backend)
    sessions: dict[str, Session | None] = {}

    def session(name: str) -> Session | None:
        if name not in sessions:
            sessions[name] = backend.load(asked.artifact.graphs[name], asked.target, asked.threads, exact)
            if providers is not None and (made := sessions[name]):
                providers.update(made.providers)
        return sessions[name]

    if any(session(name) is None for name in asked.artifact.graphs):
        return None
    return Running(
        lambda name, inputs: session(name).run(inputs),  # type: ignore[union-attr]
        lambda: asked.artifact.record["graphs"],
    )


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
    kept_as_onnx = all(file.suffix == ".onnx" for file in asked.artifact.graphs.values())
    if not kept_as_onnx or asked.variant.reference != "graph" or asked.variant.graphs.keys() != asked.artifact.graphs.keys():
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
    floating = variant.reference == "torch" and not asked.artifact.rounds
    max_error, min_sqnr_db = gate.tolerance(floating, asked.target.precision)
    before = "variant"
    for stage in ("file", "runtime"):
        if stage not in evaluations:
            continue
        found[stage] = near = compare(evaluations[before].outputs, evaluations[stage].outputs)
        # the variant's own graph in the arithmetic of its reference has to give the very same values; in another runtime's, or
        # where a sum of another order is rounded at each call, a value between two integers may fall to either side
        onnx = all(file.suffix == ".onnx" for file in asked.artifact.graphs.values())
        rounds = (activations := variant.scheme.activations) is not None and activations.dynamic
        own = not asked.artifact.rounds and not (rounds and any("form" in g for g in asked.artifact.record["graphs"].values()))
        exact = stage == "file" and onnx and own and asked.target.precision == "fp32"
        if reason := _too_far(near, before, gate.max_error if exact else max_error, None if exact else min_sqnr_db):
            hint = asked.target.saturates() if stage == "runtime" and variant.reference == "graph" else None
            advice = f": {hint}; set calibration.overflow_fix to `on`" if hint else ""
            wrong.append(Wrong(stage, f"the {stage}'s outputs: {reason}{advice}"))
        before = stage
    return found, wrong


_REFERENCE = {"variant": "the variant's", "file": "the file's exact arithmetic"}


def _too_far(near: Parity, before: str, max_error: float | None, min_sqnr_db: float | None) -> str | None:
    """Say that outputs lie too far from those of the stage before; None when they don't."""
    if max_error is not None and not near.relative <= max_error:
        said = near.reason or f"off by {near.relative:.2g} of the largest from {_REFERENCE[before]}"
        return f"{said} (gate {max_error:g})"
    if min_sqnr_db is not None and not near.sqnr_db >= min_sqnr_db:
        said = near.reason or f"{_over_error(near.sqnr_db)} against {_REFERENCE[before]}"
        return f"{said} (gate {min_sqnr_db:g} dB)"
    return None


def _over_error(sqnr_db: float) -> str:
    return f"{-sqnr_db:.1f} dB below their error" if sqnr_db < 0 else f"only {sqnr_db:.1f} dB above their error"


def _first_divergence(asked: Question, parity: Mapping[str, Parity]) -> divergence.Divergence | None:
    """Find the layer: torch against the file, or for a quantized variant the stage before it (its file; where that is wrong itself,
    its source).
    """
    try:
        return _search(asked, parity)
    except Exception:  # the files are known to be wrong, and may be so in any way: a hint must not hide the verdict
        return None


def _search(asked: Question, parity: Mapping[str, Parity]) -> divergence.Divergence | None:
    """Look into the graphs in the order in which they run."""
    golden = asked.artifact.golden()[0]
    found = (_inside(asked, parity, name, golden[name]) for name in asked.artifact.graphs if golden[name])
    return next((one for one in found if one is not None), None)


def _inside(asked: Question, parity: Mapping[str, Parity], name: str, golden: Arrays) -> divergence.Divergence | None:
    inputs = {key: values[: divergence.SAMPLES] for key, values in golden.items()}
    source = asked.source.get(name)
    modules = modules_of(source) if source else {}
    file, own = asked.artifact.graphs[name], asked.variant.graphs[name]
    graph = next((g for g in asked.graphs if g.name == name), None)
    if found := _elsewhere(asked, file, own, inputs, graph, modules):
        return found
    if file.suffix != ".onnx":
        return None
    if asked.variant.reference == "torch":
        if graph is None:
            return None
        tensors, fresh = divergence.torch_tensors(graph, inputs)
        known = modules_of(own) or {**modules, **fresh}  # an export of its own has nodes of its own
        return divergence.first(tensors, file, inputs, known, max_error=asked.gate.max_error)
    if "file" in parity and not parity["file"].relative <= asked.gate.max_error:
        return divergence.first(divergence.file_tensors(own, inputs), file, inputs, modules, max_error=asked.gate.max_error)
    if source is None or "variant" not in parity or parity["variant"].sqnr_db >= asked.gate.min_variant_sqnr_db:
        return None  # quantized as it should be: what departs from the source there is not what is wrong
    if graph is not None:
        tensors, fresh = divergence.torch_tensors(graph, inputs)
        if found := divergence.first(tensors, source, inputs, {**modules, **fresh}, max_error=asked.gate.max_error):
            return found
    tensors = divergence.file_tensors(source, inputs)
    return divergence.first(tensors, own, inputs, modules, min_sqnr_db=asked.gate.min_variant_sqnr_db)


def _elsewhere(
    asked: Question, file: Path, own: Path, inputs: Arrays, graph: Graph | None, modules: Mapping[str, list[str]]
) -> divergence.Divergence | None:
    """Look into a runtime that gives its intermediate values; each is compared with torch's of that name, or the variant's file's."""
    import onnx

    made = tensors_of(asked.target.backend, file, asked.target, inputs)
    if not made:
        return None
    model = onnx.load(str(file), load_external_data=False) if file.suffix == ".onnx" else None
    reference, modules = divergence.file_tensors(own, inputs), modules_of(own) or modules
    if asked.variant.reference == "torch" and graph is not None:
        reference, modules = divergence.torch_tensors(graph, inputs)
    floating = asked.variant.reference == "torch" and not asked.artifact.rounds
    max_error, min_sqnr_db = asked.gate.tolerance(floating, asked.target.precision)
    return divergence.first_of(reference, made, modules, max_error=max_error, min_sqnr_db=min_sqnr_db, model=model)


def fill(plan: Plan, materials: Materials, target: Target, variant_name: str, folder: Path) -> None:
    """Judge one artifact of a run; write verdict.json."""
    from .quantize import variant as variants

    artifact = artifacts.load(plan.out / "targets" / target.name / variant_name)
    verdict = verify(
        Question(
            artifact=artifact,
            variant=variants.load(plan.out / "variants" / variant_name).for_target(target),
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
    ).record()
    verdict = imported.joined(verdict, plan.out, artifact)
    (folder / "verdict.json").write_text(json.dumps(verdict, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def evaluation(folder: Path) -> Evaluation:
    """Read an evaluation that a score stage left: score.json, per_sample.npy, and one .npy for each output."""
    arrays = {file.stem: np.load(file, allow_pickle=False) for file in sorted(folder.glob("*.npy"))}
    score = json.loads((folder / "score.json").read_text())["score"]
    return Evaluation(score, arrays.pop("per_sample"), arrays)
