"""How large a quantized network is: by arithmetic, Huffman coded as in the paper, and the files as written."""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .encoded import Encoded

if TYPE_CHECKING:
    from torch import nn


def sizes(encoded: Mapping[str, Encoded], unquantized: int, files: Iterable[Path] = ()) -> dict[str, Any]:
    """Return the sizes of a network as plain numbers; all that ends in `_bytes` is in bytes.

    encoded: its quantized tensors. unquantized: how many numbers it has beside them, 4 bytes each (biases, norms and their
    statistics, layers that were kept). files: what was written, to be weighed as it is.

    weights, unquantized, buckets: counts. fp32_bytes: all in 32 bits.
    bits_per_weight: what a quantized weight takes: its index, and its share of the scales, offsets and codebooks; no
    unquantized numbers. index_bits_per_weight: the index alone.
    packed_bytes: the arithmetic size: indices of whole bits, scales, offsets, codebooks and the unquantized numbers.
    huffman_bits_per_weight: mean length of an index in one Huffman code over all tensors pooled. huffman_bytes: the size that
    Polino et al. (2018) print: 4 unquantized + weights * mean length / 8 + 8 a bucket. The code's table and the codebooks are
    not counted there, and no file that runs is coded so.
    file_bytes: of `files`; None without any.
    """
    weights = sum(one.count for one in encoded.values())
    buckets = sum(len(one.scale) for one in encoded.values())
    index_bits = sum(one.count * one.bits for one in encoded.values())
    numbers = sum(len(n) for one in encoded.values() for n in (one.scale, one.offset, one.points) if n is not None)
    # A tensor with fewer points has fewer of the indices, not other ones: the counts of equal indices are added up.
    counts = sum(
        (np.bincount(one.indices.reshape(-1)[: one.count], minlength=256) for one in encoded.values()), np.zeros(256, int)
    )
    huffman_bits = huffman(counts.tolist()) if weights else 0.0
    files = list(files)
    return {
        "weights": weights,
        "unquantized": unquantized,
        "buckets": buckets,
        "fp32_bytes": 4 * (weights + unquantized),
        "index_bits_per_weight": index_bits / weights if weights else 0.0,
        "bits_per_weight": (index_bits + 32 * numbers) / weights if weights else 0.0,
        "packed_bytes": sum(math.ceil(one.count * one.bits / 8) for one in encoded.values()) + 4 * numbers + 4 * unquantized,
        "huffman_bits_per_weight": huffman_bits,
        "huffman_bytes": math.ceil(4 * unquantized + weights * huffman_bits / 8 + 8 * buckets),
        "file_bytes": sum(file.stat().st_size for file in files) if files else None,
    }


def numbers(net: nn.Module, without: Collection[str] = ()) -> int:
    """Return how many floating-point numbers a network stores, those that layers share once. without: names of weights to leave out."""
    tensors = {id(t): t for t in net.state_dict(keep_vars=True).values() if t.is_floating_point()}
    left_out = {id(net.get_parameter(name)) for name in without}
    return sum(tensor.numel() for which, tensor in tensors.items() if which not in left_out)


def huffman(counts: Iterable[int]) -> float:
    """Return the mean length, in bits, of a Huffman code for symbols that occur so often (Huffman 1952).

    A code word has at least one bit, so a single symbol costs 1 bit, not its entropy of 0. Raises ValueError without any.
    """
    heap = [count for count in counts if count > 0]
    if not heap:
        raise ValueError("nothing to code: every count is 0")
    total = sum(heap)
    if len(heap) == 1:
        return 1.0
    heapq.heapify(heap)
    bits = 0
    while len(heap) > 1:  # each merge puts one more bit before every symbol below it
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        heapq.heappush(heap, merged)
        bits += merged
    return bits / total
