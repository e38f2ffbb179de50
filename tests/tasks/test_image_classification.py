"""The classification task: what it measures, and which teachers, students and data it refuses to put together."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edgekd import data
from edgekd.data import PictureSplit
from edgekd.errors import BadInput
from edgekd.export.graph import torch_runner
from edgekd.recipe import Recipe
from edgekd.resources import resource
from edgekd.tasks import task_of
from edgekd.tasks.class_order import check_classes

TASK = task_of("image-classification")
CODE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=10, in_channels=1, outputs=None):
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, 4, 3)
        self.classifier = nn.Linear(4, outputs or num_classes)

    def forward(self, x):
        return self.classifier(self.convolution(x).mean((2, 3)))

def net(num_classes=10, in_channels=1, outputs=None):
    return Net(num_classes, in_channels, outputs)

def spatial(): return nn.Conv2d(1, 10, 3)
"""
DIGITS = tuple("0123456789")


@pytest.fixture
def make(tmp_path):
    """Make a recipe; teacher and student are the same tiny network unless said otherwise."""
    (tmp_path / "nets.py").write_text(CODE)
    reference = f"py:{tmp_path / 'nets.py'}:net"

    def recipe(teacher=None, student=None, **rest):
        made = {"data": {"source": "digits", "limit": 40}, "student": {"model": reference, **(student or {})}, **rest}
        if teacher is not None:
            made["teacher"] = {"model": reference, **teacher}
            save_file(weights(outputs=made["teacher"].get("arguments", {}).get("outputs", 10)), tmp_path / "w.safetensors")
            made["teacher"].setdefault("weights", tmp_path / "w.safetensors")
        return Recipe(distill={"objectives": [{"kind": "logits" if teacher is not None else "task"}]}, **made)

    return recipe


def weights(outputs=10, channels=1):
    return {
        "convolution.weight": torch.randn(4, channels, 3, 3),
        "convolution.bias": torch.zeros(4),
        "classifier.weight": torch.randn(outputs, 4),
        "classifier.bias": torch.zeros(outputs),
    }


def message(recipe):
    with pytest.raises(BadInput) as caught:
        TASK.models(recipe, TASK.splits(recipe))
    return str(caught.value)


def test_teacher_and_student_that_fit(make):
    recipe = make(teacher={"classes": DIGITS})
    splits = TASK.splits(recipe)
    teacher, student = TASK.models(recipe, splits)
    assert teacher is not None
    assert teacher.role == "teacher"
    graph = TASK.graphs(student, splits)[0]
    assert graph.example["image"].shape == (2, 8, 8, 1)
    assert graph.example["image"].dtype == torch.uint8
    logits = torch_runner([graph])("model", {"image": np.zeros((3, 8, 8, 1), np.uint8)})["logits"]
    assert logits.shape == (3, 10)


def test_a_student_alone_must_bring_weights_unless_it_is_fitted(make):
    recipe = make().model_copy(update={"distill": None})
    assert "no trained weights" in message(recipe)
    assert TASK.models(make(), TASK.splits(make()))[0] is None


def test_too_many_outputs_are_told(make):
    told = message(make(teacher={"arguments": {"outputs": 12}}))
    assert "12 outputs" in told
    assert "10 classes" in told


def test_a_permuted_class_order_is_told(make):
    told = message(make(teacher={"classes": ("1", "0", *DIGITS[2:])}))
    assert "different order" in told
    assert "output 0 is `1`" in told
    told = message(make(teacher={}, student={"classes": (*DIGITS[:8], "9", "8")}))
    assert "student" in told
    assert "different order" in told


def test_other_classes_are_told(make):
    told = message(make(teacher={"classes": (*DIGITS[:9], "ten")}))
    assert "`ten`" in told
    assert "`9`" in told


def test_three_means_make_rgb_pictures(make):
    rgb = {"preprocess": {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}}
    recipe = make(student=rgb)
    splits = TASK.splits(recipe)
    assert splits.image_shape == (8, 8, 3)
    assert TASK.models(recipe, splits)[1].module.net.convolution.weight.shape[1] == 3


def test_two_or_four_means_are_refused(make):
    with pytest.raises(BadInput, match="4 values of mean"):
        TASK.splits(make(student={"preprocess": {"mean": [0, 0, 0, 0], "std": [1, 1, 1, 1]}}))


def test_a_model_for_other_channels_is_told(make, tmp_path):
    told = message(make(student={"arguments": {"in_channels": 3}}))
    assert "8x8x1" in told
    assert "student" in told


def test_a_model_that_returns_no_logits_is_told(make, tmp_path):
    told = message(make(student={"model": f"py:{tmp_path / 'nets.py'}:spatial"}))
    assert "(1, 10, 6, 6)" in told


