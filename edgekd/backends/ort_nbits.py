"""Products with weights that are stored in 4 or 8 bits, by ONNX Runtime's own operator MatMulNBits: the weights are read as they are
stored and expanded in registers. Activations stay in float32, or are rounded to 8 bits a block.

It pays where a product reads many weights for few activations, as a language model does that makes one token at a time. A Llama of 27
million weights in groups of 32, ONNX Runtime 1.31, one thread of an AMD EPYC with AVX-512 VNNI: a token takes 6.9 ms with weights of 4
bits that were expanded, 3.6 ms as stored, 2.4 ms with activations of 8 bits (groups of 128: 1.7 ms); a prompt of 64 tokens 29.8, 31.1
and 24.5 ms. By weights of 8 bits and activations in float32 it is 30 times slower than expanded ones: those are left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING

import numpy as np

from ..quantize.encoded import Encoded
from ..quantize.unpacked import Stored, Symmetric, read

if TYPE_CHECKING:
    import onnx

DOMAIN = "com.microsoft"
OPERATOR = "MatMulNBits"
LOOKUP = "GatherBlockQuantized"
BITS = {1: (4,), 4: (4, 8)}
"""accuracy_level (1: activations in float32; 4: in int8) -> bits of the weights that it is fast for."""


@dataclass(frozen=True)
class Blocks:
    """A weight as MatMulNBits takes it: w[n, k] = scale (q - zero) of its block, + rest of its bucket.

    q: uint8 (outputs, inputs), below 2^bits. scale: float32 (outputs, blocks). zero: uint8 of that shape; None: 2^(bits - 1) everywhere.
    rest: float32 (outputs, buckets), what the whole zero points leave of the offsets; None where nothing is left.
    """

    bits: int
    size: int
    q: np.ndarray
    scale: np.ndarray
    zero: np.ndarray | None
    rest: np.ndarray | None


def fuse(model: onnx.ModelProto, level: int = 1) -> tuple[onnx.ModelProto, int]:
    """Return the model with each product by weights of 4 or 8 bits as one MatMulNBits, and how many there were.

    level: 1 or 4, see BITS. The same integers and scales. Weights that lie otherwise than by rows of outputs, codebooks and other widths
    stay as they are. A table that is such a weight too (tied embeddings) is looked up in the same integers.
    """
    import onnx
    from onnx import helper, numpy_helper

    from ..export.edit import drop_unused, set_nodes

    made = onnx.ModelProto()
    made.CopyFrom(model)
    try:
        stored = read(made)
    except ValueError:  # integers that are not of edgekd's writing
        return model, 0
    turned = {n.output[0]: n.input[0] for n in made.graph.node if n.op_type == "Transpose" and n.input[0] in stored}
    blocks: dict[tuple[str, bool], Blocks | None] = {}
    tables = {n.input[0] for n in made.graph.node if n.op_type == "Gather" and not n.domain and _axis(n) == 0}
    written: set[str] = set()
    nodes: list[onnx.NodeProto] = []
    count = 0

    def store(name: str, values: np.ndarray) -> str:
        if name not in written:
            written.add(name)
            made.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    for node in made.graph.node:
        weight, rows = _weight(node, turned)
        if weight in stored and (weight, rows) not in blocks:
            made_of = blocks_of(stored[weight], rows)
            blocks[weight, rows] = made_of if made_of is not None and made_of.bits in BITS[level] else None
        found = blocks.get((weight, rows))
        if found is None:
            nodes.append(node)
            continue
        count += 1
        outputs, inputs = found.q.shape
        x, y, name = node.input[0], node.output[0], f"{weight}.nbits" if rows else f"{weight}.columns.nbits"
        if weight in tables and rows and found.rest is None:  # stored once, as the matrix that is looked up in
            flat, cut = (
                store(f"{name}.rows", _nibbles(found.q, found.bits)),
                store(f"{name}.shape", np.array(_bytes(found).shape)),
            )
            if name not in written:
                nodes.append(helper.make_node("Reshape", [flat, cut], [name], name=name))
                written.add(name)
        else:
            store(name, _bytes(found))
        given = [x, name, store(f"{name}.scale", found.scale)]
        if found.zero is not None:
            given.append(store(f"{name}.zero", _nibbles(found.zero, found.bits)))
        bias = list(node.input[2:3]) if node.op_type == "Gemm" and len(node.input) > 2 and node.input[2] else []
        ends = [f"{y}.whole"] * (found.rest is not None) + [f"{y}.product"] * bool(bias) + [y]
        shape = {"K": inputs, "N": outputs, "bits": found.bits, "block_size": found.size, "accuracy_level": level}
        nodes.append(helper.make_node(OPERATOR, given, [ends[0]], name=node.name, domain=DOMAIN, **shape))
        if found.rest is not None:
            buckets = found.rest.shape[1]
            ones = store(f"sums.{inputs}.{buckets}", np.repeat(np.eye(buckets, dtype=np.float32), inputs // buckets, axis=0))
            sums = f"{x}.sums.{buckets}"
            if sums not in written:
                written.add(sums)
                nodes.append(helper.make_node("MatMul", [x, ones], [sums], name=sums))
            nodes.append(
                helper.make_node("MatMul", [sums, store(f"{name}.rest", found.rest.T)], [f"{y}.rest"], name=f"{y}.rest")
            )
            nodes.append(helper.make_node("Add", [ends[0], f"{y}.rest"], [ends[1]], name=f"{y}.complete"))
        if bias:
            nodes.append(helper.make_node("Add", [ends[-2], *bias], [y], name=f"{y}.biased"))
    if not count:
        return model, 0
    for place, node in enumerate(nodes):
        one = blocks.get((node.input[0], True)) if node.op_type == "Gather" and node.input[0] in tables else None
        if one is not None and one.rest is None and _axis(node) == 0:
            nodes[place] = _looked_up(node, one)
    set_nodes(made, nodes)
    drop_unused(made)
    if all(used.domain != DOMAIN for used in made.opset_import):
        made.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return made, count


def _looked_up(node: onnx.NodeProto, one: Blocks) -> onnx.NodeProto:
    """Return the look-up of rows in a weight that a product has stored."""
    from onnx import helper

    name = f"{node.input[0]}.nbits"
    given = [f"{name}.rows", node.input[1], f"{name}.scale"]
    given += [f"{name}.zero"] if one.zero is not None else []
    told = {"bits": one.bits, "block_size": one.size, "gather_axis": 0, "quantize_axis": 1}
    return helper.make_node(LOOKUP, given, list(node.output), name=node.name, domain=DOMAIN, **told)


def _axis(node: onnx.NodeProto) -> int:
    return next((a.i for a in node.attribute if a.name == "axis"), 0)


def blocks_of(one: Stored, rows: bool) -> Blocks | None:
    """Return a weight as MatMulNBits takes it; None where it cannot. rows: whether its rows are the outputs, or its columns."""
    if isinstance(one, Symmetric):
        return _of_symmetric(one, rows)
    if one.points is not None or one.bits not in (4, 8) or one.levels != 1 << one.bits or len(one.shape) != 2 or not rows:
        return None
    return _of_encoded(one)


def _of_symmetric(one: Symmetric, rows: bool) -> Blocks | None:
    if one.q.ndim != 2 or one.axis not in (None, 0 if rows else 1):
        return None
    q = (one.q if rows else one.q.T).astype(np.int16) + 128
    size = _block(q.shape[1])
    if size is None:
        return None
    scale = np.broadcast_to(one.scale.reshape(-1, 1), (len(q), q.shape[1] // size))
    return Blocks(8, size, q.astype(np.uint8), scale.astype(np.float32), None, None)


def _of_encoded(one: Encoded) -> Blocks | None:
    outputs, inputs = one.shape
    length = one.indices.shape[1]
    if len(one.scale) == 1:
        length = inputs  # of the whole tensor: every row the same
    if one.indices.size != one.count or inputs % length:
        return None
    size = _block(gcd(length, inputs))
    if size is None:
        return None
    buckets = inputs // length

    def each(values: np.ndarray) -> np.ndarray:  # one a bucket -> (outputs, buckets)
        return np.broadcast_to(values.reshape(-1, 1), (outputs, 1)) if len(values) == 1 else values.reshape(outputs, buckets)

    def a_block(values: np.ndarray) -> np.ndarray:
        return np.repeat(values, length // size, axis=1)

    scale = each(one.scale)
    offset = np.zeros_like(scale) if one.offset is None else each(one.offset)
    half, levels = 1 << (one.bits - 1), 1 << one.bits
    with np.errstate(divide="ignore", invalid="ignore"):  # a scale of zero has no zero point
        zero = np.rint(-offset / scale)
    usable = bool((np.isfinite(zero) & (zero >= 0) & (zero < levels)).all())
    zero = zero if usable else np.full_like(scale, half)
    rest = (offset.astype(np.float64) + scale.astype(np.float64) * zero).astype(np.float32)
    nothing = bool((np.abs(rest) <= np.abs(scale) * 1e-4).all())  # the offset was -scale * zero, rounded to float32
    if not nothing:  # then the remainder carries everything, and zero points of their own would be bytes for nothing
        zero = np.full_like(scale, half)
        rest = (offset.astype(np.float64) + scale.astype(np.float64) * half).astype(np.float32)
    points = None if (zero == half).all() else a_block(zero).astype(np.uint8)
    q = one.indices.reshape(outputs, inputs)
    return Blocks(one.bits, size, q, a_block(scale).astype(np.float32), points, None if nothing else rest)


def _block(length: int) -> int | None:
    """Return the largest block size that the operator takes and that divides a length; None where none does."""
    return next((size for size in (128, 64, 32, 16) if length % size == 0), None)


def _weight(node: onnx.NodeProto, turned: dict[str, str]) -> tuple[str, bool]:
    """Return (the weight that a product multiplies by, whether its rows are the outputs); ("", False) for anything else."""
    if node.domain or node.op_type not in ("MatMul", "Gemm"):
        return "", False
    told = {a.name: a for a in node.attribute}
    rows = False
    if node.op_type == "Gemm":
        if any(key in told and told[key].f != 1 for key in ("alpha", "beta")) or ("transA" in told and told["transA"].i):
            return "", False
        rows = "transB" in told and bool(told["transB"].i)
    name = node.input[1]
    return (turned[name], not rows) if name in turned else (name, rows)


def _bytes(found: Blocks) -> np.ndarray:
    """Return (outputs, blocks, bytes of a block): two indices of 4 bits a byte, the first in the lower half."""
    outputs, inputs = found.q.shape
    cut = found.q.reshape(outputs, inputs // found.size, found.size)
    return _nibbles(cut, found.bits)


def _nibbles(values: np.ndarray, bits: int) -> np.ndarray:
    """Return uint8 values, along the last axis two a byte where they have 4 bits; an odd end is filled up with a zero."""
    if bits == 8:
        return values
    values = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, values.shape[-1] % 2)])
    return values[..., ::2] | values[..., 1::2] << np.uint8(4)
