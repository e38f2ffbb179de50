"""Statistics against numbers worked out by hand, NumPy, and simulations whose truth is known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.bench import drift, statistics
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
        found = statistics.ratio(*machine(seed, 1.3))
        hits += found.low <= 1.3 <= found.high
    assert hits >= 0.90 * SIMULATIONS


@pytest.mark.parametrize("blocks", [6, 10, 20])
def test_a_against_a_says_no_difference_in_at_least_95_percent(blocks: int):
    silent = sum(not statistics.differs(statistics.ratio(*machine(seed, 1.0, blocks))) for seed in range(SIMULATIONS))
    assert silent >= 0.95 * SIMULATIONS


def test_pairing_removes_what_slows_the_machine_for_a_while():
    random = np.random.default_rng(0)
    slow = np.repeat([1.0, 3.0], 10)[:, None]  # three times slower in the second half
    control = 1e-3 * slow * np.exp(random.normal(0, 0.01, (20, 30)))
    candidate = 1e-3 / 1.2 * slow * np.exp(random.normal(0, 0.01, (20, 30)))
    found = statistics.ratio(control, candidate, between=0)
    assert found.value == pytest.approx(1.2, rel=0.01)
    assert found.high - found.low < 0.05


def test_ratio_by_hand():
    control = np.array([[2.0, 2, 9]] * 7)
    candidate = np.array([[1.0, 1, 1]] * 7)
    same = Interval(pytest.approx(2.0), pytest.approx(2.0), pytest.approx(2.0))
    assert statistics.ratio(control, candidate, between=0) == same
    found = statistics.ratio(control, candidate)  # seven pairs agree, yet another two processes would differ: 1.96 x 0.02
    assert (found.low, found.high) == (
        pytest.approx(2 * math.exp(-0.0392), rel=1e-5),
        pytest.approx(2 * math.exp(0.0392), rel=1e-5),
    )


def test_the_interval_of_a_ratio_takes_the_ranks_of_the_sign_test():
    # n = 10: P(binomial(10, 1/2) <= 1) = 0.0107 and <= 2 = 0.0547, so the 2nd and the 9th of the ordered ratios (tables)
    ratios = np.array([1.5, 1.1, 1.9, 1.3, 2.0, 1.2, 1.7, 1.4, 1.8, 1.6])
    found = statistics.ratio(ratios[:, None], np.ones((10, 1)), between=0)
    assert (found.low, found.high) == (pytest.approx(1.2), pytest.approx(1.9))
    assert found.value == pytest.approx(math.sqrt(1.5 * 1.6))


def test_what_blocks_and_processes_leave_open_adds_in_squares():
    ratios = np.exp(np.array([-0.03, -0.02, -0.01, -0.01, 0, 0, 0.01, 0.01, 0.02, 0.03]))
    found = statistics.ratio(ratios[:, None], np.ones((10, 1)), between=0.01)
    assert math.log(found.high) == pytest.approx(math.sqrt(0.02**2 + 0.0196**2), rel=1e-4)


def test_the_width_of_an_interval_is_relative_to_its_estimate():
    assert statistics.relative_width(Interval(2.0, 1.9, 2.2)) == pytest.approx(0.15)
    assert statistics.relative_width(Interval(1.0, 0.0, math.inf)) == math.inf


def test_block_medians_are_enough_to_look_while_the_clock_runs():
    control, candidate = machine(5, 1.3, 40)
    small = statistics.ratio(np.median(control, axis=1)[:, None], np.median(candidate, axis=1)[:, None])
    assert small == statistics.ratio(control, candidate)
    alone, exact = statistics.block_interval(control), statistics.median_interval(control)
    assert alone == statistics.block_interval(np.median(control, axis=1)[:, None])
    assert alone.value == pytest.approx(exact.value, rel=0.02)
    assert alone.high - alone.low == pytest.approx(exact.high - exact.low, rel=0.6)


def run(seed: int, slower: float, limit: int = 120) -> tuple[bool, int]:
    """Measure as the clock does, until the interval is narrow; return whether a difference is said, and after how many rounds.

    Noise of 6 % with autocorrelation that both share, 3 % of each block, one block in 20 disturbed, and what differs between
    two processes; looked at after every second round from 10 on.
    """
    random = np.random.default_rng(seed)
    shared = np.empty(2 * limit)
    shared[0] = random.normal()
    for k in range(1, len(shared)):
        shared[k] = 0.8 * shared[k - 1] + 0.6 * random.normal()
    noise = 0.06 * shared + random.normal(0, 0.03, 2 * limit)
    noise += np.where(random.random(2 * limit) < 0.05, abs(random.normal(0, 0.3, 2 * limit)), 0)
    pairs = noise.reshape(limit, 2)
    pairs[1::2] = pairs[1::2, ::-1]  # A B, B A, ...
    times = np.exp(pairs + random.normal(0, statistics.BETWEEN / math.sqrt(2), 2) + [0, math.log1p(slower)])
    for rounds in range(10, limit + 1, 2):
        if (
            statistics.relative_width(statistics.ratio(times[:rounds, :1], times[:rounds, 1:], between=0))
            <= statistics.INTERVAL
        ):
            break
    return statistics.differs(statistics.ratio(times[:rounds, :1], times[:rounds, 1:])), rounds


def test_one_start_leaves_equal_files_alone_and_finds_10_percent():
    alike = [run(seed, 0.0) for seed in range(SIMULATIONS)]
    slower = [run(seed, 0.1) for seed in range(SIMULATIONS)]
    assert sum(said for said, _ in alike) <= 0.04 * SIMULATIONS
    assert sum(said for said, _ in slower) >= 0.95 * SIMULATIONS
    assert 10 < np.median([rounds for _, rounds in alike]) <= 120


def test_outliers_are_counted_by_hand():
    samples = np.tile(np.array([1.0, 1.01, 0.99, 1.02, 0.98, 1.0, 1.01, 0.99, 1.0, 1.0]), (4, 1))
    samples[1] *= 3  # a slow block: its calls are usual there
    samples[2, 3] = 1.06  # MAD 0.01, so the line is at 1 + 5 x 0.0148 = 1.074
    samples[3, 3], samples[1, 0] = 1.08, 9.0
    assert statistics.outliers(samples) == {"count": 2, "share": 2 / 40, "slowest_s": 9.0}
    steady = np.ones((1, 20))
    steady[0, 4], steady[0, 5] = 1.049, 1.051  # no spread at all: 1 % of the median stands in for it
    assert statistics.outliers(steady)["count"] == 1


def test_outliers_of_blocks_of_single_calls_are_measured_against_all():
    samples = np.array([1.0, 1.01, 0.99, 1.0, 1.0, 2.0, 1.01, 0.99, 1.0, 1.0])[:, None]
    assert statistics.outliers(samples)["count"] == 1


def wandering(seed: int, blocks: int, alike: float = 0.5) -> np.ndarray:
    random = np.random.default_rng(seed)
    noise = np.empty(blocks)
    noise[0] = random.normal()
    for k in range(1, blocks):
        noise[k] = alike * noise[k - 1] + math.sqrt(1 - alike**2) * random.normal()
    return 0.03 * noise + random.normal(0, 0.01, blocks) + np.where(random.random(blocks) < 0.05, 0.3, 0)


@pytest.mark.parametrize(("blocks", "alike"), [(40, 0.5), (120, 0.5), (120, 0.8)])
def test_no_drift_is_reported_where_there_is_noise_alone(blocks: int, alike: float):
    found = [
        drift.drift(np.exp(wandering(seed, blocks, alike))[:, None], np.arange(float(blocks))) for seed in range(SIMULATIONS)
    ]
    assert sum(one is not None for one in found) <= 0.05 * SIMULATIONS


def test_drift_is_found_and_measured():
    rising = np.log(1e-3) + math.log(1.1) * np.linspace(0, 1, 120)
    found = [drift.drift(np.exp(rising + wandering(seed, 120))[:, None], np.arange(120.0)) for seed in range(50)]
    told = [one for one in found if one is not None]
    assert len(told) >= 40
    assert np.median([one["change"] for one in told]) == pytest.approx(0.1, abs=0.02)
    assert sum(one["low"] <= 0.1 <= one["high"] for one in told) >= 0.9 * len(told)


def test_drift_by_hand():
    times = np.linspace(0, 60, 30)
    told = drift.drift(np.tile(2e-3 * np.exp(-math.log(1.25) * times / 60)[:, None], (1, 5)), times)
    assert told is not None
    assert (told["from_s"], told["to_s"]) == (pytest.approx(2e-3), pytest.approx(1.6e-3))
    assert told["said"] == "calls became 20% faster over the run (-20% to -20%)"
    assert drift.drift(np.full((19, 2), 1.0) * np.arange(1, 20)[:, None], np.arange(19.0)) is None, "too few blocks"
    assert drift.drift(np.exp(np.linspace(0, 0.015, 30))[:, None], times) is None, "too small"


@pytest.mark.parametrize(("freedom", "quantile"), [(5, 2.571), (10, 2.228), (30, 2.042)])
def test_t_quantiles_are_those_of_the_tables(freedom: int, quantile: float):
    assert statistics.t_quantile(freedom) == pytest.approx(quantile, rel=2e-3)


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


def test_from_three_launches_on_the_interval_is_over_launches():
    """Five launches, ratios 1.00 1.04 1.02 in one order, 1.02 1.02 in the other; t(3) = 3.1824: tables of Student's distribution."""
    ratios, pairs = [1.00, 1.02, 1.04, 1.02, 1.02], 4
    launches = [number for number in range(5) for _ in range(pairs)]
    candidate = np.full((5 * pairs, 3), 1e-3)
    control = candidate * np.repeat(ratios, pairs)[:, None]
    control[0] *= 3  # one pair of four: the median of its launch does not see it
    found = statistics.ratio(control, candidate, launches=launches)
    one, other = np.log(ratios[::2]), np.log(ratios[1::2])
    mean = (one.mean() + other.mean()) / 2
    half = 3.1824 * math.sqrt((((one - one.mean()) ** 2).sum() + ((other - other.mean()) ** 2).sum()) / 3 / 5)
    assert found.value == pytest.approx(math.exp(mean))
    assert found.low == pytest.approx(math.exp(mean - half), rel=1e-3)
    assert found.high == pytest.approx(math.exp(mean + half), rel=1e-3)
    even = statistics.ratio(candidate * 1.02, candidate, launches=launches)
    assert even.high / even.value == pytest.approx(math.exp(3.1824 * math.sqrt(2 * 0.0075**2 / 5 / 5)), rel=1e-3), (
        "five that agree"
    )
    two = [number % 2 for number in launches]
    assert statistics.ratio(control, candidate, launches=two) == statistics.ratio(control, candidate), "two tell too little"
    alone = statistics.block_interval(control, launches)
    assert alone.value == pytest.approx(1e-3 * math.exp(np.log(ratios).mean()))
    assert statistics.relative_width(alone) < statistics.relative_width(found)


