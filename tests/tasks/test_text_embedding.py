"""The text-embedding task: what it measures, feeds, refuses."""

import numpy as np
import pytest
import tiny_texts
import torch
from tokenizers import Tokenizer

from edgekd import plan
from edgekd.distill import check, teacher_cache, trainer
from edgekd.distill.trainer import fit
from edgekd.errors import BadInput
from edgekd.export.graph import torch_runner
from edgekd.recipe import Recipe
from edgekd.tasks import task_of
from edgekd.tasks.text_embedding import ranks

TASK = task_of("text-embedding")


@pytest.fixture
def recipe(tmp_path):
    teacher = tiny_texts.bert(tmp_path / "teacher")

    def make(student=None, **rest):
        return tiny_texts.recipe(tmp_path, teacher, student, **rest)

    return make


def spearman(a, b):
    """From the definition: Pearson's correlation of ranks, equal values sharing the mean of theirs; all loops."""

    def ranked(values):
        return [sum(o < v for o in values) + (1 + sum(o == v for o in values)) / 2 for v in values]

    x, y = np.array(ranked(a)), np.array(ranked(b))
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum()))


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 40], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        # textbook: d = 0, 2, 1, -1, -2 -> 1 - 6 * 10 / (5 * 24)
        ([1, 2, 3, 4, 5], [1, 4, 4.5, 3, 2], 1 - 6 * (0 + 4 + 4 + 1 + 9) / 120),
    ],
)
def test_the_reference_of_these_tests_itself(a, b, expected):
    assert spearman(a, b) == pytest.approx(expected)


def test_ranks_with_ties():
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0, 3.0])).tolist() == [4, 1, 4, 2, 4]
    assert ranks(np.array([5.0])).tolist() == [1]


def put_together(made, first, second):
    """A split of pairs with the given embeddings, run by looking them up."""
    return TASK.score({"first": np.asarray(first, np.float32), "second": np.asarray(second, np.float32)}, made)


class Scored:
    """As little of a split as scoring needs."""

    def __new__(cls, scores):
        from edgekd.data.texts import TextSplit

        return TextSplit("test", "", {}, 8, np.asarray(scores, np.float64))


@pytest.mark.parametrize("seed", range(4))
def test_the_score_is_spearmans_of_cosines_and_scores(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(2, 40, 5)) * rng.uniform(0.1, 9, (2, 40, 1))  # of any length
    second[:9] = 0.0  # cosines of 0: ties
    scores = rng.integers(0, 6, 40)  # many ties
    made = put_together(Scored(scores), first, second)
    norms = np.maximum(np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1), 1e-9)
    cosines = (first * second).sum(1) / norms
    assert made.score == pytest.approx(spearman(cosines.tolist(), scores.tolist()), abs=1e-6)
    assert made.per_sample.mean() == pytest.approx(made.score)
    assert made.per_sample.shape == (40,)


def test_rounding_ranks_nothing():
    """Pairs alike but for float32's rounding share a rank, whichever way a processor rounds; what differs more does not."""
    rng = np.random.default_rng(0)
    one = rng.normal(size=(20, 6)).astype(np.float32)
    angles = np.repeat([0.2, 0.9, 1.4, 2.5], 5)
    aside = rng.normal(size=(20, 6))
    aside -= (aside * one).sum(1, keepdims=True) / (one * one).sum(1, keepdims=True) * one
    unit = [values / np.linalg.norm(values, axis=1, keepdims=True) for values in (one, aside)]
    second = np.cos(angles)[:, None] * unit[0] + np.sin(angles)[:, None] * unit[1]
    scores = rng.permutation(20)
    for noise in range(5):
        shaken = second * (1 + 1e-7 * np.random.default_rng(noise).normal(size=second.shape))
        assert put_together(Scored(scores), one, shaken).score == pytest.approx(spearman(np.cos(angles), scores), abs=1e-12)
    apart = second.copy()
    apart[0] = np.cos(0.2 + 1e-3) * unit[0][0] + np.sin(0.2 + 1e-3) * unit[1][0]
    values = np.cos(angles)
    values[0] = np.cos(0.2 + 1e-3)
    assert put_together(Scored(scores), one, apart).score == pytest.approx(spearman(values, scores), abs=1e-12)


