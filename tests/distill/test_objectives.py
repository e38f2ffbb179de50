"""Objectives against NumPy, written from the formulas."""

import numpy as np
import pytest
import tiny
import torch
from pydantic import ValidationError

from edgekd import recipe
from edgekd.distill import objectives
from edgekd.distill.objectives import Step, features, logits, task
from edgekd.errors import BadInput

RNG = np.random.default_rng(5)


def step(student, teacher=None, trained=None, smoothing=0.0, batch=None):
    as_tensors = [{k: torch.tensor(v) for k, v in (d or {}).items()} for d in (student, teacher, batch)]
    return Step(*as_tensors, tiny.TinyTask(), smoothing, trained)


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def kl(p, q):
    return (p * np.log(p / q)).sum(axis=-1)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 7.0])
@pytest.mark.parametrize("divergence", ["kl", "reverse-kl", "js"])
def test_logits_is_t_squared_times_the_mean_divergence(divergence, temperature):
    s, t = RNG.normal(size=(2, 6, 5)) * 3
    p, q = softmax(t / temperature), softmax(s / temperature)
    m = (p + q) / 2
    expected = {"kl": kl(p, q), "reverse-kl": kl(q, p), "js": (kl(p, m) + kl(q, m)) / 2}[divergence]
    config = recipe.Logits(divergence=divergence, temperature=temperature)
    found = logits.loss(config, step({"logits": s}, {"logits": t}))
    assert found.item() == pytest.approx(temperature**2 * expected.mean(), rel=1e-5)


