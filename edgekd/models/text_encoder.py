"""A text encoder: token ids in, one vector of length 1 for each text out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from ..errors import BadInput

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
        states = self.states(input_ids, attention_mask)
        if self.pooling == "cls":
            pooled = states[:, 0]
        elif self.pooling == "last":
            last = attention_mask.sum(1, keepdim=True) - 1  # texts are padded after their tokens
            pooled = states.gather(1, last[..., None].expand(-1, -1, states.shape[-1]))[:, 0]
        else:
            mask = attention_mask[..., None].to(states.dtype)
            pooled = (states * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return functional.normalize(pooled.float(), dim=-1)

    def states(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the network's state of each token, (n, tokens, width)."""
        made = self.net(input_ids=input_ids, attention_mask=attention_mask)
        return made if isinstance(made, torch.Tensor) else made[0]


def _extended(attention_mask: torch.Tensor, *_: Any, dtype: torch.dtype = torch.float32, **__: Any) -> torch.Tensor:
    """Return what is added to attention scores, (n, 1, 1, tokens): 0 for tokens, MASKED for padding."""
    return (1.0 - attention_mask[:, None, None].to(dtype)) * MASKED


def pooling_of(name: str, role: str) -> Pooling | None:
    """Return what a folder or hub id in the layout of sentence-transformers says of pooling; None where it says nothing.

    Raises BadInput for a pooling that edgekd has not, and for layers after it: without them the embeddings would be others.
    """
    modules = _json(name, "modules.json") or []
    kinds = {str(one["type"]).rpartition(".")[2]: str(one["path"]) for one in modules}
    if others := sorted(kinds.keys() - {"Transformer", "Pooling", "Normalize"}):
        raise BadInput(
            f"{role}: hf:{name} puts a {others[0]} layer on its pooling, which edgekd does not: set {role}.pooling to take the "
            "embedding before it, or choose another model"
        )
    told = _json(name, f"{kinds.get('Pooling', '1_Pooling')}/config.json")
    if told is None:
        return None
    modes = [key.removeprefix("pooling_mode_") for key, value in told.items() if key.startswith("pooling_mode_") and value]
    known: dict[str, Pooling] = {"mean_tokens": "mean", "cls_token": "cls", "lasttoken": "last"}
    if len(modes) != 1 or modes[0] not in known:
        raise BadInput(
            f"{role}: hf:{name} pools by {' and '.join(modes) or 'nothing known'}; edgekd has {', '.join(known)}: set {role}.pooling"
        )
    return known[modes[0]]


def _json(name: str, file: str) -> Any:
    """Return a JSON file of a model's folder or hub id; None where it has none."""
    path: str | Path = Path(name) / file
    if not Path(name).is_dir():
        try:
            from huggingface_hub import hf_hub_download

            path = hf_hub_download(name, file)
        except Exception:  # not there, or neither the hub nor its cache has it: the hub client's own errors
            return None
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: damaged ({error}); get it again, or set `pooling`") from None
