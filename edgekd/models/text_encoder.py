"""A text encoder: token ids in, one vector of length 1 for each text out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

Pooling = Literal["mean", "cls", "last"]

MASKED = -1e4
"""Added to the attention scores of padding: small enough for exp() to give 0, and still a number in float16, unlike the smallest
float32 that transformers takes, which becomes -inf there and then NaN."""


class TextEncoder(nn.Module):
    """A transformers model (or anything called with input_ids and attention_mask) behind pooling and normalisation.

    prefix: of the names of its arrays in a batch: "teacher_" for a teacher with a tokenizer of its own.
    """

    def __init__(self, net: nn.Module, pooling: Pooling = "mean") -> None:
        super().__init__()
        self.net, self.pooling, self.prefix = net, pooling, ""
        if hasattr(net, "get_extended_attention_mask"):
            setattr(net, "get_extended_attention_mask", _extended)  # noqa: B010

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return (n, width), float32, of 2-norm 1. input_ids, attention_mask (1: a token): int64 (n, tokens).

        mean: of the tokens' states, padding left out; cls: the first token's; last: the last token's that is no padding.
        """
        made = self.net(input_ids=input_ids, attention_mask=attention_mask)
        states = made if isinstance(made, torch.Tensor) else made[0]
        if self.pooling == "cls":
            pooled = states[:, 0]
        elif self.pooling == "last":
            last = attention_mask.sum(1, keepdim=True) - 1
            pooled = states.gather(1, last[..., None].expand(-1, -1, states.shape[-1]))[:, 0]
        else:
            mask = attention_mask[..., None].to(states.dtype)
            pooled = (states * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return functional.normalize(pooled.float(), dim=-1)


def _extended(attention_mask: torch.Tensor, *_: Any, dtype: torch.dtype = torch.float32, **__: Any) -> torch.Tensor:
    """Return what is added to attention scores, (n, 1, 1, tokens): 0 for tokens, MASKED for padding."""
    return (1.0 - attention_mask[:, None, None].to(dtype)) * MASKED


def pooling_of(folder: Path) -> Pooling | None:
    """Return what a folder in the layout of sentence-transformers says of pooling; None where it says nothing."""
    try:
        told = json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known: dict[str, Pooling] = {"mean_tokens": "mean", "cls_token": "cls", "lasttoken": "last"}
    return next((name for key, name in known.items() if told.get(f"pooling_mode_{key}")), None)
