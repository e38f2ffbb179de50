"""A language model that reads and writes one text: token ids in, scores of the next token out, a key-value cache beside them."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import BadInput
from ..export.graph import Graph
from ..recipe import Model
from ..text import tokenizer as tokenizers
from ..text.vocabulary import KEPT
from .mode import evaluation
from .text_encoder import MASKED

if TYPE_CHECKING:
    from .loaded import LoadedModel

DECODER = "decoder"
"""What its one graph is called."""
_AGREE = 1e-3
"""How far a model may lie from itself, called with a cache, of its largest score."""


class CausalLM(nn.Module):
    """A transformers causal language model, `net`, called with a flat key-value cache: tensors alone, as an exported graph has them.

    vocabulary: keep the scores of the first so many tokens (None: all, or what its configuration says was learned). prefix: of the names of its arrays in a batch.
    """

    def __init__(self, net: Any, vocabulary: int | None = None) -> None:
        super().__init__()
        self.net, self.prefix = net, ""
        self.vocabulary: int | None = vocabulary or getattr(net.config, KEPT, None)
        self._picks = "logits_to_keep" in inspect.signature(net.forward).parameters

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        logits_to_keep: torch.Tensor,
        *past: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Return logits (n, kept, vocabulary), float32, then key and value of every layer, (n, heads, past + tokens, size).

        input_ids, position_ids: int64 (n, tokens). attention_mask (1: a token): int64 (n, past + tokens). logits_to_keep: int64
        (kept,), places among the tokens. past: key and value of every layer, (n, heads, past, size).
        """
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        made = self.net(
            input_ids=input_ids,
            attention_mask=self._mask(attention_mask, input_ids.shape[1], past[0].shape[2] if past else 0),
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            **({"logits_to_keep": logits_to_keep} if self._picks else {}),
        )
        logits = made.logits if self._picks else made.logits[:, logits_to_keep]
        return self._cut(logits), *_flat(made.past_key_values)

    def target_logits(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the scores of every token of a batch but each row's first, float32 (P, vocabulary), row by row.

        batch: input_ids, attention_mask, int64 (n, tokens), padded on the right.
        """
        ids, mask = batch[f"{self.prefix}input_ids"], batch[f"{self.prefix}attention_mask"]
        logits = self._cut(self.net(input_ids=ids, attention_mask=mask, use_cache=False).logits)
        return logits[:, :-1][mask[:, 1:].bool()]

    def _cut(self, logits: torch.Tensor) -> torch.Tensor:
        return (logits if self.vocabulary is None else logits[..., : self.vocabulary]).float()

    def _mask(self, attention_mask: torch.Tensor, tokens: int, past: int) -> Any:
        """Return what is added to attention scores, (n, 1, tokens, past + tokens); of a network with two kinds of attention, one each.

        It is made here for a value that float16 can hold, and because a padded row then still has scores that are numbers.
        """
        config, dtype = self.net.config, next(self.net.parameters()).dtype
        kinds = getattr(config, "layer_types", None) or []
        window = getattr(config, "sliding_window", None)
        if "sliding_attention" in kinds and "full_attention" in kinds:
            return {
                "full_attention": _causal(attention_mask, tokens, past, dtype, None),
                "sliding_attention": _causal(attention_mask, tokens, past, dtype, window),
            }
        slides = "sliding_attention" in kinds or not kinds
        return _causal(attention_mask, tokens, past, dtype, window if slides else None)


def _causal(attention_mask: torch.Tensor, tokens: int, past: int, dtype: torch.dtype, window: int | None) -> torch.Tensor:
    """Return (n, 1, tokens, past + tokens): 0 where a token sees another, MASKED where not."""
    keys = torch.arange(attention_mask.shape[1], device=attention_mask.device)[None]
    queries = torch.arange(tokens, device=attention_mask.device)[:, None] + past
    seen = keys <= queries
    if window is not None:
        seen = seen & (keys > queries - window)
    seen = seen[None, None] & (attention_mask[:, None, None] > 0)
    return (1.0 - seen.to(dtype)) * MASKED


def _flat(cache: Any) -> list[torch.Tensor]:
    """Return key and value of every layer of a transformers cache."""
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def causal_lm(config: Model, *, role: str, seed: int, need_weights: bool, teacher: LoadedModel | None = None) -> LoadedModel:
    """Load a causal language model, in evaluation mode.

    teacher: for a student that starts from its layers. need_weights: refuse a network that would start untrained. Raises BadInput
    for whatever does not fit, and for a network that does not take a cache the way transformers' decoders do.
    """
    from . import text_model
    from .loaded import LoadedModel
    from .loading import check_trained

    config = text_model.resolved(config, role)
    made = text_model.network(config, "AutoModelForCausalLM", role=role, seed=seed, teacher=teacher)
    if need_weights:
        check_trained(made, config, role)
    check(made.net, f"{role}: {config.model}")
    return LoadedModel(
        module=CausalLM(made.net).eval(),
        reference=config.model,
        preprocess=None,
        classes=None,
        parameters=sum(parameter.numel() for parameter in made.net.parameters()),
        role=role,
        arguments=made.arguments,
        tokenizer=tokenizers.of(config, role),
    )


def context_of(net: Any) -> int | None:
    """Return how many tokens a network can hold; None where its configuration does not say."""
    found = getattr(net.config, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def decoder_graph(model: CausalLM, name: str = DECODER) -> Graph:
    """Return the graph that generates: input_ids, attention_mask, position_ids, logits_to_keep, past_key_values.N.key and .value ->
    logits, present.N.key and .value; see `CausalLM.forward`. An empty cache has past = 0.
    """
    shapes = _cache_shapes(model.net)
    batch, tokens, past, kept = 2, 3, 5, 4  # no two alike: an exporter might take equal lengths for one
    example = {
        "input_ids": torch.zeros(batch, tokens, dtype=torch.int64),
        "attention_mask": torch.ones(batch, past + tokens, dtype=torch.int64),
        "position_ids": torch.arange(past, past + tokens)[None].repeat(batch, 1),
        "logits_to_keep": torch.arange(kept) % tokens,
    }
    dynamic = {
        "input_ids": {0: "batch", 1: "tokens"},
        "attention_mask": {0: "batch", 1: "past + tokens"},
        "position_ids": {0: "batch", 1: "tokens"},
        "logits_to_keep": {0: "kept"},
    }
    outputs = ["logits"]
    for layer, parts in enumerate(shapes):
        for part, (heads, size) in zip(("key", "value"), parts, strict=True):
            cache = f"past_key_values.{layer}.{part}"
            example[cache] = torch.zeros(batch, heads, past, size)
            dynamic[cache] = {0: "batch", 2: "past"}
            outputs.append(f"present.{layer}.{part}")
    return Graph(name, model, tuple(example), tuple(outputs), example, dynamic)


@torch.no_grad()
def _cache_shapes(net: Any) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return each layer's (heads, size) of its keys and of its values, from a call with one token."""
    device = next(net.parameters()).device
    with evaluation(net):
        made = net(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=device), use_cache=True)
    found = [(tensor.shape[1], tensor.shape[3]) for tensor in _flat(made.past_key_values)]
    return list(zip(found[::2], found[1::2], strict=True))