def test_gradient_of_kl_is_t_times_the_difference_of_probabilities():
    s, t = RNG.normal(size=(2, 4, 3))
    student = torch.tensor(s, requires_grad=True)
    logits.loss(
        recipe.Logits(temperature=3.0), Step({"logits": student}, {"logits": torch.tensor(t)}, {}, tiny.TinyTask())
    ).backward()
    np.testing.assert_allclose(student.grad, 3.0 * (softmax(s / 3) - softmax(t / 3)) / 4, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("divergence", ["kl", "reverse-kl", "js"])
def test_equal_logits_have_no_loss_and_large_ones_no_nan(divergence):
    config = recipe.Logits(divergence=divergence)
    z = RNG.normal(size=(4, 3))
    assert logits.loss(config, step({"logits": z}, {"logits": z})).item() == pytest.approx(0, abs=1e-6)
    far = np.array([[1e4, -1e4, 0.0]])
    assert np.isfinite(logits.loss(config, step({"logits": far}, {"logits": far[:, ::-1].copy()})).item())


def test_tokens_count_as_samples():
    s, t = RNG.normal(size=(2, 2, 3, 5))
    config = recipe.Logits()
    flat = logits.loss(config, step({"logits": s.reshape(6, 5)}, {"logits": t.reshape(6, 5)}))
    assert logits.loss(config, step({"logits": s}, {"logits": t})).item() == pytest.approx(flat.item())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_task_is_the_tasks_loss(smoothing):
    z, labels = RNG.normal(size=(5, 3)), np.array([0, 2, 1, 1, 0])
    target = np.eye(3)[labels] * (1 - smoothing) + smoothing / 3
    found = task.loss(recipe.TaskLoss(), step({"logits": z}, smoothing=smoothing, batch={"label": labels}))
    assert found.item() == pytest.approx(-(target * np.log(softmax(z))).sum(axis=1).mean())


def distance(kind, a, b, axis):
    d = np.abs(a - b)
    if kind == "cosine":
        return (1 - (a * b).sum(axis) / (np.linalg.norm(a, axis=axis) * np.linalg.norm(b, axis=axis))).mean()
    return {"mse": d**2, "l1": d, "smooth-l1": np.where(d < 1, d**2 / 2, d - 0.5)}[kind].mean()


@pytest.mark.parametrize("kind", ["mse", "l1", "smooth-l1", "cosine"])
@pytest.mark.parametrize(("shape", "axis"), [((4, 6), -1), ((4, 5, 6), -1), ((4, 6, 3, 2), 1)])
def test_features_distance(kind, shape, axis):
    a, b = RNG.normal(size=(2, *shape)).astype(np.float32) * 1.5
    config = recipe.Features(student="s", teacher="t", distance=kind)
    assert features.trained(config, {"s": torch.tensor(a)}, {"t": torch.tensor(b)}) is None
    assert features.loss(config, step({"s": a}, {"t": b})).item() == pytest.approx(distance(kind, a, b, axis), rel=1e-5)


@pytest.mark.parametrize(("shape", "axis"), [((4, 6), -1), ((4, 5, 6), -1), ((4, 6, 3, 2), 1)])
def test_a_linear_projector_bridges_widths(shape, axis):
    wide = tuple(9 if i == axis % len(shape) else n for i, n in enumerate(shape))
    a, b = RNG.normal(size=shape).astype(np.float32), RNG.normal(size=wide).astype(np.float32)
    config = recipe.Features(student="s", teacher="t")
    projector = features.trained(config, {"s": torch.tensor(a)}, {"t": torch.tensor(b)})
    weight, bias = (p.detach().numpy() for p in projector.parameters())
    projected = np.moveaxis(np.moveaxis(a, axis, -1) @ weight.reshape(9, 6).T + bias, -1, axis)
    found = features.loss(config, step({"s": a}, {"t": b}, trained=projector))
    assert found.item() == pytest.approx(((projected - b) ** 2).mean(), rel=1e-4)


def test_maps_of_different_size_meet_at_the_smaller():
    a, b = RNG.normal(size=(2, 3, 4, 4)).astype(np.float32), RNG.normal(size=(2, 3, 2, 8)).astype(np.float32)
    pooled_a = a.reshape(2, 3, 2, 2, 4).mean(axis=3)  # 4 x 4 -> 2 x 4
    pooled_b = b.reshape(2, 3, 2, 4, 2).mean(axis=4)  # 2 x 8 -> 2 x 4
    found = features.loss(recipe.Features(student="s", teacher="t"), step({"s": a}, {"t": b}))
    assert found.item() == pytest.approx(((pooled_a - pooled_b) ** 2).mean(), rel=1e-5)


@pytest.mark.parametrize("teacher", [(2, 3), (2, 7, 6), (2,)])
def test_layers_that_cannot_be_matched_are_refused(teacher):
    with pytest.raises(BadInput, match=r"`a`.*`b`"):
        features.trained(recipe.Features(student="a", teacher="b"), {"a": torch.zeros(2, 5, 6)}, {"b": torch.zeros(teacher)})


def test_names_are_unique():
    entries = (recipe.TaskLoss(), recipe.Logits(), recipe.Logits(temperature=4), recipe.Features(student="x", teacher="y"))
    assert [goal.name for goal in objectives.resolve(entries)] == ["task", "logits", "logits#2", "features:x"]


class OfAnotherPackage:
    """What an entry point loads: the square of the logits, times a factor from the recipe."""

    NEEDS_TEACHER = False

    class Options(recipe.Strict):
        kind: str
        weight: float
        factor: float

    @staticmethod
    def loss(config, step):
        return config.factor * step.student["logits"].square().mean()


@pytest.fixture
def installed(monkeypatch):
    class Point:
        name = "square"

        @staticmethod
        def load():
            return OfAnotherPackage

    monkeypatch.setattr("edgekd.plugins.found", lambda group: {"square": Point} if group == "edgekd.objectives" else {})


def test_an_objective_of_another_package(installed):
    settings = recipe.Distill(objectives=[{"kind": "square", "factor": 3, "weight": 0.5}])
    (goal,) = objectives.resolve(settings.objectives)
    assert goal.module.loss(goal.config, step({"logits": np.full((2, 2), 2.0)})).item() == pytest.approx(12)


def test_options_of_another_package_are_checked(installed):
    settings = recipe.Distill(objectives=[{"kind": "square", "facto": 3}])
    with pytest.raises(BadInput, match=r"(?s)square.*facto"):
        objectives.resolve(settings.objectives)


def test_an_unknown_kind_is_refused_with_the_nearest():
    with pytest.raises(ValidationError, match="did you mean `logits`"):
        recipe.Distill(objectives=[{"kind": "logit"}])
