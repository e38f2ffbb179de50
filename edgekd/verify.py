"""The gate: one task metric on the same samples through every stage, and how far the stages' outputs lie apart."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import divergence
from .backends import backend_of
from .errors import BadInput
from .export import artifact as artifacts
from .export.graph import torch_runner
from .parity import Parity, compare, paired_interval
from .quantize.variant import Variant, file_runner
from .tasks import Evaluation

if TYPE_CHECKING:
    from .data import Split
    from .export.artifact import Artifact
    from .export.graph import Arrays, Graph, Runner
    from .materials import Materials
    from .plan import Plan
    from .recipe import Gate
    from .targets import Target
    from .tasks import Task

STAGES = ("teacher", "student", "variant", "file", "runtime")


@dataclass(frozen=True)
class Verdict:
    """Whether an artifact may ship, and why.

    status: passed, failed or not_verified. by: what executed the runtime stage ("runtime", or None). reason: in words.
    lost_at: the stage that lost the accuracy, or whose outputs depart from the stage before.
    scores: stage -> the metric. drop: from the first stage to the runtime, positive is worse; interval: its 95% bootstrap interval.
    parity: stage -> how far its outputs lie from the stage before ({max_abs, relative, sqnr_db, reason}).
    """

    status: str
    by: str | None
    reason: str
    lost_at: str | None = None
    metric: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    drop: float | None = None
    interval: tuple[float, float] | None = None
    parity: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    samples: int = 0
    first_divergence: Mapping[str, Any] | None = None
    providers: Mapping[str, int] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return self.status == "passed"

    def record(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return json.loads(json.dumps(asdict(self)))


@dataclass(frozen=True)
class Question:
    """What is to be judged, and what with. Without task and split (a bare .onnx) the golden inputs take their place.

    teacher, student: evaluated on the same split; None where there is none. graphs: the student's, for the layer that departs
    first. source: the full-precision ONNX files that the variant was made from.
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
    """Judge one artifact. Never raises for what is wrong with the artifact: that is the verdict."""
    evaluations = {name: e for name in ("teacher", "student") if (e := getattr(asked, name)) is not None}
    backend = backend_of(asked.target.backend)
    if reason := backend.missing() or asked.target.elsewhere():
        return _verdict(asked, evaluations, {}, [], not_verified=reason)
    wrong = _wrong_from_outside(asked)
    try:
        variant = _variant(asked)
        evaluations["variant"] = variant
    except BadInput as error:
        return _verdict(asked, evaluations, {}, [("variant", str(error)), *wrong])
    try:
        file = variant if _same_files(asked) else _evaluate(asked, file_runner(asked.artifact.graphs, asked.target.backend))
        evaluations["file"] = file
        sessions: dict[str, Any] = {}
        evaluations["runtime"] = _evaluate(asked, _runtime(asked, sessions))
        providers = {name: nodes for session in sessions.values() for name, nodes in session.providers.items()}
    except Exception as error:  # whatever the runtime says about a file that it cannot load or run
        return _verdict(asked, evaluations, {}, [*wrong, ("file", f"the file does not run: {str(error).splitlines()[0]}")])
    parity, apart = _parity(asked, evaluations)
    return _verdict(asked, evaluations, parity, [*wrong, *apart], providers=providers)


def _variant(asked: Question) -> Evaluation:
    """Evaluate the variant on what it says is its reference: the torch student, or its files in exact arithmetic."""
    if asked.variant.reference == "torch":
        if asked.student is not None:
            return asked.student
        if asked.graphs:
            return _evaluate(asked, torch_runner(list(asked.graphs)))
    return _evaluate(asked, file_runner(asked.variant.graphs))


def _runtime(asked: Question, sessions: dict[str, Any]) -> Runner:
    def run(name: str, inputs: Arrays) -> dict[str, np.ndarray]:
        if name not in sessions:
            file = asked.artifact.graphs[name]
            sessions[name] = backend_of(asked.target.backend).load(file, asked.target, asked.threads)
        return sessions[name].run(inputs)

    return run


def _evaluate(asked: Question, run: Runner) -> Evaluation:
    if asked.task is not None and asked.split is not None:
        return asked.task.evaluate(run, asked.split)
    inputs, _ = asked.artifact.golden()
    made = {f"{name}/{key}": v for name, given in inputs.items() if given for key, v in run(name, given).items()}
    return Evaluation(float("nan"), np.empty(0), made)


def _wrong_from_outside(asked: Question) -> list[tuple[str, str]]:
    """Find what is wrong without running anything: files, class order, tensor names."""
    found = []
    artifact = asked.artifact
    if reason := artifacts.damage(artifact):
        found.append(("file", reason))
    if asked.split is not None and list(artifact.record["classes"]) != list(asked.split.classes):
        at = next(
            (i for i, (a, b) in enumerate(zip(artifact.record["classes"], asked.split.classes, strict=False)) if a != b), None
        )
        what = (
            f"class {at} is `{artifact.record['classes'][at]}`, in the data `{asked.split.classes[at]}`"
            if at is not None
            else "their number"
        )
        found.append(("file", f"the artifact's classes differ from the data's: {what}"))
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


