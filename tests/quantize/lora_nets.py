"""Small networks of the kinds that adapters are for, made on the spot, and a task over token ids for them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from distill import tiny
from torch import nn

from edgekd._torchvision import ensure
from edgekd.data.split import Splits
from edgekd.export.graph import Graph
from edgekd.models import LoadedModel
from edgekd.tasks import Evaluation, Metric

ensure()
import timm  # noqa: E402
import transformers  # noqa: E402

WORDS = 40


def llama():
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=WORDS, tie_word_embeddings=True, **sizes))


def t5():
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4, "feed_forward_proj": "gated-gelu"}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=WORDS, decoder_start_token_id=0, **sizes))


def bert():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    return transformers.BertModel(transformers.BertConfig(vocab_size=WORDS, **sizes), add_pooling_layer=True)


def gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=WORDS, n_embd=16, n_layer=2, n_head=4))


def vit():
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=2, in_chans=1, embed_dim=24, depth=2, num_heads=3, num_classes=3
    )


class Reader(nn.Module):
    """A transformers model, called with token ids alone; `net` is the bare one, as in the project's wrappers."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        both = {"decoder_input_ids": ids} if self.net.config.is_encoder_decoder else {}
        return self.net(input_ids=ids, **both)[0][:, -1]


@dataclass(frozen=True)
class Tokens:
    """Rows of token ids, each with the row's largest id as its label."""

    name: str
    ids: np.ndarray
    fingerprint: str = "tokens"
    classes: tuple[str, ...] = ()
    lengths = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices):
        return {"ids": self.ids[indices], "label": self.ids[indices].max(1), "index": np.asarray(indices)}

    def at(self, indices):
        return replace(self, ids=self.ids[indices])


class TokenTask(tiny.TinyTask):
    """What tiny.TinyTask is, of token ids."""

    unit = "rows"

    def forward(self, module, batch):
        return {"logits": module(batch["ids"])}

    def evaluate(self, run, split, batch_size=256, advance=None):
        logits = run("model", {"ids": split.ids})["logits"]
        right = (logits.argmax(1) == split.ids.max(1)).astype(np.float64)
        return Evaluation(float(right.mean()), right, {"logits": logits, "tokens": logits.argmax(1)})

    def validation_loss(self, made, split):
        return float(nn.functional.cross_entropy(torch.from_numpy(made.outputs["logits"]), torch.from_numpy(split.ids.max(1))))

    def graphs(self, model, splits):
        return [Graph("model", model.module, ("ids",), ("logits",), {"ids": torch.zeros(1, 6, dtype=torch.int64)})]

    metric = Metric("accuracy", higher_is_better=True)


def tokens() -> Splits:
    draw = np.random.default_rng(0)
    return Splits(
        *(Tokens(name, draw.integers(1, 16, (n, 6))) for name, n in (("train", 96), ("validation", 40), ("test", 40)))
    )


NETS = {"llama": llama, "t5": t5, "bert": bert, "gpt2": gpt2, "vit": vit}


def made(kind: str, seed: int = 0):
    """Return (model, task, splits)."""
    torch.manual_seed(seed)
    net = NETS[kind]().eval()
    if kind == "vit":
        return tiny.loaded(net), tiny.TinyTask(), tiny.splits(96)
    model = LoadedModel(Reader(net), f"hf:{kind}", None, None, sum(p.numel() for p in net.parameters()))
    return model, TokenTask(), tokens()
