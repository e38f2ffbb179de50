"""T5Gemma of transformers, called part by part: grouped-query attention, rotary positions, encoder and decoder of their own depths.

What `seq2seq_lm.py` needs of an architecture; `t5.py` has the same functions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .text_encoder import MASKED

Caches = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each decoder layer, (n, heads, positions, size)."""


def encode(net: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the encoder's states, (n, source, width). ids, mask (1: a token): int64 (n, source)."""
    encoder = net.get_encoder()
    places = torch.arange(ids.shape[1], device=ids.device)
    full = padding(mask)
    near = (places[:, None] - places[None]).abs() < encoder.config.sliding_window
    # masks of our own: transformers' hold the smallest float32, which no float16 can
    masks = {"full_attention": full, "sliding_attention": full + MASKED * (~near)}
    return encoder(input_ids=ids, attention_mask=masks, use_cache=False).last_hidden_state


def decode(
    net: Any, ids: torch.Tensor, mask: torch.Tensor, states: torch.Tensor | None, past: Caches, cross: Caches
) -> tuple[torch.Tensor, Caches]:
    """Return the decoder's states, (n, tokens, width), and its own keys and values with these tokens'.

    ids: int64 (n, tokens). mask: of the source, int64 (n, source). Either the encoder's states are given, and attended to afresh, or
    `past` and `cross`, made before.
    """
    decoder = net.get_decoder()
    before = past[0][0].shape[2] if past else 0
    places = torch.arange(before, before + ids.shape[1], device=ids.device)
    keys = torch.arange(before + ids.shape[1], device=ids.device)
    later = keys[None] > places[:, None]
    far = keys[None] <= places[:, None] - decoder.config.sliding_window
    masks = {"full_attention": _additive(later), "sliding_attention": _additive(later | far)}
    caches = both(past, cross) if past else None
    made = decoder(
        input_ids=ids,
        attention_mask=masks,
        position_ids=places[None],
        past_key_values=caches,
        use_cache=caches is not None,
        cache_position=places,
        encoder_hidden_states=states if states is not None else cross[0][0],  # with a cache, only whether it is there matters
        encoder_attention_mask={"full_attention": padding(mask)},
    )
    return made.last_hidden_state, own(caches)


def crossing(net: Any) -> list[tuple[nn.Module, nn.Module, int]]:
    """Return, for each decoder layer, what makes the keys and the values of its cross-attention, and the size of a head."""
    layers = [layer.cross_attn for layer in net.get_decoder().layers]
    return [(one.k_proj, one.v_proj, one.head_dim) for one in layers]


def cache_heads(net: Any) -> tuple[int, int]:
    """Return how many key-value heads a decoder layer has, and their size."""
    config = net.get_decoder().config
    return config.num_key_value_heads, config.head_dim


def logits(net: Any, states: torch.Tensor) -> torch.Tensor:
    """Return the logits, (..., vocabulary), of the decoder's states."""
    scores = net.lm_head(states)
    limit = net.get_decoder().config.final_logit_softcapping
    return scores if limit is None else limit * torch.tanh(scores / limit)


def begin(net: Any, start: int) -> None:
    """Note in the configuration what the decoder begins with."""
    net.config.bos_token_id = net.config.decoder.bos_token_id = start


def begins(net: Any) -> int | None:
    """Return what the decoder was trained to begin with."""
    return net.config.decoder.bos_token_id


def padding(mask: torch.Tensor) -> torch.Tensor:
    """Return what is added to attention scores, (n, 1, 1, source): 0 for tokens, MASKED for padding."""
    return (1.0 - mask[:, None, None].to(torch.float32)) * MASKED


def both(past: Caches, cross: Caches) -> Any:
    """Return transformers' cache of a decoder behind an encoder."""
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    caches = DynamicCache(), DynamicCache()
    for cache, given in zip(caches, (past, cross), strict=True):
        for layer, (keys, values) in enumerate(given):
            cache.update(keys, values, layer)
    return EncoderDecoderCache(*caches)


def own(caches: Any) -> Caches:
    """Return the decoder's own keys and values out of transformers' cache."""
    return [(layer.keys, layer.values) for layer in caches.self_attention_cache.layers] if caches is not None else []


def _additive(masked: torch.Tensor) -> torch.Tensor:
    return (masked * MASKED)[None, None]
