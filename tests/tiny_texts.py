"""Tiny text encoders, tokenizers and sentences, made on the spot: what the tests of text share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from edgekd.models.transformers_model import transformers_here
from edgekd.recipe import Recipe

SUBJECTS = ("cat", "dog", "bird", "child", "man", "woman")
COLOURS = ("red", "blue", "old", "small", "tall")
VERBS = ("sees", "hears", "follows", "paints", "carries")
WORDS = ("a", "the", "and", *SUBJECTS, *COLOURS, *VERBS)


def tokenizer(folder: Path, words: tuple[str, ...] = WORDS, special: bool = True) -> Path:
    """Write a tokenizer of whole words, [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, then the words; special: it puts the last two around."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words]
    made = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    made.enable_padding(pad_id=0, pad_token="[PAD]", length=7)  # as saved files have them: settings of a call, not of the model
    made.enable_truncation(6)
    fast = transformers_here().PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]"
    )
    fast.save_pretrained(folder)
    return folder


def bert(
    folder: Path,
    layers: int = 3,
    width: int = 32,
    seed: int = 0,
    words: tuple[str, ...] = WORDS,
    pooling: str | None = "mean_tokens",
    positions: int = 32,
) -> Path:
    """Write a BERT of 4 heads with its tokenizer, in the layout of sentence-transformers."""
    transformers = transformers_here()
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=len(words) + 4, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4,
        intermediate_size=2 * width, max_position_embeddings=positions, initializer_range=0.2,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer(folder, words)
    if pooling:
        (folder / "1_Pooling").mkdir()
        modes = {f"pooling_mode_{name}": name == pooling for name in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    return folder


def sentences(count: int, seed: int = 0) -> list[str]:
    """Sentences of 3 to 11 words."""
    rng = np.random.default_rng(seed)

    def one() -> str:
        named = " ".join(rng.choice(COLOURS, rng.integers(0, 3))), " ".join(rng.choice(COLOURS, rng.integers(0, 3)))
        words = f"the {named[0]} {rng.choice(SUBJECTS)} {rng.choice(VERBS)} a {named[1]} {rng.choice(SUBJECTS)}".split()
        return " ".join(words[: None if rng.random() < 0.8 else 3])

    return [one() for _ in range(count)]


def pairs(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """Pairs whose score is the share of words that both have."""
    first, second = sentences(count, seed), sentences(count, seed + 1)
    found = []
    for number, (one, other) in enumerate(zip(first, second, strict=True)):
        if number % 3 == 0:  # some that are near
            other = one.replace("cat", "dog").replace("red", "blue")
        a, b = set(one.split()), set(other.split())
        found.append({"sentence1": one, "sentence2": other, "score": round(5 * len(a & b) / len(a | b), 1)})
    return found


def write_rows(file: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as jsonl."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def data(folder: Path, texts: int = 96, scored: int = 40) -> dict[str, Any]:
    """Write texts and scored pairs; return the recipe's `data`."""
    (folder / "texts.txt").write_text("\n".join(sentences(texts, seed=5)), encoding="utf-8")
    for name, seed in (("validation", 11), ("test", 21)):
        write_rows(folder / "pairs" / f"{name}.jsonl", pairs(scored, seed))
    return {"source": str(folder / "texts.txt"), "pairs": {"source": str(folder / "pairs")}, "max_tokens": 16}


def recipe(folder: Path, teacher: Path, student: dict[str, Any] | None = None, **rest: Any) -> Recipe:
    """Make a recipe whose data lie in `folder`, written there if they are not."""
    told = data(folder) if not (folder / "texts.txt").exists() else {
        "source": str(folder / "texts.txt"), "pairs": {"source": str(folder / "pairs")}, "max_tokens": 16,
    }  # fmt: skip
    distill = {"epochs": 2, "batch_size": 32, "learning_rate": 1e-3}
    made = {"task": "text-embedding", "data": told, "teacher": {"model": f"hf:{teacher}"}, "distill": distill}
    return Recipe.model_validate({**made, "student": student or {"model": "teacher", "teacher_layers": [0, 2]}, **rest})
