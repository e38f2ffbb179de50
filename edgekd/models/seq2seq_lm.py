"""A language model that reads one text and writes another: an encoder-decoder, or a decoder that reads both in one row."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from ..data.sequences import start as start_of
from ..errors import BadInput
from ..export.graph import Graph
from ..recipe import Model
from ..text import tokenizer as tokenizers
from ..text import vocabulary
from . import text_model, transformers_model
from .causal_lm import CausalLM, check, context_of, decoder_graph
from .loaded import LoadedModel
from .loading import check_trained

SHARED = "share_embeddings"
"""An argument of ours beside those of a transformers configuration: one table of token embeddings for encoder and decoder."""

ARCHITECTURES = {"t5gemma": "t5gemma", "t5": "t5", "mt5": "t5"}
"""model_type of transformers -> the file beside this one that calls its parts."""


class Seq2SeqLM(nn.Module):
    """An encoder-decoder of transformers. start: the id that its decoder begins with. vocabulary: cut logits to the first so many."""

    def __init__(self, net: nn.Module, start: int) -> None:
        super().__init__()
        self.net, self.start = net, start
        self.prefix = ""
        self.vocabulary: int | None = getattr(net.config, vocabulary.KEPT, None)

    @property
    def parts(self) -> Any:
        """The functions that call the network's parts."""
        return parts_of(self.net)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Return (..., vocabulary)."""
        return self.parts.logits(self.net, states)[..., : self.vocabulary]

    def target_logits(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the logits of each token to be written, (P, vocabulary), row by row; padding left out.

        batch: input_ids, attention_mask (n, source), output_ids, output_mask (n, target), padded after the text.
        """
        states = self.parts.encode(self.net, batch["input_ids"], batch["attention_mask"])
        written = batch["output_ids"]
        before = torch.cat([torch.full_like(written[:, :1], self.start), written[:, :-1]], dim=1)
        made, _ = self.parts.decode(self.net, before, batch["attention_mask"], states, [], [])
        return self.logits(made[batch["output_mask"].bool()])


