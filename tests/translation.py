"""A toy translation for tests: number words of two languages, a tokenizer of words, and networks of a few thousand weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgekd._torchvision import ensure

ENGLISH = ("one", "two", "three", "four", "five", "six")
GERMAN = ("eins", "zwei", "drei", "vier", "fünf", "sechs")
SPECIAL = ("<pad>", "</s>", "<s>", "<unk>")
TOKENS = (*SPECIAL, *ENGLISH, *GERMAN)


def pairs(count: int, seed: int = 0, longest: int = 6) -> list[dict[str, str]]:
    """Return rows {"en", "de"}: each word of the one becomes its word of the other."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        words = rng.integers(0, len(ENGLISH), rng.integers(2, longest + 1))
        rows.append({"en": " ".join(ENGLISH[w] for w in words), "de": " ".join(GERMAN[w] for w in words)})
    return rows


def data(folder: Path, train: int = 64, others: int = 16) -> Path:
    """Write train.jsonl, val.jsonl and test.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, count) in enumerate({"train": train, "val": others, "test": others}.items()):
        lines = [json.dumps(row, ensure_ascii=False) for row in pairs(count, seed)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def tokenizer(folder: Path, tokens: tuple[str, ...] = TOKENS, begin: bool = True, ends: bool = True) -> Path:
    """Write a tokenizer of whole words. begin: with a token that a decoder begins with. ends: it puts </s> after a text itself."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({token: n for n, token in enumerate(tokens)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    end = tokens.index("</s>")
    if ends:
        made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(made.to_str(), encoding="utf-8")
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    if begin:
        told["bos_token"] = "<s>"
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return folder


def load(folder: Path) -> Any:
    """Return the tokenizer of a folder."""
    ensure()
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def t5gemma(rows: int = len(TOKENS), encoder: int = 2, decoder: int = 1, **given: Any) -> Any:
    """Return the configuration of a T5Gemma with grouped queries; sliding windows, capped scores where asked."""
    ensure()
    from transformers import T5GemmaConfig, T5GemmaModuleConfig

    whole = {"dropout_rate": given.pop("dropout_rate", 0.0), "tie_word_embeddings": given.pop("tie_word_embeddings", True)}

    def part(layers: int) -> Any:
        usual = {
            "vocab_size": rows, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8,
            "max_position_embeddings": 64, "layer_types": ["full_attention"] * layers, "attn_logit_softcapping": None,
            "final_logit_softcapping": None, "initializer_range": 0.3,
        }  # fmt: skip
        return T5GemmaModuleConfig(**{**usual, **given})

    return T5GemmaConfig(encoder=part(encoder), decoder=part(decoder), vocab_size=rows, attn_implementation="eager", **whole)


def t5(rows: int = len(TOKENS), kind: str = "T5", **given: Any) -> Any:
    """Return the configuration of a T5 or an MT5."""
    ensure()
    import transformers

    usual = {
        "vocab_size": rows, "d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 1,
        "dropout_rate": 0.0, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1, "initializer_factor": 1.0,
        "attn_implementation": "eager",
    }  # fmt: skip
    return getattr(transformers, f"{kind}Config")(**{**usual, **given})


def decoder_only(rows: int = len(TOKENS), **given: Any) -> Any:
    """Return the configuration of a Llama-like decoder."""
    ensure()
    from transformers import LlamaConfig

    usual = {
        "vocab_size": rows, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
        "tie_word_embeddings": True, "attn_implementation": "eager", "initializer_range": 0.3,
    }  # fmt: skip
    return LlamaConfig(**{**usual, **given})


def network(config: Any, seed: int = 0) -> Any:
    """Return an untrained network, in evaluation mode."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    torch.manual_seed(seed)
    maker = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return maker.from_config(config).eval()


def saved(config: Any, folder: Path, weights: bool = False, seed: int = 0) -> Path:
    """Write a folder that `hf:` reads: the configuration, with weights where asked."""
    if weights:
        network(config, seed).save_pretrained(folder)
    else:
        config.save_pretrained(folder)
    return folder
