"""Generation: token ids in, token ids out, greedily or sampled, through a key-value cache. numpy alone.

For decoder-only models and for a decoder behind an encoder, on anything that runs their graphs: torch modules, files, devices.

>>> run = torch_runner(task.graphs(model, splits))
>>> generate(run, ids, mask, max_new=32, eos=2, pad=0)
array([[ 11, 318,   2,   0]])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..bench.generation import Steps, detect
from ..errors import BadInput
from ..export.graph import Interfaces, Runner, interfaces_of


@dataclass(frozen=True)
class Sampling:
    """Draw each token instead of taking the likeliest: from softmax(logits / temperature), cut to the top_k likeliest tokens, then
    to the fewest that hold the share top_p of the probability (Holtzman et al. 2020). The same seed gives a row the same text."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise BadInput(f"temperature: {self.temperature} is not above 0; for the likeliest token leave sampling out")
        if self.top_k is not None and self.top_k < 1:
            raise BadInput(f"top_k: {self.top_k} is below 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise BadInput(f"top_p: {self.top_p} is not in (0, 1]")


def generate(
    run: Runner,
    ids: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    max_new: int,
    eos: int | Sequence[int] | None = None,
    pad: int = 0,
    start: int = 0,
    context: int | None = None,
    sampling: Sampling | None = None,
    interfaces: Interfaces | None = None,
) -> np.ndarray:
    """Return what follows the prompts, int64 (n, at most max_new): a row ends with its `eos`, and is `pad` from there on.

    ids, mask (1: a token; None: all are): (n, tokens), padded on either side. start: what the decoder begins with where an encoder
    reads the prompt. context: how many tokens the decoder can hold. interfaces: of the graphs, where `run` does not tell.
    Raises BadInput for an empty prompt, one that leaves no room in the context, and graphs that are no language model.
    """
    told = interfaces_of(run) if interfaces is None else interfaces
    form = detect(told)
    if form is None:
        raise BadInput(f"{', '.join(told)}: no language model with a key-value cache")
    if max_new < 1:
        raise BadInput(f"max_new: {max_new}; at least one token is to be made")
    ids = np.asarray(ids, np.int64)
    mask = np.ones_like(ids) if mask is None else np.asarray(mask, np.int64)
    if ids.ndim != 2 or ids.shape != mask.shape or not len(ids) or not mask.any(axis=1).all():
        raise BadInput("a prompt has no tokens: 1 is needed at least")
    steps = Steps({graph: partial(run, graph) for graph in told}, told, form, len(ids), {})
    if form.encoder is not None and steps.reads:
        _refuse_long(1, max_new, context)
        state = steps.begin(np.full((len(ids), 1), start, np.int64))
        steps.encode(state, ids, mask)
    else:
        ids, mask = left_padded(ids, mask, pad)
        _refuse_long(ids.shape[1], max_new, context)
        state = steps.begin(ids, mask)
    ends = np.atleast_1d(np.asarray([] if eos is None else eos, np.int64))
    draws = [np.random.default_rng([sampling.seed, row]) for row in range(len(ids))] if sampling else []
    made, done, graph = [], np.zeros(len(ids), bool), form.first
    while True:
        logits = steps.logits(graph, state)
        chosen = logits.argmax(axis=-1) if sampling is None else sample(logits, sampling, draws)
        chosen = np.where(done, pad, chosen).astype(np.int64)
        made.append(chosen)
        done |= np.isin(chosen, ends)
        if len(made) == max_new or done.all():
            return np.stack(made, axis=1)
        state.ids, graph = chosen[:, None], form.step
        if state.mask is not None:
            state.mask = np.concatenate([state.mask, np.ones((len(ids), 1), np.int64)], axis=1)


def sample(logits: np.ndarray, how: Sampling, draws: Sequence[np.random.Generator]) -> np.ndarray:
    """Draw a token for each row of logits, (n, vocabulary). draws: one generator a row, so that a row's text is its own."""
    probabilities = kept_probabilities(logits, how)
    cumulated = np.cumsum(probabilities, axis=-1)
    at = np.array([draw.random() for draw in draws])[:, None] * cumulated[:, -1:]
    return (cumulated <= at).sum(axis=-1)


def kept_probabilities(logits: np.ndarray, how: Sampling) -> np.ndarray:
    """Return the probabilities that tokens are drawn with, float64 (n, vocabulary): those that are cut off have 0."""
    scaled = np.asarray(logits, np.float64) / how.temperature
    if how.top_k is not None and how.top_k < scaled.shape[-1]:
        least = np.partition(scaled, -how.top_k, axis=-1)[:, -how.top_k, None]
        scaled = np.where(scaled < least, -np.inf, scaled)
    probabilities = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    if how.top_p is not None and how.top_p < 1:
        order = np.argsort(-probabilities, axis=-1, kind="stable")
        ordered = np.take_along_axis(probabilities, order, axis=-1)
        before = np.cumsum(ordered, axis=-1) - ordered  # what the likelier ones hold already; the likeliest is always kept
        np.put_along_axis(probabilities, order, np.where(before < how.top_p, ordered, 0.0), axis=-1)
        probabilities /= probabilities.sum(axis=-1, keepdims=True)
    return probabilities


def left_padded(ids: np.ndarray, mask: np.ndarray, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and mask, (n, longest row), with each row's tokens moved to the end: the next token follows the last one."""
    order = np.argsort(mask, axis=1, kind="stable")  # padding first, tokens in their order
    ids, mask = np.take_along_axis(ids, order, axis=1), np.take_along_axis(mask, order, axis=1)
    unused = ids.shape[1] - int(mask.sum(axis=1).max())
    return np.where(mask, ids, pad)[:, unused:], mask[:, unused:]


def _refuse_long(tokens: int, max_new: int, context: int | None) -> None:
    if context is not None and tokens + max_new > context:
        raise BadInput(
            f"a prompt of {tokens} tokens and {max_new} new ones do not fit the model's context of {context}: "
            f"shorten the prompt to {max(context - max_new, 0)} tokens, or ask for fewer"
        )
