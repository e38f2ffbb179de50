"""The scenario `generation`: a prompt goes in, a fixed number of tokens comes out, through a key-value cache, greedily.

Forms: one decoder graph, which also takes an empty cache; a pair, of which one takes no cache (optimum's decoder_model and
decoder_with_past_model); one merged graph with use_cache_branch; each alone or behind an encoder. What the numbers mean is in
definitions.py. numpy and the standard library alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BadInput
from . import statistics
from .decoder_inputs import State, caches, crosses, empty_cache, encoded, ids_of, kept, maker, named

if TYPE_CHECKING:
    from .decoder_inputs import Interface

    Arrays = Mapping[str, np.ndarray]

PROMPT_TOKENS = 128
NEW_TOKENS = 64
"""Length of prompt and answer where nobody says."""


@dataclass(frozen=True)
class Form:
    """Which graph does what. encoder: reads the prompt first, or None. first: reads what the decoder starts with, on an empty cache.
    step: reads one token; the same graph as `first`, or the second of a pair."""

    encoder: str | None
    first: str
    step: str


def detect(interfaces: Mapping[str, Interface]) -> Form | None:
    """Return how graphs make a language model that generates with a cache; None where they do not.

    interfaces: graph -> {"inputs": [{name, dtype, shape}], "outputs": [...]}. Where there is a merged graph, it is taken.
    """
    decoders = [graph for graph, told in interfaces.items() if "logits" in named(told, "outputs") and ids_of(told)]
    cached = [graph for graph in decoders if caches(interfaces[graph])]
    if not cached:
        return None
    merged = [graph for graph in cached if "use_cache_branch" in named(interfaces[graph], "inputs")]
    step = (merged or cached)[0]
    filling = [g for g in decoders if g not in cached and kept(caches(interfaces[step]), named(interfaces[g], "outputs"))]
    first = step if merged or not filling else filling[0]
    wanted = named(interfaces[first], "inputs") + named(interfaces[step], "inputs")
    for graph in interfaces:
        if graph not in decoders and any(encoded(name, named(interfaces[graph], "outputs")) for name in wanted):
            return Form(graph, first, step)
    return Form(None, first, step)


def prompt(interfaces: Mapping[str, Interface], form: Form, batch: int, tokens: int, seed: int = 0) -> np.ndarray:
    """Return random token ids, int64 (batch, tokens), below the vocabulary that logits' last axis tells (0 and 1 where it does not)."""
    shapes = [one["shape"] for one in interfaces[form.step]["outputs"] if one["name"] == "logits"]
    vocabulary = shapes[0][-1] if shapes[0] else None
    known = isinstance(vocabulary, int) and vocabulary > 1
    return np.random.default_rng(seed).integers(0, vocabulary if known else 2, (batch, tokens))


def call(
    sessions: Mapping[str, Any],
    interfaces: Mapping[str, Interface],
    prompt_ids: np.ndarray | None = None,
    new_tokens: int | None = None,
    *,
    batch: int = 1,
    prompt_tokens: int | None = None,
    seed: int = 0,
    start: int = 0,
    given: Arrays | None = None,
) -> Generation:
    """Return the call that generates: it makes exactly new_tokens (2 or more) and returns the marks "encode", "ttft" and "tokens".

    sessions: graph -> session. prompt_ids: (batch, tokens), random where None. start: the id that the decoder begins with behind an
    encoder that reads the prompt. given: what else the encoder takes (`input_features`); where it takes no ids, the prompt is the
    decoder's. Raises BadInput where the graphs are no language model, or have an input that is not understood.
    """
    form = detect(interfaces)
    if form is None:
        names = ", ".join(interfaces)
        raise BadInput(
            f"{names}: no language model with a key-value cache (inputs input_ids and past_key_values.N.key, output logits)"
        )
    new_tokens = NEW_TOKENS if new_tokens is None else new_tokens
    if new_tokens < 2:
        raise BadInput(f"new tokens: {new_tokens}; the time per output token needs 2 at least")
    if prompt_ids is None:
        prompt_ids = prompt(interfaces, form, batch, PROMPT_TOKENS if prompt_tokens is None else prompt_tokens, seed)
    if prompt_ids.size == 0:
        raise BadInput("the prompt has no tokens: 1 is needed at least")
    return Generation(sessions, interfaces, form, prompt_ids, new_tokens, start, given or {})