def test_pictures_come_at_the_largest_wanted_size_and_the_smaller_model_resizes(make):
    recipe = make(teacher={"preprocess": {"size": 16}}, student={"preprocess": {"size": [8, 12]}})
    splits = TASK.splits(recipe)
    assert splits.image_shape == (16, 16, 1)
    teacher, student = TASK.models(recipe, splits)
    seen = []
    for model in (teacher, student):
        model.module.net.convolution.register_forward_pre_hook(lambda module, x: seen.append(tuple(x[0].shape[2:])))
        model.module(torch.zeros(1, 16, 16, 1, dtype=torch.uint8))
    assert seen == [(16, 16), (8, 12)]


def test_crop_and_interpolation_are_the_students_or_else_the_teachers(make):
    teachers, students = {"size": 16, "crop": 0.5, "interpolation": "nearest"}, {"size": 16, "crop": 0.8}
    for own, crop, interpolation in ((None, 0.5, "nearest"), (students, 0.8, "bilinear")):
        recipe = make(teacher={"preprocess": teachers}, student={"preprocess": own} if own else {})
        splits = TASK.splits(recipe)
        expected = data.load(recipe.data, (16, 16), 0, crop=crop, interpolation=interpolation)
        assert np.array_equal(splits.test.take(np.arange(40))["image"], expected.test.take(np.arange(40))["image"])
        assert {(m.preprocess.crop, m.preprocess.interpolation) for m in TASK.models(recipe, splits)} == {(crop, interpolation)}


def test_loss_is_the_mean_cross_entropy():
    logits, labels = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]]), torch.tensor([0, 1])
    by_hand = [math.log(sum(math.exp(z) for z in row)) - row[label] for row, label in zip(logits.tolist(), [0, 1], strict=True)]
    assert TASK.loss({"logits": logits}, {"label": labels}).item() == pytest.approx(sum(by_hand) / 2, abs=1e-6)
    # smoothing e spreads e over all classes evenly: (1 - e) * loss + e * mean over classes of -log p
    even = [math.log(sum(math.exp(z) for z in row)) - sum(row) / 3 for row in logits.tolist()]
    expected = 0.9 * sum(by_hand) / 2 + 0.1 * sum(even) / 2
    assert TASK.loss({"logits": logits}, {"label": labels}, smoothing=0.1).item() == pytest.approx(expected, abs=1e-6)


def test_accuracy_counts_right_answers_and_no_broken_ones():
    labels = np.array([2, 0, 1, 1, 2], np.int64)
    answers = np.eye(3, dtype=np.float32)[[2, 0, 1, 0, 1]]
    answers[2, 1] = np.nan  # NumPy's argmax takes a NaN for the largest, so it would be right
    pictures = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)
    split = PictureSplit("test", ("a", "b", "c"), "", labels, (1, 1, 1), lambda indices: pictures[indices])
    sizes = []
    made = TASK.evaluate(lambda name, inputs: {"logits": answers[inputs["image"][:, 0, 0, 0]]}, split, 2, sizes.append)
    assert made.score == pytest.approx(2 / 5)
    assert made.per_sample.tolist() == [1, 1, 0, 0, 0]
    assert np.array_equal(made.outputs["logits"], answers, equal_nan=True)
    assert sizes == [2, 2, 1]


@pytest.mark.parametrize(
    ("mine", "others", "explicit", "fine"),
    [
        ("ab", "ab", True, True),
        ("AB", "ab", True, True),
        ("ba", "ab", False, False),
        ("ac", "ab", False, False),
        ("xy", "ab", False, True),
        ("xy", "ab", True, False),
    ],
)
def test_class_names(mine, others, explicit, fine):
    if fine:
        check_classes(mine, others, "teacher", "the data", explicit)
    else:
        with pytest.raises(BadInput):
            check_classes(mine, others, "teacher", "the data", explicit)


def test_the_shipped_pairs_shrink_tenfold():
    for pair, shape in (("digits", (8, 8, 1)), ("fashion-mnist", (28, 28, 1))):
        from edgekd import models
        from edgekd.recipe import Model

        made = {
            role: models.load(
                Model(model=f"py:{resource('models') / pair / 'model.py'}:{role}"),
                role=role,
                num_classes=10,
                image_shape=shape,
                shared=None,
                seed=0,
                need_weights=False,
            )
            for role in ("teacher", "student")
        }
        assert made["teacher"].parameters >= 10 * made["student"].parameters
        assert made["student"].module(torch.zeros(2, *shape, dtype=torch.uint8)).shape == (2, 10)
