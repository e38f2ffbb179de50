"""Batches: which samples in which order, whatever the number of processes; and decoding ahead of the network."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from ..errors import BadInput

T = TypeVar("T")


def sizes(samples: int, batch_size: int, processes: int) -> list[int]:
    """Return the size of every batch of an epoch, over all processes together.

    The last, smaller batch is kept unless a process would get fewer than 2 samples of it, on which BatchNorm fails.
    Raises BadInput when there are fewer samples a batch, or in all, than processes.
    """
    if min(samples, batch_size) < processes:
        raise BadInput(
            f"{processes} processes share a batch of {min(samples, batch_size)} samples: "
            "start fewer processes, or raise batch_size (and give more training data)"
        )
    full, rest = divmod(samples, batch_size)
    return [batch_size] * full + ([rest] if rest >= 2 * processes or (rest and not full) else [])


ALIKE = 50
"""Batches among whose samples those of like length are put together."""


def order(seed: int, epoch: int, samples: int, lengths: np.ndarray | None = None, batch_size: int = 1) -> np.ndarray:
    """Return the positions of all samples in the order of that epoch: int64, (samples,).

    lengths: of each sample, where a batch costs as much as its longest: of ALIKE batches' random samples, each batch gets those of
    like length, and the batches come in random order.
    """
    generator = np.random.default_rng([seed, epoch])
    positions = generator.permutation(samples)
    if lengths is None:
        return positions
    made = []
    for start in range(0, samples, ALIKE * batch_size):
        window = positions[start : start + ALIKE * batch_size]
        window = window[np.argsort(lengths[window], kind="stable")]
        whole = len(window) // batch_size * batch_size
        made += [*generator.permutation(window[:whole].reshape(-1, batch_size)), window[whole:]]
    return np.concatenate(made)


def share(batch: np.ndarray, process: int, processes: int) -> np.ndarray:
    """Return a process's part of a batch: consecutive, of sizes that differ by at most one."""
    return np.array_split(batch, processes)[process] if processes > 1 else batch


def ahead(make: Callable[[int], T], numbers: Iterable[int], threads: int) -> Iterator[T]:
    """Yield make(number) for every number in order, computed in so many background threads (0: in this one)."""
    if not threads:
        yield from map(make, numbers)
        return
    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="edgekd-batches") as pool:
        try:
            for number in numbers:
                pending.append(pool.submit(make, number))
                if len(pending) > 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def decoding_threads() -> int:
    """Return how many threads decode pictures that are not in memory: one a core, at most 8."""
    return min(os.cpu_count() or 1, 8)
