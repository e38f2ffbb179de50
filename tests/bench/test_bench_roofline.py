"""The limit worked out by hand, and the file that keeps the machine's rates."""

import json
import math
from pathlib import Path

import pytest

from edgekd.bench import rates as machine
from edgekd.bench import roofline
from edgekd.bench.cost import Cost, NodeCost

MB = 1 << 20
RATES = {
    "format": machine.FORMAT,
    "threads": 2,
    "float32_flops": 80e9,
    "runtime_float32_flops": 100e9,
    "runtime_int8_ops": 400e9,
    "bandwidth": [[1 * MB, 64e9], [4 * MB, 32e9], [64 * MB, 8e9]],
    "last_level_bytes": 16 * MB,
    "load_average": 0.1,
}


def made(macs: int = 0, int8: int = 0, weights: int = 0, io: int = 0, between: tuple[int, ...] = ()) -> Cost:
    nodes = tuple(NodeCost(str(n), "Conv", 0, 0, 0, size) for n, size in enumerate(between))
    return Cost(macs, 2 * macs, int8, weights, weights, io, sum(between), nodes)


def test_arithmetic_binds():
    # 2 x 100 M / 100 GFLOP/s = 2 ms; 4 MB at 32 GB/s = 0.13 ms
    told = roofline.roofline(made(macs=100_000_000, weights=3 * MB, io=1 * MB), RATES, 5e-3, 2)
    assert told["bound"] == "arithmetic"
    assert told["attainable_s"] == pytest.approx(2e-3)
    assert told["fraction"] == pytest.approx(0.4)
    assert told["rate"] == pytest.approx(100e9)  # the runtime's, as it is higher than the BLAS's
    assert told["bandwidth"] == pytest.approx(32e9)
    assert told["bytes"] == 4 * MB
    assert told["intensity"] == pytest.approx(2e8 / (4 * MB))
    assert told["said"] == "reaches 40 % of what this machine can do at 2 threads; arithmetic binds (40 of 100 GFLOP/s)"


def test_memory_binds():
    # 64 MB at 8 GB/s = 8.4 ms; 1 M MACs are nothing
    told = roofline.roofline(made(macs=1_000_000, weights=64 * MB), RATES, 20e-3, 1)
    assert told["bound"] == "memory"
    assert told["attainable_s"] == pytest.approx(64 * MB / 8e9)
    assert told["said"] == "reaches 42 % of what this machine can do at 1 thread; memory binds (3.4 of 8 GB/s)"


def test_integers_are_held_to_their_own_rate():
    # 50 M floats: 1 ms; 50 M integers at 400 G: 0.25 ms
    told = roofline.roofline(made(macs=100_000_000, int8=50_000_000, weights=MB), RATES, 2.5e-3, 2)
    assert told["attainable_s"] == pytest.approx(1.25e-3)
    assert told["rate"] == pytest.approx(2e8 / 1.25e-3)
    assert "of floats and integers" in told["said"]
    every = roofline.roofline(made(macs=100_000_000, int8=100_000_000, weights=MB), RATES, 2.5e-3, 2)
    assert every["attainable_s"] == pytest.approx(0.5e-3)
    assert "(80 of 400 GFLOP/s in 8-bit integers)" in every["said"]
    without = roofline.roofline(made(macs=10**8, int8=10**8), {**RATES, "runtime_int8_ops": None}, 2.5e-3, 2)
    assert without["attainable_s"] == pytest.approx(2e-3)
    assert without["said"].endswith("integers are held to the rate of floats, as no integer rate was measured")


def test_between_nodes_only_what_exceeds_the_cache_moves():
    small = roofline.roofline(made(weights=2 * MB, between=(2 * MB, 15 * MB)), RATES, 1.0, 2)
    assert small["bytes"] == 2 * MB  # but the call goes through 17 MB, which is slower than 2
    assert small["bandwidth"] == pytest.approx(roofline.bandwidth_at(17 * MB, RATES["bandwidth"]))
    large = roofline.roofline(made(weights=2 * MB, between=(2 * MB, 62 * MB)), RATES, 1.0, 2)
    assert large["bytes"] == 64 * MB
    assert large["bandwidth"] == pytest.approx(8e9)


def test_bandwidth_lies_between_the_measured_points():
    curve = RATES["bandwidth"]
    assert roofline.bandwidth_at(4 * MB, curve) == pytest.approx(32e9)
    # 2 MB is half way from 1 to 4 in logarithms: the mean of 64 and 32 there is their geometric one
    assert roofline.bandwidth_at(2 * MB, curve) == pytest.approx(math.sqrt(64e9 * 32e9))
    assert roofline.bandwidth_at(10, curve) == pytest.approx(64e9)  # beyond the ends: the ends
    assert roofline.bandwidth_at(1 << 40, curve) == pytest.approx(8e9)
    assert roofline.bandwidth_at(4 * MB, curve[::-1]) == pytest.approx(32e9)