@pytest.mark.parametrize("count", [5, 6, 11])
def test_what_the_order_of_starting_does_is_no_difference(count: int):
    """What is started first takes 3 % longer: the ratio of equal files is 1.03 in one order, 1 / 1.03 in the other."""
    launches = range(count)
    candidate = np.ones((count, 1))
    control = candidate * 1.03 ** np.array([1.0 if number % 2 == 0 else -1.0 for number in launches])[:, None]
    found = statistics.ratio(control, candidate, launches=launches)
    assert found.value == pytest.approx(1)
    assert statistics.relative_width(found) < 0.025, "no launch differs from another of its order"
    slower = statistics.ratio(control, candidate * 1.05, launches=launches)
    assert slower.value == pytest.approx(1 / 1.05)
    assert statistics.differs(slower)


def test_a_median_over_launches_knows_how_launches_differ():
    random = np.random.default_rng(0)
    launches = [number for number in range(5) for _ in range(10)]
    samples = random.normal(1e-3, 1e-6, (50, 20)) * np.repeat(random.normal(1, 0.02, 5), 10)[:, None]
    blocks, over = statistics.median_interval(samples), statistics.median_interval(samples, launches=launches)
    assert blocks.value == over.value == np.median(samples)
    assert statistics.relative_width(over) > 1.5 * statistics.relative_width(blocks)
    told = statistics.summary(samples, launches)
    assert (told["median_low_s"], told["median_high_s"]) == (over.low, over.high)