def test_broken_embeddings_rank_last_and_have_no_loss():
    first = np.eye(4, dtype=np.float32)
    second = first.copy()
    good = put_together(Scored([1, 2, 3, 4]), first, second)
    assert good.score == 0  # all cosines equal: no order at all
    second = first.copy()
    second[3] = np.nan
    made = put_together(Scored([1, 2, 3, 4]), first, second)
    assert made.score == pytest.approx(spearman([1, 1, 1, -2], [1, 2, 3, 4]))
    assert np.isnan(TASK.validation_loss(made, Scored([1, 2, 3, 4])))
    assert TASK.validation_loss(good, Scored([1, 2, 3, 4])) == 1


def test_evaluation_of_teacher_and_student(recipe):
    made = recipe()
    splits = TASK.splits(made)
    teacher, student = TASK.models(made, splits)
    sizes = []
    found = TASK.evaluate(torch_runner(TASK.graphs(teacher, splits)), splits.test, 16, sizes.append)
    assert sizes == [16, 16, 8]
    whole = TASK.evaluate(torch_runner(TASK.graphs(teacher, splits)), splits.test, 40)
    np.testing.assert_allclose(found.outputs["first"], whole.outputs["first"], atol=1e-5)
    assert found.outputs["second"].shape == (40, 32)
    cosines = (found.outputs["first"].astype(float) * found.outputs["second"]).sum(1)
    assert found.score == pytest.approx(spearman(cosines.round(5).tolist(), splits.test.scores.tolist()), abs=1e-6)
    assert found.score > 0.3  # words that both have make embeddings alike, even untrained
    assert TASK.evaluate(torch_runner(TASK.graphs(student, splits)), splits.test).score != found.score


def test_teacher_and_student_with_tokenizers_of_their_own(recipe, tmp_path):
    words = (*reversed(tiny_texts.WORDS), "other")
    other = tiny_texts.bert(tmp_path / "other", layers=2, width=16, words=words)
    made = recipe({"model": f"hf:{other}"})
    splits = TASK.splits(made)
    teacher, student = TASK.models(made, splits)
    assert teacher.module.prefix == "teacher_"
    batch = {name: torch.from_numpy(values) for name, values in splits.train.take(np.arange(4)).items()}
    text = tiny_texts.sentences(96, seed=5)[0]
    for model, prefix in ((teacher, "teacher_"), (student, "")):
        assert batch[f"{prefix}input_ids"][0, :3].tolist() == model.tokenizer(text)["input_ids"][:3]
        alone = model.tokenizer(text, return_tensors="pt", padding=False, truncation=False)
        with torch.inference_mode():
            expected = model.module(alone["input_ids"], alone["attention_mask"])
            torch.testing.assert_close(TASK.forward(model.module, batch)["embedding"][:1], expected, atol=1e-5, rtol=0)
    graph = TASK.graphs(teacher, splits)[0]
    assert graph.inputs == ("teacher_input_ids", "teacher_attention_mask")
    assert TASK.evaluate(torch_runner([graph]), splits.test).score > 0.3
    history = fit(student, splits, TASK, made.distill, seed=0, folder=tmp_path / "fit", teacher=teacher)
    assert history.best_validation >= history.initial_validation
    assert TASK.graphs(student, splits)[0].inputs == ("input_ids", "attention_mask")


def test_learning_from_the_teacher(recipe, tmp_path):
    made = recipe()
    splits = TASK.splits(made)
    teacher, student = TASK.models(made, splits)

    settings = made.distill.model_copy(update={"epochs": 6, "learning_rate": 3e-3})
    history = fit(student, splits, TASK, settings, seed=0, folder=tmp_path / "fit", teacher=teacher)
    first, last = history.epochs[0].terms, history.epochs[-1].terms
    assert last["embedding"] < 0.7 * first["embedding"]
    assert last["similarities"] < 0.7 * first["similarities"]
    assert history.best_validation >= history.initial_validation
    assert TASK.evaluate(torch_runner(TASK.graphs(student, splits)), splits.validation).score == pytest.approx(
        history.best_validation, abs=1e-6
    )


