"""What the inputs and outputs of a language model's graphs are called, and how each input is made. numpy and the standard library alone.

The conventions of optimum, transformers.js and ONNX Runtime GenAI: inputs input_ids, attention_mask, position_ids,
past_key_values.N.key and .value (or .decoder.key, .encoder.key, ...), use_cache_branch, encoder_hidden_states; outputs logits and
present.N.key, ... A cache is (batch, heads, positions, head size).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BadInput

if TYPE_CHECKING:
    Declared = Mapping[str, Any]
    """One input or output: {name, dtype, shape}."""
    Interface = Mapping[str, Sequence[Declared]]
    """{"inputs": [...], "outputs": [...]}."""

IDS = ("input_ids", "decoder_input_ids")

_LAST = ("num_logits_to_keep", "logits_to_keep")
_MASKS = ("attention_mask", "decoder_attention_mask")
_POSITIONS = ("position_ids", "decoder_position_ids")
_PRESENT = (("past_key_values", "present"), ("past_key_values", "present_key_values"), ("past", "present"))


@dataclass
class State:
    """Where a generation stands: what is read next, how many positions the cache holds, what the graphs have made.

    mask, source_mask: 1 for a token and 0 for padding, (batch, past + n) and (batch, source); all tokens where None.
    """

    ids: np.ndarray  # (batch, n)
    past: int
    cache: dict[str, np.ndarray] = field(default_factory=dict)
    encoded: Mapping[str, np.ndarray] = field(default_factory=dict)
    mask: np.ndarray | None = None
    source_mask: np.ndarray | None = None


def named(interface: Interface, side: str) -> list[str]:
    """Return the names of the "inputs" or "outputs"."""
    return [one["name"] for one in interface[side]]


def ids_of(interface: Interface) -> Declared | None:
    """Return the input that takes token ids; None where there is none."""
    return next((one for one in interface["inputs"] if one["name"] in IDS), None)


def caches(interface: Interface) -> list[Declared]:
    """Return the inputs that take the cache."""
    return [one for one in interface["inputs"] if one["name"].startswith("past")]


def kept(caches: Sequence[Declared], outputs: Sequence[str]) -> dict[str, str]:
    """Return cache input -> the output that is its next value, for those that have one.

    >>> kept([{"name": "past_key_values.0.key"}, {"name": "past_key_cross_0"}], ["logits", "present.0.key"])
    {'past_key_values.0.key': 'present.0.key'}
    """
    return {one["name"]: output for one in caches for output in _presents(one["name"]) if output in outputs}


def crosses(cache: str) -> bool:
    """Say whether a cache holds what the encoder made, which is the same at every step."""
    return ".encoder." in cache or "cross" in cache


def encoded(name: str, outputs: Sequence[str]) -> str | None:
    """Return which of the encoder's outputs an input of a decoder takes; None where it takes none.

    >>> encoded("encoder_hidden_states", ["last_hidden_state"]), encoded("past_key_values.0.encoder.key", ["present.0.encoder.key"])
    ('last_hidden_state', 'present.0.encoder.key')
    """
    spelled = [name, *(_presents(name) if name.startswith("past") else ())]
    if name == "encoder_hidden_states":
        spelled += ["last_hidden_state", "hidden_states", *(outputs if len(outputs) == 1 else ())]
    return next((output for output in spelled if output in outputs), None)


def maker(graph: str, declared: Declared, made: Sequence[str], batch: int) -> Callable[[State], np.ndarray]:
    """Return what makes one input of a graph from the state; made: the outputs of the encoder before it.

    Raises BadInput for an input that is not understood.
    """
    name, rank, dtype = declared["name"], len(declared["shape"]), np.dtype(declared["dtype"])
    source = encoded(name, made)
    if source is not None:
        return lambda state: state.encoded[source]
    if name.startswith("past"):
        return lambda state: state.cache[name]
    if name in IDS:
        return lambda state: np.ascontiguousarray(state.ids, dtype)
    if name in _MASKS and rank == 2:
        return lambda state: _mask(state.mask, (batch, state.past + state.ids.shape[1]), dtype)
    if name == "encoder_attention_mask" and rank == 2:
        return lambda state: _mask(state.source_mask, (batch, _source_length(state)), dtype)
    if name in _POSITIONS and rank == 2:
        return lambda state: _places(state, dtype)
    if name == "cache_position" and rank == 1:
        return lambda state: _positions(state, dtype)
    if name == "token_type_ids":
        return lambda state: np.zeros(state.ids.shape, dtype)
    if name == "use_cache_branch":
        return lambda state: np.full([1] * rank, state.past > 0)
    if name == "logits_to_keep" and rank == 1 and not _fixed(declared["shape"][0]):
        return lambda state: np.array([state.ids.shape[1] - 1], dtype)  # places, of which the last alone is wanted
    if name in _LAST:
        return lambda state: np.ones([1] * rank, dtype)
    raise BadInput(
        f"{_told(graph, declared)}: it is not understood; known are input_ids, attention_mask (two axes), position_ids, "
        "past_key_values.N.key and .value, use_cache_branch, and an encoder's outputs"
    )


def empty_cache(graph: str, declared: Declared, batch: int) -> np.ndarray:
    """Return a cache before the first token, (batch, heads, 0, head size), from the shape that a graph declares.

    Raises BadInput where that has no open axis for the positions, or more than one.
    """
    shape, told = list(declared["shape"]), _told(graph, declared)
    open_axes = [place for place, axis in enumerate(shape) if place and not _fixed(axis)]
    if not open_axes:
        raise BadInput(f"{told}: a cache of fixed length is not understood; export it with an open axis for the past")
    if len(open_axes) != 1 or len(shape) != 4:
        raise BadInput(f"{told}: expected are batch, heads, past and head size, the past alone open beside the batch")
    if isinstance(shape[0], int) and shape[0] not in (0, batch):
        raise BadInput(f"{told}: it was exported for batch {shape[0]}, not {batch}")
    shape[0], shape[open_axes[0]] = batch, 0
    return np.zeros(shape, np.dtype(declared["dtype"]))


def _presents(past: str) -> list[str]:
    """Return how the output that goes with a cache input may be called."""
    return [past.replace(old, new, 1) for old, new in _PRESENT]


def _fixed(axis: Any) -> bool:
    return isinstance(axis, int) and axis > 0


def _mask(given: np.ndarray | None, shape: tuple[int, int], dtype: np.dtype[Any]) -> np.ndarray:
    return np.ones(shape, dtype) if given is None else np.ascontiguousarray(given, dtype)


def _places(state: State, dtype: np.dtype[Any]) -> np.ndarray:
    """Return each token's position in its text, (batch, n): padding before it is not counted."""
    if state.mask is None:
        positions = _positions(state, dtype)[None]
        return positions if len(state.ids) == 1 else np.repeat(positions, len(state.ids), axis=0)
    return np.maximum(np.cumsum(state.mask, axis=1)[:, state.past :] - 1, 0).astype(dtype)


def _positions(state: State, dtype: np.dtype[Any]) -> np.ndarray:
    return np.arange(state.past, state.past + state.ids.shape[1], dtype=dtype)


def _source_length(state: State) -> int:
    """Return how many positions the encoder has made: of its states, or of the caches it filled."""
    made = next(value for value in state.encoded.values() if value.ndim in (3, 4))
    return int(made.shape[-2])


def _told(graph: str, declared: Declared) -> str:
    shape = ", ".join(str(axis or "?") for axis in declared["shape"])
    return f"graph `{graph}`, input `{declared['name']}` ({np.dtype(declared['dtype']).name} [{shape}])"