@pytest.mark.parametrize(
    ("between", "order", "wrong", "missed"), [(0.0075, 0.0, 0.02, 0.02), (0.03, 0.0, 0.06, 0.08), (0.0075, 0.02, 0.02, 0.02)]
)
def test_verdicts_over_launches_are_right_where_processes_differ_a_lot(
    between: float, order: float, wrong: float, missed: float
):
    """Launches until the interval is INTERVAL wide, 30 at most, looked at after each from the sixth on; 300 measurements each."""
    random = np.random.default_rng(1)

    def differs(true: float) -> bool:
        logs: list[float] = []
        while True:
            first = order if len(logs) % 2 == 0 else -order
            logs.append(true + first + random.normal(0, between) + random.standard_t(4) * 0.005)
            if len(logs) < 6:
                continue
            candidate = np.ones((len(logs), 1))
            found = statistics.ratio(np.exp(logs)[:, None] * candidate, candidate, launches=range(len(logs)))
            if statistics.relative_width(found) <= statistics.INTERVAL or len(logs) >= 30:
                return statistics.differs(found)

    assert np.mean([differs(0.0) for _ in range(300)]) <= wrong
    assert np.mean([not differs(math.log(1.05)) for _ in range(300)]) <= missed


@pytest.mark.parametrize("count", [3, 5])
def test_the_interval_of_a_median_holds_the_truth_over_few_launches(count: int):
    random = np.random.default_rng(2)
    launches = [number for number in range(count) for _ in range(6)]
    held = 0
    for _ in range(300):
        factors = np.exp(random.normal(0, 0.02, count))
        samples = np.exp(random.normal(0, 0.003, (6 * count, 5))) * np.repeat(factors, 6)[:, None]
        found = statistics.median_interval(samples, launches=launches)
        held += found.low <= 1 <= found.high
    assert held / 300 > 0.88, "a bootstrap over launches gives 0.75 of 3, 0.87 of 5"


def test_one_disturbed_launch_of_many_does_not_decide():
    """Twenty launches that agree within 0.5 % and one that is 0.56: it neither moves the ratio nor widens the interval much."""
    random = np.random.default_rng(3)
    ratios = np.exp(random.normal(0, 0.005, 21))
    candidate = np.ones((21, 1))
    calm = statistics.ratio(ratios[:, None], candidate, launches=range(21))
    ratios[7] = 0.56
    found = statistics.ratio(ratios[:, None], candidate, launches=range(21))
    assert found.value == pytest.approx(calm.value, rel=0.003)
    assert statistics.relative_width(found) < 1.3 * statistics.relative_width(calm)


def test_what_cannot_be_told_is_not_called_the_same():
    assert statistics.verdict(Interval(1.02, 0.8, 1.3), "int8", "fp32").startswith("cannot tell int8 from fp32 (0.80-1.30)")
    assert statistics.verdict(Interval(1.02, 0.95, 1.08), "int8", "fp32").startswith("no difference seen between int8 and fp32")