@torch.no_grad()
def check(net: Any, who: str) -> None:
    """Raise BadInput where a network, read in two parts with padding before them, gives other scores than when it reads all at once.

    That is how a graph with a cache is called, and what architectures with a mask, cache or positions of their own do not take.
    """
    wrong = (
        f"{who}: {type(net).__name__} does not work with a key-value cache of plain tensors"
        " (a decoder of transformers such as Llama, Qwen, Mistral or GPT-2 does)"
    )
    ids = torch.arange(1, 7)[None] % max(int(getattr(getattr(net, "config", None), "vocab_size", 7)), 1)
    try:
        whole = net.eval()(input_ids=ids).logits[0]
        model = CausalLM(net)
        model.vocabulary = None  # as `whole`
        padded = torch.cat([torch.zeros(1, 2, dtype=torch.int64), ids], 1)
        mask = torch.cat([torch.zeros(1, 2, dtype=torch.int64), torch.ones_like(ids)], 1)
        places = (mask.cumsum(1) - 1).clamp(min=0)
        empty = [torch.zeros(1, heads, 0, size) for parts in _cache_shapes(net) for heads, size in parts]
        first, *cache = model(padded[:, :5], mask[:, :5], places[:, :5], torch.arange(2, 5), *empty)
        then, *_ = model(padded[:, 5:], mask, places[:, 5:], torch.arange(3), *cache)
    except Exception as error:  # the network may raise anything
        raise BadInput(f"{wrong}: {type(error).__name__}: {error}") from error
    far = (torch.cat([first[0], then[0]]) - whole).abs().max()
    if not far <= _AGREE * whole.abs().max():
        raise BadInput(f"{wrong}: read in two parts, its scores are off by {far:.2g}")
