"""Teacher forcing through a language model's graphs: given targets are read at once, instead of generated token by token. numpy alone."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ..bench.decoder_inputs import State
from ..bench.generation import Form, Steps, detect
from ..export.graph import Runner, interfaces_of
from . import scores
from .generate import left_padded

if TYPE_CHECKING:
    Arrays = dict[str, np.ndarray]


def target_logprob(run: Runner, batch: Arrays, *, start: int, pad: int) -> np.ndarray:
    """Return the log-probability of each token of the targets, float32 (n, target), 0 at padding.

    batch: input_ids, attention_mask (n, source), output_ids, output_mask (n, target). start: the id that a decoder behind an encoder
    begins with; a decoder alone reads the source first, padded at its left with `pad`.
    """
    steps, form, state, first = _begun(run, batch, start, pad)
    written, real = batch["output_ids"], batch["output_mask"]
    feeds = steps.feeds(form.first, state)
    if "logits_to_keep" in feeds:
        feeds["logits_to_keep"] = np.arange(first, first + written.shape[1])
    logits = run(form.first, feeds)["logits"][:, -written.shape[1] :]
    return np.where(real > 0, scores.judged(logits, written)[0], np.float32(0))


def last_step(run: Runner, batch: Arrays, *, start: int, pad: int, tokens: int = 2) -> dict[str, Arrays]:
    """Return graph -> its inputs: the encoder's, and the decoder's when it reads the last so many tokens with all before them cached."""
    steps, form, state, _ = _begun(run, batch, start, pad)
    made = {}
    if form.encoder is not None:
        made[form.encoder] = steps.feeds(form.encoder, State(batch["input_ids"], 0, mask=batch["attention_mask"]))
    ids, mask = state.ids, state.mask
    before = max(ids.shape[1] - tokens, 0)
    if before:
        state.ids, state.mask = ids[:, :before], None if mask is None else mask[:, :before]
        steps.logits(form.first, state)
        state.ids, state.mask = ids[:, before:], mask
    return {**made, form.first: steps.feeds(form.first, state)}


def _begun(run: Runner, batch: Arrays, start: int, pad: int) -> tuple[Steps, Form, State, int]:
    """Return the graphs' calls, the state in which the decoder has yet to read whole targets, and the place that tells their first token."""
    interfaces = interfaces_of(run)
    form = detect(interfaces)
    if form is None:
        raise TypeError("no language model with a key-value cache")
    ids, mask, written = batch["input_ids"], batch["attention_mask"], batch["output_ids"]
    steps = Steps({graph: partial(run, graph) for graph in interfaces}, interfaces, form, len(ids), {})
    if form.encoder is not None:
        state = steps.begin(np.concatenate([np.full((len(ids), 1), start), written[:, :-1]], axis=1))
        steps.encode(state, ids, mask)
        return steps, form, state, 0
    ids, mask = left_padded(ids, mask, pad)
    read = np.concatenate([ids, written[:, :-1]], axis=1)
    real = np.concatenate([mask, batch["output_mask"][:, :-1]], axis=1)
    return steps, form, steps.begin(read, real), ids.shape[1] - 1