def test_an_interrupted_training_goes_on_and_ends_the_same(recipe, tmp_path, monkeypatch):
    made = recipe()
    splits = TASK.splits(made)
    settings = made.distill.model_copy(update={"epochs": 2, "checkpoint_minutes": 0})

    def ended(folder):
        teacher, student = TASK.models(made, splits)
        fit(student, splits, TASK, settings, seed=0, folder=folder, teacher=teacher)
        return student.module.state_dict()

    whole = ended(tmp_path / "whole")
    steps, step = [], trainer._Fit._step

    def interrupted(self, *arguments):
        steps.append(arguments[0])
        if len(steps) == 5:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(trainer._Fit, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ended(tmp_path / "stopped")
    again = ended(tmp_path / "stopped")
    assert len(steps) == 5 + 2  # of 3 steps an epoch, the fifth once more and the sixth
    assert all(torch.equal(again[name], value) for name, value in whole.items())


def test_the_teachers_cache_follows_its_tokenizer_and_not_the_students(recipe, tmp_path):
    made = recipe()
    splits = TASK.splits(made)
    teacher, _ = TASK.models(made, splits)
    key = teacher_cache.key(teacher, splits.train, made.distill, 0, ["embedding"])
    tokens = str(tiny_texts.tokenizer(tmp_path / "tokens", tuple(reversed(tiny_texts.WORDS))))
    of_student = made.model_copy(update={"student": made.student.model_copy(update={"tokenizer": tokens})})
    again = TASK.splits(of_student)
    assert "teacher_input_ids" in again.train.columns
    assert teacher_cache.key(TASK.models(of_student, again)[0], again.train, made.distill, 0, ["embedding"]) == key
    for update in ({"tokenizer": tokens}, {"pooling": "cls"}):
        changed = made.model_copy(update={"teacher": made.teacher.model_copy(update=update)})
        other = TASK.model(changed, splits, "teacher", need_weights=True)
        assert teacher_cache.key(other, splits.train, made.distill, 0, ["embedding"]) != key


def test_what_is_fed_and_what_goes_with_an_artifact(recipe, tmp_path):
    made = recipe()
    splits = TASK.splits(made)
    _, student = TASK.models(made, splits)
    pairs, texts = splits.test.take(np.arange(3)), splits.train.take(np.arange(3))
    assert TASK.inputs(texts).keys() == TASK.inputs(pairs).keys() == {"input_ids", "attention_mask"}
    assert np.array_equal(TASK.inputs(pairs)["input_ids"], pairs["first_input_ids"])
    golden = TASK.golden(lambda *_: {}, splits.test, np.arange(3))
    assert np.array_equal(golden["model"]["attention_mask"], pairs["first_attention_mask"])
    graph = TASK.graphs(student, splits)[0]
    assert graph.dynamic == {name: {0: "batch", 1: "tokens"} for name in ("input_ids", "attention_mask")}
    assert graph.longest == {"tokens": 16}
    told = TASK.preprocessing(student, splits.test, tmp_path)
    assert [step["step"] for step in told["host"]] == ["tokenize", "cut", "pad"]
    assert (told["host"][1]["to"], told["host"][2]["with"]) == (16, 0)
    assert told["graph"] == [{"step": "pool", "how": "mean"}, {"step": "normalize", "norm": 2}]
    shipped = Tokenizer.from_file(str(tmp_path / told["host"][0]["file"]))
    assert shipped.encode("the red cat").ids == student.tokenizer("the red cat")["input_ids"]


def refused(values):
    with pytest.raises(ValueError, match="") as caught:
        Recipe.model_validate(values)
    return str(caught.value)


def test_recipes_that_make_no_sense_for_text(recipe, tmp_path):
    fine = recipe().model_dump(mode="json")
    Recipe.model_validate(fine)
    for change, words in (
        ({"data": {"source": "x"}}, "add `pairs: {source: ...}` to `data`"),
        ({"preprocess": {"size": 8}}, "is for pictures"),
        ({"distill": {**fine["distill"], "augment": {"flip": True}}}, "is for pictures"),
        ({"distill": {**fine["distill"], "objectives": [{"kind": "task"}]}}, "texts without labels"),
    ):
        assert words in refused({**fine, **change})
    assert [goal.kind for goal in recipe().distill.objectives] == ["embedding", "similarities"]
    with pytest.raises(BadInput, match="learns from a teacher alone"):
        plan.plan_training(recipe(), tmp_path / "run", "teacher")


def test_objectives_of_other_tasks_are_told(recipe):
    made = recipe(distill={"epochs": 1, "objectives": [{"kind": "logits"}]})
    splits = TASK.splits(made)
    teacher, student = TASK.models(made, splits)
    with pytest.raises(BadInput, match="objective `logits` reads `logits`, which a text-embedding model does not give"):
        check(made.distill, TASK, student, teacher)
    layers = {"kind": "features", "student": "net.encoder.layer.1", "teacher": "net.encoder.layer.2"}
    with pytest.raises(BadInput, match="learns from texts without labels"):
        TASK.loss({}, {})
    fine = recipe(distill={"epochs": 1, "objectives": [{"kind": "embedding"}, layers]})
    assert [goal.kind for goal in fine.distill.objectives] == ["embedding", "features"]


@pytest.mark.parametrize(
    "change",
    [
        {"teacher": {"pooling": "cls"}},
        {"teacher": {"tokenizer": "nobody/tokens"}},
        {"data": {"max_tokens": 12}},
        {"data": {"pairs": {"source": "nobody/pairs"}}},
    ],
)
def test_what_makes_the_plan_another(recipe, tmp_path, change):
    values = recipe().model_dump(mode="json")
    before = {s.name: s.fingerprint for s in plan.plan(Recipe.model_validate(values), tmp_path / "run").steps}
    for section, told in change.items():
        values[section] = {**values[section], **told}
    after = {s.name: s.fingerprint for s in plan.plan(Recipe.model_validate(values), tmp_path / "run").steps}
    assert before.keys() == after.keys()
    assert all(before[name] != after[name] for name in ("teacher-cache", "distill", "score/teacher", "graphs"))


def test_the_students_own_leaves_the_teachers_cache_alone(recipe, tmp_path):
    values = recipe().model_dump(mode="json")
    before = {s.name: s.fingerprint for s in plan.plan(Recipe.model_validate(values), tmp_path / "run").steps}
    for told in ({"pooling": "cls"}, {"tokenizer": str(tmp_path / "teacher")}, {"teacher_layers": [1]}):
        values["student"] = {**values["student"], **told}
        after = {s.name: s.fingerprint for s in plan.plan(Recipe.model_validate(values), tmp_path / "run").steps}
        assert after["teacher-cache"] == before["teacher-cache"]
        assert after["distill"] != before["distill"]
        before = after


def test_a_tokenizer_with_an_id_far_above_the_others(recipe, tmp_path):
    """As many tokens as the model has embeddings, and one of them with a number beyond."""
    import json

    folder = tiny_texts.tokenizer(tmp_path / "tokens")
    told = json.loads((folder / "tokenizer.json").read_text())
    told["model"]["vocab"]["cat"] = 500
    (folder / "tokenizer.json").write_text(json.dumps(told))
    made = recipe()
    made = made.model_copy(update={"teacher": made.teacher.model_copy(update={"tokenizer": str(folder)})})
    with pytest.raises(BadInput, match=r"teacher: its tokenizer has ids up to 500, and the model's vocabulary has 23 entries"):
        TASK.models(made, TASK.splits(made))


def test_texts_of_nothing_but_what_the_tokenizer_puts_around_them(recipe):
    made = recipe()
    made = made.model_copy(update={"data": made.data.model_copy(update={"max_tokens": 2})})
    with pytest.raises(
        BadInput, match=r"data.max_tokens: it leaves 2 token\(s\) for a text, and the tokenizer puts 2 of its own"
    ):
        TASK.splits(made)