def test_a_tiny_model_mostly_waits_for_the_call():
    told = roofline.roofline(made(macs=100_000, weights=1000), RATES, 20e-6, 1)  # 2 us of work
    assert told["fraction"] == pytest.approx(0.1)
    assert "so small a model (2 us of work) mostly waits for the call itself" in told["said"]
    assert "so small" not in roofline.roofline(made(macs=10**8), RATES, 1e-2, 1)["said"]


def test_more_than_the_machine_can_do_is_said_to_be_wrong():
    noise = roofline.roofline(made(macs=10**8), RATES, 2e-3 / 1.15, 2)
    assert noise["fraction"] == pytest.approx(1.15)
    assert noise["said"].startswith("reaches all that this machine was seen to do at 2 threads, and 15 % more")
    wrong = roofline.roofline(made(macs=10**8), RATES, 2e-3 / 1.5, 2)
    assert wrong["fraction"] == pytest.approx(1.5)
    assert wrong["said"].startswith("1.5 times what this machine was seen to do at 2 threads: the count")


def test_a_graph_that_computes_nothing():
    told = roofline.roofline(made(), RATES, 1e-3, 1)
    assert (told["attainable_s"], told["fraction"], told["intensity"]) == (0, 0, None)
    json.dumps(told, allow_nan=False)


class Machine:
    """Counts how often it is measured."""

    def __init__(self, load: float = 0.1) -> None:
        self.asked: list[int] = []
        self.load = load

    def __call__(self, threads: int) -> dict:
        self.asked.append(threads)
        return {**RATES, "threads": threads, "load_average": self.load, "count": len(self.asked)}


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(roofline, "_load", lambda: 0.0)


def test_each_number_of_threads_is_measured_once(tmp_path: Path):
    here, file = Machine(), tmp_path / "made" / "rates.json"
    first = roofline.rates_of(2, file, here)
    assert roofline.rates_of(2, file, here) == first
    assert roofline.rates_of(1, file, here)["threads"] == 1
    assert roofline.rates_of(2, file, here) == first  # the other's was added, not put in its place
    assert here.asked == [2, 1]
    assert [path.name for path in file.parent.iterdir()] == ["rates.json"]  # nothing half-written stays


def test_another_machine_or_library_is_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    here, file = Machine(), tmp_path / "rates.json"
    roofline.rates_of(2, file, here)
    for place, name, value in (
        (roofline.host, "cpu_model", lambda: "another"),
        (roofline.host, "usable_cores", lambda: 99),
        (roofline.machine, "blas", lambda: "another 1.0"),
        (roofline.np, "__version__", "9.9"),
        (roofline.host, "packages", lambda: {"onnxruntime": "9"}),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(place, name, value)
            before = len(here.asked)
            roofline.rates_of(2, file, here)
            assert len(here.asked) == before + 1, name
    roofline.rates_of(2, file, here)
    assert len(here.asked) == 6


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "\x00\xff", "{}"])
def test_a_damaged_file_is_measured_again_and_replaced(tmp_path: Path, content: str):
    here, file = Machine(), tmp_path / "rates.json"
    file.write_bytes(content.encode("latin-1"))
    roofline.rates_of(2, file, here)
    roofline.rates_of(2, file, here)
    assert here.asked == [2]


@pytest.mark.parametrize(
    "damage",
    [{"bandwidth": []}, {"bandwidth": [[1]]}, {"float32_flops": None}, {"format": 0}, {"threads": 7}, {"bandwidth": "x"}],
)
def test_an_entry_that_is_not_whole_is_measured_again(tmp_path: Path, damage: dict):
    here, file = Machine(), tmp_path / "rates.json"
    roofline.rates_of(2, file, here)
    stored = json.loads(file.read_text())
    file.write_text(json.dumps({key: {**value, **damage} for key, value in stored.items()}))
    assert roofline.rates_of(2, file, here)["count"] == 2
    assert roofline.rates_of(2, file, here)["count"] == 2


def test_what_was_measured_on_a_busy_machine_is_measured_again_once_it_is_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    here, file = Machine(load=50.0), tmp_path / "rates.json"
    monkeypatch.setattr(roofline, "_load", lambda: 60.0)
    roofline.rates_of(2, file, here)
    roofline.rates_of(2, file, here)
    assert here.asked == [2]  # still busy: no use
    monkeypatch.setattr(roofline, "_load", lambda: 0.0)
    here.load = 0.1
    roofline.rates_of(2, file, here)
    roofline.rates_of(2, file, here)
    assert here.asked == [2, 2]


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path: Path):
    (tmp_path / "file").write_text("")
    here = Machine()
    assert roofline.rates_of(2, tmp_path / "file" / "rates.json", here)["threads"] == 2


def test_where_rates_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert roofline.cache_file() == tmp_path / "edgekd" / "rates.json"
    here = Machine()
    roofline.rates_of(1, measure=here)
    assert roofline.cache_file().is_file()
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert roofline.cache_file() == Path.home() / ".cache" / "edgekd" / "rates.json"
