"""The task causal-lm: scores by hand, a student that learns from its teacher, and every stage from recipe to verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_causal
import torch

from edgekd import pipeline, plan, schema
from edgekd.data.blocks import Blocks
from edgekd.errors import BadInput
from edgekd.export.graph import torch_runner
from edgekd.models.causal_lm import CausalLM, decoder_graph
from edgekd.recipe import Recipe
from edgekd.tasks import task_of

TASK = task_of("causal-lm")


def split(seed: int = 0, count: int = 5, length: int = 12) -> Blocks:
    ids = np.random.default_rng(seed).integers(0, 30, (count, length)).astype(np.int32)
    return Blocks("test", str(seed), ids)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    return (
        logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)) - logits.max(-1, keepdims=True)
    )


def test_the_score_is_how_often_the_next_token_is_the_likeliest() -> None:
    net, blocks = tiny_causal.network(), split()
    counted: list[int] = []
    made = TASK.evaluate(torch_runner([decoder_graph(CausalLM(net).eval())]), blocks, advance=counted.append)
    with torch.no_grad():
        logits = net(input_ids=torch.from_numpy(blocks.ids.astype(np.int64))).logits[:, :-1].numpy()
    targets = blocks.ids[:, 1:]
    right = logits.argmax(-1) == targets
    told = np.take_along_axis(log_softmax(logits), targets[..., None].astype(np.int64), -1)[..., 0]
    assert made.score == pytest.approx(right.mean())
    assert np.allclose(made.per_sample, right.mean(1))
    assert made.outputs["tokens"].tolist() == logits.argmax(-1).tolist()
    assert np.allclose(made.outputs["target_logprob"], told, atol=1e-4)
    assert TASK.validation_loss(made, blocks) == pytest.approx(-told.mean(), rel=1e-5)
    assert TASK.facts(made, blocks) == {"perplexity": pytest.approx(np.exp(-told.mean()), rel=1e-4)}
    assert sum(counted) == len(blocks)
    assert TASK.score({k: v[2:4] for k, v in made.outputs.items()}, blocks.at(np.array([2, 3]))).score == pytest.approx(
        right[2:4].mean()
    )


def test_an_unknown_probability_counts_as_wrong() -> None:
    blocks = split(count=1, length=3)
    outputs = {"tokens": blocks.ids[:, 1:], "target_logprob": np.array([[-1.0, np.nan]], np.float32)}
    assert TASK.score(outputs, blocks).score == 0.5
    assert np.isnan(TASK.validation_loss(TASK.score(outputs, blocks), blocks))


def test_the_loss_is_cross_entropy_at_the_same_tokens_as_the_logits() -> None:
    net = tiny_causal.network()
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 0]])
    batch = {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])}
    outputs = TASK.forward(CausalLM(net), batch)
    assert outputs["logits"].shape == (5, 30)
    probabilities = log_softmax(outputs["logits"].detach().numpy())
    wanted = -probabilities[np.arange(5), [4, 5, 6, 8, 9]].mean()
    assert TASK.loss(outputs, batch).item() == pytest.approx(wanted, rel=1e-5)


def test_golden_inputs_are_a_call_in_the_middle_of_a_text() -> None:
    net, blocks = tiny_causal.network(), split(length=30)
    run = torch_runner([decoder_graph(CausalLM(net).eval())])
    given = TASK.golden(run, blocks, np.array([1, 3]))["decoder"]
    assert given["input_ids"].tolist() == blocks.ids[[1, 3], 16:24].tolist()
    assert given["past_key_values.0.key"].shape == (2, 2, 16, 8)
    with torch.no_grad():
        wanted = net(input_ids=torch.from_numpy(blocks.ids[[1, 3], :24].astype(np.int64))).logits[:, -1:].numpy()
    assert np.allclose(run("decoder", given)["logits"], wanted, atol=1e-4)


# ---- recipes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text, a teacher with random weights, and the configuration of a student of another kind."""
    made = tmp_path_factory.mktemp("lm")
    (made / "text.txt").write_text(tiny_causal.text(), encoding="utf-8")
    tiny_causal.model(made / "teacher")
    tiny_causal.model(made / "student", "Qwen2Config", weights=False, num_hidden_layers=1)
    return made


def told(folder: Path, **rest: Any) -> dict[str, Any]:
    data = {"source": str(folder / "text.txt"), "max_tokens": 24, **rest.pop("data", {})}
    return {
        "task": "causal-lm", "data": data, "teacher": {"model": f"hf:{folder / 'teacher'}"},
        "student": {"model": f"hf:{folder / 'student'}"}, "distill": {"epochs": 1, "batch_size": 16}, **rest,
    }  # fmt: skip


