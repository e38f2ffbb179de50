"""Text to text as a task: scores, losses, a student's own targets, golden inputs, and a whole run on a toy translation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu
import torch
import translation

from edgekd import recipe as recipes
from edgekd import verbs
from edgekd.errors import BadInput
from edgekd.export.graph import torch_runner
from edgekd.models import LoadedModel
from edgekd.recipe import Recipe
from edgekd.tasks.seq2seq_lm import TASK, texts_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, a tokenizer, an untrained teacher with weights and a student's configuration."""
    made = tmp_path_factory.mktemp("toy")
    translation.data(made / "data", train=96, others=12)
    translation.tokenizer(made / "tokens")
    translation.saved(translation.decoder_only(), made / "teacher", weights=True)
    translation.saved(translation.t5gemma(tie_word_embeddings=False), made / "student")
    return made


def recipe(folder: Path, **given: Any) -> Recipe:
    tokens = str(folder / "tokens")
    values: dict[str, Any] = {
        "task": "seq2seq-lm",
        "data": {"source": str(folder / "data"), "input": "en", "output": "de", "max_tokens": 8},
        "teacher": {"model": f"hf:{folder / 'teacher'}", "tokenizer": tokens},
        "student": {"model": f"hf:{folder / 'student'}", "tokenizer": tokens},
        "distill": {"epochs": 1, "batch_size": 16},
    }
    return Recipe.model_validate({**values, **given})


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Any, LoadedModel, LoadedModel]:
    """Splits, teacher and student."""
    asked = recipe(folder)
    splits = TASK.splits(asked)
    teacher, student = TASK.models(asked, splits)
    assert teacher is not None
    return splits, teacher, student


def tensors(split: Any, count: int = 6) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(values) for name, values in split.take(np.arange(count)).items()}


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_evaluated_through_the_graphs_as_it_is_trained(loaded: Any, role: str) -> None:
    splits, *models = loaded
    model = models[role == "student"]
    made = TASK.evaluate(torch_runner(TASK.graphs(model, splits)), splits.test, batch_size=5)
    batch = tensors(splits.test, len(splits.test))
    with torch.no_grad():
        logits = TASK.forward(model.module, batch)["logits"]
        loss = float(TASK.loss({"logits": logits}, batch))
    real = batch["output_mask"].numpy() > 0
    each = torch.log_softmax(logits, -1).gather(1, batch["output_ids"][batch["output_mask"] > 0][:, None])[:, 0]
    np.testing.assert_allclose(made.outputs["target_logprob"][real], each.numpy(), rtol=1e-3, atol=1e-4)
    assert not made.outputs["target_logprob"][~real].any()
    assert TASK.validation_loss(made, splits.test) == pytest.approx(loss, rel=1e-4)
    assert made.outputs["tokens"].shape == (12, 8)
    assert TASK.facts(made, splits.test)["perplexity"] == pytest.approx(np.exp(loss), rel=1e-3)


def test_scores_are_those_of_sacrebleu(loaded: Any) -> None:
    splits, *_ = loaded
    split = splits.test
    tokens = np.zeros((12, 8), np.int64)
    for n in range(12):
        row = split.outputs.row(n)
        tokens[n, : len(row)] = row
    tokens[0, 0] = tokens[1, 0]
    tokens[3] = 4  # never ends
    written = texts_of(tokens, split)
    assert written[2] == split.references[2]
    assert written[3] == " ".join(["one"] * 8)
    made = TASK.score({"tokens": tokens}, split)
    assert made.score == pytest.approx(sacrebleu.corpus_chrf(written, [list(split.references)]).score / 100)
    assert made.per_sample[2] == pytest.approx(1.0)
    assert made.per_sample[3] == pytest.approx(sacrebleu.sentence_chrf(written[3], [split.references[3]]).score / 100)
    some = np.array([5, 2])
    again = TASK.score({name: values[some] for name, values in made.outputs.items()}, split.at(some))
    assert again.per_sample.tolist() == made.per_sample[some].tolist()


def test_teacher_and_student_stand_at_the_same_tokens(loaded: Any) -> None:
    splits, teacher, student = loaded
    batch = tensors(splits.train)
    with torch.no_grad():
        shapes = [TASK.forward(model.module, batch)["logits"].shape for model in (teacher, student)]
    assert shapes[0] == shapes[1] == (int(batch["output_mask"].sum()), len(translation.TOKENS))


