"""Which training samples calibration looks at, read a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ..data import Split
    from ..export.graph import Arrays
    from ..recipe import Calibration
    from ..tasks import Task


def from_task(task: Task, split: Split, settings: Calibration, seed: int) -> Iterator[Arrays]:
    """Yield batches of the first graph's inputs: samples drawn from a split by the seed, without repetition."""
    chosen = np.random.default_rng(seed).permutation(len(split))[: settings.samples]
    for start in range(0, len(chosen), settings.batch_size):
        yield task.inputs(split.take(np.sort(chosen[start : start + settings.batch_size])))
