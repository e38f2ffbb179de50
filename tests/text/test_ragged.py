"""Rows of different lengths, padded."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgekd.text.ragged import Ragged

ROWS = [[5, 6, 7], [8], [9, 10]]


def test_rows_come_back():
    made = Ragged.of(ROWS)
    assert len(made) == 3
    assert made.lengths.tolist() == [3, 1, 2]
    assert [made.row(at).tolist() for at in range(3)] == ROWS
    assert made.values.dtype == np.int32


def test_padding_after_and_before_a_row():
    made = Ragged.of(ROWS)
    ids, mask = made.padded(np.array([1, 0]), 99)
    assert ids.tolist() == [[8, 99, 99], [5, 6, 7]]
    assert mask.tolist() == [[1, 0, 0], [1, 1, 1]]
    assert ids.dtype == mask.dtype == np.int64
    ids, mask = made.padded(np.array([1, 2]), 0, left=True)
    assert ids.tolist() == [[0, 8], [9, 10]]
    assert mask.tolist() == [[0, 1], [1, 1]]


def test_empty_rows_and_none_at_all():
    ids, mask = Ragged.of([[], [4]]).padded(np.array([0, 1]), 7)
    assert ids.tolist() == [[7], [4]]
    assert mask.tolist() == [[0], [1]]
    ids, mask = Ragged.of([[], []]).padded(np.array([0, 1]), 7)
    assert ids.tolist() == [[7], [7]]
    assert mask.sum() == 0
    assert len(Ragged.of([])) == 0


@given(st.lists(st.lists(st.integers(0, 30_000), max_size=6), min_size=1, max_size=8), st.randoms())
def test_what_is_no_padding_is_the_row(rows, random):
    made = Ragged.of(rows)
    at = np.array([random.randrange(len(rows)) for _ in range(5)])
    for left in (False, True):
        ids, mask = made.padded(at, -1, left)
        assert [row[kept.astype(bool)].tolist() for row, kept in zip(ids, mask, strict=True)] == [rows[i] for i in at]
    assert [made.at(at).row(n).tolist() for n in range(5)] == [rows[i] for i in at]
