"""An encoder's attention of shared keys as MultiHeadAttention of ONNX Runtime, which never holds all scores at once.

So that operator does where it is given no mask (Dao et al. 2022, arXiv:2205.14135); with one it holds them, and is slower than plain
nodes. So the mask goes where no input is needed: each key gets one number more, what its scores are to be lowered by, and each query a
1 to multiply it. Queries that share keys are queries of one head here (ort_shared.py). One layer of 6 heads of 64, of which two share
each key, one thread of an AMD EPYC with AVX-512, ONNX Runtime 1.31: 4096 tokens take 0.29 s where plain nodes take 0.38, 1024 tokens 18 ms
for 22, and at 128 there is no difference. Within an encoder of 8 such layers, width 384, 4.2 s of processor time for 6.6 at 4096 tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from . import ort_rotary, ort_shared
from .ort_causal import IDS
from .ort_match import DOMAIN, HEADS, Nodes, order

if TYPE_CHECKING:
    import onnx

    from .ort_shared import Attention

NAME = "MultiHeadAttention of shared keys"
_GROUPED = [0, 1, 3, 2, 4]
"""(batch, tokens, groups, sharing, size) -> (batch, tokens, sharing, groups, size), and back."""


def fuse(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Return the model with each attention of shared keys as this operator, and how many there were.

    Keys are of the tokens that ask (keys out of a cache are read by few queries: there is nothing to win), scores have no cap, which the
    operator does not know.
    """
    return ort_shared.replaced(model, _written)


@dataclass(frozen=True)
class _Heads:
    """Heads before they were cut: x (batch, tokens, heads x size). turned: by their positions, or None."""

    x: str
    size: int
    turned: ort_rotary.Rotated | None


def _written(graph: Nodes, last: onnx.NodeProto, found: Attention) -> list[onnx.NodeProto]:
    """Return the operator and what is around it; nothing where it does not do."""
    from onnx import helper

    q, k, v = (_heads(graph, name) for name in (found.q, found.k, found.v))
    if found.cap or q is None or k is None or v is None or not q.size == k.size == v.size:
        return []
    end, size, groups, sharing = last.output[0], v.size, found.groups, found.sharing
    made: list[onnx.NodeProto] = []

    def then(kind: str, inputs: list[str], what: str, **told: int | list[int]) -> str:
        return graph.then(made, kind, inputs, f"{end}.{what}", **told)

    def cut(name: str, what: str, *lengths: int) -> str:
        shape = graph.store(f"flash.{'.'.join(map(str, lengths))}", np.array(lengths))
        return then("Reshape", [name, shape], what)

    queries = cut(_turned(graph, q, groups * sharing, f"{end}.queries", made), "queries.cut", 0, 0, groups, sharing, size)
    queries = then("Concat", [queries, _ones(graph, found, made)], "queries.longer", axis=-1)
    queries = then("Transpose", [queries], "queries.rows", perm=_GROUPED)
    queries = cut(queries, "queries.flat", 0, -1, groups * (size + 1))
    keys = cut(_turned(graph, k, groups, f"{end}.keys", made), "keys.cut", 0, 0, groups, size)
    keys = then("Concat", [keys, _lowered(graph, found, made)], "keys.longer", axis=-1)
    keys = cut(keys, "keys.flat", 0, 0, groups * (size + 1))
    told = {"num_heads": groups, "scale": found.scale}
    result = f"{end}.rows"
    made.append(helper.make_node("MultiHeadAttention", [queries, keys, v.x], [result], name=result, domain=DOMAIN, **told))
    turned = then("Transpose", [cut(result, "cut", 0, -1, sharing, groups, size)], "turned", perm=_GROUPED)
    joined = graph.store("flash.joined", np.array([0, 0, -1]))
    return [*made, helper.make_node("Reshape", [turned, joined], [end], name=last.name)]


def _heads(graph: Nodes, name: str) -> _Heads | None:
    """Return what (batch, heads, tokens, size) is cut from; None where it is made otherwise."""
    turned = ort_rotary.find(graph, name)
    across = graph.made_by(turned.x if turned else name, "Transpose")
    cut = graph.made_by(across.input[0], "Reshape") if across and order(across) == HEADS else None
    size = graph.end(cut.input[1], 1) if cut else None
    return _Heads(cut.input[0], size[0], turned) if cut and size and size[0] > 0 else None


def _turned(graph: Nodes, heads: _Heads, count: int, end: str, made: list[onnx.NodeProto]) -> str:
    return ort_rotary.write(graph, heads.turned, heads.x, count, end, made) if heads.turned else heads.x


def _ones(graph: Nodes, found: Attention, made: list[onnx.NodeProto]) -> str:
    """Return the number 1 for each query, (batch, tokens, groups, sharing, 1)."""
    name = f"flash.ones.{found.groups}.{found.sharing}"
    tokens = graph.then(made, "Shape", [IDS], "flash.tokens")
    heads = graph.store(f"{name}.heads", np.array([found.groups, found.sharing, 1]))
    shape = graph.then(made, "Concat", [tokens, heads], f"{name}.shape", axis=0)
    return graph.then(made, "Expand", [graph.store("flash.one", np.float32(1)), shape], name)


def _lowered(graph: Nodes, found: Attention, made: list[onnx.NodeProto]) -> str:
    """Return what each key is lowered by before the scores' factor, (batch, keys, groups, 1): 0, or `hidden` where it is padding."""
    value = found.hidden / found.scale
    name = f"flash.lowered.{found.mask}.{found.groups}.{value!r}"
    real = graph.then(made, "Cast", [found.mask], f"{name}.real", to=9)
    choices = [graph.store("flash.nothing", np.float32(0)), graph.store(f"{name}.value", np.float32(value))]
    each = graph.then(made, "Where", [real, *choices], f"{name}.each")
    wide = graph.then(made, "Unsqueeze", [each, graph.store("flash.axes", np.array([2, 3]))], f"{name}.wide")
    return graph.then(made, "Expand", [wide, graph.store(f"{name}.groups", np.array([1, 1, found.groups, 1]))], name)
