"""The arithmetic of one ONNX node: multiply-accumulates of matrix work, and the other operations.

Conventions, the same as in bench/README.md:
- A multiply-accumulate (MAC) is one product and one sum: 2 flops. Convolutions count their padding, attention what its mask hides.
- Everything else that computes is 1 flop for each element of its output, however costly (an exponential is 1).
- What reduces (sums, maxima, softmax, normalization) is 1 flop for each element that goes in; pooling each element of each window.
- What only moves, cuts or renames is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

Shape = tuple[int, ...]

VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Dropout", "Optional", "OptionalGetElement"})
"""The same bytes by another name: a runtime does nothing for them."""

MOVES = VIEWS | {
    "Shape", "Size", "Cast", "CastLike", "Transpose", "Concat", "Split", "Slice", "Gather", "GatherElements", "GatherND",
    "Scatter", "ScatterElements", "ScatterND", "Expand", "Tile", "Pad", "Constant", "ConstantOfShape", "EyeLike", "Range", "NonZero",
    "DepthToSpace", "SpaceToDepth", "ReverseSequence", "Compress", "OneHot", "Unique", "Col2Im", "CenterCropPad", "TensorScatter",
    "SequenceAt", "SequenceConstruct", "SequenceInsert", "SplitToSequence", "ConcatFromSequence", "BitCast",
}  # fmt: skip

REDUCES = frozenset({
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
    "ReduceSumSquare", "ArgMax", "ArgMin", "CumSum", "CumProd", "TopK", "Softmax", "LogSoftmax", "Hardmax", "GlobalAveragePool",
    "GlobalMaxPool", "GlobalLpPool", "LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization",
    "LpNormalization", "MeanVarianceNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization", "QLinearGlobalAveragePool", "QLinearSoftmax", "QLinearReduceMean", "GroupNorm", "SkipGroupNorm",
})  # fmt: skip

POOLS = frozenset({"MaxPool", "AveragePool", "LpPool", "QLinearAveragePool", "NhwcMaxPool"})

_CONVOLUTIONS = {"Conv": 1, "FusedConv": 1, "NhwcFusedConv": 1, "ConvInteger": 1, "QLinearConv": 3, "DeformConv": 1}
"""Operator -> which input holds the weights (out, in / groups, *kernel)."""
_PRODUCTS = {
    "MatMul", "FusedMatMul", "TransposeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul",
    "QAttentionMatMul",
}  # fmt: skip
_GEMMS = {"Gemm", "FusedGemm", "QGemm", "GemmFloat8"}
_NBITS = {"MatMulNBits", "MatMulBnb4", "MatMulFpQ4"}
_RECURRENT = {"LSTM": 4, "GRU": 3, "RNN": 1, "DynamicQuantizeLSTM": 4}

INTEGER = frozenset({
    "ConvInteger", "QLinearConv", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "QGemm", "QAttention",
    "DynamicQuantizeLSTM",
})  # fmt: skip
"""Operators whose matrix work is on 8-bit integers, always."""


class Unknown(Exception):
    """A shape that the count needs is not known: names the tensor."""


def work(node: onnx.NodeProto, shape_of: Callable[[str], Shape]) -> tuple[int, int]:
    """Return (MACs, other flops) of a node. shape_of: tensor name -> shape; raises Unknown, and so does this."""
    kind = node.op_type
    if kind in MOVES:
        return 0, 0
    ins = [shape_of(name) if name else () for name in node.input]  # () also for what is left out
    outs = [shape_of(name) for name in node.output if name]
    first = prod(outs[0]) if outs else 0
    told = {attribute.name: attribute for attribute in node.attribute}
    if kind in _CONVOLUTIONS:
        weights = ins[_CONVOLUTIONS[kind]]
        bias = {"QLinearConv": 8, "ConvInteger": 9, "DeformConv": 3}.get(kind, 2)
        return first * prod(weights[1:]), first * _has(node, bias)
    if kind == "ConvTranspose":
        return prod(ins[0]) * prod(ins[1][1:]), first * _has(node, 2)
    if kind in _PRODUCTS:
        turned = bool(told["transA"].i) if "transA" in told else False
        return first * (ins[0][-2] if turned else ins[0][-1]), first * (kind == "DynamicQuantizeMatMul" and _has(node, 4))
    if kind in _GEMMS:
        turned = bool(told["transA"].i) if "transA" in told else False
        return first * ins[0][0 if turned else 1], first * _has(node, 6 if kind == "QGemm" else 2)
    if kind in _NBITS:
        return first * told["K"].i, first * _has(node, 5)
    if kind in _RECURRENT:
        return _recurrent(_RECURRENT[kind], ins, told)
    if kind == "Einsum":
        return einsum(told["equation"].s.decode(), ins)
    if kind in _ATTENTIONS:
        return _ATTENTIONS[kind](node, ins, outs, told)
    if kind in POOLS:
        return 0, first * prod(told["kernel_shape"].ints)
    if kind in REDUCES:
        return 0, prod(ins[0])
    return 0, sum(map(prod, outs))


def _has(node: onnx.NodeProto, place: int) -> bool:
    return len(node.input) > place and bool(node.input[place])


def _recurrent(gates: int, ins: Sequence[Shape], told: dict[str, Any]) -> tuple[int, int]:
    """input (steps, batch, features), or with the first two exchanged; weights (directions, gates x hidden, features)."""
    x, w = ins[0], ins[1]
    hidden = told["hidden_size"].i
    rows = x[0] * x[1] * w[0] * gates * hidden
    return rows * (x[2] + hidden), rows  # each gate's function once


def _attention(batch: int, heads: int, asked: int, seen: int, key: int, value: int) -> tuple[int, int]:
    """Scores and the weighted sum of values; a softmax between. key, value: width of one head."""
    scores = batch * heads * asked * seen
    return scores * (key + value), scores


def _onnx_attention(node: onnx.NodeProto, ins: Sequence[Shape], outs: Sequence[Shape], told: dict[str, Any]) -> tuple[int, int]:
    """ai.onnx Attention: q, k, v (batch, heads, length, width), or (batch, length, heads x width); past keys are input 4."""
    if node.domain == "com.microsoft":
        return _fused_attention(node, ins, outs, told)
    q, k, v = ins[:3]
    past = _length(ins, 4, 2)
    if len(q) == 4:
        return _attention(q[0], q[1], q[2], k[2] + past, q[3], v[3])
    heads, of_keys = told["q_num_heads"].i, told["kv_num_heads"].i
    return _attention(q[0], heads, q[1], k[1] + past, q[2] // heads, v[2] // of_keys)


def _fused_attention(
    node: onnx.NodeProto, ins: Sequence[Shape], outs: Sequence[Shape], told: dict[str, Any]
) -> tuple[int, int]:
    """com.microsoft Attention: input (batch, length, in), weights (in, 3 x hidden); the projection is inside."""
    x, w, heads = ins[0], ins[1], told["num_heads"].i
    past = _length(ins, 8 if node.op_type == "QAttention" else 4, 3)  # (2, batch, heads, length, width)
    width = w[1] // 3 // heads
    macs, flops = _attention(x[0], heads, x[1], x[1] + past, width, width)
    return macs + prod(x) * w[1], flops + prod(x[:2]) * w[1]


def _multi_head(node: onnx.NodeProto, ins: Sequence[Shape], outs: Sequence[Shape], told: dict[str, Any]) -> tuple[int, int]:
    """com.microsoft MultiHeadAttention and GroupQueryAttention: inputs projected already.

    q (batch, length, heads x width), or with keys and values inside; k (batch, length, width), or (batch, heads, length, width).
    """
    q, heads, width = ins[0], told["num_heads"].i, outs[0][2] // told["num_heads"].i
    k = ins[1] if len(ins) > 1 else ()
    seen = q[1] if not k else k[2] if len(k) == 4 else k[1]
    if len(outs) > 1 and len(outs[1]) == 4:
        seen = outs[1][2]  # kept for the next call: what was there before is among it
    else:
        seen += _length(ins, 3 if node.op_type == "GroupQueryAttention" else 6, 2)
    return _attention(q[0], heads, q[1], seen, q[2] // heads if k and len(q) == 3 else width, width)


def _length(ins: Sequence[Shape], place: int, axis: int) -> int:
    """Return the length of what was kept from calls before, 0 where nothing is given."""
    return ins[place][axis] if len(ins) > place and ins[place] else 0


_ATTENTIONS: dict[str, Callable[..., tuple[int, int]]] = {
    "Attention": _onnx_attention,
    "QAttention": _fused_attention,
    "MultiHeadAttention": _multi_head,
    "GroupQueryAttention": _multi_head,
}


def einsum(equation: str, shapes: Sequence[Shape]) -> tuple[int, int]:
    """Return (MACs, other flops) of an einsum, two operands at a time from the left.

    "bij,bjk->bik" is a batch of matrix products: b i j k MACs. Two operands none of whose axes is summed: a product an element.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms: list[str] = []
    lengths: dict[str, int] = {}
    for term, shape in zip(left.split(","), shapes, strict=True):
        if "..." in term:
            spare = len(shape) - len(term.replace("...", ""))
            # axes behind the dots count from the right, as broadcasting does
            term = term.replace("...", "".join(str(spare - 1 - place) for place in range(spare)))
        terms.append(term)
        for letter, length in zip(term, shape, strict=True):
            lengths[letter] = max(length, lengths.get(letter, 1))
    if arrow:
        kept = set(right.replace("...", "")) | {letter for letter in lengths if letter.isdigit() and "..." in right}
    else:
        joined = "".join(terms)
        kept = {letter for letter in joined if joined.count(letter) == 1 or letter.isdigit()}
    if len(terms) == 1:
        every = set(terms[0])
        return 0, prod(lengths[letter] for letter in every) if every - kept else 0
    macs = flops = 0
    so_far = set(terms[0])
    for place, term in enumerate(terms[1:], 2):
        union = so_far | set(term)
        stay = union & kept.union(*map(set, terms[place:]))
        size = prod(lengths[letter] for letter in union)
        macs, flops = (macs + size, flops) if union - stay else (macs, flops + size)
        so_far = stay
    return macs, flops
