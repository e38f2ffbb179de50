"""Attention over a key-value cache as one operator of ONNX Runtime, GroupQueryAttention, instead of the thirty nodes of an exported one.

As exported, a step copies every layer's cache to append one token, and copies it again for each query head that shares a key head, before
it multiplies. The operator reads each key once for all its heads, leaves out what lies after a token instead of masking it, and
appends in place where past and present are the same memory (ort_cache.py). Rotary positions become one operator for queries and keys each.

What a file takes and makes stays what it was, with two differences:
- A cache may be longer than the past. How many of its positions count is told by `attention_mask`, which covers past + tokens; the
  next ones are written after those, and `present` is as long as the cache. So past and present can be one array, bound to both.
  A decoder behind an encoder has no such mask, as all its rows begin at once: `past_length` tells the positions before the tokens
  there, an input that may be left out, and then is the cache's length.
- Several tokens behind a cache that is not empty are taken from one row at a time (ONNX Runtime 1.31 refuses more).
Where all a token could see is padding, its values are others than the exported graph's; nothing else looks at them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from . import ort_causal, ort_rotary
from .ort_causal import IDS, MASK, PAST, Causal
from .ort_match import DOMAIN, FAR, HEADS, Nodes, integer, order, with_domain

if TYPE_CHECKING:
    import onnx

OPERATOR = "GroupQueryAttention"
LENGTH = "past_length"
"""An input int64 (1,) of graphs without `attention_mask`: how many positions of the caches count. Left out, or below 0: all."""

CONTRACT = (
    "may be longer than the past: attention_mask covers past + tokens (where there is none, past_length tells the past), new positions "
    "are written behind the past, present is as long; several tokens behind a past: one row at a time"
)
"""What an artifact says of such a file's `past_key_values`, in words."""


