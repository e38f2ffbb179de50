"""What a decoder graph says of a text that is there already: the probability of each of its tokens, and the token it would have put there."""

from __future__ import annotations

from functools import partial

import numpy as np

from ..bench.decoder_inputs import State
from ..bench.generation import Form, Steps
from ..export.graph import Runner, interfaces_of


def steps_of(run: Runner, graph: str, rows: int) -> Steps:
    """Return the calls of one decoder graph on so many rows."""
    return Steps({graph: partial(run, graph)}, interfaces_of(run), Form(None, graph, graph), rows, {})


def read(run: Runner, graph: str, ids: np.ndarray, mask: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the scores of the token after each of these places, float32 (n, places, vocabulary), from one call without a cache.

    ids, mask (1: a token): int64 (n, tokens), padded on either side. places: int64 (p,), counted in tokens.
    """
    steps = steps_of(run, graph, len(ids))
    feeds = steps.feeds(graph, steps.begin(ids, mask))
    if "logits_to_keep" in feeds:
        return run(graph, {**feeds, "logits_to_keep": places})["logits"]
    return run(graph, feeds)["logits"][:, places]


def halfway(run: Runner, graph: str, ids: np.ndarray, mask: np.ndarray, first: int) -> dict[str, np.ndarray]:
    """Return the inputs of the call that reads the tokens behind the first so many, whose keys and values are in the cache."""
    steps = steps_of(run, graph, len(ids))
    state: State = steps.begin(ids[:, :first], mask[:, :first])
    steps.logits(graph, state)
    state.ids, state.mask = ids[:, first:], mask
    return steps.feeds(graph, state)


def judged(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each target's log-probability, float32, and the likeliest token, int32; both of the targets' shape (...).

    logits: (..., vocabulary).
    """
    highest = logits.max(axis=-1)
    total = np.log(np.exp(logits - highest[..., None]).sum(axis=-1)) + highest
    chosen = np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return (chosen - total).astype(np.float32), logits.argmax(axis=-1).astype(np.int32)
