"""Indices as bytes, exactly `bits` each, and the ONNX function that turns the bytes back into weights.

The function is made of standard operations (opset 18 and later) and stands once in a file, however many weights use it. All
that goes in is constant, so ONNX Runtime computes it when it loads the file, and nothing of it is left when the model runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

DOMAIN = "edgekd"


def widths(bits: int) -> list[int]:
    """Return the powers of two whose sum is `bits`, the narrowest first: 3 -> [1, 2], 4 -> [4]. Each divides a byte."""
    return [width for width in (1, 2, 4, 8) if bits & width]


def pack(indices: np.ndarray, bits: int) -> np.ndarray:
    """Return the bytes that hold the indices, `bits` bytes for every 8; the last 8 are filled up with zeros.

    indices: uint8, any shape, each below 2 ** bits, taken row by row. Eight indices are cut into fields of 1, 2 and 4 bits
    (those that make up `bits`, the lowest bits first), which take 1, 2 and 4 bytes, one field after the other. In a byte the
    first index has the lowest bits. So indices of 1, 2, 4 and 8 bits simply follow each other.
    """
    flat = np.concatenate([indices.reshape(-1), np.zeros(-indices.size % 8, np.uint8)])
    parts, below = [], 0
    for width in widths(bits):
        field = (flat >> below & (1 << width) - 1).reshape(-1, 8 // width)
        parts.append(np.bitwise_or.reduce(field << np.arange(0, 8, width, dtype=np.uint8), axis=1).reshape(-1, width))
        below += width
    return np.concatenate(parts, axis=1).reshape(-1)


def function_name(bits: int, codebook: bool) -> str:
    """Return the name of the ONNX function for these indices, in DOMAIN."""
    return f"Codebook{bits}" if codebook else f"Uniform{bits}"


def function(bits: int, codebook: bool, opset: int) -> onnx.FunctionProto:
    """Return the ONNX function (packed, ranges[, points]) -> weights, of attributes buckets and shape.

    packed: what pack() made of the indices (buckets, size). ranges: float (buckets, 2), scale and offset. points: float
    (levels,), the values of a codebook; without one an index is its own value. buckets: [buckets, size]. shape: of the weights.
    """
    import onnx

    values = "n = Cast <to = 6> (m) v = Gather (points, n)" if codebook else "v = Cast <to = 1> (m)"
    text = f"""<domain: "{DOMAIN}", opset_import: ["" : {opset}]>
    {function_name(bits, codebook)} <buckets, shape> (packed, ranges{", points" * codebook}) => (weights) {{
        first = Constant <value_ints = [0]> ()
        line = Constant <value_ints = [-1]> ()
        {_unpack(bits)}
        rows = Constant <value_ints: ints = @buckets> ()
        a = ReduceProd (rows)
        k = Slice (i, first, a)
        m = Reshape (k, rows)
        {values}
        scale, offset = Split <axis = 1, num_outputs = 2> (ranges)
        x = Mul (v, scale)
        y = Add (x, offset)
        dims = Constant <value_ints: ints = @shape> ()
        b = ReduceProd (dims)
        z = Reshape (y, line)
        w = Slice (z, first, b)
        weights = Reshape (w, dims)
    }}"""
    return onnx.parser.parse_function(text)


def _unpack(bits: int) -> str:
    """Return the lines that take `packed` apart into `i`, the indices in a line, with what fills up the last 8.

    Names are short because they are stored: the bytes of a field (f), each beside its shifts (s), cut off above (c), in a line
    (l), at their place in the index (h), together with the fields below (i).
    """
    if bits == 8:
        return "i = Identity (packed)"
    lines, below, made = ["tall = Constant <value_ints = [-1, 1]> ()"], 0, ""
    fields = widths(bits)
    parts = [f"p{width}" for width in fields] if len(fields) > 1 else ["packed"]
    if len(fields) > 1:
        lines += [f"eight = Constant <value_ints = [-1, {bits}]> ()", f"split = Constant <value_ints = {fields}> ()"]
        lines += ["g = Reshape (packed, eight)", f"{', '.join(parts)} = Split <axis = 1> (g, split)"]
    for part, width in zip(parts, fields, strict=True):
        shifts = [str(shift) for shift in range(0, 8, width)]
        last = below + width == bits
        lines += [
            f"f{width} = Reshape ({part}, tall)",
            f"by{width} = Constant <value = uint8[{len(shifts)}] {{{', '.join(shifts)}}}> ()",
            f's{width} = BitShift <direction = "RIGHT"> (f{width}, by{width})',
            f"mask{width} = Constant <value = uint8 {{{(1 << width) - 1}}}> ()",
            f"c{width} = BitwiseAnd (s{width}, mask{width})",
            f"{'i' if last and not below else f'l{width}'} = Reshape (c{width}, line)",
        ]
        if below:
            lines += [
                f"up{width} = Constant <value = uint8 {{{below}}}> ()",
                f'h{width} = BitShift <direction = "LEFT"> (l{width}, up{width})',
                f"{'i' if last else f'i{width}'} = BitwiseOr ({made}, h{width})",
            ]
        made = f"i{width}" if below else f"l{width}"
        below += width
    return "\n".join(lines)