def test_a_student_draws_targets_of_its_own(loaded: Any) -> None:
    splits, teacher, student = loaded
    batch = tensors(splits.train)
    student.module.train().net.eval()  # as where a student trains without dropout
    made = TASK.drawn(student, batch, (0, 1))
    assert student.module.training
    assert not student.module.net.training
    again, other = TASK.drawn(student, batch, (0, 1)), TASK.drawn(student, batch, (0, 2))
    assert torch.equal(made["drawn_ids"], again["drawn_ids"])
    assert not torch.equal(made["drawn_ids"], other["drawn_ids"])
    for ids, mask in zip(made["drawn_ids"].tolist(), made["drawn_mask"].tolist(), strict=True):
        length = sum(mask)
        assert mask == [1] * length + [0] * (len(mask) - length)
        assert 1 not in ids[: length - 1]
        assert not any(ids[length:])
        assert length == len(mask) or ids[length - 1] == 1
    outputs = TASK.forward(student.module, made)
    taught = TASK.forward(teacher.module.eval(), made)
    assert outputs["logits"].shape == taught["logits"].shape == (int(made["drawn_mask"].sum()), 16)
    assert outputs["given_logits"].shape == (int(batch["output_mask"].sum()), 16)
    assert "given_logits" not in taught
    targets = batch["output_ids"][batch["output_mask"] > 0]
    wanted = torch.nn.functional.cross_entropy(outputs["given_logits"], targets)
    torch.testing.assert_close(TASK.loss(outputs, made), wanted)  # the task's loss reads the data's targets
    student.module.eval()


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_golden_inputs_hold_a_cache_that_fits(loaded: Any, role: str) -> None:
    splits, *models = loaded
    run = torch_runner(TASK.graphs(models[role == "student"], splits))
    at = np.array([0, 3, 7])
    golden = TASK.golden(run, splits.test, at)
    assert list(golden) == (["decoder"] if role == "teacher" else ["encoder", "decoder"])
    own = "past_key_values.0.key" if role == "teacher" else "past_key_values.0.decoder.key"
    assert golden["decoder"]["input_ids"].shape == (3, 2)
    assert golden["decoder"][own].shape[2] > 0
    logits = run("decoder", golden["decoder"])["logits"][:, -1]
    written = splits.test.take(at)["output_ids"]
    with torch.no_grad():  # what comes after the whole target but its last token, of texts that are as long as the longest
        batch = {name: torch.from_numpy(values) for name, values in splits.test.take(at).items()}
        whole = TASK.forward(models[role == "student"].module, batch)["logits"]
    ends = np.cumsum(batch["output_mask"].sum(1).numpy()) - 1
    longest = np.flatnonzero(batch["output_mask"].sum(1).numpy() == written.shape[1])
    np.testing.assert_allclose(logits[longest], whole.numpy()[ends[longest]], rtol=1e-4, atol=1e-4)


