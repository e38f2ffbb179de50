import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.quantize.encoded import Encoded
from edgekd.quantize.size import huffman, sizes


def encoded(indices, levels, count=None, points=None, offset=True):
    indices = np.asarray(indices, np.uint8)
    ones = np.ones(len(indices), np.float32)
    return Encoded(indices, ones, ones if offset else None, points, levels, (count or indices.size,))


@pytest.mark.parametrize(
    ("counts", "mean"),
    [
        ([1, 1], 1),
        ([3, 1], 1),
        ([4, 2, 1, 1], (4 * 1 + 2 * 2 + 1 * 3 + 1 * 3) / 8),
        ([5, 5, 5, 5], 2),
        ([45, 13, 12, 16, 9, 5], 2.24),  # a: 1 bit; b, c, d: 3; e, f: 4 (Cormen et al., section 16.3)
        ([8, 1, 0, 1, 0], (8 + 2 + 2) / 10),
        ([7], 1),  # a code word cannot be empty
        ([0, 0, 7], 1),
    ],
)
def test_codes_worked_by_hand(counts, mean):
    assert huffman(counts) == pytest.approx(mean)


def test_nothing_to_code_is_an_error():
    with pytest.raises(ValueError, match="nothing to code"):
        huffman([0, 0])


@given(st.lists(st.integers(0, 10_000), min_size=2, max_size=256).filter(lambda counts: sum(c > 0 for c in counts) > 1))
def test_the_mean_length_lies_between_the_entropy_and_one_bit_more(counts):
    shares = [c / sum(counts) for c in counts if c]
    entropy = -sum(p * math.log2(p) for p in shares)
    mean = huffman(counts)
    assert entropy - 1e-9 <= mean < entropy + 1
    assert mean <= math.ceil(math.log2(len(counts)))  # never longer than indices of whole bits
    assert huffman(reversed(counts)) == pytest.approx(mean)


@pytest.mark.parametrize(("bits", "ratio"), [(4, 7.53), (2, 14.2)])
def test_the_papers_ratio(bits, ratio):
    indices = np.arange(1000 * 256).reshape(1000, 256) % 2**bits  # evenly spread: a Huffman code gains nothing
    made = sizes({"w": encoded(indices, 2**bits)}, 0)
    k, f = 256, 32
    assert k * f / (k * bits + 2 * f) == pytest.approx(ratio, abs=0.03)
    assert made["fp32_bytes"] / made["packed_bytes"] == pytest.approx(k * f / (k * bits + 2 * f), rel=1e-9)
    assert made["fp32_bytes"] / made["huffman_bytes"] == pytest.approx(k * f / (k * bits + 2 * f), rel=1e-9)
    assert made["bits_per_weight"] == pytest.approx(bits + 2 * f / k)


def test_sizes_worked_by_hand(tmp_path):
    points = np.array([0, 0.5, 1], np.float32)
    tensors = {
        "a": encoded([[0, 0, 0, 1], [0, 0, 3, 3]], 4, count=7),  # one index of padding
        "b": encoded([[0, 1, 2]], 3, points=points),
        "c": encoded([[0], [1]], 16, offset=False),
    }
    (tmp_path / "one").write_bytes(bytes(300))
    (tmp_path / "two").write_bytes(bytes(33))
    made = sizes(tensors, 10, [tmp_path / "one", tmp_path / "two"])
    # pooled: 0 seven times, 1 three times, 2 and 3 once -> code words of 1, 2, 3 and 3 bits
    mean = (7 * 1 + 3 * 2 + 1 * 3 + 1 * 3) / 12
    bits, numbers = 7 * 2 + 3 * 2 + 2 * 4, (2 + 2) + (1 + 1 + 3) + 2
    assert made == {
        "weights": 12,
        "unquantized": 10,
        "buckets": 5,
        "fp32_bytes": 88,
        "index_bits_per_weight": pytest.approx(bits / 12),
        "bits_per_weight": pytest.approx((bits + 32 * numbers) / 12),
        "packed_bytes": (2 + 1 + 1) + 4 * numbers + 40,
        "huffman_bits_per_weight": pytest.approx(mean),
        "huffman_bytes": math.ceil(40 + 12 * mean / 8 + 8 * 5),
        "file_bytes": 333,
    }
    assert json.loads(json.dumps(made)) == made


def test_a_network_without_quantized_weights():
    made = sizes({}, 5)
    assert made["packed_bytes"] == made["huffman_bytes"] == made["fp32_bytes"] == 20
    assert made["bits_per_weight"] == 0
    assert made["file_bytes"] is None
