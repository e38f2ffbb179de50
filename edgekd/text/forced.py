"""Teacher forcing: what a language model's graphs say of a text that is there already, which they read at once instead of writing it.

numpy alone, on anything that runs the graphs: torch modules, files, devices.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ..bench.decoder_inputs import State
from ..bench.generation import Form, Steps, detect
from ..export.graph import Runner, interfaces_of
from .generate import left_padded

if TYPE_CHECKING:
    Arrays = dict[str, np.ndarray]

SCORES = 2**25
"""Scores that one call should return at most: 128 MB."""


def scores_at(run: Runner, ids: np.ndarray, mask: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return what a decoder alone says comes after each of these places, float32 (n, places, vocabulary), from a call without a cache.

    ids, mask (1: a token): int64 (n, tokens), padded on either side. places: int64 (p,), counted in tokens.
    """
    steps, form = _steps(run, len(ids))
    return _scores(run, steps, form, steps.begin(ids, mask), places)


def target_logprob(run: Runner, batch: Arrays, *, start: int, pad: int) -> np.ndarray:
    """Return the log-probability of each token of the targets, float32 (n, target), 0 at padding.

    batch: input_ids, attention_mask (n, source), output_ids, output_mask (n, target). start: the id that a decoder behind an encoder
    begins with; a decoder alone reads the source first, padded at its left with `pad`.
    """
    made: list[np.ndarray] = []
    count, first, rows = len(batch["output_ids"]), 0, 1  # one text first, for the size of the vocabulary
    while first < count:
        some = {name: values[first : first + rows] for name, values in batch.items()}
        steps, form, state, place = _begun(run, some, start, pad)
        logits = _scores(run, steps, form, state, np.arange(place, place + some["output_ids"].shape[1]))
        told = judged(logits, some["output_ids"])[0]
        made.append(np.where(some["output_mask"] > 0, told, np.float32(0)))
        first, rows = first + rows, max(1, SCORES // logits[0].size)
    return np.concatenate(made)


def judged(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each target's log-probability, float32, and the likeliest token, int32; both of the targets' shape (...).

    logits: (..., vocabulary).
    """
    likeliest = logits.argmax(axis=-1)[..., None]
    highest = np.take_along_axis(logits, likeliest, axis=-1)
    chosen = np.take_along_axis(logits, targets[..., None], axis=-1)
    powers = logits - highest
    total = np.log(np.exp(powers, out=powers).sum(axis=-1, keepdims=True)) + highest
    return (chosen - total)[..., 0].astype(np.float32), likeliest[..., 0].astype(np.int32)


def halfway(run: Runner, ids: np.ndarray, mask: np.ndarray, first: int) -> dict[str, Arrays]:
    """Return graph -> its inputs, of a decoder alone that reads what is behind the first so many tokens, which are in the cache."""
    steps, form = _steps(run, len(ids))
    return {form.first: _behind(steps, form, steps.begin(ids, mask), first)}


def last_step(run: Runner, batch: Arrays, *, start: int, pad: int, tokens: int = 2) -> dict[str, Arrays]:
    """Return graph -> its inputs: the encoder's, and the decoder's when it reads the last so many tokens with all before them cached.

    batch, start, pad: as for `target_logprob`.
    """
    steps, form, state, _ = _begun(run, batch, start, pad)
    made = {}
    if form.encoder is not None:
        made[form.encoder] = steps.feeds(form.encoder, State(batch["input_ids"], 0, mask=batch["attention_mask"]))
    return {**made, form.first: _behind(steps, form, state, max(state.ids.shape[1] - tokens, 0))}


def _steps(run: Runner, rows: int) -> tuple[Steps, Form]:
    """Return the graphs' calls on so many rows, and which of them does what."""
    interfaces = interfaces_of(run)
    form = detect(interfaces)
    if form is None:
        raise TypeError("no language model with a key-value cache")
    return Steps({graph: partial(run, graph) for graph in interfaces}, interfaces, form, rows, {}), form


def _begun(run: Runner, batch: Arrays, start: int, pad: int) -> tuple[Steps, Form, State, int]:
    """Return the graphs' calls, the state in which the decoder has yet to read whole targets, and the place that tells their first token."""
    ids, mask, written = batch["input_ids"], batch["attention_mask"], batch["output_ids"]
    steps, form = _steps(run, len(ids))
    if form.encoder is not None:
        state = steps.begin(np.concatenate([np.full((len(ids), 1), start), written[:, :-1]], axis=1))
        steps.encode(state, ids, mask)
        return steps, form, state, 0
    ids, mask = left_padded(ids, mask, pad)
    read = np.concatenate([ids, written[:, :-1]], axis=1)
    real = np.concatenate([mask, batch["output_mask"][:, :-1]], axis=1)
    return steps, form, steps.begin(read, real), ids.shape[1] - 1


def _scores(run: Runner, steps: Steps, form: Form, state: State, places: np.ndarray) -> np.ndarray:
    """Return the decoder's scores after each of these places of what it reads next, (n, places, vocabulary)."""
    feeds = steps.feeds(form.first, state)
    if "logits_to_keep" in feeds:
        return run(form.first, {**feeds, "logits_to_keep": places})["logits"]
    return run(form.first, feeds)["logits"][:, places]


def _behind(steps: Steps, form: Form, state: State, first: int) -> Arrays:
    """Return what the decoder takes when it reads what is behind the first so many tokens, which it has read before."""
    ids, mask = state.ids, state.mask
    if first:
        state.ids, state.mask = ids[:, :first], None if mask is None else mask[:, :first]
        steps.logits(form.first, state)
        state.ids, state.mask = ids[:, first:], mask
    return steps.feeds(form.first, state)
