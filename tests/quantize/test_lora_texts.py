"""Adapters in language models, through their own tasks: merged is unmerged, and a run from recipe to report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_causal
import tiny_texts
import torch
import translation
from safetensors.torch import load_file

from edgekd import stages, verbs
from edgekd.errors import BadInput
from edgekd.materials import Materials
from edgekd.plan import plan
from edgekd.quantize import lora
from edgekd.recipe import Lora, Recipe
from edgekd.tasks import task_of

CONFIGS = {"t5gemma": translation.t5gemma, "t5": translation.t5, "llama": translation.decoder_only}


def recipe(folder: Path, kind: str, **given: Any) -> dict[str, Any]:
    if kind == "causal":
        (folder / "text.txt").write_text(tiny_causal.text(300))
        tiny_causal.model(folder / kind)
        data = {"source": str(folder / "text.txt"), "max_tokens": 16, "test_fraction": 0.3, "validation_fraction": 0.3}
        return {"task": "causal-lm", "data": data, "student": {"model": f"hf:{folder / kind}"}, **given}
    translation.data(folder / "data", train=48, others=12)
    translation.tokenizer(folder / "tokens", begin=kind != "t5")
    translation.saved(CONFIGS[kind](), folder / kind, weights=True)
    data = {"source": str(folder / "data"), "input": "en", "output": "de", "max_tokens": 8}
    student = {"model": f"hf:{folder / kind}", "tokenizer": str(folder / "tokens")}
    return {"task": "seq2seq-lm", "data": data, "student": student, **given}


@pytest.mark.parametrize("kind", [*CONFIGS, "causal"])
def test_the_merged_model_is_the_one_with_adapters(kind: str, tmp_path: Path) -> None:
    asked = Recipe.model_validate(recipe(tmp_path, kind))
    task = task_of(asked.task)
    splits = task.splits(asked)
    _, student = task.models(asked, splits)
    batch = {name: torch.from_numpy(values) for name, values in splits.train.take(np.arange(6)).items()}

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return task.forward(student.module.eval(), batch)["logits"]

    plain = logits()
    adapters = lora.attach(student, Lora(rank=4, alpha=8), task, splits, 0, "distill.lora")
    assert len(adapters.names) == {"t5gemma": 2 * 7 + 11, "t5": 2 * 6 + 10, "llama": 14, "causal": 14}[kind]
    torch.manual_seed(0)
    with torch.no_grad():
        for name, values in student.module.net.named_parameters():
            if "lora_B" in name:
                values.normal_(0, 0.2)
    unmerged = logits()
    assert (unmerged - plain).abs().max() > 0.05 * plain.abs().max()
    told = lora.merge(student, adapters, task, splits)
    assert (logits() - unmerged).abs().max() < 1e-4 * unmerged.abs().max()
    assert 0 < told["max_relative_difference"] < 1e-4


@pytest.mark.exhaustive
def test_from_recipe_to_report(tmp_path: Path) -> None:
    short = {"epochs": 1, "batch_size": 16, "teacher": "live"}
    given = recipe(
        tmp_path, "causal",
        distill={**short, "objectives": [{"kind": "task"}], "lora": {"rank": 4, "alpha": 8}},
        quantize=[
            {"name": "fp32", "method": "none"},
            {"name": "adapted", "method": ["lora", "quantized-distillation"], "weights": {"bits": 4, "group": 16}, "lora": {"rank": 4}},
        ],
    )  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(given))
    verbs.distill(tmp_path / "recipe.yaml", tmp_path / "run")
    verbs.quantize(tmp_path / "run")
    verbs.report(tmp_path / "run")
    told = json.loads((tmp_path / "run" / "manifest.json").read_text())
    lessons = told["variants"]["adapted"]["facts"]["training"]
    assert [lesson["method"] for lesson in lessons] == ["lora", "quantized-distillation"]
    for made in (told["training"]["lora"], lessons[0]["lora"]):
        assert made["max_relative_difference"] < 1e-4
    assert json.loads((tmp_path / "run" / "student" / "history.json").read_text())["lora"] == told["training"]["lora"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("rank 4 in ") == 2
    for stage in ("student", "variants/adapted"):
        assert any("lora_A" in name for name in load_file(tmp_path / "run" / stage / "adapter" / "adapter_model.safetensors"))


def test_what_comes_after_adapters_learns_from_the_student_with_them(tmp_path: Path) -> None:
    layers = {
        "kind": "features",
        "student": "encoder.layer.1",
        "teacher": "encoder.layer.2",
    }  # the student has two layers alone
    distill = {"epochs": 1, "teacher": "live", "objectives": [{"kind": "embedding"}, layers]}

    def check(**given: Any) -> None:
        variant = {"name": "v", "method": ["lora", "quantized-distillation"], "weights": {"bits": 4, "group": 16}, **given}
        asked = tiny_texts.recipe(tmp_path, tmp_path / "bert", distill=distill, quantize=[variant])
        laid_out = plan(asked, tmp_path / "run")
        stages.check_variants(laid_out, Materials(laid_out), asked.quantize)

    tiny_texts.bert(tmp_path / "bert")
    with pytest.raises(BadInput, match=r"the teacher has no layer `encoder\.layer\.2`"):
        check()
    check(training=[{}, {"objectives": [{"kind": "embedding"}]}])
