"""Streams, several graphs, and generation, through real processes and a real runtime: from files to measurements."""

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from bench.test_bench_generation import Decoder
from onnx import TensorProto, helper
from patience import patient

from edgekd import bench
from edgekd.bench import timing
from edgekd.recipe import Bench

QUICK = Bench(
    min_seconds=0.1,
    min_count=10,
    interval=None,
    launches=1,
    max_seconds=5,
    threads=2,
    roofline=False,
    prompt_tokens=6,
    new_tokens=5,
)


def part(file: Path, takes: str, gives: str, products: int) -> Path:
    """Write a graph of `products` matrix products, from `takes` to `gives`."""
    weights = [onnx.numpy_helper.from_array(np.eye(256, dtype=np.float32) / 2, "w")]
    names = [takes, *(f"{gives}{i}" for i in range(products - 1)), gives]
    nodes = [helper.make_node("MatMul", [a, "w"], [b]) for a, b in itertools.pairwise(names)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 256]) for name in (takes, gives)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    return file


@patient
def test_a_folder_of_graphs_that_feed_each_other_is_timed_by_part_and_whole(tmp_path: Path):
    folder = tmp_path / "split"
    folder.mkdir()
    part(folder / "a_encoder.onnx", "image", "memory", 80)
    part(folder / "b_decoder.onnx", "memory", "mask", 4)
    (one,), _ = bench.measure([bench.thing_from(folder)], QUICK, tmp_path / "out")
    assert one["scenario"] == "chain"
    assert list(one["parts"]) == ["a_encoder", "b_decoder"]
    encoding, decoding = (one["parts"][name]["median_s"] for name in one["parts"])
    assert encoding > 3 * decoding, "20 times the work"
    assert encoding + decoding <= one["warm"]["median_s"] * 1.02
    assert encoding + decoding >= one["warm"]["median_s"] * 0.7
    assert one["generation"] is None


@patient
def test_a_language_model_is_found_out_and_generates(tmp_path: Path):
    folder = tmp_path / "lm"
    folder.mkdir()
    Decoder("open").write(folder / "model.onnx")
    (one,), _ = bench.measure([bench.thing_from(folder / "model.onnx")], QUICK, tmp_path / "out")
    told = one["generation"]
    assert one["scenario"] == "generation"
    assert (told["prompt_tokens"], told["new_tokens"], told["encode"]) == (6, 5, None)
    whole = told["ttft"]["mean_s"] + 4 * told["per_token"]["mean_s"]
    assert whole == pytest.approx(one["warm"]["mean_s"], rel=0.05)
    raw = np.load(tmp_path / "out" / one["times"])
    assert np.median(raw["part/ttft"]) == told["ttft"]["median_s"]
    assert told["tokens_per_s"] == pytest.approx(raw["part/tokens"].size / raw["part/tokens"].sum())
    assert told["tokens_per_s"] == pytest.approx(1 / told["per_token"]["mean_s"])
    assert told["prefill_per_s"] == pytest.approx(6 / told["ttft"]["median_s"])


@patient
def test_streams_count_all_calls_by_the_clock_on_the_wall(tmp_path: Path):
    thing = bench.thing_from(part(tmp_path / "m.onnx", "x", "y", 40))
    alone, two = timing.measure([thing], QUICK.model_copy(update={"streams": (2,)}), tmp_path / "out")[0]
    assert (alone["streams"], two["streams"]) == (None, 2)
    assert two["threads"] == alone["threads"] == 2
    samples = np.load(tmp_path / "out" / two["samples"])
    raw = np.load(tmp_path / "out" / two["times"])
    times = raw["begin_s"]
    assert len(times) == len(samples)
    assert two["throughput_per_s"] == pytest.approx(raw["calls"].sum() / raw["wall_s"].sum())
    assert (np.diff(times) > 0).all()
    # two at once: about twice as many calls end as the length of a call alone would say
    assert 1.2 < two["throughput_per_s"] * np.nanmean(samples) < 2.8
    assert two["providers"] == alone["providers"]
