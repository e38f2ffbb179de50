"""Teacher forcing through a language model's graphs: given targets are read at once, instead of generated token by token. numpy alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..bench.decoder_inputs import caches, empty_cache, encoded, kept, named
from ..bench.generation import detect
from ..export.graph import Runner, interfaces_of
from .generate import left_padded

if TYPE_CHECKING:
    Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Forced:
    """Inputs of a language model's graphs. encoder: (its name, its inputs), None where there is none. decoder: the name of its graph.

    feeds: the decoder's inputs, an empty cache among them.
    """

    encoder: tuple[str, Arrays] | None
    decoder: str
    feeds: Arrays


def forced(run: Runner, batch: Arrays, *, start: int, pad: int) -> Forced:
    """Return the inputs with which the decoder reads whole targets; the encoder is run for it.

    batch: input_ids, attention_mask (n, source), output_ids, output_mask (n, target). start: the id that a decoder behind an encoder
    begins with; a decoder alone reads the source first, padded at its left.
    """
    interfaces = interfaces_of(run)
    form = detect(interfaces)
    if form is None:
        raise TypeError("no language model with a key-value cache")
    written, real = batch["output_ids"], batch["output_mask"]
    n, length = written.shape
    encoder, made, feeds = None, {}, {}
    if form.encoder is not None:
        encoder = form.encoder, {name: batch[name] for name in ("input_ids", "attention_mask")}
        made = run(*encoder)
        feeds["input_ids"] = np.concatenate([np.full((n, 1), start), written[:, :-1]], axis=1)
        feeds["encoder_attention_mask"] = batch["attention_mask"]
    else:
        ids, mask = left_padded(batch["input_ids"], batch["attention_mask"], pad)
        feeds["input_ids"] = np.concatenate([ids, written[:, :-1]], axis=1)
        feeds["attention_mask"] = np.concatenate([mask, real[:, :-1]], axis=1)
        feeds["position_ids"] = np.maximum(np.cumsum(feeds["attention_mask"], axis=1) - 1, 0)
        feeds["logits_to_keep"] = np.arange(ids.shape[1] - 1, ids.shape[1] - 1 + length)
    for one in caches(interfaces[form.first]):
        found = encoded(one["name"], list(made))
        feeds[one["name"]] = empty_cache(form.first, one, n) if found is None else made[found]
    return Forced(encoder, form.first, {name: feeds[name] for name in named(interfaces[form.first], "inputs")})


def target_logprob(run: Runner, batch: Arrays, *, start: int, pad: int) -> np.ndarray:
    """Return the log-probability of each token of the targets, float32 (n, target), 0 at padding. Arguments: those of `forced`."""
    asked = forced(run, batch, start=start, pad=pad)
    written, real = batch["output_ids"], batch["output_mask"]
    logits = run(asked.decoder, asked.feeds)["logits"][:, -written.shape[1] :]
    logits = logits - logits.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(logits, written[..., None], axis=-1)[..., 0]
    total = np.exp(logits).sum(axis=-1, dtype=np.float64)
    return np.where(real > 0, chosen - np.log(total), 0.0).astype(np.float32)


def last_step(run: Runner, asked: Forced, tokens: int = 2) -> Arrays:
    """Return the decoder's inputs for the last so many tokens alone, with those before them in the cache."""
    whole = asked.feeds["input_ids"].shape[1]
    before = max(whole - tokens, 0)
    if not before:
        return asked.feeds
    interface = interfaces_of(run)[asked.decoder]
    made = run(asked.decoder, _between(asked.feeds, 0, before))
    grown = {name: made[output] for name, output in kept(caches(interface), named(interface, "outputs")).items()}
    return {**_between(asked.feeds, before, whole), **grown}


def _between(feeds: Arrays, first: int, last: int) -> Arrays:
    """Return the inputs with which the decoder reads tokens [first : last]; a mask covers those before, too."""
    cut = {name: values[:, first:last] if name in ("input_ids", "position_ids") else values for name, values in feeds.items()}
    if "attention_mask" in feeds:
        cut["attention_mask"] = feeds["attention_mask"][:, :last]
    if "logits_to_keep" in feeds:
        cut["logits_to_keep"] = np.arange(last - first)
    return cut
