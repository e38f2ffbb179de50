"""Which training samples calibration looks at, read a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ..data import Split
    from ..export.graph import Arrays, Runner
    from ..recipe import Calibration
    from ..tasks import Task


def from_task(
    task: Task, split: Split, settings: Calibration, seed: int, *, graph: str = "model", run: Runner | None = None
) -> Iterator[Arrays]:
    """Yield batches of a graph's inputs: samples drawn from a split by the seed, without repetition.

    run: makes what a graph needs of another, or of an earlier call of its own; a task with one graph called once does without.
    """
    run = run or _nothing
    chosen = np.random.default_rng(seed).permutation(len(split))[: settings.samples]
    for start in range(0, len(chosen), settings.batch_size):
        yield task.golden(run, split, np.sort(chosen[start : start + settings.batch_size]))[graph]


def _nothing(graph: str, inputs: Arrays) -> dict[str, np.ndarray]:
    raise TypeError(f"graph `{graph}` is called to make calibration samples: give from_task() a Runner")
