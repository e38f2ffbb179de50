"""The whole corridor for a text encoder: what ships computes what sentence-transformers defines, and each verb knows text."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_texts
import torch
import yaml
from tokenizers import Tokenizer

from edgekd import verbs
from edgekd.errors import BadInput
from edgekd.models.transformers_model import transformers_here
from edgekd.tasks.text_embedding import ranks

VARIANTS = ("fp32", "int8")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a teacher, data, a recipe, and a run of it."""
    folder = tmp_path_factory.mktemp("pair")
    tiny_texts.bert(folder / "teacher")
    tiny_texts.data(folder)
    recipe = {
        "task": "text-embedding",
        "data": {"source": "texts.txt", "pairs": {"source": "pairs"}, "max_tokens": 16},
        "teacher": {"model": "hf:teacher"},
        "student": {"model": "teacher", "teacher_layers": [0, 2]},
        "distill": {"epochs": 2, "batch_size": 32, "learning_rate": 1e-3},
        "quantize": [{"name": "fp32", "method": "none"}, {"name": "int8", "method": "dynamic"}],
        "gate": {"max_drop": 0.2},
        "bench": {"min_seconds": 0.05, "min_count": 5, "launches": 1, "max_seconds": 1},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    verbs.compress(folder, folder / "run")
    return folder


def manifest(run: Path) -> dict[str, Any]:
    return json.loads((run / "manifest.json").read_text())


def shipped(run: Path) -> dict[str, bytes]:
    found = {str(f.relative_to(run)): f.read_bytes() for f in (run / "targets").rglob("*") if f.is_file()}
    return {name: content for name, content in found.items() if not name.endswith(".stage.json")}


def test_what_ships_embeds_as_the_students_definition_says(home):
    import onnxruntime

    folder = home / "run" / "targets" / "onnxruntime-cpu" / "fp32"
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    tokens = Tokenizer.from_file(str(folder / "tokenizer.json"))
    network = transformers_here().AutoModel.from_pretrained(home / "run" / "student").eval()
    rows = tiny_texts.pairs(40, 21)
    cosines = []
    for row in rows:
        both = []
        for text in (row["sentence1"], row["sentence2"]):
            ids = np.array([tokens.encode(text).ids], np.int64)[:, :16]
            (made,) = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
            with torch.inference_mode():
                states = network(input_ids=torch.from_numpy(ids)).last_hidden_state[0].double().numpy()
            expected = states.mean(0) / np.linalg.norm(states.mean(0))
            np.testing.assert_allclose(made[0], expected, atol=5e-6)
            both.append(expected)
        cosines.append(float(both[0] @ both[1]))
    x, y = ranks(np.round(cosines, 5)), ranks(np.array([row["score"] for row in rows]))  # equal but for rounding: one rank
    score = np.corrcoef(x, y)[0, 1]
    assert manifest(home / "run")["verdicts"]["onnxruntime-cpu/fp32"]["scores"]["runtime"] == pytest.approx(score, abs=1e-6)


def test_verdicts_and_contracts(home):
    told = manifest(home / "run")
    for name in VARIANTS:
        assert told["verdicts"][f"onnxruntime-cpu/{name}"]["status"] == "passed"
        record = json.loads((home / "run" / "targets" / "onnxruntime-cpu" / name / "artifact.json").read_text())
        assert record["task"] == "text-embedding"
        (graph,) = record["graphs"].values()
        assert [(one["name"], one["dtype"], one["shape"]) for one in graph["inputs"]] == [
            (key, "int64", ["batch", "tokens"]) for key in ("input_ids", "attention_mask")
        ]
        assert record["preprocess"]["host"][0] == {"step": "tokenize", "file": "tokenizer.json"}
        assert "tokenizer.json" in [file["path"] for file in record["files"]]
        assert graph["form"]["MultiHeadAttention"] == 2  # tried on tokens that so small a vocabulary has
    assert "Spearman" in (home / "run" / "report.html").read_text()


@pytest.mark.parametrize("variant", VARIANTS)
def test_check_py_works_where_it_ships(home, tmp_path, variant):
    folder = tmp_path / "device"
    shutil.copytree(home / "run" / "targets" / "onnxruntime-cpu" / variant, folder)
    run = [sys.executable, "-I", str(folder / "check.py"), "--json", "--seconds", "0"]
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["right"]
    (folder / "tokenizer.json").write_text("{}")
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 3
    assert any("tokenizer.json" in problem for problem in json.loads(done.stdout)["problems"])


def test_again_all_is_cached(home):
    before = shipped(home / "run")
    verbs.compress(home, home / "run")
    assert all(stage["cached"] for stage in manifest(home / "run")["stages"])
    assert shipped(home / "run") == before


def test_the_verbs_one_by_one_make_the_same_files(home, tmp_path):
    verbs.distill(home, tmp_path / "run")
    verbs.quantize(tmp_path / "run")
    verbs.export(tmp_path / "run")
    verbs.verify(tmp_path / "run")
    assert shipped(tmp_path / "run") == shipped(home / "run")
    assert {v["status"] for v in manifest(tmp_path / "run")["verdicts"].values()} == {"passed"}


def test_another_tokenizer_for_the_student_keeps_the_teachers_outputs(home, tmp_path):
    shutil.copytree(home / "run", tmp_path / "run")
    tiny_texts.tokenizer(tmp_path / "tokens", tuple(reversed(tiny_texts.WORDS)))
    settings = [f"student.tokenizer={tmp_path / 'tokens'}", "student.teacher_layers=[1]"]
    verbs.distill(home, tmp_path / "run", settings)
    cached = {stage["name"]: stage["cached"] for stage in manifest(tmp_path / "run")["stages"]}
    assert cached["teacher-cache"]
    assert not cached["distill"]


def test_a_run_folder_is_a_teacher(home, tmp_path):
    told = verbs.distill(
        home, tmp_path / "second", [f"teacher.model={home / 'run'}", "student.teacher_layers=[1]", "distill.epochs=1"]
    )
    assert told["scores"]["teacher"] == pytest.approx(manifest(home / "run")["scores"]["student"], abs=1e-6)
    assert (tmp_path / "second" / "student" / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("data.max_tokens=64", "reads 32 tokens at most"),
        ("data.pairs.score=similar", "has no column `similar`"),
        ("data.pairs.source=nowhere.jsonl", "no file or folder"),
        ("student.teacher_layers=[7]", "the teacher has layers 0 to 2, no 7"),
        ("student.arguments.embedding_rank=400", "saves nothing"),
        ("distill.objectives=[{kind: logits}]", "which a text-embedding model does not give"),
        ("targets=[browser-of-mine]", "no target `browser-of-mine`"),
    ],
)
def test_bad_input_is_told_before_training(home, tmp_path, setting, words):
    with pytest.raises(BadInput) as caught:
        verbs.compress(home, tmp_path / "run", [setting])
    assert words in str(caught.value)
    assert not (tmp_path / "run" / "student").exists()
