"""What a verdict says, in words that hold for every number."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from edgekd import verify
from edgekd.parity import Parity
from edgekd.recipe import Gate, Scheme
from edgekd.targets import load_target
from edgekd.tasks import Evaluation, Metric
from edgekd.verdict import decide

ACCURACY = Metric("accuracy", higher_is_better=True)
NEAR = {"runtime": Parity(0.0, 0.0, 100.0)}


def scored(**right: int) -> dict[str, Evaluation]:
    """Evaluations on 1000 samples, so many of them right."""
    outputs = {"logits": np.zeros((1000, 2))}
    return {stage: Evaluation(n / 1000, (np.arange(1000) < n).astype(float), outputs) for stage, n in right.items()}


@pytest.mark.parametrize(
    ("right", "says", "at"),
    [
        ((900, 860, 840, 840, 840), "accuracy falls by 0.0600 (gate 0.01), 0.0400 of it at the student stage", "student"),
        ((900, 900, 840, 840, 840), "accuracy falls by 0.0600 (gate 0.01), all of it at the variant stage", "variant"),
        (
            (900, 840, 843, 843, 843),
            "accuracy falls by 0.0570 (gate 0.01), 0.0600 at the student stage, of which other stages regain 0.0030",
            "student",
        ),
    ],
)
def test_no_stage_loses_more_than_the_whole(right, says, at):
    stages = dict(zip(("teacher", "student", "variant", "file", "runtime"), right, strict=True))
    verdict = decide(ACCURACY, Gate(), scored(**stages), NEAR, [])
    assert (verdict.status, verdict.lost_at, verdict.reason) == ("failed", at, says)


@pytest.mark.parametrize(
    ("times", "says"),
    # the error is (times - 1) of the outputs: 20 log10(1 / 20) = -26.0 dB, 20 log10(1 / 0.5) = 6.0 dB
    [(21.0, "the variant's outputs: 26.0 dB below their error against the student's (gate 10 dB)"),
     (1.5, "the variant's outputs: only 6.0 dB above their error against the student's (gate 10 dB)")],
)  # fmt: skip
def test_outputs_smaller_than_their_error_are_below_it(times, says):
    r = np.random.default_rng(0).normal(size=(8, 3))
    student, variant = (Evaluation(0.0, np.zeros(8), {"logits": y}) for y in (r, times * r))
    evaluations = {"student": student, "variant": variant, "file": variant, "runtime": variant}
    asked = SimpleNamespace(
        gate=Gate(),
        artifact=SimpleNamespace(graphs={}, rounds=False),
        target=load_target("onnxruntime-cpu"),
        variant=SimpleNamespace(reference="graph", method="ptq", weights=None, scheme=Scheme()),
    )
    _, wrong = verify._parity(asked, evaluations)
    assert [w.what for w in wrong] == [says]


@pytest.mark.parametrize(
    ("runtime", "says"),
    [
        (895, "accuracy falls by 0.0050 of at most 0.01"),
        (903, "accuracy improves by 0.0030"),
        (900, "accuracy is as before"),
    ],
)
def test_what_passed_says_which_way_the_score_went(runtime, says):
    stages = {"teacher": 900} | dict.fromkeys(("student", "variant", "file", "runtime"), runtime)
    verdict = decide(ACCURACY, Gate(), scored(**stages), NEAR, [])
    assert (verdict.status, verdict.reason.split(";")[0]) == ("passed", says)


def test_what_a_task_tells_beside_its_metric():
    stages = scored(teacher=900, student=900, variant=900, file=900, runtime=900)
    parity = {"variant": Parity(0.1, 0.1, 20.0, agreement=0.987), **NEAR}
    beside = {"teacher": {"perplexity": 8.0}, "runtime": {"perplexity": 9.126}}
    verdict = decide(ACCURACY, Gate(), stages, parity, [], beside=beside)
    assert verdict.reason == (
        "accuracy is as before; runtime and file agree to 100 dB; perplexity 9.13 (before 8.00); 98.7% of the student's tokens"
    )
    assert verdict.record()["beside"] == beside
    assert "beside" not in decide(ACCURACY, Gate(), stages, NEAR, []).record()