class Steps:
    """The graphs of a language model, called one after the other: what each takes is made from the state, and what it makes kept there.

    reads: whether an encoder reads the prompt's ids, so that the decoder begins with an id of its own.
    """

    def __init__(
        self,
        run: Mapping[str, Callable[[Arrays], Mapping[str, np.ndarray]]],
        interfaces: Mapping[str, Interface],
        form: Form,
        batch: int,
        given: Arrays,
    ) -> None:
        self.form, self._run = form, run
        self._given = {name: np.ascontiguousarray(value) for name, value in given.items()}
        made: list[str] = []
        self.reads = False
        self._makers = {}
        if form.encoder:
            encoder = interfaces[form.encoder]
            made, self.reads = named(encoder, "outputs"), ids_of(encoder) is not None
            asked = [one for one in encoder["inputs"] if one["name"] not in self._given]
            self._makers[form.encoder] = {one["name"]: maker(form.encoder, one, [], batch) for one in asked}
        self._cached: dict[str, list[str]] = {}
        for graph in (form.first, form.step):
            cached = {one["name"] for one in caches(interfaces[graph]) if encoded(one["name"], made) is None}
            self._cached[graph] = sorted(cached)
            asked = [one for one in interfaces[graph]["inputs"] if one["name"] not in cached]
            self._makers[graph] = {one["name"]: maker(graph, one, made, batch) for one in asked}
        past = [one for one in caches(interfaces[form.step]) if encoded(one["name"], made) is None]
        self._kept = {graph: kept(past, named(interfaces[graph], "outputs")) for graph in (form.first, form.step)}
        # later a merged graph returns what the encoder made as empty arrays
        self._grow = {graph: {k: v for k, v in kept_by.items() if not crosses(k)} for graph, kept_by in self._kept.items()}
        for one in past:
            if one["name"] not in self._kept[form.first]:
                raise BadInput(f"graph `{form.step}`: no graph has an output that goes with its input `{one['name']}`")
        self._empty = {one["name"]: empty_cache(form.first, one, batch) for one in past} if form.first == form.step else {}

    def begin(self, ids: np.ndarray, mask: np.ndarray | None = None) -> State:
        """Return the state in which the decoder has yet to read `ids`, (batch, n). mask: 0 where they are padding."""
        return State(ids, 0, dict(self._empty), mask=mask)

    def encode(self, state: State, ids: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Let the encoder read `ids`, (batch, source). mask: 0 where they are padding."""
        assert self.form.encoder is not None
        feeds = self.feeds(self.form.encoder, State(ids, 0, mask=mask))
        state.encoded, state.source_mask = self._run[self.form.encoder]({**self._given, **feeds}), mask

    def logits(self, graph: str, state: State) -> np.ndarray:
        """Run a decoder graph on what the state says is next; return the scores of the token after it, (batch, vocabulary)."""
        made = self._run[graph](self.feeds(graph, state))
        for name, output in (self._kept if state.past == 0 else self._grow)[graph].items():
            state.cache[name] = made[output]
        state.past += state.ids.shape[1]
        logits = made["logits"]
        return logits if logits.ndim == 2 else logits[:, -1]

    def feeds(self, graph: str, state: State) -> dict[str, np.ndarray]:
        """Return what a graph takes next."""
        feeds = {name: make(state) for name, make in self._makers[graph].items()}
        for name in self._cached.get(graph, ()):
            feeds[name] = state.cache[name]
        return feeds


class Generation:
    """A call that generates. `ids`: what the last one made, (batch, new_tokens)."""

    def __init__(
        self,
        sessions: Mapping[str, Any],
        interfaces: Mapping[str, Interface],
        form: Form,
        prompt_ids: np.ndarray,
        new_tokens: int,
        start: int,
        given: Arrays,
    ) -> None:
        self.form, self.prompt_ids, self.new_tokens = form, prompt_ids, new_tokens
        self.ids = np.empty((len(prompt_ids), 0), np.int64)
        run = {graph: session.run for graph, session in sessions.items()}
        self._steps = Steps(run, interfaces, form, len(prompt_ids), given)
        self._start = np.full((len(prompt_ids), 1), start) if self._steps.reads else prompt_ids
        _refuse_length(form.first, interfaces[form.first], self._start.shape[1])

    def __call__(self) -> dict[str, Any]:
        now = time.perf_counter_ns
        marks: dict[str, Any] = {}
        ids, gaps = [], []
        begin = now()
        state = self._steps.begin(self._start)
        if self.form.encoder is not None:
            self._steps.encode(state, self.prompt_ids)
            marks["encode"] = now() - begin
        ids.append(self._next(self.form.first, state))
        last = now()
        marks["ttft"] = last - begin
        for _ in range(self.new_tokens - 1):
            ids.append(self._next(self.form.step, state))
            end = now()
            gaps.append(end - last)
            last = end
        self.ids = np.concatenate(ids, axis=1)
        marks["tokens"] = gaps
        return marks

    def _next(self, graph: str, state: State) -> np.ndarray:
        """Return the likeliest token after what the state says is next, (batch, 1), which is next then."""
        state.ids = np.argmax(self._steps.logits(graph, state), axis=-1)[:, None]
        return state.ids


def summarise(
    marks: Mapping[str, np.ndarray], prompt_tokens: int, batch: int = 1, launches: Sequence[int] | None = None
) -> dict[str, Any]:
    """Summarise the marks of many calls, in seconds: "ttft" and "encode" (blocks, calls), "tokens" (blocks, calls, new tokens - 1).

    {"prompt_tokens", "new_tokens", "ttft", "per_token", "encode": summaries (statistics.summary; encode: None without an encoder),
    "tokens_per_s", "prefill_per_s"}. launches: (blocks,), the process each block ran in. A percentile of per_token counts all steps of all calls.
    """
    gaps = np.asarray(marks["tokens"], np.float64)
    ttft = statistics.summary(np.asarray(marks["ttft"]), launches)
    return {
        "prompt_tokens": prompt_tokens,
        "new_tokens": gaps.shape[-1] + 1,
        "ttft": ttft,
        "per_token": statistics.summary(gaps.reshape(len(gaps), -1), launches),
        "tokens_per_s": gaps.size * batch / float(gaps.sum()),
        "prefill_per_s": prompt_tokens * batch / ttft["median_s"],
        "encode": statistics.summary(np.asarray(marks["encode"]), launches) if "encode" in marks else None,
    }


def _refuse_length(graph: str, interface: Interface, tokens: int) -> None:
    """Raise BadInput where a graph reads a fixed number of tokens at once that is not this one."""
    declared = ids_of(interface)
    axis = declared["shape"][-1] if declared and declared["shape"] else None
    if isinstance(axis, int) and axis > 0 and axis != tokens:
        raise BadInput(
            f"graph `{graph}` reads {axis} token(s) at once, not {tokens}: give a prompt of that length, or export it open"
        )
