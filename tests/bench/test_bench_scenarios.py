"""What one call is in each scenario, and what goes into it."""

import time

import numpy as np
import pytest
from patience import patient

from edgekd.bench import clock, scenarios
from edgekd.errors import BadInput


class Plain:
    """A session that doubles `x`, after some time, and counts its runs."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.runs, self.got = seconds, 0, {}

    def run(self, inputs: dict) -> dict:
        self.runs += 1
        self.got = inputs
        time.sleep(self.seconds)
        return {"y": 2 * inputs["x"]}


class Bound(Plain):
    """One that offers `bind`."""

    def bind(self, inputs: dict):
        def call() -> list:
            self.bound = inputs
            return [1]

        return call


def test_single_stream_runs_the_session_on_contiguous_inputs_and_tells_no_marks():
    session = Plain()
    call = scenarios.single_stream(session, {"x": np.arange(6).reshape(2, 3).T})
    assert call() is None, "outputs are no marks"
    assert session.runs == 1
    assert session.got["x"].flags.c_contiguous
    assert session.got["x"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_single_stream_takes_the_prepared_call_where_there_is_one():
    session = Bound()
    assert scenarios.single_stream(session, {"x": np.ones(2)})() is None
    assert session.runs == 0
    assert session.bound["x"].tolist() == [1, 1]


# ---- streams


def sleepers(count: int) -> list:
    return [scenarios.single_stream(Plain(0.01), {"x": np.ones(1)}) for _ in range(count)]


def throughput(block: dict) -> float:
    return block["finished"] / (block["wall"] / 1e9)


def test_each_session_gets_arrays_of_its_own(tmp_path):
    np.savez(tmp_path / "given.npz", **{"a/x": np.arange(6).reshape(3, 2)})
    faces = {name: {"inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 2]}], "outputs": []} for name in "ab"}
    one, two = (scenarios.inputs_of(str(tmp_path / "given.npz"), faces, ["a", "b"], 4, seed=3) for _ in range(2))
    assert one["a"]["x"].tolist() == [[0, 1], [2, 3], [4, 5], [0, 1]]
    assert one["b"]["x"].shape == (4, 2)
    assert (one["b"]["x"] == two["b"]["x"]).all()
    assert not any(np.shares_memory(one[name]["x"], two[name]["x"]) for name in "ab")


@patient
def test_two_streams_of_sleepers_have_twice_the_throughput_of_one():
    one = scenarios.time_streams(sleepers(1), 12)
    two = scenarios.time_streams(sleepers(2), 12)
    assert len(one["nanoseconds"]) == 12
    assert len(two["nanoseconds"]) == 24
    assert one["marks"] == {}
    assert throughput(one) == pytest.approx(1e9 / np.mean(one["nanoseconds"]), rel=0.05)
    assert throughput(two) / throughput(one) == pytest.approx(2, rel=0.15)
    assert 10 <= np.min(two["nanoseconds"]) / 1e6 < 13


@pytest.mark.parametrize("count", [1, 2, 8])
@patient
def test_the_ends_of_a_block_do_not_bias_its_throughput(count: int):
    """Streams of different speed, and a first call that is three times as long: none of it shows, even in short blocks."""
    took: dict[float, list[float]] = {0.004: [], 0.006: []}  # really: a busy machine oversleeps

    def sleeper(seconds: float):
        left = iter([3 * seconds])

        def call() -> None:
            start, asked = time.perf_counter(), next(left, seconds)
            time.sleep(asked)
            if asked == seconds:
                took[seconds].append(time.perf_counter() - start)

        return call

    blocks = [scenarios.time_streams([sleeper(0.004), sleeper(0.006)], count) for _ in range(80 // count)]
    assert all(len(block["nanoseconds"]) == 2 * count for block in blocks)
    finished, seconds = sum(block["finished"] for block in blocks), sum(block["wall"] for block in blocks) / 1e9
    assert finished / seconds == pytest.approx(sum(1 / np.mean(one) for one in took.values()), rel=0.07)


@patient
def test_no_stream_stops_before_the_block_closes():
    calls = {"fast": [], "slow": []}

    def sleeper(name: str, seconds: float):
        def call() -> None:
            calls[name].append(time.perf_counter_ns())
            time.sleep(seconds)

        return call

    block = scenarios.time_streams([sleeper("fast", 0.002), sleeper("slow", 0.02)], 10)
    closed = block["at"] + block["wall"]
    assert calls["fast"][-1] > closed - 20e6
    assert calls["slow"][-1] > closed - 40e6
    assert len(calls["fast"]) > len(calls["slow"])
    assert block["at"] >= calls["slow"][0] + 20e6, "it opens when the last has finished its first call"


def test_no_counted_call_is_a_block_too_and_a_failing_stream_is_told():
    assert scenarios.time_streams([lambda: None] * 2, 0)["nanoseconds"] == []

    def fails() -> None:
        time.sleep(0.005)
        raise ValueError("bad node Conv_3")

    with pytest.raises(ValueError, match="bad node Conv_3"):
        scenarios.time_streams([lambda: time.sleep(0.001), fails], 1000)


# ---- several graphs


class Part:
    """A graph of a chain: does `make` to its inputs, after some time."""

    def __init__(self, make, seconds: float = 0.0) -> None:
        self.make, self.seconds, self.got = make, seconds, {}

    def run(self, inputs: dict) -> dict:
        self.got = inputs
        time.sleep(self.seconds)
        return self.make(**inputs)


def split_model() -> tuple[dict, dict]:
    sessions = {
        "encoder": Part(lambda image: {"embedding": image + 1, "size": np.array(7)}, 0.02),
        "decoder": Part(lambda embedding, point: {"mask": embedding * point}, 0.005),
    }
    declared = {"encoder": [{"name": "image"}], "decoder": [{"name": "embedding"}, {"name": "point"}]}
    return sessions, declared


@patient
def test_parts_of_a_chain_are_timed_within_the_whole():
    sessions, declared = split_model()
    call = scenarios.chain(sessions, {"encoder": {"image": np.ones(2)}, "decoder": {"point": np.full(2, 5)}}, declared)
    whole, marks = clock.time_calls(call, 8)
    assert list(marks) == ["encoder", "decoder"]
    assert 20 <= np.min(marks["encoder"]) / 1e6 < 24
    assert 5 <= np.min(marks["decoder"]) / 1e6 < 8
    rest = whole - marks["encoder"] - marks["decoder"]
    assert rest.min() >= 0
    assert np.median(rest) < 100e3, "nanoseconds, for handing on"
    assert sessions["decoder"].got["embedding"].tolist() == [2, 2]
    assert sessions["decoder"].run(sessions["decoder"].got)["mask"].tolist() == [10, 10]


def test_an_earlier_graphs_output_goes_before_what_is_given():
    sessions, declared = split_model()
    given = {"encoder": {"image": np.ones(1)}, "decoder": {"point": np.ones(1), "embedding": np.full(1, 99)}}
    scenarios.chain(sessions, given, declared)()
    assert sessions["decoder"].got["embedding"] == 2
    assert set(sessions["decoder"].got) == {"embedding", "point"}, "a graph gets what it declares"


def test_an_input_from_nowhere_is_named():
    sessions, declared = split_model()
    with pytest.raises(
        BadInput, match=r"graph `decoder`: nothing is given for its input `point`.*\(encoder.embedding, encoder.size\)"
    ):
        scenarios.chain(sessions, {"encoder": {"image": np.ones(1)}}, declared)()


# ---- inputs


def test_batches_are_cut_and_repeated():
    pictures = {"image": np.arange(3, dtype=np.uint8).reshape(3, 1), "scale": np.array(2.0)}
    assert scenarios.batch_of(pictures, 8)["image"].ravel().tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert scenarios.batch_of(pictures, 2)["image"].ravel().tolist() == [0, 1]
    assert scenarios.batch_of(pictures, 2)["scale"] == 2.0
    with pytest.raises(ValueError, match="`image` has no samples"):
        scenarios.batch_of({"image": np.zeros((0, 4))}, 1)


def test_random_inputs_follow_the_declared_types_and_shapes():
    declared = [
        {"name": "image", "dtype": "uint8", "shape": ["batch", 8, 8, 3]},
        {"name": "ids", "dtype": "int64", "shape": ["batch", "sequence"]},
        {"name": "x", "dtype": "float32", "shape": [1, 4]},
        {"name": "mask", "dtype": "bool", "shape": [0, 2]},
    ]
    made = scenarios.random_inputs(declared, 5, seed=1)
    assert {name: (v.dtype.name, v.shape) for name, v in made.items()} == {
        "image": ("uint8", (5, 8, 8, 3)),
        "ids": ("int64", (5, scenarios.UNKNOWN_AXIS)),
        "x": ("float32", (1, 4)),
        "mask": ("bool", (5, 2)),
    }
    assert made["image"].max() > 200
    assert set(np.unique(made["ids"])) <= {0, 1}
    again = scenarios.random_inputs(declared, 5, seed=1)
    assert all(np.array_equal(made[name], again[name]) for name in made)
    assert not np.array_equal(made["image"], scenarios.random_inputs(declared, 5, seed=2)["image"])


def test_inputs_of_language_models_mean_something():
    declared = [
        {"name": "input_ids", "dtype": "int64", "shape": ["batch", "sequence"]},
        {"name": "attention_mask", "dtype": "int64", "shape": ["batch", "past_sequence_length + sequence"]},
        {"name": "token_type_ids", "dtype": "int64", "shape": ["batch", "sequence"]},
        {"name": "position_ids", "dtype": "int64", "shape": ["batch", "sequence"]},
        {"name": "past_key_values.0.key", "dtype": "float16", "shape": ["batch", 2, "past_sequence_length", 8]},
        {"name": "use_cache_branch", "dtype": "bool", "shape": [1]},
    ]
    made = scenarios.random_inputs(declared, 3, vocabulary=1000, axes={"sequence": 40})
    assert {name: value.shape for name, value in made.items()} == {
        "input_ids": (3, 40), "attention_mask": (3, 40), "token_type_ids": (3, 40), "position_ids": (3, 40),
        "past_key_values.0.key": (3, 2, 0, 8), "use_cache_branch": (1,),
    }  # fmt: skip
    assert 500 < made["input_ids"].max() < 1000
    assert made["attention_mask"].min() == 1
    assert made["token_type_ids"].max() == 0
    assert made["position_ids"][2].tolist() == list(range(40))
    assert not made["use_cache_branch"][0]
    assert scenarios.random_inputs(declared, 1)["input_ids"].shape == (1, scenarios.UNKNOWN_AXIS)
    step = [{"name": "attention_mask", "dtype": "int64", "shape": ["batch", "past_sequence_length + 1"]}]
    assert scenarios.random_inputs(step, 1)["attention_mask"].shape == (1, 1)