def fuse(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Return the model with all its attention as nodes of this operator, and how many there are; all or none.

    Recognised is softmax(q k^T scale + mask) v with q (batch, heads, tokens, size), k and v what the graph's caches hold and the tokens'
    own after that, each shared by so many heads; the mask hides what lies after a token and what `attention_mask`, where there is one,
    says is padding; scores may be capped, cap tanh(score / cap). Caches of what an encoder read are others. A window on the last
    tokens, or a cache that anything else reads, and the model stays as it is.
    """
    import onnx

    from ..export.edit import drop_unused, set_nodes

    given = {value.name for value in model.graph.input}
    caches = {name for name in given if name.startswith(PAST) and ".encoder." not in name}
    if not caches or IDS not in given:
        return model, 0
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = _Graph(made.graph)
    nodes: list[onnx.NodeProto] = []
    read: set[str] = set()
    presents: set[str] = set()
    for node in made.graph.node:
        found = graph.attention(node)
        nodes += [node] if found is None else graph.fused(node, found)
        if found is not None:
            read |= {found.keys.past, found.values.past}
            presents |= {found.keys.present, found.values.present}
    if read != caches:
        return model, 0
    nodes = [node for node in nodes if not presents & set(node.output) or node.op_type == OPERATOR]
    if MASK not in given:
        nodes = graph.told_lengths(caches, nodes)
    set_nodes(made, nodes)
    drop_unused(made)
    if any((caches | presents) & set(node.input) and not _reads_no_positions(node) for node in made.graph.node):
        return model, 0
    with_domain(made)
    return made, len(caches) // 2


def _reads_no_positions(node: onnx.NodeProto) -> bool:
    """Say whether a node may read a cache that is longer than its past: the operator, and what asks for its other axes."""
    return (
        node.op_type == OPERATOR
        or node.output[0].endswith(_WHOLE)
        or (node.op_type == "Shape" and 0 <= integer(node, "start", 0) < integer(node, "end", FAR) <= 2)
    )


_WHOLE = ".whole"
"""Ends the name of a cache's own length, which counts where no other is given."""


@dataclass(frozen=True)
class _Cached:
    """Keys or values. new: of the tokens read, (batch, heads, tokens, size). sharing: how many query heads read each head."""

    past: str
    present: str
    new: str
    sharing: int


@dataclass(frozen=True)
class _Attention:
    """What was recognised. q: (batch, heads, tokens, size). cap: of the scores, 0 for none."""

    q: str
    keys: _Cached
    values: _Cached
    scale: float
    cap: float
    mask: Causal


class _Graph(Nodes):
    """A graph in which attention over a cache is looked for."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        super().__init__(graph)
        self.outputs = {value.name for value in graph.output}

    # ---- recognising

    def attention(self, last: onnx.NodeProto) -> _Attention | None:
        """Recognise the attention that ends in this Reshape; None where there is none."""
        ends_in = self.softmax(last)
        added = self.made_by(ends_in[1].input[0], "Add") if ends_in else None
        if ends_in is None or added is None:
            return None
        weighted = ends_in[0]
        for scores, mask in (tuple(added.input), tuple(added.input)[::-1]):
            plain, cap = self.capped(scores)
            plain, scale = self.scaled(plain)
            product, hidden = self.made_by(plain, "MatMul"), ort_causal.find(self, mask)
            across = self.made_by(product.input[1], "Transpose") if product else None
            if product is None or hidden is None or across is None or order(across) != [0, 1, 3, 2]:
                continue
            keys, values = self._cached(across.input[0]), self._cached(weighted.input[1])
            if keys and values and keys.sharing == values.sharing and self._heads(keys.past) == self._heads(values.past):
                return _Attention(product.input[0], keys, values, scale, cap, hidden)
        return None

    def _cached(self, name: str) -> _Cached | None:
        """Recognise keys or values: a cache with the tokens' own behind it, repeated for the heads that share them."""
        name, sharing = self.repeated(name)
        joined = self.made_by(name, "Concat")
        if joined is None or name not in self.outputs or len(joined.input) != 2 or integer(joined, "axis", 0) not in (2, -2):
            return None
        past, new = joined.input
        return _Cached(past, name, new, sharing) if past.startswith(PAST) and self._heads(past) else None

    def _heads(self, cache: str) -> tuple[int, int] | None:
        """Return (heads, size) of a cache, an input of the graph; None where they are not fixed."""
        axes = self.inputs.get(cache, ())
        found = (axes[1].dim_value, axes[3].dim_value) if len(axes) == 4 else (0, 0)
        return found if min(found) > 0 else None

    # ---- writing

    def fused(self, last: onnx.NodeProto, found: _Attention) -> list[onnx.NodeProto]:
        """Return the nodes that stand for an attention, whose last one was `last`."""
        from onnx import helper

        end, made = last.output[0], self._shared(found)
        kept = self._heads(found.keys.past)
        assert kept is not None  # it was recognised
        groups, heads = kept[0], kept[0] * found.keys.sharing
        q = self._tokens(found.q, heads, f"{end}.queries", made)
        k = self._tokens(found.keys.new, groups, f"{end}.keys", made)
        v = self._flat(found.values.new, f"{end}.values", made)
        taken = [
            q,
            k,
            v,
            found.keys.past,
            found.values.past,
            "cached.last",
            "cached.total",
        ]
        if found.mask.padded:
            taken += ["", "", "", self._bias(found.mask.masked, made)]
        given = [end, found.keys.present, found.values.present]
        told = {"num_heads": heads, "kv_num_heads": groups, "scale": found.scale}
        if found.cap:
            told["softcap"] = found.cap
        made.append(helper.make_node(OPERATOR, taken, given, name=last.name, domain=DOMAIN, **told))
        return made

    def _shared(self, found: _Attention) -> list[onnx.NodeProto]:
        """Return, once, the nodes that say how many positions count: `cached.total` (1,) and, less 1, `cached.last` (batch,)."""
        made: list[onnx.NodeProto] = []
        if found.mask.padded:
            length = self.then(made, "Shape", [MASK], "cached.length", start=1, end=2)
        else:
            past = self.then(made, "Shape", [found.keys.past], "cached.past", start=2, end=3)
            tokens = self.then(made, "Shape", [IDS], "cached.tokens", start=1, end=2)
            length = self.then(made, "Add", [past, tokens], "cached.length")
        rows = self.then(made, "Shape", [IDS], "cached.rows", start=0, end=1)
        total = self.then(made, "Cast", [length], "cached.total", to=6)
        less = self.then(made, "Sub", [total, self.store("cached.one", np.array([1], np.int32))], "cached.less")
        self.then(made, "Expand", [less, rows], "cached.last")
        return made

    def told_lengths(self, caches: set[str], nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """Return the nodes with LENGTH, where it is given, as the length of each cache. It becomes an input with a value of its own."""
        from onnx import TensorProto, helper

        self.graph.input.append(helper.make_tensor_value_info(self.store(LENGTH, np.array([-1])), TensorProto.INT64, [1]))
        made: list[onnx.NodeProto] = []
        self.then(made, "Less", [LENGTH, self.store("cached.nothing", np.array([0]))], "cached.untold")
        for node in nodes:
            made.append(node)
            if node.op_type == "Shape" and node.input[0] in caches and integer(node, "start", 0) == 2:
                counted, node.output[0] = node.output[0], node.output[0] + _WHOLE
                node.name = node.output[0]
                made.append(helper.make_node("Where", ["cached.untold", node.output[0], LENGTH], [counted], name=counted))
        return made

    def _bias(self, masked: float, made: list[onnx.NodeProto]) -> str:
        """Return what hides padding, (batch, 1, tokens, past + tokens)."""
        name = f"cached.bias.{masked:g}"
        nothing, value = (self.store(f"{name}.{what}", np.float32(number)) for what, number in (("real", 0), ("value", masked)))
        real = self.then(made, "Cast", [MASK], "cached.real", to=9)
        hidden = self.then(made, "Where", [real, nothing, value], f"{name}.row")
        wide = self.then(made, "Unsqueeze", [hidden, self.store("cached.axes", np.array([1, 2]))], f"{name}.wide")
        tokens = self.then(made, "Shape", [IDS], "cached.tokens", start=1, end=2)
        single = self.store("cached.single", np.array([1]))
        shape = self.then(made, "Concat", [single, single, tokens, single], "cached.shape", axis=0)
        return self.then(made, "Expand", [wide, shape], name)

    def _tokens(self, name: str, heads: int, end: str, made: list[onnx.NodeProto]) -> str:
        """Return queries or keys as (batch, tokens, heads x size), turned by their positions where they were."""
        found = ort_rotary.find(self, name)
        if found is None:
            return self._flat(name, end, made)
        return ort_rotary.write(self, found, self._flat(found.x, f"{end}.plain", made), heads, end, made)

    def _flat(self, name: str, end: str, made: list[onnx.NodeProto]) -> str:
        """Return (batch, heads, tokens, size) as (batch, tokens, heads x size)."""
        turned = self.made_by(name, "Transpose")
        if turned is not None and order(turned) == HEADS:
            cut = self.made_by(turned.input[0], "Reshape")
            if cut is not None and self._cuts_heads(cut):
                return cut.input[0]
            name = turned.input[0]
        else:
            name = self.then(made, "Transpose", [name], f"{end}.turned", perm=HEADS)
        return self.then(made, "Reshape", [name, self.store("cached.joined", np.array([0, 0, -1]))], f"{end}.flat")

    def _cuts_heads(self, cut: onnx.NodeProto) -> bool:
        """Say whether a Reshape makes (batch, tokens, heads, size) of a tensor that has the first two axes already."""
        shape = self.made_by(cut.input[1], "Concat")
        maker = self.makers.get(cut.input[0])
        return shape is not None and len(shape.input) == 4 and maker is not None and maker.op_type in _LINEAR


_LINEAR = {"MatMul", "MatMulNBits", "Add", "Mul", "Split", "SplitToSequence"}
"""What makes queries, keys and values: products of (batch, tokens, width), with a bias, and their parts."""
