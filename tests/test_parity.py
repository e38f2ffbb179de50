import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.parity import IDENTICAL_DB, compare, paired_interval


def test_numbers_worked_by_hand():
    # r = (3, 4), y = (3, 4.5): error 0.5; 10 log10(25 / 0.25) = 20 dB
    made = compare({"y": np.array([3.0, 4.0])}, {"y": np.array([3.0, 4.5])})
    assert made.max_abs == 0.5
    assert made.relative == 0.125
    assert made.sqnr_db == pytest.approx(20.0)


def test_twice_as_large_is_0_db():
    r = np.random.default_rng(0).normal(size=(5, 7))
    made = compare({"y": r}, {"y": 2 * r})
    assert made.sqnr_db == pytest.approx(0, abs=1e-9)
    assert made.relative == pytest.approx(1)


def test_the_worst_output_counts():
    r = {"a": np.ones(3), "b": np.ones(3)}
    assert compare(r, {"a": np.ones(3), "b": np.full(3, 1.25)}).relative == 0.25


def test_equal_is_identical():
    made = compare({"y": np.zeros(3)}, {"y": np.zeros(3)})
    assert (made.max_abs, made.relative, made.sqnr_db) == (0, 0, IDENTICAL_DB)


@pytest.mark.parametrize("y", [np.array([1.0, np.nan]), np.array([1.0, np.inf]), np.array([1.0]), None])
def test_nan_infinity_another_shape_and_nothing_are_infinitely_far(y):
    made = compare({"y": np.array([1.0, 2.0])}, {} if y is None else {"y": y})
    assert not made.relative <= 1e9
    assert not made.sqnr_db >= -1e9
    assert made.reason
    assert made.record()["relative"] is None  # JSON has no infinity


def test_anything_where_zero_belongs_is_infinitely_far():
    assert not compare({"y": np.zeros(2)}, {"y": np.array([0, 1e-9])}).relative <= 1e9


def test_the_interval_of_a_mean_is_near_the_normal_one():
    rng = np.random.default_rng(1)
    right, wrong = rng.random(2000) < 0.95, rng.random(2000) < 0.93
    difference = right.astype(float) - wrong
    low, high = paired_interval(difference, seed=3)
    half = 1.96 * difference.std() / np.sqrt(2000)
    assert low == pytest.approx(difference.mean() - half, abs=0.2 * half)
    assert high == pytest.approx(difference.mean() + half, abs=0.2 * half)
    assert (low, high) == paired_interval(difference, seed=3)


def test_a_metric_of_many_values():
    difference = np.random.default_rng(2).normal(0.1, 1, 400)
    low, high = paired_interval(difference, resamples=500)
    assert low < 0.1 < high
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.25)


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=30))
def test_the_interval_lies_within_the_values(values):
    low, high = paired_interval(np.array(values), resamples=50)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9


def test_the_largest_error_and_the_lowest_ratio_may_be_of_different_tensors():
    """`a` is off by half of its largest value at one place, `b` everywhere by 40 %: 36 dB against 8 dB."""
    a, b = np.ones((1, 1000)), np.ones((1, 10))
    spiked = a.copy()
    spiked[0, 0] = 1.5
    near = compare({"a": a, "b": b}, {"a": spiked, "b": b * 0.6})
    assert near.relative == pytest.approx(0.5)
    assert near.sqnr_db == pytest.approx(20 * np.log10(1 / 0.4))


@pytest.mark.parametrize("other", [np.inf, -np.inf])
def test_nan_is_not_infinity(other):
    apart = compare({"y": np.array([1.0, np.nan])}, {"y": np.array([1.0, other])})
    assert apart.sqnr_db == -np.inf
    assert compare({"y": np.array([1.0, np.nan, other])}, {"y": np.array([1.0, np.nan, other])}).sqnr_db == 200


def test_tokens_agree_or_not_and_lie_no_distance_apart():
    """Of six places three hold the same token; one row was written longer, and differs there."""
    reference = {"y": np.ones((2, 2)), "tokens": np.array([[5, 6], [7, 8]])}
    near = compare(reference, {"y": np.ones((2, 2)), "tokens": np.array([[5, 900, 1], [7, 8, 1]])})
    assert (near.relative, near.sqnr_db) == (0.0, 200.0)
    assert near.agreement == pytest.approx(3 / 6)
    assert near.record()["agreement"] == pytest.approx(3 / 6)
    assert compare({"y": np.ones(2)}, {"y": np.ones(2)}).agreement is None
    assert "agreement" not in compare({"y": np.ones(2)}, {"y": np.ones(2)}).record()


def test_tokens_that_nobody_wrote_do_not_agree():
    reference = {"y": np.ones(2), "tokens": np.array([[5, 6, -1, -1], [7, -1, -1, -1]])}
    made = {"y": np.ones(2), "tokens": np.array([[5, 8, -1, -1], [7, 9, -1, -1]])}
    assert compare(reference, made).agreement == pytest.approx(2 / 4)
