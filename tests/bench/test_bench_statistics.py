"""Statistics against numbers worked out by hand, NumPy, and simulations whose truth is known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.bench import statistics
from edgekd.bench.statistics import Interval

SIMULATIONS = 200


def machine(seed: int, ratio: float, blocks: int = 20, calls: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Simulate a control of 1 ms and a candidate `ratio` times faster: drift both share, noise a block and a call, outliers."""
    random = np.random.default_rng(seed)
    drift = np.exp(np.cumsum(random.normal(0, 0.03, blocks)))[:, None]
    made = []
    for true in (1e-3, 1e-3 / ratio):
        samples = true * drift * np.exp(random.normal(0, 0.04, (blocks, 1))) * np.exp(random.normal(0, 0.05, (blocks, calls)))
        made.append(np.where(random.random(samples.shape) < 0.02, 6, 1) * samples)
    return made[0], made[1]


def test_percentiles_appear_from_the_documented_sizes_on():
    for percentile, needed in ((90, 50), (95, 100), (99, 500)):
        assert statistics.supports(needed, percentile)
        assert not statistics.supports(needed - 1, percentile)
    small = statistics.summary(np.linspace(1, 2, 49)[:, None])
    assert not {key for key in small if key.startswith("p9")}
    large = statistics.summary(np.linspace(1, 2, 500)[:, None])
    assert {"p90_s", "p95_s", "p99_s", "p99_low_s", "p99_high_s"} <= set(large)
    with pytest.raises(ValueError, match="p99 needs 500 samples, there are 499"):
        statistics.percentile_interval(np.arange(499.0), 99)


def test_summary_agrees_with_numpy_and_keeps_outliers():
    samples = np.concatenate([np.full(99, 1e-3), [1.0]]).reshape(10, 10)
    told = statistics.summary(samples)
    assert told["count"] == 100
    assert told["max_s"] == 1.0
    assert told["median_s"] == np.median(samples)
    assert told["mean_s"] == pytest.approx((99e-3 + 1) / 100)
    assert told["p95_s"] == np.percentile(samples, 95)


def test_throughput_counts_samples_not_calls():
    assert statistics.throughput(np.array([[0.1, 0.3], [0.2, 0.4]]), batch=8) == pytest.approx(32.0)


def test_percentile_interval_takes_the_binomial_ranks():
    # n = 100, p = 0.9: binomial(100, 0.9) has 2.5 % and 97.5 % quantiles 84 and 95 (tables), so ranks 84 and 96
    found = statistics.percentile_interval(np.arange(1.0, 101.0), 90)
    assert (found.low, found.high) == (84.0, 96.0)


def test_percentile_interval_covers_the_true_percentile():
    truth = -math.log(0.1)  # p90 of the exponential distribution
    hits = 0
    for seed in range(SIMULATIONS):
        found = statistics.percentile_interval(np.random.default_rng(seed).exponential(size=120), 90)
        hits += found.low <= truth <= found.high
    assert hits >= 0.93 * SIMULATIONS


def test_median_interval_covers_the_true_median_where_calls_of_a_block_resemble_each_other():
    hits = narrow = 0
    for seed in range(SIMULATIONS):
        random = np.random.default_rng(seed)
        samples = np.exp(random.normal(0, 0.05, (20, 1)) + random.normal(0, 0.05, (20, 30)))
        found = statistics.median_interval(samples, seed)
        hits += found.low <= 1 <= found.high
        if seed < 10:
            alone = statistics.median_interval(samples.ravel(), seed)  # as if calls were independent
            narrow += alone.low <= 1 <= alone.high
    assert hits >= 0.90 * SIMULATIONS
    assert narrow <= 7, "resampling single calls pretends to know more than it does"


def test_median_interval_on_a_grid_is_close_to_the_exact_one():
    samples = np.exp(np.random.default_rng(3).normal(0, 0.3, (20, 400)))  # 8,000 samples: beyond the grid
    found = statistics.median_interval(samples)
    random = np.random.default_rng(9)
    medians = [np.median(samples[random.integers(0, 20, 20)]) for _ in range(2000)]
    assert found.value == np.median(samples)
    assert found.low == pytest.approx(np.percentile(medians, 1.59), rel=0.005)  # expanded for 20 blocks
    assert found.high == pytest.approx(np.percentile(medians, 98.41), rel=0.005)


