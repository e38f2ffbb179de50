"""What one timed call is, and what goes into it. numpy and the standard library alone.

There is one scenario so far, `single-stream`: one graph, one call after the other, the next starting when the last returned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

SCENARIO = "single-stream"

Arrays = Mapping[str, np.ndarray]

UNKNOWN_AXIS = 16
"""Length given to a dynamic axis that is not the batch."""


def single_stream(run: Callable[[Arrays], Any], inputs: Arrays) -> Callable[[], Any]:
    """Return the call to time: `run` on inputs that lie in memory, contiguous."""
    ready = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
    return lambda: run(ready)


def batch_of(inputs: Arrays, batch: int) -> dict[str, np.ndarray]:
    """Cut or repeat inputs along their first axis to `batch` samples: 3 pictures to 8 are 0 1 2 0 1 2 0 1."""
    chosen = {}
    for name, value in inputs.items():
        if value.ndim == 0:
            chosen[name] = value
            continue
        if len(value) == 0:
            raise ValueError(f"input `{name}` has no samples")
        chosen[name] = np.ascontiguousarray(value[np.arange(batch) % len(value)])
    return chosen


def random_inputs(declared: Sequence[Mapping[str, Any]], batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Make inputs from a graph's declared inputs: [{name, dtype, shape}], the same for the same seed.

    shape: integers, or anything else for an axis left open: the first axis gets `batch`, any other UNKNOWN_AXIS.
    uint8 covers 0-255, other integers 0-1 (safe as an index), floats are standard normal, booleans are True.
    """
    random = np.random.default_rng(seed)
    made = {}
    for one in declared:
        dtype = np.dtype(one["dtype"])
        shape = tuple(
            axis if isinstance(axis, int) and axis > 0 else batch if place == 0 else UNKNOWN_AXIS
            for place, axis in enumerate(one["shape"])
        )
        if dtype == np.uint8:
            made[one["name"]] = random.integers(0, 256, shape, dtype=dtype)
        elif dtype == np.bool_:
            made[one["name"]] = np.ones(shape, dtype)
        elif np.issubdtype(dtype, np.integer):
            made[one["name"]] = random.integers(0, 2, shape).astype(dtype)
        else:
            made[one["name"]] = random.standard_normal(shape).astype(dtype)
    return made
