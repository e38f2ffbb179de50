"""The objectives of text embeddings against NumPy, written from the formulas."""

import numpy as np
import pytest
import torch

from edgekd import recipe
from edgekd.distill.objectives import Step, embedding, similarities
from edgekd.tasks import task_of

RNG = np.random.default_rng(3)
TASK = task_of("text-embedding")


def step(student, teacher, trained=None):
    return Step({"embedding": torch.tensor(student)}, {"embedding": torch.tensor(teacher)}, {}, TASK, trained=trained)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_embedding_is_one_minus_the_cosine_or_the_squared_distance():
    s, t = RNG.normal(size=(2, 5, 7)).astype(np.float32)
    cosine = embedding.loss(recipe.Embedding(), step(s, t))
    assert cosine.item() == pytest.approx(1 - (unit(s) * unit(t)).sum(1).mean(), rel=1e-5)
    mse = embedding.loss(recipe.Embedding(distance="mse"), step(s, t))
    assert mse.item() == pytest.approx(((s - t) ** 2).mean(), rel=1e-5)
    assert embedding.loss(recipe.Embedding(), step(t, t)).item() == pytest.approx(0, abs=1e-6)


def test_another_width_is_projected():
    s, t = RNG.normal(size=(5, 3)).astype(np.float32), RNG.normal(size=(5, 7)).astype(np.float32)
    made = embedding.trained(recipe.Embedding(), {"embedding": torch.tensor(s)}, {"embedding": torch.tensor(t)})
    assert made is not None
    weight, bias = made.weight.detach().numpy(), made.bias.detach().numpy()
    found = embedding.loss(recipe.Embedding(distance="mse"), step(s, t, made))
    assert found.item() == pytest.approx(((s @ weight.T + bias - t) ** 2).mean(), rel=1e-5)
    same = {"embedding": torch.tensor(t)}
    assert embedding.trained(recipe.Embedding(), same, same) is None


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_similarities_is_the_divergence_of_rows_without_oneself(temperature):
    s, t = RNG.normal(size=(6, 4)).astype(np.float32), RNG.normal(size=(6, 9)).astype(np.float32)

    def rows(x):
        found = []
        for i in range(6):
            z = np.array([unit(x)[i] @ unit(x)[j] for j in range(6) if j != i], np.float64) / temperature
            e = np.exp(z - z.max())
            found.append(e / e.sum())
        return np.array(found)

    p, q = rows(t), rows(s)
    expected = (p * np.log(p / q)).sum(1).mean()
    found = similarities.loss(recipe.Similarities(temperature=temperature), step(s, t))
    assert found.item() == pytest.approx(expected, rel=1e-4)
    assert similarities.loss(recipe.Similarities(), step(3 * t, t)).item() == pytest.approx(0, abs=1e-5)


def test_one_text_alone_has_no_similarities_and_a_gradient():
    student = torch.randn(1, 4, requires_grad=True)
    found = similarities.loss(recipe.Similarities(), Step({"embedding": student}, {"embedding": torch.randn(1, 4)}, {}, TASK))
    found.backward()
    assert found.item() == 0
    assert student.grad is not None