class SourceThenTarget(CausalLM):
    """A decoder-only model that reads a text and then writes another, in one row: the source padded at its left, then the target."""

    def target_logits(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the logits of each token to be written, (P, vocabulary), row by row; padding left out.

        batch: as of Seq2SeqLM, so that the two stand at the same tokens: with S source positions and T target positions, the logits
        at [S - 1 : S - 1 + T], of which the first come from the source's last token (Return of the Encoder, its distillation).
        """
        order = batch["attention_mask"].argsort(dim=1, stable=True)  # padding first, tokens in their order
        source, mask = (batch[name].gather(1, order) for name in ("input_ids", "attention_mask"))
        written, real = batch["output_ids"], batch["output_mask"]
        ids = torch.cat([source, written[:, :-1]], dim=1)
        mask = torch.cat([mask, real[:, :-1]], dim=1)
        made = self.net(
            input_ids=ids,
            attention_mask=self._mask(mask, ids.shape[1], 0),
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
            **({"logits_to_keep": written.shape[1]} if self._picks else {}),
        )
        return self._cut(made.logits[:, -written.shape[1] :][real.bool()])


class Encoder(nn.Module):
    """The graph `encoder`: (input_ids, attention_mask) -> the keys and values of each decoder layer's cross-attention."""

    def __init__(self, model: Seq2SeqLM) -> None:
        super().__init__()
        self.net = model.net

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return key and value of layer 0, of layer 1, ...: (batch, heads, source, size)."""
        parts = parts_of(self.net)
        states = parts.encode(self.net, input_ids, attention_mask)
        made = []
        for keys, values, size in parts.crossing(self.net):
            made += [part(states).unflatten(-1, (-1, size)).transpose(1, 2) for part in (keys, values)]
        return tuple(made)


class Decoder(nn.Module):
    """The graph `decoder`: tokens, the source's mask and both caches -> logits, and its own cache with these tokens in it."""

    def __init__(self, model: Seq2SeqLM) -> None:
        super().__init__()
        self.net, self.vocabulary = model.net, model.vocabulary

    def forward(
        self, input_ids: torch.Tensor, encoder_attention_mask: torch.Tensor, *cache: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Return logits (batch, tokens, vocabulary), then key and value of each layer. cache: in the order of `caches_of`."""
        parts = parts_of(self.net)
        past, cross = ([(cache[n], cache[n + 1]) for n in range(first, len(cache), 4)] for first in (0, 2))
        states, own = parts.decode(self.net, input_ids, encoder_attention_mask, None, past, cross)
        logits = parts.logits(self.net, states)[..., : self.vocabulary]
        return logits, *(part for layer in own for part in layer)


def seq2seq_lm(config: Model, *, role: str, seed: int, need_weights: bool, teacher: LoadedModel | None = None) -> LoadedModel:
    """Load a model that writes one text after reading another, in evaluation mode: an encoder-decoder, or a decoder-only one.

    teacher: for a student that starts from its layers. need_weights: refuse a network that would start untrained. Raises BadInput.
    """
    config = text_model.resolved(config, role)
    shared = {name: value for name, value in config.arguments.items() if name == SHARED}
    config = config.model_copy(update={"arguments": {name: v for name, v in config.arguments.items() if name != SHARED}})
    made = text_model.network(config, _maker(config), role=role, seed=seed, teacher=teacher)
    if need_weights:
        check_trained(made, config, role)
    net: Any = made.net
    if shared.get(SHARED):
        _share(net, role)
    tokenizer = tokenizers.of(config, role)
    module: Seq2SeqLM | SourceThenTarget
    if net.config.is_encoder_decoder:
        module = Seq2SeqLM(net, _agreed_start(net, tokenizer, made.trained, role))
    else:
        check(net, f"{role}: {config.model}")
        module = SourceThenTarget(net)
    vocabulary.fits(vocabulary.Vocabulary(tokenizer, vocabulary.logits_of(module)), role)
    return LoadedModel(
        module=module.eval(),
        reference=config.model,
        preprocess=None,
        classes=None,
        parameters=sum(parameter.numel() for parameter in net.parameters()),
        role=role,
        arguments={**made.arguments, **shared},
        tokenizer=tokenizer,
    )


def parts_of(net: Any) -> Any:
    """Return the functions for a network's architecture. Raises BadInput for one that there are none for."""
    kind = net.config.model_type
    if kind not in ARCHITECTURES:
        raise BadInput(
            f"{type(net).__name__} ({kind}): an encoder-decoder of this kind cannot be taken apart into `encoder` and `decoder`; "
            f"known are {', '.join(ARCHITECTURES)}, and any decoder-only model"
        )
    return importlib.import_module(f"{__package__}.{ARCHITECTURES[kind]}")


def graphs(model: Seq2SeqLM | SourceThenTarget) -> list[Graph]:
    """Return the exportable graphs: `encoder` and `decoder`, or the one `decoder` of a decoder-only model (see causal_lm.py).

    encoder: input_ids, attention_mask int64 (batch, source) -> present.N.encoder.key and .value, (batch, heads, source, size): what
    every step of the decoder looks at is made once.
    decoder: input_ids int64 (batch, tokens), encoder_attention_mask (batch, source), past_key_values.N.decoder.key and .value
    (batch, heads, past, size), past_key_values.N.encoder.key and .value -> logits (batch, tokens, vocabulary),
    present.N.decoder.key and .value (batch, heads, past + tokens, size).
    """
    if isinstance(model, SourceThenTarget):
        return [decoder_graph(model)]
    parts = parts_of(model.net)
    layers, (count, size) = len(parts.crossing(model.net)), parts.cache_heads(model.net)
    batch, tokens, past, source = 2, 3, 4, 5  # no two alike: an exporter might take equal lengths for one
    ids, mask = (torch.ones(batch, length, dtype=torch.int64) for length in (tokens, source))
    text = {0: "batch", 1: "source"}
    read = {"input_ids": mask, "attention_mask": mask.clone()}
    given, axes = {"input_ids": ids, "encoder_attention_mask": mask}, {"input_ids": {0: "batch", 1: "tokens"}}
    axes["encoder_attention_mask"] = text
    for name in caches_of(layers):
        across = ".encoder." in name
        given[name] = torch.zeros(batch, count, source if across else past, size)
        axes[name] = {0: "batch", 2: "source" if across else "past"}
    presents = [name.replace("past_key_values", "present", 1) for name in caches_of(layers)]
    encoded, own = ([name for name in presents if f".{side}." in name] for side in ("encoder", "decoder"))
    return [
        Graph("encoder", Encoder(model), tuple(read), tuple(encoded), read, dict.fromkeys(read, text)),
        Graph("decoder", Decoder(model), tuple(given), ("logits", *own), given, axes),
    ]


def caches_of(layers: int) -> list[str]:
    """Return the names of the decoder's caches, in the order of its inputs.

    >>> caches_of(1)[:2]
    ['past_key_values.0.decoder.key', 'past_key_values.0.decoder.value']
    """
    return [
        f"past_key_values.{n}.{side}.{what}"
        for n in range(layers)
        for side in ("decoder", "encoder")
        for what in ("key", "value")
    ]


def check_lengths(model: LoadedModel, read: int, written: int) -> None:
    """Raise BadInput where texts of so many tokens do not fit the model's context."""
    config: Any = model.module.net.config
    advice = "shorten the texts, or set data.max_tokens lower"
    if not config.is_encoder_decoder:
        context = context_of(model.module.net)
        if context is not None and read + written > context:
            raise BadInput(
                f"{model.role}: a text of {read} tokens and {written} to write do not fit its context of {context} tokens: {advice}"
            )
        return
    for side, tokens in (("encoder", read), ("decoder", written)):
        context = getattr(getattr(config, side, None), "max_position_embeddings", None)
        if context is not None and tokens > context:
            raise BadInput(f"{model.role}: {tokens} tokens do not fit its {side}'s context of {context} tokens: {advice}")


def _maker(config: Model) -> str:
    """Return which class of transformers makes the network: what its configuration says."""
    kind, _, name = config.model.partition(":")
    encodes = kind == "hf" and transformers_model.config_of(name).is_encoder_decoder
    return "AutoModelForSeq2SeqLM" if encodes else "AutoModelForCausalLM"


def _share(net: Any, role: str) -> None:
    """Give the encoder the decoder's table of token embeddings. Raises BadInput where there are no two tables of one shape."""
    if not net.config.is_encoder_decoder:
        raise BadInput(f"{role}.arguments.{SHARED}: this model has no encoder; leave it out")
    tables = [stack.get_input_embeddings() for stack in (net.get_encoder(), net.get_decoder())]
    if tables[0].weight.shape != tables[1].weight.shape:
        shapes = " and ".join(str(tuple(table.weight.shape)) for table in tables)
        raise BadInput(f"{role}.arguments.{SHARED}: encoder and decoder have tables of {shapes}; give both one width")
    tables[0].weight = tables[1].weight


def _agreed_start(net: Any, tokenizer: Any, trained: bool, role: str) -> int:
    """Return what the decoder begins with. The tokenizer says it, as all models of a run are given the same batches."""
    parts, start = parts_of(net), start_of(tokenizer)
    if trained and parts.begins(net) not in (start, None):
        said = tokenizer.convert_ids_to_tokens(start)
        raise BadInput(
            f"{role}: its decoder begins with token {parts.begins(net)}, and by its tokenizer ({said!r}, {start}) it would begin "
            "with another: give the model's own tokenizer, or set bos_token in tokenizer_config.json to what it was trained with"
        )
    parts.begin(net, start)
    return start
