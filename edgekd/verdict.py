"""What verification concludes: passed, failed or not verified, why, and at which stage the accuracy went."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from .backends import Means
from .parity import Parity, paired_interval

if TYPE_CHECKING:
    from .divergence import Divergence
    from .recipe import Gate
    from .tasks import Evaluation, Metric

RUNTIME = Means("runtime")
STAGES = ("teacher", "student", "variant", "file", "runtime")
_NAMES = {"runtime": "runtime", "simulator": "the vendor's simulator", "reference": "the reference interpreter"}


@dataclass(frozen=True)
class Verdict:
    """Whether an artifact may ship, and why.

    status: passed, failed or not_verified. by: what executed the runtime stage: "runtime", "simulator" (the vendor's), "reference"
    (an interpreter of the same file), "device" (check.py there), or None: nothing did. reason: in words.
    lost_at: the stage that lost the accuracy, or whose outputs depart from the stage before.
    scores: stage -> the metric. drop: from the first stage to the runtime, positive is worse; interval: its 95% bootstrap interval.
    parity: stage -> how far its outputs lie from the stage before ({max_abs, relative, sqnr_db, reason}).
    beside: stage -> what the task tells beside the metric, such as a language model's perplexity.
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
    beside: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return self.status == "passed"

    def record(self) -> dict[str, Any]:
        """Return plain JSON values."""
        told: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return told if self.beside else {key: value for key, value in told.items() if key != "beside"}


@dataclass(frozen=True)
class Wrong:
    """Something that must not ship: at which stage, and what, in words."""

    stage: str
    what: str


@dataclass(frozen=True)
class Loss:
    """How the metric fell: from the first stage to the last that was scored, with its 95% interval, and the stage that lost the most."""

    drop: float
    interval: tuple[float, float]
    at: str
    there: float


def loss(evaluations: Mapping[str, Evaluation], metric: Metric, seed: int) -> Loss | None:
    """Return how the metric fell over the stages in order, as far as they were scored; None where nothing came after the first."""
    scored = [(stage, evaluations[stage]) for stage in STAGES if stage in evaluations]
    if len(scored) < 2:
        return None
    sign = 1 if metric.higher_is_better else -1
    first, last = scored[0][1], scored[-1][1]
    steps = {stage: sign * (before.score - after.score) for (_, before), (stage, after) in pairwise(scored)}
    at = max(steps, key=lambda stage: steps[stage])
    interval = paired_interval(sign * (first.per_sample - last.per_sample), seed)
    return Loss(sign * (first.score - last.score), interval, at, steps[at])


def decide(
    metric: Metric | None,
    gate: Gate,
    evaluations: Mapping[str, Evaluation],
    parity: Mapping[str, Parity],
    wrong: list[Wrong],
    *,
    means: Means = RUNTIME,
    diverged: Divergence | None = None,
    providers: Mapping[str, int] | None = None,
    beside: Mapping[str, Mapping[str, float]] | None = None,
    seed: int = 0,
) -> Verdict:
    """Conclude from what every stage made. metric None: there was no labelled data, parity alone decides. beside: see Verdict.

    What nothing here executes is failed where a stage before is wrong already, else not verified.
    """
    lost = loss(evaluations, metric, seed) if metric else None
    if metric and lost and not lost.drop <= gate.max_drop + 1e-9:
        wrong = [Wrong(lost.at, f"{metric.name} falls by {lost.drop:.4f} (gate {gate.max_drop:g}), {_share(lost)}"), *wrong]
    status = "failed" if wrong else "passed" if "runtime" in evaluations else "not_verified"
    if wrong:
        reason = "; ".join(w.what for w in wrong) + (f"; the first layer to depart is {diverged}" if diverged else "")
    elif status == "not_verified":
        reason = means.why
    else:
        near = f"{_NAMES[means.by or 'runtime']} and {'file' if 'file' in evaluations else 'variant'} agree to {parity['runtime'].sqnr_db:.0f} dB"
        reason = f"{near} on the golden inputs; there was no labelled data to score"
        if metric and lost:
            fall = f"falls by {lost.drop:.4f} of at most {gate.max_drop:g}"
            reason = f"{metric.name} {fall if lost.drop > 0 else f'improves by {-lost.drop:.4f}' if lost.drop else 'is as before'}; {near}"
        reason += _beside(beside or {}, parity) + (f"; {means.why}" if means.why else "")
    return Verdict(
        status=status,
        by=means.by,
        reason=reason,
        lost_at=wrong[0].stage if wrong else None,
        metric=metric.name if metric else None,
        scores=_scores(metric, evaluations),
        drop=lost.drop if lost else None,
        interval=lost.interval if lost else None,
        parity={stage: p.record() for stage, p in parity.items()},
        samples=_samples(evaluations),
        first_divergence=diverged.record() if diverged else None,
        providers=dict(providers or {}),
        beside=dict(beside or {}),
    )


def _beside(told: Mapping[str, Mapping[str, float]], parity: Mapping[str, Parity]) -> str:
    """Say how else first and last stage differ, and how many of the variant's tokens are the student's."""
    if not told:
        return ""
    first, last = (next(told[stage] for stage in stages if stage in told) for stages in (STAGES, STAGES[::-1]))
    said = [f"{name} {value:.2f}" + (f" (before {first[name]:.2f})" if name in first else "") for name, value in last.items()]
    same = parity["variant"].agreement if "variant" in parity else None
    return "".join(f"; {one}" for one in [*said, *([] if same is None else [f"{100 * same:.1f}% of the student's tokens"])])


def _share(lost: Loss) -> str:
    """Say how much of the loss its worst stage made; more than all of it where other stages gained."""
    gained = round(lost.there - lost.drop, 4)
    if gained > 0:
        return f"{lost.there:.4f} at the {lost.at} stage, of which other stages regain {gained:.4f}"
    return f"{f'{lost.there:.4f}' if gained < 0 else 'all'} of it at the {lost.at} stage"


def _scores(metric: Metric | None, evaluations: Mapping[str, Evaluation]) -> dict[str, float]:
    return {stage: evaluations[stage].score for stage in STAGES if metric and stage in evaluations}


def _samples(evaluations: Mapping[str, Evaluation]) -> int:
    return max((len(next(iter(e.outputs.values()))) for e in evaluations.values()), default=0)