def test_the_interval_of_a_ratio_covers_the_truth_in_at_least_90_percent():
    hits = 0
    for seed in range(SIMULATIONS):
        found = statistics.ratio(*machine(seed, 1.3), seed=seed)
        hits += found.low <= 1.3 <= found.high
    assert hits >= 0.90 * SIMULATIONS


@pytest.mark.parametrize("blocks", [6, 10, 20])
def test_a_against_a_says_no_difference_in_at_least_95_percent(blocks: int):
    silent = sum(
        not statistics.differs(statistics.ratio(*machine(seed, 1.0, blocks), seed=seed)) for seed in range(SIMULATIONS)
    )
    assert silent >= 0.95 * SIMULATIONS


def test_pairing_removes_what_slows_the_machine_for_a_while():
    random = np.random.default_rng(0)
    slow = np.repeat([1.0, 3.0], 10)[:, None]  # three times slower in the second half
    control = 1e-3 * slow * np.exp(random.normal(0, 0.01, (20, 30)))
    candidate = 1e-3 / 1.2 * slow * np.exp(random.normal(0, 0.01, (20, 30)))
    found = statistics.ratio(control, candidate)
    assert found.value == pytest.approx(1.2, rel=0.01)
    assert found.high - found.low < 0.05


def test_ratio_by_hand():
    control = np.array([[2.0, 2, 9]] * 7)
    candidate = np.array([[1.0, 1, 1]] * 7)
    assert statistics.ratio(control, candidate) == Interval(pytest.approx(2.0), pytest.approx(2.0), pytest.approx(2.0))


def test_too_few_blocks_give_no_verdict():
    found = statistics.ratio(np.full((5, 3), 2.0), np.full((5, 3), 1.0))
    assert (found.low, found.high) == (0.0, math.inf)
    assert not statistics.differs(found)
    assert "too few blocks" in statistics.verdict(found, "int8", "fp32")


def test_blocks_must_pair_up():
    with pytest.raises(ValueError, match="7 of the control, 6 of the candidate"):
        statistics.ratio(np.ones((7, 2)), np.ones((6, 2)))


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (Interval(1.31, 1.27, 1.35), "int8 is 1.31x faster than fp32 (1.27-1.35)"),
        (Interval(1 / 1.8, 1 / 1.9, 1 / 1.7), "int8 is 1.80x SLOWER than fp32 (1.70-1.90)"),
        (Interval(1.0, 0.98, 1.03), "no difference seen between int8 and fp32 (0.98-1.03)"),
        (Interval(1.01, 1.004, 1.016), "no difference seen between int8 and fp32 (1.00-1.02)"),  # real, perhaps, but too small
        (Interval(1.038, 1.0361, 1.0409), "int8 is 1.04x faster than fp32 (1.036-1.041)"),
        (Interval(13.2, 12.9, 13.6), "int8 is 13x faster than fp32 (13-14)"),
    ],
)
def test_verdicts_in_plain_words(found: Interval, sentence: str):
    assert statistics.verdict(found, "int8", "fp32") == sentence


@given(st.lists(st.floats(1e-6, 10), min_size=6, max_size=40), st.integers(1, 5))
def test_intervals_hold_their_estimate_and_scale_with_the_unit(times: list[float], calls: int):
    samples = np.repeat(np.array(times)[:, None], calls, axis=1)
    found = statistics.median_interval(samples)
    assert samples.min() <= found.low <= found.value <= found.high <= samples.max()
    scaled = statistics.median_interval(1000 * samples)
    assert (scaled.low, scaled.high) == (pytest.approx(1000 * found.low), pytest.approx(1000 * found.high))
    mirrored = statistics.ratio(samples, samples[::-1])
    assert mirrored.low <= mirrored.value * (1 + 1e-9)
    assert mirrored.high >= mirrored.value * (1 - 1e-9)