def test_a_language_models_teacher_is_live(folder: Path) -> None:
    made = Recipe.model_validate(told(folder))
    assert made.distill is not None
    assert made.distill.teacher == "live"
    assert [(goal.kind, goal.weight) for goal in made.distill.objectives] == [("logits", 0.9), ("task", 0.1)]
    with pytest.raises(ValueError, match=r"distill.teacher: cached: .* set distill.teacher: live"):
        Recipe.model_validate(told(folder, distill={"teacher": "cached"}))


def test_the_cache_of_a_teacher_refuses_rows_that_are_no_samples(folder: Path, tmp_path: Path) -> None:
    from edgekd.distill import teacher_cache

    recipe = Recipe.model_validate(told(folder, data={"limit": 4}))
    assert recipe.distill is not None
    splits = TASK.splits(recipe)
    teacher = TASK.model(recipe, splits, "teacher", need_weights=True)
    settings = recipe.distill.model_copy(update={"teacher": "cached"})
    key = teacher_cache.key(teacher, splits.train, settings, 0)
    with pytest.raises(BadInput, match=r"`logits` have 46 rows for two samples .*set distill.teacher: live"):
        teacher_cache.build(teacher, splits.train, TASK, settings, tmp_path / "cache", key)


def refused(folder: Path, **rest: Any) -> str:
    recipe = Recipe.model_validate(told(folder, **rest))
    with pytest.raises(BadInput) as error:
        TASK.models(recipe, TASK.splits(recipe))
    return str(error.value)


def test_blocks_longer_than_the_context(folder: Path) -> None:
    said = refused(folder, data={"max_tokens": 65})
    assert said.startswith("data.max_tokens: blocks of 65 tokens are longer than the teacher's context of 64")
    assert said.endswith("set data.max_tokens to 64 or less")


def test_a_student_without_weights_or_teacher(folder: Path) -> None:
    assert "has no trained weights" in refused(folder, teacher=None, distill=None)


def test_a_teacher_that_reads_other_tokens(folder: Path, tmp_path: Path) -> None:
    tiny_causal.model(tmp_path / "other", vocabulary=len(tiny_causal.LETTERS) + 2)
    tiny_causal.tokenizer(tmp_path / "other", begins=True)
    assert "distill.vocabulary: refuse: teacher and student have different tokenizers" in refused(
        folder, teacher={"model": f"hf:{tmp_path / 'other'}"}
    )


def test_a_tokenizer_that_is_larger_than_the_model(folder: Path, tmp_path: Path) -> None:
    tiny_causal.model(tmp_path / "small", vocabulary=20)
    said = refused(folder, teacher={"model": f"hf:{tmp_path / 'small'}"})
    assert said.startswith("teacher: its tokenizer")
    assert "20" in said


def test_a_hub_id_without_a_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = refused(folder, student={"model": "hf:nobody/nothing-like-this"})
    assert "nobody/nothing-like-this" in said
    assert "nor from the hub or its cache" in said or "nor to be had from the hub" in said


def test_vocabularies_that_were_padded_differently_are_cut(folder: Path, tmp_path: Path) -> None:
    tiny_causal.model(tmp_path / "padded", vocabulary=32)
    recipe = Recipe.model_validate(
        told(folder, teacher={"model": f"hf:{tmp_path / 'padded'}"}, distill={"vocabulary": "cut"}, data={"limit": 2})
    )
    splits = TASK.splits(recipe)
    models = TASK.models(recipe, splits)
    batch = {name: torch.from_numpy(values) for name, values in splits.train.take(np.arange(2)).items()}
    assert [TASK.forward(one.module, batch)["logits"].shape for one in models if one] == [(46, 30), (46, 30)]


def test_what_was_cut_stays_cut_without_the_teacher(folder: Path, tmp_path: Path) -> None:
    """A student padded to 32 logits learns 30 of them; the two others would come back with whatever they began with."""
    config = json.loads((folder / "student" / "config.json").read_text())
    (tmp_path / "padded").mkdir()
    (tmp_path / "padded" / "config.json").write_text(json.dumps({**config, "vocab_size": 32}))
    distill = {"epochs": 1, "batch_size": 16, "vocabulary": "cut"}
    student = {"model": f"hf:{tmp_path / 'padded'}", "tokenizer": str(folder / "student")}
    recipe = Recipe.model_validate(told(folder, student=student, distill=distill, data={"limit": 40}))
    pipeline.run(plan.plan(recipe, tmp_path / "run"), last="distill")
    again = Recipe.model_validate(told(folder, teacher=None, distill=None, student={"model": str(tmp_path / "run")}))
    splits = TASK.splits(again)
    _, model = TASK.models(again, splits)
    batch = {name: torch.from_numpy(values) for name, values in splits.train.take(np.arange(2)).items()}
    assert model.module.net.config.vocab_size == 32
    assert TASK.forward(model.module, batch)["logits"].shape == (46, 30)


