"""Tiny causal language models, a tokenizer of letters and text, made on the spot: what the tests of causal-lm share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgekd.models.transformers_model import transformers_here

LETTERS = "abcdefghijklmnopqrstuvwxyz .\n"
END = 0
NEW = 16
"""Tokens that are generated where a test does not say how many."""


def config(kind: str = "LlamaConfig", vocabulary: int = len(LETTERS) + 1, context: int = 64, **others: Any) -> Any:
    """Return the configuration of a decoder of two layers, 32 wide."""
    transformers = transformers_here()
    if kind == "GPT2Config":
        told = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": context}
    else:
        told = {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 8, "max_position_embeddings": context,
        }  # fmt: skip
    made = getattr(transformers, kind)(**{**told, "vocab_size": vocabulary, "bos_token_id": END, "eos_token_id": END, **others})
    made._attn_implementation = "eager"
    return made


def network(kind: str = "LlamaConfig", seed: int = 0, **others: Any) -> Any:
    """Return a network with weights so large that its tokens vary."""
    torch.manual_seed(seed)
    net = transformers_here().AutoModelForCausalLM.from_config(config(kind, **others)).eval()
    with torch.no_grad():
        for values in net.parameters():
            if values.ndim > 1:
                values.normal_(0, 0.3)
    return net


def tokenizer(folder: Path, begins: bool = False) -> Path:
    """Write a tokenizer of single letters; <end> is 0. begins: with a token <begin> in front of every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    names = ["<end>", *LETTERS, *(["<begin>"] if begins else [])]
    made = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<end>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    if begins:
        made.post_processor = processors.TemplateProcessing(single="<begin> $A", special_tokens=[("<begin>", len(names) - 1)])
    told = {"eos_token": "<end>", **({"bos_token": "<begin>"} if begins else {})}
    transformers_here().PreTrainedTokenizerFast(tokenizer_object=made, **told).save_pretrained(folder)
    return folder


def model(folder: Path, kind: str = "LlamaConfig", weights: bool = True, seed: int = 0, **others: Any) -> Path:
    """Write a model's folder, with or without weights, and its tokenizer."""
    if weights:
        network(kind, seed, **others).save_pretrained(folder)
    else:
        config(kind, **others).save_pretrained(folder)
    return tokenizer(folder)


def text(words: int = 600, seed: int = 0) -> str:
    """Sentences of a few words, each of which follows another more often than not: there is something to learn."""
    rng, found = np.random.default_rng(seed), []
    names = ("the", "cat", "sat", "on", "a", "mat", "and", "then", "it", "ran")
    at = 0
    for number in range(words):
        at = (at + 1) % len(names) if rng.random() < 0.8 else int(rng.integers(len(names)))
        found.append(names[at] + (".\n" if number % 12 == 11 else " "))
    return "".join(found)


def prompts(count: int) -> list[np.ndarray]:
    """Return prompts of 1 to 13 tokens."""
    rng = np.random.default_rng(1)
    return [rng.integers(1, 30, length) for length in rng.integers(1, 14, count)]


def left(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return rows padded at their left, and their mask."""
    width = max(map(len, rows))
    ids, mask = np.zeros((2, len(rows), width), np.int64)
    for n, row in enumerate(rows):
        ids[n, width - len(row) :], mask[n, width - len(row) :] = row, 1
    return ids, mask


def theirs(net: Any, ids: np.ndarray, mask: np.ndarray, new: int = NEW) -> np.ndarray:
    """Return what transformers generates, greedily."""
    made = net.generate(
        torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), max_new_tokens=new, do_sample=False, eos_token_id=END,
        pad_token_id=END,
    )  # fmt: skip
    return made[:, ids.shape[1] :].numpy()
