"""Long runs whose falls, returns and causes are known."""

import json

import numpy as np
import pytest

from edgekd.bench import sustained


def rates(seed: int, changes: np.ndarray, noise: float = 0.03) -> np.ndarray:
    random = np.random.default_rng(seed)
    single = np.where(random.random(len(changes)) < 0.03, 0.6, 1.0)  # blocks that something disturbed
    return 100 * changes * single * np.exp(random.normal(0, noise, len(changes)))


TIMES = np.arange(400) * 1.5  # ten minutes
HALF = np.where(TIMES < 300, 1.0, 0.8)


def recorded(**series: np.ndarray) -> list[dict[str, float | None]]:
    return [{"at_s": float(t), **{name: float(values[k]) for name, values in series.items()}} for k, t in enumerate(TIMES)]


def test_noise_alone_is_no_fall():
    held = [sustained.analyse(TIMES, rates(seed, np.ones(400), noise=0.15)) for seed in range(40)]
    assert sum(told["fell_at_s"] is not None for told in held) <= 1
    assert held[0]["said"].startswith("throughput held for 10.0 min: ")
    assert (held[0]["change"], held[0]["cause"], held[0]["back_at_s"]) == (None, None, None)


@pytest.mark.parametrize("change", [0.95, 0.8, 0.5])
def test_a_fall_that_stays_is_found_where_it_is(change: float):
    told = sustained.analyse(TIMES, rates(1, np.where(TIMES < 300, 1.0, change)))
    assert told["fell_at_s"] == pytest.approx(300, abs=20)
    assert told["back_at_s"] is None
    assert told["change"] == pytest.approx(change - 1, abs=0.015)
    assert told["first_per_s"] == pytest.approx(100, rel=0.03)
    assert told["last_per_s"] == pytest.approx(100 * change, rel=0.03)
    assert "did not come back" in told["said"]


def test_a_fall_that_comes_back():
    told = sustained.analyse(TIMES, rates(2, np.where((TIMES >= 200) & (TIMES < 320), 0.85, 1.0)))
    assert told["fell_at_s"] == pytest.approx(200, abs=12)
    assert told["back_at_s"] == pytest.approx(320, abs=12)
    assert told["change"] == pytest.approx(-0.15, abs=0.015)
    assert told["said"].startswith("throughput fell by 1")
    assert "came back at 5." in told["said"]


def test_a_slow_start_and_small_falls_are_none():
    assert sustained.analyse(TIMES, rates(3, np.where(TIMES < 60, 0.7, 1.0)))["fell_at_s"] is None
    assert sustained.analyse(TIMES, rates(3, np.where(TIMES < 300, 1.0, 0.98), noise=0.001))["fell_at_s"] is None


def test_too_short_a_run_says_so():
    told = sustained.analyse(TIMES[:59], rates(4, np.where(TIMES[:59] < 40, 1.0, 0.5)))
    assert told["fell_at_s"] is None
    assert told["said"] == "59 blocks are too few to say whether throughput held; 60 are needed"
    with pytest.raises(ValueError, match="two at least: 1 and 1"):
        sustained.analyse([0.0], [1.0])


@pytest.mark.parametrize(
    ("series", "cause", "words"),
    [
        ({}, "unknown", "nothing was recorded"),
        (
            {"temperature_c": np.full(400, 60.0), "others": np.full(400, 0.1)},
            "unknown",
            "temperature, load by others did not change",
        ),
        ({"others": np.where(TIMES < 300, 0.02, 0.5)}, "others", "other processes took 50% of the cores then, 2% before"),
        ({"frequency_mhz": np.where(TIMES < 300, 3000.0, 2400.0)}, "clock", "the clock rate fell from 3000 to 2400 MHz"),
        (
            {"temperature_c": 50 + 40 * np.minimum(TIMES / 300, 1), "frequency_mhz": np.where(TIMES < 300, 3000.0, 2400.0)},
            "warm",
            "the machine warmed from",
        ),
        ({"temperature_c": np.where(TIMES < 300, 50.0, 85.0)}, "warm", "the machine warmed from 50 to 85 degrees"),
        (  # it warmed, and the clock held: heat did not do it
            {"temperature_c": np.where(TIMES < 300, 50.0, 85.0), "frequency_mhz": np.full(400, 3000.0)},
            "unknown",
            "did not change with it",
        ),
        (  # hot and slow, and others came at the same time
            {"temperature_c": np.where(TIMES < 300, 50.0, 85.0), "others": np.where(TIMES < 300, 0.0, 0.4)},
            "others",
            "40% of the cores",
        ),
    ],
)
def test_the_cause_is_read_from_what_was_recorded(series: dict[str, np.ndarray], cause: str, words: str):
    told = sustained.analyse(TIMES, rates(5, HALF), recorded(**series))
    assert told["cause"] == cause
    assert words in told["said"]
    later = [{**point, "at_s": (point["at_s"] or 0) + 5000} for point in recorded(**series)]
    assert sustained.analyse(TIMES + 5000, rates(5, HALF), later) == told, "whatever the clock starts at"


def test_what_is_told_is_plain_json_with_few_points():
    long = np.arange(5000) * 0.25
    told = sustained.analyse(long + 1000, rates(6, np.ones(5000)))
    assert json.loads(json.dumps(told)) == told
    assert len(told["series"]) == 600
    assert told["series"][0][0] == 0
    assert told["minutes"] == pytest.approx(4999 * 0.25 / 60)
