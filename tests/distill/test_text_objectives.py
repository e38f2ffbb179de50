"""The objectives of text embeddings against NumPy, written from the formulas."""

import numpy as np
import pytest
import tiny_texts
import torch

from edgekd import recipe
from edgekd.distill import trainer
from edgekd.distill.objectives import Step, embedding, features, similarities
from edgekd.errors import BadInput
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


# --- layers of networks that read texts -----------------------------------------------------------


def encoders(tmp_path, **rest):
    asked = tiny_texts.recipe(tmp_path, tiny_texts.bert(tmp_path / "teacher"), **rest)
    splits = TASK.splits(asked)
    return asked, splits, *TASK.models(asked, splits)


LAYER = {"kind": "features", "student": "encoder.layer.1", "teacher": "encoder.layer.2"}
SHORT = {"epochs": 1, "batch_size": 16}


def test_layers_as_long_as_the_text_are_not_kept(tmp_path):
    asked, splits, teacher, student = encoders(tmp_path, distill={**SHORT, "objectives": [{"kind": "embedding"}, LAYER]})
    with pytest.raises(
        BadInput, match=r"cached: the teacher's `encoder\.layer\.2` are as long as the text .* set distill\.teacher: live"
    ):
        trainer.fit(student, splits, TASK, asked.distill, seed=0, folder=tmp_path, teacher=teacher)
    live = asked.distill.model_copy(update={"teacher": "live"})
    told = trainer.fit(student, splits, TASK, live, seed=0, folder=tmp_path, teacher=teacher)
    assert told.epochs[0].terms["features:encoder.layer.1"] > 0


def test_layers_of_models_that_read_other_tokens_are_refused(tmp_path):
    words = tiny_texts.tokenizer(
        tmp_path / "words", tuple(word for word in tiny_texts.WORDS if word not in ("the", "a")), special=False
    )
    student = {"model": f"hf:{tiny_texts.bert(tmp_path / 'student')}", "tokenizer": str(words)}
    distill = {**SHORT, "teacher": "live", "objectives": [LAYER]}
    asked, splits, teacher, student = encoders(tmp_path, student=student, distill=distill)
    with pytest.raises(BadInput, match=r"features: student layer `encoder\.layer\.1`|choose other layers"):
        trainer.fit(student, splits, TASK, asked.distill, seed=0, folder=tmp_path, teacher=teacher)


def test_features_of_other_shapes_are_not_spread_over_each_other():
    layers = torch.ones(2, 1, 4), torch.ones(2, 3, 4)
    one = Step({"s": layers[0]}, {"t": layers[1]}, {}, TASK)
    with pytest.raises(
        BadInput, match=r"student layer `s` gives \(2, 1, 4\) and teacher layer `t` \(2, 3, 4\) for the same samples"
    ):
        features.loss(recipe.Features(student="s", teacher="t"), one)
