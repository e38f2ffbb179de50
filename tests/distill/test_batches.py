"""The order of samples and its shares."""

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.distill import batches
from edgekd.errors import BadInput


@given(st.integers(1, 300), st.integers(1, 64), st.integers(1, 5))
def test_every_sample_comes_once_or_was_in_a_tiny_last_batch(samples, batch_size, processes):
    if min(samples, batch_size) < processes:
        with pytest.raises(BadInput, match="processes"):
            batches.sizes(samples, batch_size, processes)
        return
    sizes = batches.sizes(samples, batch_size, processes)
    left_out = samples - sum(sizes)
    assert sizes
    assert 0 <= left_out < 2 * processes
    assert all(size == batch_size for size in sizes[:-1])
    assert min(sizes) >= min(2 * processes, samples, batch_size)


def test_the_order_depends_on_seed_and_epoch_alone():
    order = batches.order(1, 2, 50)
    assert sorted(order) == list(range(50))
    assert (order == batches.order(1, 2, 50)).all()
    assert (order != batches.order(1, 3, 50)).any()
    assert (order != batches.order(2, 2, 50)).any()


@pytest.mark.parametrize("samples", [1, 7, 64, 1000, 8 * 50 * 3 + 5])
def test_batches_of_like_lengths_hold_every_sample_once(samples):
    lengths = np.random.default_rng(0).integers(1, 60, samples)
    order = batches.order(3, 1, samples, lengths, 8)
    assert (np.sort(order) == np.arange(samples)).all()
    assert (order == batches.order(3, 1, samples, lengths, 8)).all()
    if samples >= 1000:

        def padding(order: np.ndarray) -> float:
            found = [lengths[order[start : start + 8]] for start in range(0, samples, 8)]
            return sum(len(part) * part.max() for part in found) / lengths.sum() - 1

        assert padding(order) < 0.1 < 0.5 < padding(batches.order(3, 1, samples))
        longest = [lengths[order[start : start + 8]].max() for start in range(0, samples - 8, 8)]
        assert abs(np.corrcoef(longest[:-1], longest[1:])[0, 1]) < 0.3  # not from short to long


@given(st.integers(1, 40), st.integers(1, 6))
def test_shares_make_up_the_batch(size, processes):
    batch = np.arange(size)
    parts = [batches.share(batch, process, processes) for process in range(processes)]
    assert (np.concatenate(parts) == batch).all()
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_ahead_keeps_the_order(threads):
    def slow(number):
        time.sleep(0.002 * (number % 3))
        return number * number

    assert list(batches.ahead(slow, range(20), threads)) == [n * n for n in range(20)]


def test_ahead_works_in_other_threads_and_does_not_run_far_ahead():
    started: list[int] = []

    def note(number):
        started.append(number)
        return threading.current_thread() is threading.main_thread()

    items = batches.ahead(note, range(1000), 2)
    assert next(items) is False
    assert len(started) <= 6
    items.close()


def test_an_error_in_a_thread_reaches_the_caller():
    def fail(number):
        raise BadInput("unreadable")

    with pytest.raises(BadInput, match="unreadable"):
        list(batches.ahead(fail, range(3), 2))
