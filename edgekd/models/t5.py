"""T5 and mT5 of transformers, called part by part: relative positions, no scaling of attention. See `t5gemma.py` for the functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .t5gemma import Caches, both, own, padding
from .text_encoder import MASKED


def encode(net: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the encoder's states, (n, source, width)."""
    places = torch.arange(ids.shape[1], device=ids.device)
    return _through(net.get_encoder(), ids, attention_mask=padding(mask), cache_position=places)


def decode(
    net: Any, ids: torch.Tensor, mask: torch.Tensor, states: torch.Tensor | None, past: Caches, cross: Caches
) -> tuple[torch.Tensor, Caches]:
    """Return the decoder's states, (n, tokens, width), and its own keys and values with these tokens'."""
    before = past[0][0].shape[2] if past else 0
    places = torch.arange(before, before + ids.shape[1], device=ids.device)
    later = torch.arange(before + ids.shape[1], device=ids.device)[None] > places[:, None]
    caches = both(past, cross) if past else None
    made = _through(
        net.get_decoder(),
        ids,
        attention_mask=(later * MASKED)[None, None],
        encoder_hidden_states=states if states is not None else cross[0][0],
        encoder_attention_mask=padding(mask),
        past_key_values=caches,
        use_cache=caches is not None,
        cache_position=places,
    )
    return made, own(caches)


def crossing(net: Any) -> list[tuple[nn.Module, nn.Module, int]]:
    """Return, for each decoder layer, what makes the keys and the values of its cross-attention, and the size of a head."""
    layers = [block.layer[1].EncDecAttention for block in net.get_decoder().block]
    return [(one.k, one.v, one.key_value_proj_dim) for one in layers]


def cache_heads(net: Any) -> tuple[int, int]:
    """Return how many heads a decoder layer has, and their size."""
    return net.config.num_heads, net.config.d_kv


def logits(net: Any, states: torch.Tensor) -> torch.Tensor:
    """Return the logits, (..., vocabulary), of the decoder's states."""
    scale = net.config.d_model**-0.5 if net.config.tie_word_embeddings else 1.0
    return net.lm_head(states * scale)


def begin(net: Any, start: int) -> None:
    """Note in the configuration what the decoder begins with."""
    net.config.decoder_start_token_id = start


def begins(net: Any) -> int | None:
    """Return what the decoder was trained to begin with."""
    return net.config.decoder_start_token_id


def _through(stack: Any, ids: torch.Tensor, **given: Any) -> torch.Tensor:
    """Run a stack's blocks as its forward() does; that one masks with the smallest float32, which no float16 can hold."""
    hidden = stack.dropout(stack.embed_tokens(ids))
    positions = cross = None  # the first block makes the bias of relative positions, for all
    for block in stack.block:
        hidden, positions, *rest = block(
            hidden, position_bias=positions, encoder_decoder_position_bias=cross, output_attentions=False, **given
        )
        cross = rest[0] if rest else None
    return stack.dropout(stack.final_layer_norm(hidden))