def test_a_teacher_is_trained_from_its_start(folder: Path, tmp_path: Path) -> None:
    recipe = Recipe.model_validate(told(folder, distill=None, train={"epochs": 2, "batch_size": 16, "learning_rate": 0.01}))
    made = pipeline.train(plan.plan_training(recipe, tmp_path / "run", "student"), "student")
    epochs = made["training"]["epochs"]
    assert epochs[-1]["validation_loss"] < epochs[0]["validation_loss"] < np.log(30)
    again = Recipe.model_validate(told(folder, teacher=None, distill=None, student={"model": str(tmp_path / "run")}))
    splits = TASK.splits(again)
    _, model = TASK.models(again, splits)
    score = TASK.evaluate(torch_runner(TASK.graphs(model, splits)), splits.test).score
    assert score == pytest.approx(made["scores"]["student"])


def test_from_recipe_to_verdict(folder: Path, tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        told(
            folder,
            distill={"epochs": 2, "batch_size": 16, "learning_rate": 0.01},
            quantize=[
                {"name": "fp32", "method": "none"},
                {"name": "rtn4", "method": "round-to-nearest", "weights": {"bits": 4, "group": 16}},
            ],
            gate={"max_drop": 1.0, "min_variant_sqnr_db": 0},
        )
    )
    made = pipeline.run(plan.plan(recipe, tmp_path / "run"), last="verify")
    for name in ("fp32", "rtn4"):
        verdict = made["verdicts"][f"onnxruntime-cpu/{name}"]
        assert verdict["status"] == "passed", verdict["reason"]
        assert verdict["parity"]["runtime"]["agreement"] == 1.0
        assert verdict["beside"]["runtime"]["perplexity"] == pytest.approx(verdict["beside"]["variant"]["perplexity"], rel=1e-3)
    assert 0 < made["verdicts"]["onnxruntime-cpu/rtn4"]["parity"]["variant"]["agreement"] <= 1
    assert schema.problems(made) == []
    shipped = tmp_path / "run" / "targets" / "onnxruntime-cpu" / "fp32"
    steps = json.loads((shipped / "artifact.json").read_text())["preprocess"]["host"]
    assert [step["step"] for step in steps] == ["tokenize", "pad", "generate"]
    assert (steps[2]["end"], steps[2]["context"]) == (0, 64)
    assert (steps[0]["special_tokens"], steps[0]["begin"]) == (False, [])
    assert (shipped / "tokenizer.json").is_file()


def test_a_token_that_looks_like_markup(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["<end>", "[/INST]", *tiny_causal.LETTERS]
    for place, order in (("student", names), ("teacher", [names[0], *names[2:], names[1]])):
        tiny_causal.model(tmp_path / place, vocabulary=len(names))
        saved = tmp_path / place / "tokenizer.json"
        told = json.loads(saved.read_text())
        told["model"]["vocab"] = {name: number for number, name in enumerate(order)}
        saved.write_text(json.dumps(told))
    recipe = Recipe.model_validate({
        "task": "causal-lm", "data": {"source": str(folder / "text.txt"), "max_tokens": 24, "limit": 2},
        "teacher": {"model": f"hf:{tmp_path / 'teacher'}"}, "student": {"model": f"hf:{tmp_path / 'student'}"},
        "distill": {"vocabulary": "align"},
    })  # fmt: skip
    TASK.models(recipe, TASK.splits(recipe))
    assert "such as '[/INST]': 30 of the teacher, 1 of the student" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"data": {"pairs": {"source": "x"}}},
            "data.pairs: a recipe for causal-lm does not read it (those for text-embedding do)",
        ),
        ({"data": {"input": "en"}}, "data.input: a recipe for causal-lm does not read it (those for seq2seq-lm do)"),
        ({"data": {"label": "x"}}, "data.label: a recipe for causal-lm does not read it"),
        ({"student": {"model": "hf:x", "pooling": "cls"}}, "student.pooling: a recipe for causal-lm does not read it"),
        (
            {"distill": {"targets": "student"}},
            "distill.targets: a recipe for causal-lm does not read it (those for seq2seq-lm do)",
        ),
    ],
)
def test_keys_of_other_tasks_are_told(folder: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match="leave it out") as caught:
        Recipe.model_validate(told(folder, **change))
    assert said in str(caught.value)


def test_a_timed_prompt_longer_than_a_table_of_positions(folder: Path, tmp_path: Path) -> None:
    tiny_causal.model(tmp_path / "gpt2", "GPT2Config", context=32)
    student = {"model": f"hf:{tmp_path / 'gpt2'}"}
    said = refused(folder, student=student)
    assert said.startswith("bench.prompt_tokens: 64 and 32 new ones do not fit the student's context of 32 tokens")
    fits = Recipe.model_validate(told(folder, student=student, bench={"prompt_tokens": 24, "new_tokens": 8}))
    assert TASK.models(fits, TASK.splits(fits))[1].parameters > 0