def _parity(asked: Question, evaluations: Mapping[str, Evaluation]) -> tuple[dict[str, Parity], list[tuple[str, str]]]:
    """Compare each stage with the one before; return the numbers, and what is too far apart."""
    gate, variant = asked.gate, asked.variant
    exact = {"file": compare(evaluations["variant"].outputs, evaluations["file"].outputs)}
    found = {}
    apart = []
    full_precision = variant.scheme.weights is None and variant.scheme.activations is None
    if variant.reference == "graph" and "student" in evaluations:
        found["variant"] = compare(evaluations["student"].outputs, evaluations["variant"].outputs)
        if variant.method == "ptq" and not found["variant"].sqnr_db >= gate.min_variant_sqnr_db:
            apart.append(
                (
                    "variant",
                    f"the variant's outputs lie {_db(found['variant'])} the student's, below {gate.min_variant_sqnr_db:g} dB",
                )
            )
    found |= exact
    found["runtime"] = compare(evaluations["file"].outputs, evaluations["runtime"].outputs)
    if not found["file"].relative <= gate.max_error:
        apart.append(
            ("file", f"the file's outputs differ from the variant's by {_share(found['file'])}, above {gate.max_error:g}")
        )
    if full_precision and not found["runtime"].relative <= gate.max_error:
        apart.append(
            ("runtime", f"the runtime's outputs differ from the file's by {_share(found['runtime'])}, above {gate.max_error:g}")
        )
    if not full_precision and not found["runtime"].sqnr_db >= gate.min_sqnr_db:
        hint = asked.target.saturates()
        advice = f" ({hint}: set calibration.overflow_fix to on)" if hint else ""
        apart.append(
            ("runtime", f"the runtime's outputs lie {_db(found['runtime'])} the file's, below {gate.min_sqnr_db:g} dB{advice}")
        )
    return found, apart


def _share(parity: Parity) -> str:
    return parity.reason or f"{parity.relative:.2g} of the largest"


def _db(parity: Parity) -> str:
    return parity.reason or f"{parity.sqnr_db:.1f} dB above their difference from"


def _verdict(
    asked: Question,
    evaluations: Mapping[str, Evaluation],
    parity: Mapping[str, Parity],
    wrong: list[tuple[str, str]],
    *,
    not_verified: str | None = None,
    providers: Mapping[str, int] | None = None,
) -> Verdict:
    scored = {s: evaluations[s] for s in STAGES if s in evaluations and asked.task is not None}
    metric = asked.task.metric if asked.task else None
    sign = 1 if metric is None or metric.higher_is_better else -1
    drop, interval, lost_at = None, None, None
    if metric and "runtime" in scored:
        first, last = next(iter(scored.values())), scored["runtime"]
        drop = sign * (first.score - last.score)
        interval = paired_interval(sign * (first.per_sample - last.per_sample), asked.seed)
        if not drop <= asked.gate.max_drop + 1e-9:
            names = list(scored)
            losses = {b: sign * (scored[a].score - scored[b].score) for a, b in pairwise(names)}
            lost_at = max(losses, key=lambda stage: losses[stage])
            wrong = [
                (
                    lost_at,
                    f"{metric.name} falls by {drop:.4f} (gate {asked.gate.max_drop:g}), {losses[lost_at]:.4f} of it at the {lost_at} stage",
                ),
                *wrong,
            ]
    diverged = None
    if not not_verified and any(stage in ("variant", "file") for stage, _ in wrong):
        diverged = _first_divergence(asked, parity)
    if not_verified:
        status, reason = "not_verified", not_verified
    elif wrong:
        status, reason, lost_at = "failed", "; ".join(text for _, text in wrong), lost_at or wrong[0][0]
        reason += f"; the first layer to depart is {diverged}" if diverged else ""
    else:
        status, reason = "passed", _praise(asked, drop, parity)
    samples = next((len(next(iter(e.outputs.values()))) for e in reversed(list(evaluations.values()))), 0)
    return Verdict(
        status=status,
        by=None if not_verified else "runtime",
        reason=reason,
        lost_at=lost_at,
        metric=metric.name if metric else None,
        scores={stage: e.score for stage, e in scored.items()},
        drop=drop,
        interval=interval,
        parity={stage: p.record() for stage, p in parity.items()},
        samples=samples,
        first_divergence=diverged.record() if diverged else None,
        providers=dict(providers or {}),
    )


def _praise(asked: Question, drop: float | None, parity: Mapping[str, Parity]) -> str:
    near = f"runtime and file agree to {parity['runtime'].sqnr_db:.0f} dB"
    if drop is None:
        return f"{near} on the golden inputs; no labelled data, so no metric"
    return (
        f"{asked.task.metric.name if asked.task else 'metric'} falls by {drop:.4f} of at most {asked.gate.max_drop:g}; {near}"
    )


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
        return divergence.first(tensors, file, inputs, modules or fresh, max_error=asked.gate.max_error)
    if "file" in parity and not parity["file"].relative <= asked.gate.max_error:
        return divergence.first(divergence.file_tensors(own, inputs), file, inputs, modules, max_error=asked.gate.max_error)
    if source is None:
        return None
    graph = next((g for g in asked.graphs if g.name == name), None)
    if graph is not None:
        tensors, fresh = divergence.torch_tensors(graph, inputs)
        if found := divergence.first(tensors, source, inputs, modules or fresh, max_error=asked.gate.max_error):
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
            graphs=tuple(materials.student_graphs),
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