def test_what_ships_beside_the_graphs(loaded: Any, tmp_path: Path) -> None:
    splits, teacher, student = loaded
    told = TASK.preprocessing(student, splits.test, tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()
    assert told["host"][-1] == {"step": "generate", "start": 2, "end": 1, "longest": 8, "context": 64}
    assert (told["host"][0]["end"], told["host"][0]["longest"]) == (1, 8)
    assert TASK.preprocessing(teacher, splits.test, tmp_path)["host"][1]["side"] == "left"


def test_vocabularies_that_differ_are_told_at_once(folder: Path, tmp_path: Path) -> None:
    tokens = (translation.TOKENS[3], *translation.TOKENS[:3], *translation.TOKENS[4:])
    moved = {"model": f"hf:{folder / 'teacher'}", "tokenizer": str(translation.tokenizer(tmp_path / "moved", tokens))}
    asked = recipe(folder, teacher=moved)
    splits = TASK.splits(asked)
    with pytest.raises(BadInput, match=r"same 16 tokens with other ids.*`align`"):
        TASK.models(asked, splits)
    plain, _ = TASK.models(recipe(folder), splits)
    aligned, student = TASK.models(recipe(folder, teacher=moved, distill={"epochs": 1, "vocabulary": "align"}), splits)
    assert plain is not None
    assert aligned is not None
    order = [tokens.index(token) for token in translation.TOKENS]
    table = plain.module.net.get_input_embeddings().weight[order]
    assert torch.equal(aligned.module.net.get_input_embeddings().weight, table)
    padded = translation.saved(translation.decoder_only(24), tmp_path / "padded", weights=True)
    wide = {"model": f"hf:{padded}", "tokenizer": str(folder / "tokens")}
    with pytest.raises(BadInput, match="padded to vocabularies of 24 and 16 entries"):
        TASK.models(recipe(folder, teacher=wide), splits)
    cut, student = TASK.models(recipe(folder, teacher=wide, distill={"epochs": 1, "vocabulary": "cut"}), splits)
    assert cut is not None
    assert cut.module.vocabulary == student.module.vocabulary == 16


def test_tokens_that_were_cut_off_must_not_be_in_the_texts(folder: Path, tmp_path: Path) -> None:
    shorter = translation.TOKENS[:-1]
    saved = translation.saved(translation.decoder_only(15), tmp_path / "teacher", weights=True)
    teacher = {"model": f"hf:{saved}", "tokenizer": str(translation.tokenizer(tmp_path / "tokens", shorter))}
    asked = recipe(folder, teacher=teacher, distill={"epochs": 1, "vocabulary": "cut"})
    with pytest.raises(
        BadInput, match=r"cut: the train texts have the token 'sechs' \(15\), which the common part of 15 tokens lacks"
    ):
        TASK.models(asked, TASK.splits(asked))


def test_a_text_longer_than_the_context(folder: Path, tmp_path: Path) -> None:
    short = translation.saved(translation.decoder_only(max_position_embeddings=12), tmp_path / "short", weights=True)
    asked = recipe(folder, teacher={"model": f"hf:{short}", "tokenizer": str(folder / "tokens")})
    with pytest.raises(BadInput, match=r"teacher: a text of 7 tokens and 8 to write do not fit its context of 12"):
        TASK.models(asked, TASK.splits(asked))


def test_own_targets_are_for_models_that_write() -> None:
    with pytest.raises(
        BadInput, match=r"distill.targets: a recipe for image-classification does not read it .those for seq2seq-lm do."
    ):
        recipes.load("models/digits", ["distill.targets=student"])
    from edgekd.distill.trainer import _drawing
    from edgekd.tasks import task_of

    with pytest.raises(
        BadInput, match=r"a image-classification model writes no targets"
    ):  # of another package, which no table names
        _drawing(task_of("image-classification"), recipes.Distill(targets="student"))


@pytest.mark.exhaustive
def test_from_a_recipe_to_files_that_translate(tmp_path: Path) -> None:
    translation.data(tmp_path / "data", train=192, others=16)
    translation.tokenizer(tmp_path / "tokens")
    translation.saved(translation.decoder_only(initializer_range=0.05), tmp_path / "teacher")
    translation.saved(translation.t5gemma(initializer_range=0.05), tmp_path / "student")
    (tmp_path / "recipe.yaml").write_text("""
task: seq2seq-lm
data: {source: data, input: en, output: de, max_tokens: 8}
teacher: {model: "hf:teacher", tokenizer: tokens}
student: {model: "hf:student", tokenizer: tokens, arguments: {share_embeddings: true}}
train: {epochs: 8, batch_size: 16, learning_rate: 0.004}
distill: {epochs: 6, batch_size: 16, learning_rate: 0.004, targets: student}
quantize:
  - {name: fp32, method: none}
  - {name: w4, method: round-to-nearest, weights: {bits: 4, group: 16}}
targets: [onnxruntime-cpu]
gate: {max_drop: 0.9}
bench: {min_seconds: 0.05, launches: 1, max_seconds: 0.3, roofline: false}
""")
    with pytest.raises(BadInput, match="no trained weights"):
        verbs.compress(tmp_path / "recipe.yaml", tmp_path / "run")
    taught = verbs.train(tmp_path / "recipe.yaml", tmp_path / "taught", "teacher", [])
    assert taught["scores"]["teacher"] > 0.5
    made = verbs.compress(tmp_path / "recipe.yaml", tmp_path / "run", settings=[f"teacher.model={tmp_path / 'taught'}"])
    assert made["scores"]["student"] > 0.3
    for name in ("fp32", "w4"):
        verdict = json.loads((tmp_path / "run" / "verdicts" / "onnxruntime-cpu" / name / "verdict.json").read_text())
        assert verdict["status"] == "passed", verdict["reason"]
        assert verdict["scores"]["runtime"] == pytest.approx(verdict["scores"]["variant"], abs=0.02)
        assert "BLEU" in verdict["beside"]["runtime"]
    assert verdict["scores"]["teacher"] == pytest.approx(taught["scores"]["teacher"])
